"""A cross-validation as a person starts it, cuts it off, and goes on with it. On drawn pictures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import call

from trashsorting.core.card import read_card
from trashsorting.data.sample import draw_sample
from trashsorting.data.splits import read_split
from trashsorting.evaluation.calibration import fit_temperature
from trashsorting.evaluation.oof import load_predictions
from trashsorting.training.crossval import logit_scale_ratio
from trashsorting.training.run import load_run

SMALL = ("image_size 64", "frozen_stages 0", "freeze_epochs 0", "epochs 1", "batch_size 8", "num_workers 0", "lr 1e-3")


@pytest.fixture(scope="module")
def crossval(tmp_path_factory) -> tuple[list, Path]:
    "The arguments of the command, and its output folder."
    work = tmp_path_factory.mktemp("crossval")
    draw_sample(work / "photos", per_class=10)
    parameters = [word for pair in SMALL for word in ("-p", *pair.split())]
    words = ["crossval", "--data", work / "photos", "--out", work / "cv", "-k", 2, "--risk", 0.9, *parameters]
    done = call(*words)
    assert done.returncode == 0, done.stderr
    assert "fold 1" in done.stdout and f"trashsorting export {work / 'cv' / 'mean'}" in done.stdout
    return words, work / "cv"


def test_each_training_photograph_is_held_out_once(crossval):
    _, folder = crossval
    splits = [read_split(folder / f"fold{at}.csv") for at in range(2)]
    held = [{file for file, (_, subset) in split.items() if subset == "val"} for split in splits]
    trained = [{file for file, (_, subset) in split.items() if subset == "train"} for split in splits]
    assert held[0] == trained[1] and held[1] == trained[0] and not held[0] & held[1]
    predictions = load_predictions(folder / "predictions.csv")
    assert set(predictions.files) == held[0] | held[1]
    for at in range(2):
        assert load_run(folder / f"fold{at}").config.seed == at
        assert {file for file, fold in zip(predictions.files, predictions.folds, strict=True) if fold == at} == held[at]


def test_the_calibration_reaches_the_card(crossval):
    _, folder = crossval
    done = call("export", folder / "mean")
    assert done.returncode == 0, done.stderr
    card, predictions = read_card(folder / "mean" / "model.onnx"), load_predictions(folder / "predictions.csv")
    right = predictions.logits.argmax(1) == predictions.targets
    assert card.cross_validation.n == len(predictions.files) == card.provenance.n_train
    by_fold = [right[predictions.folds == at].mean() for at in range(2)]
    assert card.cross_validation.accuracy_by_fold == pytest.approx(by_fold)
    assert card.cross_validation.accuracy_std == pytest.approx(np.std(by_fold, ddof=1))
    fitted = fit_temperature(predictions.logits, predictions.targets)
    folds = [load_run(folder / f"fold{at}") for at in range(2)]
    seen = [folds[0].manifest.root / entry.file for entry in folds[0].manifest.entries[::5]]
    ratio = logit_scale_ratio(load_run(folder / "mean"), folds, seen)
    assert card.temperature == pytest.approx(fitted * ratio)
    assert f"{fitted:.3f}, is multiplied by {ratio:.3f}" in card.decision_note
    assert card.evaluation.unsure_below == card.unsure_below and "90.0%" in card.decision_note
    trained_on = {entry.file for entry in load_run(folder / "mean").manifest.subset("train").entries}
    assert trained_on == set(predictions.files)


def test_a_finished_crossval_is_refused_and_an_interrupted_one_resumes(crossval):
    words, folder = crossval
    refused = call(*words)
    assert refused.returncode != 0 and "holds a finished cross-validation already" in refused.stderr
    was = (folder / "mean" / "run.json").read_text(encoding="utf-8")
    (folder / "calibration.json").unlink()
    (folder / "mean" / "run.json").unlink()
    (folder / "fold1" / "run.json").unlink()
    first = (folder / "fold0" / "checkpoint.pth").stat().st_mtime_ns
    done = call(*words)
    assert done.returncode == 0, done.stderr
    assert (folder / "fold0" / "checkpoint.pth").stat().st_mtime_ns == first
    now = json.loads((folder / "mean" / "run.json").read_bytes())
    assert now["calibration"]["temperature"] == pytest.approx(json.loads(was)["calibration"]["temperature"], rel=1e-3)


def test_another_configuration_or_other_folds_are_refused_on_resume(crossval):
    words, folder = crossval
    (folder / "calibration.json").unlink(missing_ok=True)
    other = call(*words, "-p", "weight_decay", 0.5)
    assert other.returncode != 0 and "was trained with weight_decay=0.01, not 0.5" in other.stderr
    thrice = call(*words, "-k", 3)
    assert thrice.returncode != 0 and "fold0.csv holds out other photographs: choose another folder" in thrice.stderr
    assert "Traceback" not in other.stderr + thrice.stderr


def test_other_synthetic_images_or_weights_are_refused_on_resume(crossval):
    words, folder = crossval
    (folder / "calibration.json").unlink(missing_ok=True)
    file = folder / "fold1" / "run.json"
    was = json.loads(file.read_bytes())
    others = {"synthetic": "1 of each of 9 of 12 photographs", "weights": "random"}
    for name, other in others.items():
        file.write_text(json.dumps(was | {name: other}), encoding="utf-8")
        refused = call(*words)
        assert refused.returncode == 1 and "Traceback" not in refused.stderr
        assert f"fold1 was trained with {name}={other!r}, not {was[name]!r}: choose another folder" in refused.stderr
    file.write_text(json.dumps(was | {"manifest_sha256": "0"}), encoding="utf-8")
    refused = call(*words)
    assert refused.returncode == 1 and "fold1 was trained on photographs that have changed: choose" in refused.stderr
    file.write_text(json.dumps(was, indent=2) + "\n", encoding="utf-8")
    continued = call(*words, "-p", "init_from", folder / "mean")
    assert continued.returncode == 1
    wanted = f"{was['weights']}; initialised from the average of 2 runs"
    assert f"fold0 was trained with weights={was['weights']!r}, not {wanted!r}: choose" in continued.stderr


def test_an_unreachable_risk_can_be_changed_without_training(crossval):
    words, folder = crossval
    (folder / "calibration.json").unlink(missing_ok=True)
    before = [(folder / f"fold{at}" / "checkpoint.pth").stat().st_mtime_ns for at in range(2)]
    refused = call(*words, "--risk", 1e-6)
    assert refused.returncode != 0 and "no threshold keeps the risk" in refused.stderr
    assert "Traceback" not in refused.stderr and not (folder / "calibration.json").exists()
    assert call(*words).returncode == 0
    assert before == [(folder / f"fold{at}" / "checkpoint.pth").stat().st_mtime_ns for at in range(2)]


def test_an_average_gets_the_calibration_or_is_not_made(crossval, tmp_path):
    _, folder = crossval
    runs = [folder / "fold0", folder / "fold0"]
    refused = call("average", *runs, "--out", tmp_path / "none", "--crossval", tmp_path)
    assert refused.returncode != 0 and "of a finished cross-validation?" in refused.stderr
    assert not (tmp_path / "none").exists()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for content in ("{", "{}", "[]", '{"temperature": "1"}'):
        (damaged / "calibration.json").write_text(content)
        refused = call("average", *runs, "--out", tmp_path / "none", "--crossval", damaged)
        assert refused.returncode == 1 and "calibration.json: not a calibration: copy" in refused.stderr, refused
    shutil.copy(folder / "calibration.json", damaged)
    refused = call("average", *runs, "--out", tmp_path / "none", "--crossval", damaged)
    assert refused.returncode == 1 and "fold0/run.json: no such file" in refused.stderr
    assert not (tmp_path / "none").exists()
    assert call("average", *runs, "--out", tmp_path / "twice", "--crossval", folder).returncode == 0
    own = json.loads((tmp_path / "twice" / "run.json").read_bytes())["calibration"]
    calibration = json.loads((folder / "calibration.json").read_bytes())
    assert own["unsure_below"] == calibration["unsure_below"] and "cross_validation" not in own
