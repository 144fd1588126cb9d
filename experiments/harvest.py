"""How many labels reach an accuracy, in the order of `data harvest` and in random order; and how much poison it stops.

A linear probe on frozen features is trained on a few photographs of each class. Then rounds of labels are added: those
that the order of `data harvest` puts first, or an order of the literature, or a random one. The test fifth is never
ranked. A second table counts how many poisoned corrections are set apart, and how many honest ones.

    python experiments/harvest.py --data DIR              # class folders, such as TrashNet's images
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import t
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from trashsorting.core.correction import Correction
from trashsorting.data.harvest import find_poisoners, find_unlikely, rank_by_value
from trashsorting.training.backbone import embed

START, ROUND, SEEDS = 5, 40, 8  # Photographs of each class at first, labels of a round, repetitions
COMPONENTS = 128  # Principal components of the features, so that a probe is fitted in milliseconds


@dataclass(frozen=True)
class Round:
    """What is known when the next labels are chosen."""

    probabilities: np.ndarray  # (n, classes) of the pool, by the present probe
    pool: np.ndarray  # (n, features)
    known: np.ndarray  # (m, features) of the photographs that have a label
    rng: np.random.Generator

    @property
    def margins(self) -> np.ndarray:
        "The first probability less the second."
        ordered = np.sort(self.probabilities, axis=1)
        return ordered[:, -1] - ordered[:, -2]

    @property
    def predicted(self) -> np.ndarray:
        "Numbers of the classes."
        return self.probabilities.argmax(axis=1)


Order = Callable[[Round], np.ndarray]  # The indices of the pool to label next, the first ones first


def features_of(data: Path, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    "Features and classes of a folder; computed once."
    paths = sorted(path for path in data.glob("*/*") if path.suffix.lower() in (".jpg", ".png"))
    files = [path.relative_to(data).as_posix() for path in paths]
    if cache.is_file() and (stored := np.load(cache))["files"].tolist() == files:
        return stored["features"], np.array([path.parent.name for path in paths])
    features = embed(paths, progress=True)
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(cache, features=features, files=files)
    return features, np.array([path.parent.name for path in paths])


def fit(features: np.ndarray, labels: np.ndarray):
    return LogisticRegression(C=0.01, max_iter=300).fit(features, labels)


def at_random(state: Round) -> np.ndarray:
    return state.rng.permutation(len(state.pool))


def by_margin(state: Round) -> np.ndarray:
    "Margin sampling (Scheffer et al. 2001)."
    return np.argsort(state.margins)


def of_the_package(state: Round) -> np.ndarray:
    "The order of `data harvest`: the smallest margin of each predicted class in turn."
    return rank_by_value(state.margins, state.predicted.tolist())


def core_set(state: Round) -> np.ndarray:
    "k-center greedy (Sener and Savarese 2018): always the photograph that is furthest from all that are known."
    distances, order = cdist(state.pool, state.known).min(axis=1), []
    for _ in range(ROUND):
        order.append(int(distances.argmax()))
        distances = np.minimum(distances, cdist(state.pool, state.pool[order[-1:]])[:, 0])
    return np.array(order)


def badge(state: Round) -> np.ndarray:
    "BADGE (Ash et al. 2020): k-means++ over the gradients that the predicted classes would give."
    errors, order = state.probabilities - np.eye(state.probabilities.shape[1])[state.predicted], []
    squares = (errors**2).sum(axis=1) * (state.pool**2).sum(axis=1)
    distances = squares.copy()
    for _ in range(ROUND):
        at = (
            int(distances.argmax())
            if not order
            else int(state.rng.choice(len(distances), p=distances / distances.sum()))
        )
        order.append(at)
        products = (errors @ errors[at]) * (state.pool @ state.pool[at])  # a gradient is an outer product
        distances = np.minimum(distances, np.maximum(squares + squares[at] - 2 * products, 0))
    return np.array(order)


def typiclust(state: Round) -> np.ndarray:
    "TypiClust (Hacohen et al. 2022): the most typical photograph of each of the largest clusters with no label."
    everything = np.concatenate([state.pool, state.known])
    seed = int(state.rng.integers(2**31))
    clusters = KMeans(len(state.known) + ROUND, n_init=1, max_iter=20, random_state=seed).fit_predict(everything)
    covered, sizes = set(clusters[len(state.pool) :].tolist()), np.bincount(clusters)
    order = []
    for cluster in sorted(set(range(len(sizes))) - covered, key=lambda cluster: -sizes[cluster])[:ROUND]:
        members = np.flatnonzero(clusters[: len(state.pool)] == cluster)
        nearest = np.sort(cdist(state.pool[members], state.pool[members]), axis=1)[:, 1:21]
        order.append(members[nearest.mean(axis=1).argmin()] if len(members) > 1 else members[0])
    rest = np.setdiff1d(state.rng.permutation(len(state.pool)), order)
    return np.concatenate([order, rest]).astype(int)


def curve(features: np.ndarray, labels: np.ndarray, seed: int, order: Order, rounds: int) -> list[float]:
    "The accuracy before the first round, and after each."
    rng = np.random.default_rng(seed)
    at = rng.permutation(len(labels))
    test, pool = at[: len(at) // 5], at[len(at) // 5 :]
    known = np.concatenate([pool[labels[pool] == label][:START] for label in np.unique(labels)])
    pool, accuracies = np.setdiff1d(pool, known), []
    for _ in range(rounds + 1):
        probe = fit(features[known], labels[known])
        accuracies.append(float((probe.predict(features[test]) == labels[test]).mean()))
        probabilities = probe.predict_proba(features[pool])
        state = Round(probabilities, features[pool], features[known], rng)
        chosen = pool[order(state)[:ROUND]]
        known, pool = np.concatenate([known, chosen]), np.setdiff1d(pool, chosen)
    return accuracies


def share_of_labels(curves: np.ndarray, random: np.ndarray, n: int) -> float:
    "Labels for the mean accuracy that random order reaches with n of them, divided by n; infinite if never reached."
    given = ROUND * np.arange(curves.shape[1])  # curves: (seeds, rounds + 1), as those in random order
    target = np.interp(n, given, random.mean(axis=0))
    best = np.maximum.accumulate(curves.mean(axis=0))
    return float(np.interp(target, best, given, right=np.inf)) / n


def describe_share(curves: np.ndarray, random: np.ndarray, n: int) -> str:
    "The share and its 95 % interval, by a bootstrap of the seeds."
    draws = np.random.default_rng(0).integers(len(curves), size=(2000, len(curves)))
    shares = [share_of_labels(curves[draw], random[draw], n) for draw in draws]
    low, high = np.quantile(shares, [0.025, 0.975], method="nearest")
    return f"{share_of_labels(curves, random, n):.2f} ({low:.2f} to {high:.2f})"


def interval(values: list[float]) -> str:
    "Mean and 95 % interval of it (Student's t)."
    mean, half = np.mean(values), t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.2f} ({mean - half:.2f} to {mean + half:.2f})"


def show_labels(features: np.ndarray, labels: np.ndarray, rounds: int, numbers: list[int]) -> None:
    "The labels that each order needs for the mean accuracy of random order with these numbers of labels."
    orders = {
        "`data harvest`: margin, classes in turn": of_the_package,
        "margin": by_margin,
        "core-set": core_set,
        "BADGE": badge,
        "TypiClust": typiclust,
    }
    random = np.array([curve(features, labels, seed, at_random, rounds) for seed in range(SEEDS)])
    print(f"labels needed, as a share of those in random order; {SEEDS} seeds, {ROUND} labels a round\n")
    reached = [np.interp(n, ROUND * np.arange(rounds + 1), random.mean(axis=0)) for n in numbers]
    heads = (f"{target:.1%}, random with {n}" for n, target in zip(numbers, reached, strict=True))
    print("| order | " + " | ".join(heads) + " |\n|---|" + "---|" * len(numbers))
    for name, order in orders.items():
        curves = np.array([curve(features, labels, seed, order, rounds) for seed in range(SEEDS)])
        print(f"| {name} | " + " | ".join(describe_share(curves, random, n) for n in numbers) + " |", flush=True)


def corrections_of(labels: np.ndarray, predicted: np.ndarray, sources: list[str]) -> list[Correction]:
    return [
        Correction(day="2026-05-04", source=source, predicted_class=guess, confidence=0.6, margin=0.3, label=label)
        for label, guess, source in zip(labels.tolist(), predicted.tolist(), sources, strict=True)
    ]


def show_poison(features: np.ndarray, labels: np.ndarray) -> None:
    "300 corrections, one in ten poisoned, by a probe that was trained on a third of the photographs."
    print(f"\n| 10 % poisoned, {SEEDS} seeds | set apart by sender | or neighbours | honest ones set apart |")
    print("|---|---|---|---|")
    kinds = {"one sender, one class": 1, "30 senders, one class": 30, "30 senders, any class": 30}
    for name, n_poisoners in kinds.items():
        rows = []
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            at = rng.permutation(len(labels))
            known, sent = at[: len(at) // 3], at[-300:]
            scaled = StandardScaler().fit(features[known]).transform(features)
            predicted, bad = fit(scaled[known], labels[known]).predict(scaled[sent]), np.arange(300) < 30
            given, classes = labels[sent].astype(object), np.unique(labels)
            for n in np.flatnonzero(bad):
                target = classes[0] if "one class" in name else rng.choice(classes)
                given[n] = target if target != labels[sent[n]] else classes[1] if target == classes[0] else classes[0]
            senders = [f"{n % n_poisoners:016x}" if bad[n] else f"{1000 + n % 40:016x}" for n in range(300)]
            corrections = corrections_of(given, predicted, senders)
            poisoners = find_poisoners(corrections)
            by_sender = np.array([c.source in poisoners and c.label != c.predicted_class for c in corrections])
            unlikely = find_unlikely(corrections, features[sent], features[known], labels[known].tolist())
            either = by_sender | np.isin(np.arange(300), list(unlikely))
            rows.append([by_sender[bad].mean(), either[bad].mean(), either[~bad].mean()])
        print(f"| {name} | " + " | ".join(interval(list(column)) for column in np.transpose(rows)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one sub-folder per class")
    parser.add_argument("--cache", type=Path, default=Path(gettempdir()) / "harvest.npz", help="file for the features")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of labels")
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 200], help="in random order, for the accuracies")
    options = parser.parse_args()
    features, labels = features_of(options.data, options.cache)
    print(f"{len(labels)} photographs of {len(np.unique(labels))} classes\n")
    reduced = PCA(COMPONENTS, random_state=0).fit_transform(StandardScaler().fit_transform(features))
    show_labels(reduced, labels, options.rounds, options.labels)
    show_poison(features, labels)


if __name__ == "__main__":
    main()
