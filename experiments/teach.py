"""What a class that is taught from a few photographs is worth, and what it costs the others.

    python experiments/teach.py --data images --split split.csv --other open_photos/other [--cache FILE.npz]

Two questions. The model that ships is taught food, textile, shoes and drink cartons, which TrashNet does not have. And
networks that never saw one of TrashNet's six classes are taught it: an ImageNet backbone as it is, with a linear
classifier for the other five; this needs torch. Known photographs are the training part's, recall is measured on the
photographs that were not taught, loss on the validation part. Beside `teach` stands the nearest class mean. The result
goes to nbs/measured/teach.json, and a table to standard output.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression

from trashsorting.core.card import ModelCard, read_card
from trashsorting.core.image import min_side, open_rgb, to_input
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.core.system import write_json
from trashsorting.data.manifest import read_folder
from trashsorting.data.splits import apply_split
from trashsorting.export.teach import Features, fit_row, open_with_features, recalibrate
from trashsorting.inference.features import choose_by_folder, compute_features, pack_features, unpack_features

ROOT = Path(__file__).resolve().parents[1]
COUNTS = (1, 5, 10, 20)
SEEDS = 5
UNSURE = 0.27  # Fraction of the known photographs, as of the model that ships, out of fold
NAMES = ("food", "textile", "shoes", "drink_carton")


@dataclass(frozen=True, eq=False)
class Case:
    "A model and a class that it does not know."

    known: Features  # The sample of a card
    held_out: Features  # Photographs of the known classes
    targets: np.ndarray  # (n,) their classes
    new: Features  # Photographs of the new class
    unsure_below: float


def network_features(card: ModelCard, paths: list[Path], cache: Path | None) -> tuple[np.ndarray, np.ndarray]:
    "Features and logits of files by the model that ships, from the cache if they are there."
    if cache and cache.is_file():
        stored = np.load(cache)
        rows = {path: at for at, path in enumerate(stored["path"].tolist())}
        if all(str(path) in rows for path in paths):
            chosen = [rows[str(path)] for path in paths]
            return stored["features"][chosen], stored["logits"][chosen]
    session, side = open_with_features(SHIPPED_MODEL, len(card.classes))[1], min_side(card.preprocessing)
    return compute_features(session, (to_input(open_rgb(path, min_side=side), card.preprocessing) for path in paths))


def take(features: Features, chosen: np.ndarray) -> Features:
    "Some of the photographs."
    return Features(features.features[chosen], features.logits[chosen])


def as_sample(features: Features) -> Features:
    "The photographs as a card keeps them, rounded."
    return Features(*unpack_features(pack_features(features.features, features.logits)))


def nearest_mean(case: Case, new: np.ndarray, features: Features) -> np.ndarray:
    "Whether photographs are nearer, by cosine, to the mean of the new class than to that of a known one."

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-12)

    predicted = case.known.logits.argmax(axis=1)
    means = np.stack([unit(case.known.features[predicted == label]).mean(axis=0) for label in np.unique(predicted)])
    cosines = unit(features.features) @ unit(np.vstack([means, unit(new).mean(axis=0)])).T
    return cosines.argmax(axis=1) == len(means)


def try_once(case: Case, n: int, seed: int) -> dict[str, float]:
    "Teach a class from n photographs; fractions of the photographs that were not taught, and of the known ones."
    chosen = np.random.default_rng(seed).permutation(len(case.new.features))
    taught, rest = take(case.new, chosen[:n]), take(case.new, chosen[n:])
    row = fit_row(taught, case.known)
    threshold = recalibrate(case.unsure_below, case.known, row) or 0.0
    new, old = row.logits(rest.features), row.logits(case.held_out.features)
    is_new, is_lost = new > rest.logits.max(axis=1), old > case.held_out.logits.max(axis=1)
    right = case.held_out.logits.argmax(axis=1) == case.targets
    answered = case.held_out.confidence >= case.unsure_below
    kept = case.held_out.confidence / (1 + np.exp(old + case.held_out.offsets)) >= threshold
    sure = 1 / (1 + np.exp(-(new + rest.offsets))) >= threshold
    return {
        "recall": float(is_new.mean()),
        "answered": float((is_new & sure).mean()),
        "loss": float((right & is_lost).mean()),
        "answers lost": float((answered & (is_lost | ~kept)).mean()),
        "recall of the nearest mean": float(nearest_mean(case, taught.features, rest).mean()),
        "loss of the nearest mean": float((right & nearest_mean(case, taught.features, case.held_out)).mean()),
    }


def interval(values: np.ndarray) -> list[float]:
    "Student's 95 % interval of a mean, within 0..1."
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(max(0, values.mean() - half)), float(min(1, values.mean() + half))]


def summarize(trials: list[dict[str, float]]) -> dict:
    "Mean over the seeds, its interval, the least and the largest value."
    columns = {name: np.array([trial[name] for trial in trials]) for name in trials[0]}
    return {
        name: {
            "mean": float(values.mean()),
            "interval": interval(values),
            "range": [float(values.min()), float(values.max())],
        }
        for name, values in columns.items()
    }


def never_seen(features: np.ndarray, labels: np.ndarray, is_train: np.ndarray, label: str, sample: np.ndarray) -> Case:
    "A linear classifier on frozen features that never saw one class, and that class."
    others = labels != label
    classifier = LogisticRegression(C=0.1, max_iter=500).fit(features[is_train & others], labels[is_train & others])
    every = Features(features, classifier.decision_function(features))
    classes = classifier.classes_.tolist()
    held_out = np.flatnonzero(~is_train & others)
    known = as_sample(take(every, sample[others[sample]]))
    targets = np.array([classes.index(name) for name in labels[held_out]])
    threshold = float(np.quantile(take(every, held_out).confidence, UNSURE))
    return Case(known, take(every, held_out), targets, take(every, np.flatnonzero(labels == label)), threshold)


def line(name: str, n: str, result: dict) -> str:
    "A row of the table: means in percent, with intervals."
    cells = []
    for key in ("recall", "answered", "loss", "answers lost", "recall of the nearest mean", "loss of the nearest mean"):
        low, high = result[key]["interval"]
        cells.append(f"{100 * result[key]['mean']:.1f} ({100 * low:.1f} to {100 * high:.1f})")
    return f"| {name} | {n} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="TrashNet's photographs")
    parser.add_argument("--split", type=Path, required=True, help="CSV with the columns file,label,split")
    parser.add_argument("--other", type=Path, required=True, help="a folder with one sub-folder for each new class")
    parser.add_argument("--cache", type=Path, help="features of the model that ships: path, features, logits (NPZ)")
    parser.add_argument("--backbone", type=Path, help="features of the backbone (NPY), made if it is not there")
    parser.add_argument("--skip-backbone", action="store_true", help="only the first question; needs no torch")
    options = parser.parse_args()
    card, manifest = read_card(SHIPPED_MODEL), apply_split(read_folder(options.data), options.split)
    entries = sorted(manifest.entries, key=lambda entry: entry.file)
    paths = [manifest.root / entry.file for entry in entries]
    labels, is_train = np.array([e.label for e in entries]), np.array([e.split == "train" for e in entries])
    chosen = set(choose_by_folder([path for path, train in zip(paths, is_train, strict=True) if train]))
    sample = np.array([at for at, path in enumerate(paths) if path in chosen])

    def by_model(files: list[Path]) -> Features:
        features, logits = network_features(card, files, options.cache)
        return Features(features.astype(float), logits / card.temperature)

    held_out = np.flatnonzero(~is_train)
    known = as_sample(by_model([paths[at] for at in sample]))
    clean = by_model([paths[at] for at in held_out])
    targets = np.array([card.classes.index(label) for label in labels[held_out]])
    cases = {}
    for name in NAMES:
        new = by_model(sorted((options.other / name).glob("*.jpg")))
        cases[name] = Case(known, clean, targets, new, card.unsure_below or 0.0)
    if not options.skip_backbone:
        if options.backbone and options.backbone.is_file():
            frozen = np.load(options.backbone)
        else:
            from trashsorting.training.backbone import embed

            frozen = embed(paths, progress=True)
            if options.backbone:
                np.save(options.backbone, frozen)
        for label in card.classes:
            cases[f"{label}, never seen"] = never_seen(frozen.astype(float), labels, is_train, label, sample)
    result: dict = {"model": card.name, "seeds": SEEDS, "sample": len(sample), "classes": {}}
    head = "recall | answered | loss | answers lost | nearest mean: recall | loss"
    print(f"| new class | photographs | {head} |\n|{'---|' * 8}")
    for name, case in cases.items():
        right = float((case.held_out.logits.argmax(axis=1) == case.targets).mean())
        sizes = {"photographs": len(case.new.features), "known": len(case.targets), "accuracy before": right}
        rows = {str(n): summarize([try_once(case, n, seed) for seed in range(SEEDS)]) for n in COUNTS}
        result["classes"][name] = sizes | {"taught from": rows}
        for n, row in rows.items():
            print(line(name, n, row), flush=True)
    write_json(ROOT / "nbs" / "measured" / "teach.json", result)


if __name__ == "__main__":
    main()
