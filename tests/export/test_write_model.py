"""A new model and its card are written together, and never over a pipe, a folder or a link."""

import os
from pathlib import Path

import pytest

from trashsorting.core.card import card_path, check_output_path, read_card, write_model
from trashsorting.core.errors import DataError, ModelError
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.sample import draw_picture
from trashsorting.export.install import install_model
from trashsorting.export.teach import teach

SHIPPED = read_card(SHIPPED_MODEL)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "battery"
    folder.mkdir()
    for seed in range(6):
        draw_picture("metal", seed).save(folder / f"{seed}.png")
    return folder


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_an_output_that_is_no_file_is_refused_before_the_work(make, name, photographs, tmp_path):
    make(tmp_path / name)
    with pytest.raises(ModelError, match="is no file but a folder, a pipe or a device: choose another name"):
        check_output_path(SHIPPED_MODEL, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="is no file"):
        teach(SHIPPED_MODEL, photographs, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_with_the_name_of_the_card_is_not_overwritten(photographs, tmp_path):
    (tmp_path / "settings.json").write_text("mine")
    with pytest.raises(ModelError, match=r"settings\.json is of no model, and would be overwritten: choose"):
        teach(SHIPPED_MODEL, photographs, tmp_path / "settings.onnx")
    assert (tmp_path / "settings.json").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_without_its_card_no_model_is_written(tmp_path):
    out = tmp_path / "model.onnx"
    write_model(SHIPPED_MODEL, SHIPPED, out)
    before = out.read_bytes()
    card_path(out).unlink()
    card_path(out).mkdir()
    with pytest.raises(DataError, match=r"model\.json: cannot be written: Is a directory"):
        write_model(card_path(SHIPPED_MODEL), SHIPPED, out)
    assert out.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_what_is_taught_goes_through_a_link(photographs, tmp_path):
    link, file = tmp_path / "link.onnx", tmp_path / "file.onnx"
    link.symlink_to(file)
    card = teach(SHIPPED_MODEL, photographs, link)
    assert link.is_symlink() and file.stat().st_size == card.file_bytes and read_card(link) == card


def test_a_model_is_installed_through_a_link_and_over_itself(tmp_path):
    link, file = tmp_path / "link.onnx", tmp_path / "file.onnx"
    link.symlink_to(file)
    install_model(SHIPPED_MODEL, link)
    assert link.is_symlink() and read_card(link) == SHIPPED
    install_model(link, link)
    assert read_card(link) == SHIPPED


def test_an_empty_folder_of_known_photographs_is_named(photographs, tmp_path):
    (tmp_path / "known").mkdir()
    with pytest.raises(DataError, match="known: no photographs in it; --known names a folder"):
        teach(SHIPPED_MODEL, photographs, tmp_path / "new.onnx", known=tmp_path / "known")
    assert not (tmp_path / "new.onnx").exists()
