"""Versions of a model, for services that change from one to the next."""

import shutil
from pathlib import Path

from trashsorting.core.card import read_card, write_card
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.inference.versions import write_parity


def add_version(place: Path, name: str, title: str | None = None) -> Path:
    "Put the shipped model there as a version; it appears as a whole."
    hidden, folder = place / f".{name}", place / name
    hidden.mkdir(parents=True)
    shutil.copy(SHIPPED_MODEL, hidden / "model.onnx")
    write_card(hidden / "model.onnx", read_card(SHIPPED_MODEL).model_copy(update={"name": title or name}))
    write_parity(hidden / "model.onnx")
    hidden.rename(folder)
    return folder
