"""The settings of `trashsorting zero-shot`, tried on held-out photographs: a table of each.

`python experiments/zero_shot.py MODEL --data DIR --split FILE --synthetic DIR`, half an hour for TrashNet. MODEL
is a file of `trashsorting export`. A fifth of the training photographs is held out with their synthetic images. No
other subset is read.
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
ROUTER_CS = (0.001, 0.01, 0.03, 0.1, 1.0)
PRIOR_FRACTIONS = (0.0, 0.5, 1.0)


def explained(head, features: np.ndarray, logits: np.ndarray) -> float:
    "The fraction of the logits' variance that a linear head explains."
    weight, bias = (parameter.detach().numpy() for parameter in (head.weight, head.bias))
    residual = logits - features @ weight.T - bias
    return 1 - (residual**2).sum() / ((logits - logits.mean(axis=0)) ** 2).sum()


def router_cells(router, statistics: np.ndarray, elsewhere: np.ndarray) -> str:
    "Logarithmic loss, and recall of both domains, weighted equally."
    weight, bias = (parameter.detach().numpy() for parameter in (router.weight, router.bias))
    probability = expit(statistics @ weight[0] + bias[0] - np.log(ODDS))
    weights = np.where(elsewhere, 1 / elsewhere.mean(), 1 / (1 - elsewhere.mean()))
    source, other = (probability[~elsewhere] < 0.5).mean(), (probability[elsewhere] > 0.5).mean()
    return f"{log_loss(elsewhere, probability, sample_weight=weights):.3f} | {source:.1%} | {other:.1%}"


def recalls(head, of_class: np.ndarray, features: np.ndarray, targets: np.ndarray) -> list[float]:
    "Recall of each class that has ImageNet classes, by the zero-shot head alone."
    with torch.inference_mode():
        predicted = (head(torch.from_numpy(features)).softmax(1).numpy() @ of_class).argmax(axis=1)
    return [(predicted[targets == number] == number).mean() for number in np.flatnonzero(of_class.any(axis=0))]


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
        photographs = [train.root / file for file in owners]
        synthetic_of = find_synthetic(options.synthetic, train.entries)
        synthetic = [(file, path) for file, paths in synthetic_of.items() for path in paths]
        cut_off(options.model, body := Path(folder) / "body.onnx")
        poor = poor_cameras(photographs + [paths[0] for paths in synthetic_of.values()], Path(folder))
        paths = photographs + other_cameras(photographs, Path(folder)) + [path for _, path in synthetic]
        owner = [*owners, *(file for file in owners for _ in range(N_CAMERAS)), *(file for file, _ in synthetic)]
        owner += [*owners, *synthetic_of]
        labels = {entry.file: card.classes.index(entry.label) for entry in train.entries}
        numbers, of_class = map_classes_to_imagenet(card.classes)
        imagenet = imagenet_logits(numbers, card.architecture, card.preprocessing.input_size, paths)
        features, statistics = see(body, paths + poor, card.preprocessing)
    n_source = len(paths) - len(synthetic)
    elsewhere = np.repeat([False, True, False, True], [n_source, len(synthetic), len(photographs), len(synthetic_of)])
    held = np.isin(owner, np.random.default_rng(0).permutation(owners)[: len(owners) // 5])
    is_poor = np.arange(len(owner)) >= len(paths)
    print(f"{len(owner)} pictures, {held.sum()} of them held out, {(held & elsewhere).sum()} of these synthetic\n")
    targets = np.array([labels[file] for file in owner])
    fitted, tested = ~held[: len(paths)], held & elsewhere & ~is_poor
    print("| ridge of the zero-shot head | variance explained, held-out synthetic images |\n|---|---|")
    for ridge in RIDGES:
        head = fit_zero_shot_head(features[: len(paths)][fitted], imagenet[fitted], ridge)
        print(f"| {ridge:g} | {explained(head, features[tested], imagenet[tested[: len(paths)]]):.1%} |")
    print(
        "\n| C of the router | logarithmic loss | recall: source | synthetic | poor camera: loss | source | synthetic |"
    )
    print("|---" * 7 + "|")
    for c, seen in [*((c, ~held) for c in ROUTER_CS), (ROUTER_C, ~held & ~is_poor)]:
        router = fit_domain_router(statistics[seen], elsewhere[seen], c)
        cells = [router_cells(router, statistics[held & kind], elsewhere[held & kind]) for kind in (~is_poor, is_poor)]
        print(f"| {c:g}{'' if seen[is_poor].any() else ', no poor camera seen'} | {' | '.join(cells)} |")
    named = [label for label, has_any in zip(card.classes, of_class.any(axis=0), strict=True) if has_any]
    print(f"\n| fraction of the prior | {' | '.join(named)} | mean recall, held-out synthetic images |")
    print("|---" * (len(named) + 2) + "|")
    head = fit_zero_shot_head(features[: len(paths)][fitted], imagenet[fitted])
    rows = np.flatnonzero(~held[: len(photographs)])
    for fraction in PRIOR_FRACTIONS:
        adjusted, _ = adjust_logits(head, of_class, features[rows], targets[rows], fraction)
        recall = recalls(adjusted, of_class, features[tested], targets[tested])
        print(f"| {fraction:g} | {' | '.join(f'{value:.1%}' for value in recall)} | {np.mean(recall):.1%} |")


if __name__ == "__main__":
    main()
