"""What a clumsy stranger types: no traceback, no lost file, a sentence that says what to do."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from shutil import copyfile

import pytest
from command import call

from trashsorting.cli.main import main
from trashsorting.core.card import card_path, read_card
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.sample import draw_sample


@pytest.fixture
def sample(tmp_path) -> Path:
    return draw_sample(tmp_path / "photos", 1, ("glass", "metal"))


def test_a_closed_standard_input_is_an_error_of_that_picture(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    done = call("predict", "-")
    assert done.returncode == 1 and done.stderr.startswith("trashsorting: -: standard input is closed: name a file")


def test_answers_that_a_closed_output_loses_are_an_error(sample):
    words = [sys.executable, "-m", "trashsorting", "predict", str(sample)]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *words], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "trashsorting: input or output: not writable\n")


def test_answers_come_although_nobody_reads_the_errors(sample):
    words = [sys.executable, "-m", "trashsorting", "drift", str(sample)]
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *words], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "2 photographs" in done.stdout


def test_names_with_control_characters_stay_on_one_line(sample):
    picture = next(sample.glob("glass/*.png"))
    for name in ("new\nline.png", "\x1b[31mred.png", "new\nline.txt"):
        copyfile(picture, sample / "glass" / name)
    (sample / "glass" / "bad\n.png").write_text("no picture", encoding="utf-8")
    done = call("predict", sample / "glass")
    assert len(done.stdout.splitlines()) == 3 and "\x1b" not in done.stdout
    assert r"new\nline.png" in done.stdout and r"\x1b[31mred.png" in done.stdout
    assert len(done.stderr.splitlines()) == 2 and r"bad\n.png: not a picture" in done.stderr


def test_ctrl_c_is_one_sentence(sample, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("trashsorting.inference.predictor.Predictor", interrupted)
    done = call("predict", sample)
    assert (done.returncode, done.stderr.strip()) == (130, "trashsorting: stopped")


def test_a_full_output_is_a_sentence(sample, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trashsorting", "predict", str(sample)])
    with open("/dev/full", "w", encoding="utf-8") as full, pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "stdout", full)
        try:
            main()
        finally:
            monkeypatch.undo()
            os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that closing it writes what it still holds
    assert ended.value.code == 1
    assert capsys.readouterr().err == "trashsorting: input or output: No space left on device\n"


@pytest.mark.parametrize(
    "words",
    [
        ["predict", ""],
        ["evaluate", ""],
        ["evaluate", "{photos}", "--json", ""],
        ["drift", "{photos}", "--out", ""],
        ["score", "{photos}", "--out", ""],
        ["score", "", "--out", "{new}"],
        ["teach", "--add", "{photos}/glass", "--out", ""],
        ["serve", "--host", ""],
    ],
)
def test_an_empty_word_is_not_the_current_folder(words, sample, tmp_path, monkeypatch):
    monkeypatch.chdir(sample)
    done = call(*(word.format(photos=sample, new=tmp_path / "new") for word in words))
    assert done.returncode == 2 and "it is empty; is a variable of the shell not set?" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_result_never_overwrites_what_is_read(sample, tmp_path):
    model, split = tmp_path / "model.onnx", tmp_path / "split.csv"
    copyfile(SHIPPED_MODEL, model)
    copyfile(card_path(SHIPPED_MODEL), card_path(model))
    picture = next(sample.glob("glass/*.png"))
    before = picture.read_bytes()
    split.write_text("file,label,split\n", encoding="utf-8")
    for words in (
        ("evaluate", sample, "--json", card_path(model), "--model", model),
        ("evaluate", sample, "--predictions", model, "--model", model),
        ("evaluate", sample, "--predictions", split, "--split", split),
        ("evaluate", sample, "--json", picture),
        ("evaluate", sample, "--json", tmp_path / "one", "--predictions", tmp_path / "one"),
        ("robustness", sample, "--json", card_path(model), "--model", model),
        ("drift", sample, "--json", card_path(model), "--reference", card_path(model)),
    ):
        done = call(*words)
        assert done.returncode == 1 and "would overwrite a file that is read" in done.stderr, words
    assert read_card(model) == read_card(SHIPPED_MODEL) and picture.read_bytes() == before
    assert split.read_text("utf-8").startswith("file,") and not (tmp_path / "one").exists()


def test_drift_of_odd_folders_and_files(sample, tmp_path):
    (sample / "glass" / "bad.jpg").write_text("no picture", encoding="utf-8")
    done = call("drift", sample)
    assert done.returncode == 0 and done.stdout.endswith(
        "2 photographs, compared with 2388: not tested, 10 are needed\n"
    )
    assert done.stderr.count("bad.jpg: not a picture") == 1
    picture = next(sample.rglob("*.png"))
    (tmp_path / "bad").mkdir()
    (sample / "glass" / "bad.jpg").rename(tmp_path / "bad" / "bad.jpg")
    for words, message in (
        ([picture], "is one photograph; name a folder of them"),
        ([tmp_path / "bad"], "no photograph in this folder can be used"),
        ([sample, "--reference", picture], "a reference is a model's card (.json), or a folder of photographs"),
    ):
        done = call("drift", *words)
        assert done.returncode == 1 and message in done.stderr


def test_an_unusable_photograph_ends_a_long_run_at_once(sample, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "bad.jpg").write_text("no picture", encoding="utf-8")

    def measure(*_):
        raise AssertionError("a long measurement")

    monkeypatch.setattr("trashsorting.evaluation.robustness.measure_robustness", measure)
    done = call("robustness", sample, "--ood", tmp_path / "other")
    assert done.returncode == 1 and done.stderr.count("bad.jpg") == 1 and "remove it from the folder" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("sweep", "--data", "sample", "--out", "gs://bucket/sweep"),
        ("data", "synthesize", "sample", "--out", "gs://bucket/synthetic"),
        ("data", "sample", "gs://bucket/sample"),
        ("data", "manifest", "sample", "--out", "gs://bucket/manifest.csv"),
    ],
)
def test_an_address_does_not_become_a_folder(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.returncode == 2 and "is an address, and a path of this machine is needed" in done.stderr, done
    assert not list(tmp_path.iterdir())
