"""A sweep as a user starts one: workers that share a file, a break, synthetic images."""

import json
import signal
import sqlite3
import sys
import time
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace

import optuna
import pytest
import yaml
from command import call

from trashsorting.cli.train import training_notebook
from trashsorting.core.config import check_config
from trashsorting.data.sample import draw_sample
from trashsorting.training.sweep import PruningCallback, open_study

SECONDS = 600
SMALL = ("backbone test_efficientnet", "pretrained false", "image_size 32", "freeze_epochs 0", "epochs 1")
SAME = [word for pair in (*SMALL, "batch_size 8", "num_workers 0") for word in ("-p", *pair.split())]


def words(folder: Path, *more: str) -> list[str]:
    paths = {"--data": folder / "sample", "--synthetic": folder / "synthetic", "--out": folder / "sweep"}
    return ["sweep", *(str(word) for pair in paths.items() for word in pair), *SAME, *more]


def ended(folder: Path) -> list[tuple[int, str]]:
    with sqlite3.connect(f"file:{folder / 'sweep' / 'sweep.db'}?mode=ro", uri=True) as database:
        return database.execute("select number, state from trials where state in ('COMPLETE', 'PRUNED')").fetchall()


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    "A sweep that was killed after its first trial and resumed by two workers."
    folder = tmp_path_factory.mktemp("swept")
    draw_sample(folder / "sample", per_class=5)
    assert call("data", "synthesize", folder / "sample", "--out", folder / "synthetic", "-n", 1).returncode == 0
    started = Popen([sys.executable, "-m", "trashsorting", *words(folder, "--trials", "6")])
    deadline = time.monotonic() + SECONDS
    while started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        try:
            if ended(folder):
                break
        except sqlite3.OperationalError:
            continue
    started.kill()
    assert started.wait(SECONDS) == -signal.SIGKILL
    done = call(*words(folder, "--trials", "6", "--workers", "2"), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("lr: {min: 1e-4, max: 0.01}", "lr='1e-4': must be a valid number: YAML takes 1e-4 for text"),
        ("lr: {min: 0.001, max: .inf}", "lr=inf: must be a finite number"),
        ("lr: {values: [1e-4, 0.001]}", "lr='1e-4': must be a valid number: YAML takes 1e-4 for text"),
        ("lr: {min: 0, max: 0.01, distribution: log_uniform_values}", "lr=0.0: must be greater than or equal to"),
        ("epochs: {min: 3, max: 9}", "epochs=3.0: must be a valid integer"),
    ],
)
def test_invalid_search_spaces_are_named(tmp_path, typed, message):
    (tmp_path / "space.yaml").write_text(typed, encoding="utf-8")
    done = call("sweep", "--data", "sample", "--out", tmp_path / "out", "--space", tmp_path / "space.yaml")
    assert done.returncode == 1 and message in done.stderr and not (tmp_path / "out").exists()


def test_a_killed_sweep_keeps_its_trials(swept):
    trials = ended(swept)
    assert 6 <= len(trials) <= 7, "the last two may run at the same time"
    assert trials[0][0] == 0, "the first one is from before the break"
    assert "the best: accuracy" in (swept / "output.txt").read_text(encoding="utf-8")
    assert (swept / "sweep/parallel.png").stat().st_size and (swept / "sweep/importance.png").stat().st_size
    assert not list(swept.glob("sweep/trial*/*.pth")), "weights of trials are not kept"


def test_trials_use_synthetic_images(swept):
    infos = [json.loads(path.read_bytes()) for path in swept.glob("sweep/trial*/run.json")]
    assert infos and all(info["synthetic"].startswith("1 of each of") for info in infos)


def test_a_bad_trial_is_pruned_and_a_good_one_is_not(tmp_path):
    study = open_study(tmp_path)
    for accuracy in (0.7, 0.8, 0.8, 0.9):
        trial = study.ask()
        for epoch in (1, 2):
            trial.report(accuracy, epoch)
        study.tell(trial, accuracy)

    def epochs(accuracy: float) -> int:
        pruning = PruningCallback(study.ask())
        recorder = SimpleNamespace(metric_names=["epoch", "accuracy", "time"], values=[[accuracy]])
        pruning.learn = SimpleNamespace(recorder=recorder)
        for _ in range(3):
            pruning("after_epoch")  # as fastai calls it, which changes what a callback raises
        return pruning.epochs

    assert epochs(0.85) == 3
    with pytest.raises(optuna.TrialPruned):
        epochs(0.3)


def test_the_winner_is_a_parameter_file_for_train(swept):
    import papermill

    winner = yaml.safe_load((swept / "sweep/winner.yaml").read_bytes())
    assert check_config(**winner).backbone == "test_efficientnet"
    assert set(winner) <= set(papermill.inspect_notebook(training_notebook()))
