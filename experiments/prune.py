"""Structured pruning of a run's network with a short recovery: what it costs, and what it gives. A table.

`pip install torch-pruning`, then `python experiments/prune.py RUN --data DIR --split FILE --out DIR`. RUN is a folder
of `trashsorting train` or one fold of `crossval`, and data, split and synthetic images are its own. Whole channels are
removed, the least important first over all layers, and the rest learns the answers of the network that was pruned
(knowledge distillation, Hinton et al. 2015) on the training subset. The pruned file with its card goes to `--out`, one
folder for each amount, for `trashsorting quantize`. Only photographs that the run held out are compared.
"""

import argparse
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from fastai.callback.core import Callback

from trashsorting.core.card import file_sha256, read_card, write_card
from trashsorting.core.config import TrainConfig
from trashsorting.core.errors import TrashsortingError
from trashsorting.data.manifest import Manifest
from trashsorting.data.sources import load_manifest
from trashsorting.export.install import revised_card
from trashsorting.export.onnx import export_run, to_onnx
from trashsorting.export.quantize import compare, load_inputs, measure_speedup, time_in_turns
from trashsorting.inference.session import open_session, predict_logits, softmax
from trashsorting.training.learner import create_learner, fit
from trashsorting.training.run import Run, load_run


def prune(model: torch.nn.Module, side: int, amount: float) -> tuple[torch.nn.Module, float]:
    "A copy without the least important channels, and the fraction of the multiplications that is left."
    try:
        import torch_pruning
    except ImportError:
        raise SystemExit("prune: torch-pruning is missing: pip install torch-pruning") from None
    pruned, example = deepcopy(model).eval(), torch.zeros(1, 3, side, side)
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)
    before, _ = torch_pruning.utils.count_ops_and_params(pruned, example)
    torch_pruning.pruner.MagnitudePruner(
        pruned,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=amount,
        max_pruning_ratio=0.75,  # of a layer: none is pruned away
        round_to=8,  # ONNX Runtime computes channels in blocks
        ignored_layers=[pruned.get_classifier()],
    ).step()
    after, _ = torch_pruning.utils.count_ops_and_params(pruned, example)
    return pruned, after / before


class Distil(Callback):
    "The answers of a network in place of the labels, while training."

    def __init__(self, teacher: torch.nn.Module):
        self.teacher = teacher.eval().requires_grad_(False)

    def before_loss(self) -> None:
        if self.training:
            self.learn.yb = (self.teacher(self.x).softmax(dim=1),)


def recover(
    model: torch.nn.Module,
    teacher: torch.nn.Module,
    manifest: Manifest,
    config: TrainConfig,
    folder: Path,
    synthetic: Path | None,
) -> torch.nn.Module:
    "Train a pruned network, all of its stages and their normalisation."
    learn = create_learner(manifest, config, folder, synthetic)
    device = next(learn.model.parameters()).device
    model.pretrained_cfg = learn.model.pretrained_cfg
    learn.model, learn.loss_func = model.to(device), torch.nn.CrossEntropyLoss()
    fit(learn, config, [Distil(deepcopy(teacher).to(device))])
    return learn.model.cpu().eval()


def logits_of(file: Path, run: Run, manifest: Manifest) -> np.ndarray:
    "Logits (n, n_classes) of a file for the photographs held out."
    return predict_logits(open_session(file), run.preprocessing, [manifest.root / e.file for e in manifest.entries])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--data", required=True, help="the photographs that it was made from, as for train")
    parser.add_argument("--split", type=Path, help="their split: CSV with the columns file,label,split")
    parser.add_argument("--synthetic", type=Path, help="a folder of `trashsorting data synthesize`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pruned files")
    parser.add_argument("--amounts", type=float, nargs="+", default=[0.2, 0.35, 0.5], help="fractions of the channels")
    parser.add_argument("--epochs", type=int, default=8, help="of recovery; 0: none")
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate of the recovery")
    options = parser.parse_args()
    run = load_run(options.run)
    file = options.run / "model.onnx"
    if not file.is_file():
        export_run(options.run)
    card = read_card(file)
    recovery = {"epochs": options.epochs, "lr": options.lr, "freeze_epochs": 0, "frozen_stages": 0}
    recovery |= {"freeze_norm": False, "stored_views": 0, "zero_shot_weight": 0.0}
    config = replace(run.config, **recovery)
    with TemporaryDirectory() as folder:
        manifest = load_manifest(options.data, Path(folder) / "data", options.split, card.provenance.seed)
        if manifest.sha256 != card.provenance.manifest_sha256:
            raise SystemExit(f"prune: {options.data} and its split are not those of {options.run}")
        val = manifest.subset("val")
        targets = np.array([card.classes.index(entry.label) for entry in val.entries])
        first, inputs = logits_of(file, run, val), load_inputs([val.root / val.entries[0].file], run.preprocessing)
        print(f"{len(targets)} photographs held out, {(first.argmax(1) == targets).mean():.1%} right before\n")
        print("| channels removed | multiplications | MB | times as fast | lost | won | difference | s an epoch |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for amount in options.amounts:
            model, left = prune(run.model, card.preprocessing.input_size, amount)
            out, start = options.out / f"{amount:g}", time.perf_counter()
            out.mkdir(parents=True, exist_ok=True)
            if options.epochs:
                model = recover(model, run.model, manifest, config, out, options.synthetic)
            seconds = (time.perf_counter() - start) / max(1, options.epochs)
            pruned = to_onnx(model, card.preprocessing.input_size, out / "model.onnx")
            second = logits_of(pruned, run, val)
            pairs = compare(first, second, targets)
            noted = {"pruned_channels": amount, "pruned_from": file_sha256(file), "recovery": recovery}
            provenance = card.provenance.model_copy(update={"parameters": card.provenance.parameters | noted})
            probabilities = softmax(second, card.temperature)
            write_card(pruned, revised_card(card, pruned, probabilities, targets, provenance=provenance))
            speed = measure_speedup(time_in_turns(file, pruned, inputs, threads=1), threads=1)
            low, high = speed.interval
            print(
                f"| {amount:.0%} | {left:.0%} | {pruned.stat().st_size / 1e6:.1f} | {speed.ratio:.2f} ({low:.2f} to "
                f"{high:.2f}) | {pairs.lost} | {pairs.won} | {100 * pairs.difference:+.1f} points | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    try:
        main()
    except TrashsortingError as error:
        raise SystemExit(str(error)) from None
