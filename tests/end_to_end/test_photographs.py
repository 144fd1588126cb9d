"""Claims about the model that ships, on real photographs: the folder is named by TRASHNET, else these are skipped."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trashsorting.core.card import read_card
from trashsorting.core.image import open_rgb, to_input
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.manifest import Manifest, read_folder
from trashsorting.data.splits import apply_split

TRASHNET = os.environ.get("TRASHNET")
pytestmark = pytest.mark.skipif(not TRASHNET, reason="!!! TRASHNET is unset: nothing was measured on photographs")
COMMAND = Path(sys.executable).parent / "trashsorting"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return apply_split(read_folder(Path(TRASHNET) / "images"), Path(TRASHNET) / "split.csv")


def test_every_photograph_is_read(manifest):
    assert (len(manifest.entries), manifest.skipped) == (2096, ())
    assert len(manifest.subset("train").entries) == 1768 and len(manifest.subset("val").entries) == 328


def test_the_model_that_ships_knows_what_it_was_trained_on(tmp_path, capsys):
    "It has seen these photographs: this shows that the file works, and not how good it is."
    folder = Path(TRASHNET)
    words = [COMMAND, "evaluate", folder / "images", "--split", folder / "split.csv", "--subset", "val"]
    done = subprocess.run([*words, "--json", tmp_path / "figures.json"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_bytes())
    with capsys.disabled():
        print(f" [{figures['accuracy']:.4f}, {figures['accuracy_interval']}, {figures['ms_per_image']:.1f} ms]", end="")
    assert figures["n"] == 328
    assert figures["accuracy"] >= 0.93


def test_the_card_is_of_photographs_out_of_fold(manifest):
    card = read_card(SHIPPED_MODEL)
    assert (card.provenance.n_train, card.provenance.n_valid) == (card.evaluation.n, 0)
    n, others = card.out_of_fold["trashnet"].n, [row.n for name, row in card.out_of_fold.items() if name != "trashnet"]
    conflicting = 4  # photographs of two pictures that have two labels
    assert n + conflicting == len(manifest.entries) and n + sum(others) == card.evaluation.n


def test_what_the_learner_sees_is_what_is_served(manifest):
    "The evaluation path of the loaders against `image`: a grey level is 8e-3 here, the tolerance a hundredth of that."
    from trashsorting.training.dataloaders import make_dataloaders

    preprocessing = read_card(SHIPPED_MODEL).preprocessing
    dls = make_dataloaders(manifest, preprocessing, batch_size=64, num_workers=0)
    inputs, _ = next(iter(dls.valid))
    paths = [manifest.root / entry.file for entry in manifest.subset("val").entries[:64]]
    served = np.stack([to_input(open_rgb(path), preprocessing) for path in paths])
    assert np.abs(inputs.numpy() - served).max() < 8e-5


def test_the_manifest_agrees_with_the_published_split(manifest):
    with open(Path(TRASHNET) / "split.csv", encoding="utf-8") as stream:
        published = {row["file"]: row["split"] for row in csv.DictReader(stream)}
    assert {entry.file: entry.split for entry in manifest.entries} == published
