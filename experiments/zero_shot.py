"""What `trashsorting zero-shot` chooses, tried on photographs that the fits have not seen: a table of each.

`python experiments/zero_shot.py MODEL --data DIR --split FILE --synthetic DIR`, half an hour for TrashNet. MODEL is a file
of `trashsorting export`. A fifth of the training photographs and their composites are held out. No other part is read.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.special import expit
from sklearn.metrics import log_loss

from trashsorting.core.card import read_card
from trashsorting.data.cutpaste import find_synthetic
from trashsorting.data.sources import load_manifest
from trashsorting.export.zero_shot import (
    N_CAMERAS,
    ODDS,
    ROUTER_C,
    adjust_logits,
    cut_off,
    fit_domain_router,
    fit_zero_shot_head,
    imagenet_logits,
    map_classes_to_imagenet,
    other_cameras,
    poor_cameras,
    see,
)

RIDGES = (1.0, 100.0, 10_000.0)
GATE_CS = (0.001, 0.01, 0.03, 0.1, 1.0)
PRIOR_SHARES = (0.0, 0.5, 1.0)


def explained(fit, features: np.ndarray, opinions: np.ndarray) -> float:
    "The share of the opinions' variance that a linear map explains."
    weight, bias = (part.detach().numpy() for part in (fit.weight, fit.bias))
    left = opinions - features @ weight.T - bias
    return 1 - (left**2).sum() / ((opinions - opinions.mean(axis=0)) ** 2).sum()


def gate_cells(gate, frames: np.ndarray, elsewhere: np.ndarray) -> str:
    "Logarithmic loss, and how often the gate is right, as if there were as many pictures of the one as of the other."
    weight, bias = (part.detach().numpy() for part in (gate.weight, gate.bias))
    says = expit(frames @ weight[0] + bias[0] - np.log(ODDS))
    weights = np.where(elsewhere, 1 / elsewhere.mean(), 1 / (1 - elsewhere.mean()))
    board, other = (says[~elsewhere] < 0.5).mean(), (says[elsewhere] > 0.5).mean()
    return f"{log_loss(elsewhere, says, sample_weight=weights):.3f} | {board:.1%} | {other:.1%}"


def recalls(words, of_class: np.ndarray, features: np.ndarray, targets: np.ndarray) -> list[float]:
    "Of each class that has words the share that they name, where all of them are asked and nothing else is."
    with torch.inference_mode():
        said = (words(torch.from_numpy(features)).softmax(1).numpy() @ of_class).argmax(axis=1)
    return [(said[targets == number] == number).mean() for number in np.flatnonzero(of_class.any(axis=0))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an ONNX file of `trashsorting export` with its card")
    parser.add_argument("--data", type=Path, required=True, help="the photographs that it was made from")
    parser.add_argument("--split", type=Path, help="their split: CSV with the columns file,label,split")
    parser.add_argument("--synthetic", type=Path, required=True, help="what `trashsorting data synthesize` made")
    options = parser.parse_args()
    card = read_card(options.model)
    with TemporaryDirectory() as folder:
        train = load_manifest(options.data, Path(folder), options.split, card.provenance.seed).subset("train")
        owners = [entry.file for entry in train.entries]
        board = [train.root / file for file in owners]
        found = find_synthetic(options.composites, train.entries)
        composites = [(file, path) for file, paths in found.items() for path in paths]
        cut_off(options.model, body := Path(folder) / "body.onnx")
        poor = poor_cameras(board + [paths[0] for paths in found.values()], Path(folder))
        paths = board + other_cameras(board, Path(folder)) + [path for _, path in composites]
        of_photo = [*owners, *(file for file in owners for _ in range(N_CAMERAS)), *(file for file, _ in composites)]
        of_photo += [*owners, *found]
        labels = {entry.file: card.classes.index(entry.label) for entry in train.entries}
        numbers, of_class = map_classes_to_imagenet(card.classes)
        opinions = imagenet_logits(numbers, card.architecture, card.preprocessing.input_size, paths)
        features, frames = see(body, paths + poor, card.preprocessing)
    n_board = len(paths) - len(composites)
    elsewhere = np.repeat([False, True, False, True], [n_board, len(composites), len(board), len(found)])
    held = np.isin(of_photo, np.random.default_rng(0).permutation(owners)[: len(owners) // 5])
    is_poor = np.arange(len(of_photo)) >= len(paths)
    print(
        f"{len(of_photo)} pictures, {held.sum()} of them held out, {(held & elsewhere).sum()} of these are composites\n"
    )
    targets = np.array([labels[file] for file in of_photo])
    apart, there = ~held[: len(paths)], held & elsewhere & ~is_poor
    print("| ridge of the words | variance explained, held-out composites |\n|---|---|")
    for ridge in RIDGES:
        fit = fit_zero_shot_head(features[: len(paths)][apart], opinions[apart], ridge)
        print(f"| {ridge:g} | {explained(fit, features[there], opinions[there[: len(paths)]]):.1%} |")
    print(
        "\n| C of the gate | logarithmic loss | board known | composite known | poor camera: loss | board | composite |"
    )
    print("|---" * 7 + "|")
    for c, seen in [*((c, ~held) for c in GATE_CS), (ROUTER_C, ~held & ~is_poor)]:
        gate = fit_domain_router(frames[seen], elsewhere[seen], c)
        cells = [gate_cells(gate, frames[held & part], elsewhere[held & part]) for part in (~is_poor, is_poor)]
        print(f"| {c:g}{'' if seen[is_poor].any() else ', no poor camera seen'} | {' | '.join(cells)} |")
    named = [label for label, has_words in zip(card.classes, of_class.any(axis=0), strict=True) if has_words]
    print(f"\n| share of the prior | {' | '.join(named)} | mean recall, held-out composites |")
    print("|---" * (len(named) + 2) + "|")
    words = fit_zero_shot_head(features[: len(paths)][apart], opinions[apart])
    photographs = np.flatnonzero(~held[: len(board)])
    for share in PRIOR_SHARES:
        level, _ = adjust_logits(words, of_class, features[photographs], targets[photographs], share)
        right = recalls(level, of_class, features[there], targets[there])
        print(f"| {share:g} | {' | '.join(f'{one:.1%}' for one in right)} | {np.mean(right):.1%} |")


if __name__ == "__main__":
    main()
