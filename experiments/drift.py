"""How soon the drift alarm comes, how often it is false, and how good the accuracy is that is estimated without labels.

    PYTHONPATH=bench:. python experiments/drift.py --model fold0.onnx --data data --split crossval/fold0.csv \
        --predictions crossval/predictions.csv --held-out by_source/predictions.csv \
        --other home bin_camera --http

What ships has seen every photograph, so a fold's model is tried, with the photographs that it held out. Its reference
are the out-of-fold predictions of the other folds. False alarms are counted for each fold in this way. The model needs
the temperature of the cross-validation: `trashsorting average crossval/fold0 crossval/fold0 --crossval crossval` gives
it, then export and quantize. Each set is classified once; the windows are then drawn from its features. With `--http`,
the external sets are also sent to the real service on loopback, one photograph after the other, until it reports an
alarm. The held-out photographs are the clean ones. The result goes to nbs/measured/drift.json, and from there into
nbs/explanations/drift.ipynb (`make outputs`). A line is printed as soon as a set is done: some minutes on a quiet
core.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

import numpy as np
from serve import service

from trashsorting.core.card import ModelCard, write_card
from trashsorting.core.drift import Observations, find_drift, make_reference
from trashsorting.core.image import open_rgb
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.core.system import write_json
from trashsorting.data.manifest import Manifest, read_folder
from trashsorting.data.splits import apply_split
from trashsorting.evaluation.drift import (
    false_alarms_by_fold,
    held_out_confidence,
    observe_folds,
    observe_photographs,
    photographs_until_alarm,
)
from trashsorting.evaluation.oof import load_predictions
from trashsorting.evaluation.robustness import corrupt, reduce
from trashsorting.inference.predictor import Predictor
from trashsorting.serving.client import Client

ROOT = Path(__file__).resolve().parents[1]
CORRUPTIONS = ("blur", "noise", "jpeg", "darker", "brighter", "rotation", "crop")
STREAMS = 10  # Simulated streams of each kind
WINDOWS = 1000  # Clean windows of each size, of each fold


def accuracies(card: ModelCard, observations: Observations, labels: list[str]) -> dict:
    "True and estimated accuracy."
    right = np.array([card.classes[index] for index in observations.predicted]) == np.array(labels)
    report = find_drift(card, observations, looks=())
    result = {
        "n": len(labels),
        "accuracy": float(right.mean()),
        "mean confidence": float(observations.features[:, 0].mean()),
    }
    return {**result, "estimated": report.estimated_accuracy, "interval": report.accuracy_interval}


def until_alarm(card: ModelCard, clean: Observations, drifted: Observations) -> dict:
    "The median and the largest number of photographs until the alarm; streams without one count as the largest."
    result = {}
    for name, slide in {"at once": 0, "slide over 100": 100}.items():
        counts = [photographs_until_alarm(card, clean, drifted, slide, seed=seed) for seed in range(STREAMS)]
        found = [count for count in counts if count is not None]
        result[name] = {"alarms": len(found), "median": float(np.median(found)) if found else None}
        result[name]["most"] = max(found, default=None)
    return result


def fresh_service(sets: dict[str, Manifest], model: Path, card: ModelCard) -> Iterator[tuple[str, int | None]]:
    "For each set, the photographs that a service that has just started needs until its alarm."
    with TemporaryDirectory() as folder:
        copy = Path(copyfile(model, Path(folder) / "model.onnx"))
        write_card(copy, card)
        for name, manifest in sets.items():
            yield name, photographs_of_service(copy, [manifest.root / entry.file for entry in manifest.entries])


def photographs_of_service(model: Path, files: list[Path]) -> int | None:
    order = np.random.default_rng(0).permutation(len(files))[:100]
    # It has seen one photograph, to know that it answers.
    with service(1, files[0].read_bytes(), TRASHSORTING_MODEL=str(model)) as (port, _, _):
        client = Client(f"http://127.0.0.1:{port}")
        for number, index in enumerate(order, 2):
            client.predict(files[index])
            if client.drift().alarm:
                return number
    return None


def keep(result: dict, name: str, measured: dict) -> None:
    "Add a set to the result, and show it."
    result["sets"][name] = measured
    alarm = f", until the alarm {measured['until alarm']}" if "until alarm" in measured else ""
    print(f"{name:12} accuracy {measured['accuracy']:.3f}, estimated {measured['estimated']:.3f}{alarm}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the photographs of the data set")
    parser.add_argument("--split", type=Path, required=True, help="CSV with the columns file,label,split")
    parser.add_argument("--predictions", type=Path, required=True, help="CSV of the cross-validation, out of fold")
    parser.add_argument("--held-out", type=Path, help="CSV of the cross-validation by source")
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="that has not seen what the split holds out")
    parser.add_argument("--other", type=Path, nargs="*", default=[], help="folders of other cameras")
    parser.add_argument("--strength", type=int, default=3, help="of the corruptions, 1 to 5")
    parser.add_argument("--http", action="store_true", help="send the other folders to the service, too")
    options = parser.parse_args()
    predictor = Predictor(options.model, threads=1)
    held_out = apply_split(read_folder(options.data), options.split).subset("val")
    photographs = [open_rgb(held_out.root / entry.file) for entry in held_out.entries]
    labels = [entry.label for entry in held_out.entries]
    table = load_predictions(options.predictions)
    folds, temperature = observe_folds(predictor, options.data, table)
    others = ~np.isin(table.files, [entry.file for entry in held_out.entries])
    reference = make_reference(folds.take(others), table.classes, f"{others.sum()} predictions of the other folds")
    if options.held_out:
        held = held_out_confidence(reference, load_predictions(options.held_out), temperature)
        reference = reference.model_copy(update={"held_out": held})
    card = predictor.card.model_copy(update={"reference": reference})
    clean = observe_photographs(predictor, photographs)
    result: dict = {"model": card.name, "strength": options.strength, "sets": {}}
    keep(result, "held out", accuracies(card, clean, labels))
    external = {folder.name: read_folder(folder) for folder in options.other}
    for name, manifest in external.items():
        drifted = observe_photographs(predictor, [manifest.root / entry.file for entry in manifest.entries])
        measured = accuracies(card, drifted, [entry.label for entry in manifest.entries])
        keep(result, name, {**measured, "until alarm": until_alarm(card, clean, drifted)})
    for name in CORRUPTIONS:
        changed = [corrupt(reduce(picture), name, options.strength, seed) for seed, picture in enumerate(photographs)]
        drifted = observe_photographs(predictor, changed)
        keep(result, name, {**accuracies(card, drifted, labels), "until alarm": until_alarm(card, clean, drifted)})
    result["windows"] = WINDOWS * len(np.unique(table.folds))
    alarms = {size: false_alarms_by_fold(card, folds, table.folds, WINDOWS, size) for size in (20, 50, 200)}
    result["false alarms"] = {size: sum(by_fold.values()) for size, by_fold in alarms.items()}
    result["false alarms by fold"] = alarms
    print(f"false alarms in {WINDOWS} windows of each fold, by size: {alarms}", flush=True)
    if options.http:
        result["fresh service"] = dict(fresh_service(external, options.model, card))
        print(f"photographs until the alarm of a fresh service: {result['fresh service']}")
    write_json(ROOT / "nbs" / "measured" / "drift.json", result)


if __name__ == "__main__":
    main()
