"""What `trashsorting zero-shot` chooses, measured on held-out photographs: three tables.

`python experiments/zero_shot.py MODEL --data DIR --split FILE --synthetic DIR`, half an hour for TrashNet.
MODEL is a file of `trashsorting export`. A fifth of the training photographs and their synthetic images are held
out. No other subset is read.
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
    N_JITTERED,
    PRIOR_ODDS,
    ROUTER_C,
    adjust_logits,
    degraded_copies,
    extract_features,
    fit_domain_router,
    fit_zero_shot_head,
    imagenet_logits,
    jittered_copies,
    map_classes_to_imagenet,
    remove_classifier,
)

RIDGES = (1.0, 100.0, 10_000.0)
ROUTER_CS = (0.001, 0.01, 0.03, 0.1, 1.0)
FRACTIONS = (0.0, 0.5, 1.0)


def explained(fit, features: np.ndarray, imagenet: np.ndarray) -> float:
    "The fraction of the variance of the logits that a linear map explains."
    weight, bias = (part.detach().numpy() for part in (fit.weight, fit.bias))
    left = imagenet - features @ weight.T - bias
    return 1 - (left**2).sum() / ((imagenet - imagenet.mean(axis=0)) ** 2).sum()


def router_cells(router, frames: np.ndarray, elsewhere: np.ndarray) -> str:
    "Log loss, and how often the router is right, for balanced domains."
    weight, bias = (part.detach().numpy() for part in (router.weight, router.bias))
    probabilities = expit(frames @ weight[0] + bias[0] - np.log(PRIOR_ODDS))
    weights = np.where(elsewhere, 1 / elsewhere.mean(), 1 / (1 - elsewhere.mean()))
    source, other = (probabilities[~elsewhere] < 0.5).mean(), (probabilities[elsewhere] > 0.5).mean()
    return f"{log_loss(elsewhere, probabilities, sample_weight=weights):.3f} | {source:.1%} | {other:.1%}"


def recalls(head, of_class: np.ndarray, features: np.ndarray, targets: np.ndarray) -> list[float]:
    "Recall of each class that has ImageNet classes, by the head alone."
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
        by_photograph = find_synthetic(options.synthetic, train.entries)
        synthetic = [(file, path) for file, paths in by_photograph.items() for path in paths]
        remove_classifier(options.model, body := Path(folder) / "body.onnx")
        degraded = degraded_copies(photographs + [paths[0] for paths in by_photograph.values()], Path(folder))
        paths = photographs + jittered_copies(photographs, Path(folder)) + [path for _, path in synthetic]
        of_photo = [*owners, *(file for file in owners for _ in range(N_JITTERED)), *(file for file, _ in synthetic)]
        of_photo += [*owners, *by_photograph]
        labels = {entry.file: card.classes.index(entry.label) for entry in train.entries}
        numbers, of_class = map_classes_to_imagenet(card.classes)
        imagenet = imagenet_logits(numbers, card.architecture, card.preprocessing.input_size, paths)
        features, frames = extract_features(body, paths + degraded, card.preprocessing)
    n_source = len(paths) - len(synthetic)
    elsewhere = np.repeat([False, True, False, True], [n_source, len(synthetic), len(photographs), len(by_photograph)])
    held = np.isin(of_photo, np.random.default_rng(0).permutation(owners)[: len(owners) // 5])
    is_degraded = np.arange(len(of_photo)) >= len(paths)
    print(
        f"{len(of_photo)} pictures, {held.sum()} of them held out, {(held & elsewhere).sum()} of these are synthetic\n"
    )
    targets = np.array([labels[file] for file in of_photo])
    fitted, there = ~held[: len(paths)], held & elsewhere & ~is_degraded
    print("| ridge of the head | variance explained, held-out synthetic images |\n|---|---|")
    for ridge in RIDGES:
        fit = fit_zero_shot_head(features[: len(paths)][fitted], imagenet[fitted], ridge)
        print(f"| {ridge:g} | {explained(fit, features[there], imagenet[there[: len(paths)]]):.1%} |")
    print("\n| C of the router | log loss | source | synthetic | degraded: log loss | source | synthetic |")
    print("|---" * 7 + "|")
    for c, used in [*((c, ~held) for c in ROUTER_CS), (ROUTER_C, ~held & ~is_degraded)]:
        router = fit_domain_router(frames[used], elsewhere[used], c)
        cells = [
            router_cells(router, frames[held & kind], elsewhere[held & kind]) for kind in (~is_degraded, is_degraded)
        ]
        print(f"| {c:g}{'' if used[is_degraded].any() else ', no degraded copies'} | {' | '.join(cells)} |")
    named = [label for label, is_mapped in zip(card.classes, of_class.any(axis=0), strict=True) if is_mapped]
    print(f"\n| fraction of the offsets | {' | '.join(named)} | mean recall, held-out synthetic images |")
    print("|---" * (len(named) + 2) + "|")
    head = fit_zero_shot_head(features[: len(paths)][fitted], imagenet[fitted])
    rows = np.flatnonzero(~held[: len(photographs)])
    for fraction in FRACTIONS:
        adjusted, _ = adjust_logits(head, of_class, features[rows], targets[rows], fraction)
        right = recalls(adjusted, of_class, features[there], targets[there])
        print(f"| {fraction:g} | {' | '.join(f'{recall:.1%}' for recall in right)} | {np.mean(right):.1%} |")


if __name__ == "__main__":
    main()
