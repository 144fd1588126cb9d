"""How much logits change in INT8, and how much faster it is, by the number of convolutions in float: a table.

`python bench/quantize.py MODEL --data DIR --split FILE --synthetic DIR`, four minutes. MODEL is a float file with its
card. It measures training photographs outside the calibration, and synthetic images; no other subset is read.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from trashsorting.core.card import read_card
from trashsorting.data.cutpaste import find_synthetic
from trashsorting.data.sources import load_manifest
from trashsorting.export.quantize import (
    N_CALIBRATION,
    choose_photographs,
    load_inputs,
    measure_speedup,
    quantize,
    time_in_turns,
)
from trashsorting.inference.session import open_session, run_logits


def centred(file: Path, inputs: np.ndarray) -> np.ndarray:
    "Logits (n, n_classes) of a file; what is added to all of a photograph's changes no answer."
    session = open_session(file)
    logits = np.concatenate([run_logits(session, one[None]) for one in inputs])
    return logits - logits.mean(axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a float ONNX file with its card")
    parser.add_argument("--data", type=Path, required=True, help="the photographs that it was made from")
    parser.add_argument("--split", type=Path, help="their split: CSV with the columns file,label,split")
    parser.add_argument("--synthetic", type=Path, required=True, help="what `trashsorting data synthesize` made")
    parser.add_argument("--first", type=int, nargs="+", default=[0, 3, 6, 9, 12], help="convolutions left in float")
    parser.add_argument("-n", type=int, default=N_CALIBRATION, help="photographs to calibrate with, and to measure")
    options = parser.parse_args()
    card = read_card(options.model)
    with TemporaryDirectory() as folder:
        manifest = load_manifest(options.data, Path(folder) / "data", options.split, card.provenance.seed)
        train = manifest.subset("train").entries
        chosen = choose_photographs(manifest, options.n)
        others = sorted({manifest.root / entry.file for entry in train} - set(chosen))
        synthetic = [path for paths in find_synthetic(options.synthetic, train).values() for path in paths]
        measured = {
            name: load_inputs(paths[:: max(1, len(paths) // options.n)][: options.n], card.preprocessing)
            for name, paths in {"photographs": others, "synthetic images": synthetic}.items()
        }
        before = {name: centred(options.model, inputs) for name, inputs in measured.items()}
        for name, logits in before.items():
            print(f"{len(logits)} {name}, whose logits spread by {logits.std():.2f}")
        print("\n| first convolutions in float | logit change | on synthetic images | times as fast, 1 thread | MB |")
        print("|---|---|---|---|---|")
        for first in options.first:
            out = quantize(options.model, chosen, Path(folder) / "int8.onnx", first)
            changes = [
                np.sqrt(((centred(out, measured[name]) - logits) ** 2).mean()) for name, logits in before.items()
            ]
            speed = measure_speedup(
                time_in_turns(options.model, out, measured["synthetic images"][:1], threads=1), threads=1
            )
            low, high = speed.interval
            faster, size = f"{speed.ratio:.2f} ({low:.2f} to {high:.2f})", out.stat().st_size / 1e6
            print(f"| {first} | {changes[0]:.4f} | {changes[1]:.4f} | {faster} | {size:.2f} |", flush=True)


if __name__ == "__main__":
    main()
