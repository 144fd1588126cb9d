"""How many labels reach an accuracy, in the order of `data harvest` and in random order; and how much poison it stops.

A linear probe on frozen features is trained on a few photographs of each class. Then rounds of labels are added: either
the most valuable ones of the pool, by the present probe, or random ones. The test fifth is never ranked. A second table
counts how many poisoned corrections are set apart, and how many honest ones.

    python experiments/harvest.py --data DIR              # class folders, such as TrashNet's images
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import gettempdir

import numpy as np
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trashsorting.core.correction import Correction
from trashsorting.data.harvest import find_poisoners, find_unlikely, rank_by_value
from trashsorting.training.backbone import embed

START, ROUND, SEEDS = 5, 40, 5  # Photographs of each class at first, labels of a round, repetitions
Order = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]], np.ndarray]


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
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)).fit(features, labels)


def weighted(*weights: float) -> Order:
    "The order of `rank_by_value` with these weights of uncertainty, novelty and rarity."

    def order(margins, predicted, features, known, known_labels):
        return rank_by_value(margins, predicted.tolist(), features, known, known_labels, weights, ROUND)[0]

    return order


def shuffled(seed: int) -> Order:
    rng = np.random.default_rng(seed)
    return lambda margins, *_: rng.permutation(len(margins))


def curve(features: np.ndarray, labels: np.ndarray, seed: int, order: Order, rounds: int) -> list[tuple[int, float]]:
    "Labels beyond the first ones, and the accuracy that they reach."
    rng = np.random.default_rng(seed)
    at = rng.permutation(len(labels))
    test, pool = at[: len(at) // 5], at[len(at) // 5 :]
    known = np.concatenate([pool[labels[pool] == label][:START] for label in np.unique(labels)])
    pool, points = np.setdiff1d(pool, known), []
    for n in range(rounds + 1):
        probe = fit(features[known], labels[known])
        points.append((ROUND * n, float((probe.predict(features[test]) == labels[test]).mean())))
        probabilities = np.sort(probe.predict_proba(features[pool]), axis=1)
        margins, predicted = probabilities[:, -1] - probabilities[:, -2], probe.predict(features[pool])
        chosen = pool[order(margins, predicted, features[pool], features[known], labels[known].tolist())[:ROUND]]
        known, pool = np.concatenate([known, chosen]), np.setdiff1d(pool, chosen)
    return points


def needed(points: list[tuple[int, float]], accuracy: float) -> float:
    "Labels until an accuracy is reached, between two rounds by a straight line; infinite if it is not."
    for (n, low), (after, high) in pairwise(points):
        if high >= accuracy:
            return n if low >= accuracy else n + (after - n) * (accuracy - low) / (high - low)
    return float("inf")


def interval(values: list[float]) -> str:
    "Mean and 95 % interval of it (Student's t)."
    mean, half = np.mean(values), t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.2f} ({mean - half:.2f} to {mean + half:.2f})"


def show_labels(features: np.ndarray, labels: np.ndarray, rounds: int, targets: list[float]) -> None:
    orders = {
        "uncertainty + novelty + rarity": weighted(1, 1, 1),
        "uncertainty": weighted(1, 0, 0),
        "novelty": weighted(0, 1, 0),
        "rarity": weighted(0, 0, 1),
    }
    random = [curve(features, labels, seed, shuffled(seed), rounds) for seed in range(SEEDS)]
    print(f"labels needed, as a share of those in random order; {SEEDS} seeds, {ROUND} labels a round\n")
    print("| order | " + " | ".join(f"to {target:.0%}" for target in targets) + " |\n|---|" + "---|" * len(targets))
    base = [[needed(points, target) for points in random] for target in targets]
    print("| random, labels | " + " | ".join(f"{np.mean(each):.0f}" for each in base) + " |")
    for name, order in orders.items():
        curves = [curve(features, labels, seed, order, rounds) for seed in range(SEEDS)]
        reached = [[needed(points, target) for points in curves] for target in targets]
        shares = [(np.array(ours) / np.array(others)).tolist() for ours, others in zip(reached, base, strict=True)]
        print(f"| {name} | " + " | ".join(interval(each) for each in shares) + " |", flush=True)


def corrections_of(labels: np.ndarray, predicted: np.ndarray, sources: list[str]) -> list[Correction]:
    return [
        Correction(day="2026-05-04", source=source, predicted_class=guess, confidence=0.6, margin=0.3, label=label)
        for label, guess, source in zip(labels.tolist(), predicted.tolist(), sources, strict=True)
    ]


def show_poison(features: np.ndarray, labels: np.ndarray) -> None:
    "300 corrections, one in ten poisoned, by a probe that was trained on a third of the photographs."
    print("\n| 10 % poisoned | set apart by sender | or neighbours | honest ones set apart |\n|---|---|---|---|")
    kinds = {"one sender, one class": 1, "30 senders, one class": 30, "30 senders, any class": 30}
    for name, n_poisoners in kinds.items():
        rows = []
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            at = rng.permutation(len(labels))
            known, sent = at[: len(at) // 3], at[-300:]
            predicted, bad = fit(features[known], labels[known]).predict(features[sent]), np.arange(300) < 30
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
    parser.add_argument("--targets", type=float, nargs="+", default=[0.70, 0.75, 0.80], help="accuracies")
    options = parser.parse_args()
    features, labels = features_of(options.data, options.cache)
    print(f"{len(labels)} photographs of {len(np.unique(labels))} classes\n")
    show_labels(features, labels, options.rounds, options.targets)
    show_poison(features, labels)


if __name__ == "__main__":
    main()
