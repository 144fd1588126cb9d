"""A sweep as a person starts one: workers that share a file, a break, what Weights & Biases makes of the export."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml
from command import call

from trashsorting.cli.train import training_notebook
from trashsorting.core.config import check_config
from trashsorting.data.sample import draw_sample
from trashsorting.training.sweep import Report, open_study

COMMAND = Path(sys.executable).parent / "trashsorting"
SECONDS = 600
SMALL = ("backbone mobilenetv3_small_100", "pretrained false", "image_size 32", "freeze_epochs 0", "epochs 1")
SAME = [word for one in (*SMALL, "batch_size 8", "num_workers 0") for word in ("-p", *one.split())]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def words(folder: Path, *more: str) -> list[str]:
    return [str(COMMAND), "sweep", "--data", str(folder / "sample"), "--out", str(folder / "sweep"), *SAME, *more]


def ended(folder: Path) -> list[tuple[int, str]]:
    with sqlite3.connect(f"file:{folder / 'sweep' / 'sweep.db'}?mode=ro", uri=True) as database:
        return database.execute("select number, state from trials where state in ('COMPLETE', 'PRUNED')").fetchall()


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    "Killed after its first trial, and resumed by two workers."
    folder = tmp_path_factory.mktemp("swept")
    draw_sample(folder / "sample", per_class=5)
    started = subprocess.Popen(words(folder, "--trials", "6"), env=ONE_THREAD, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS
    while started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        try:
            if ended(folder):
                break
        except sqlite3.OperationalError:
            continue
    started.send_signal(signal.SIGKILL)
    assert started.wait(SECONDS) == -signal.SIGKILL
    again = words(folder, "--trials", "6", "--workers", "2")
    done = subprocess.run(again, env=ONE_THREAD, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("lr: {min: 1e-4, max: 0.01}", "lr='1e-4': must be a valid number: YAML takes 1e-4 for text"),
        ("lr: {min: 0.001, max: .inf}", "lr=inf: must be a finite number"),
        ("lr: {values: [1e-4, 0.001]}", "lr='1e-4': must be a valid number: YAML takes 1e-4 for text"),
        ("lr: {min: 0, max: 0.01, distribution: log_uniform_values}", "lr=0.0: must be greater than or equal to"),
        ("epochs: {min: 3, max: 9}", "epochs=3.0: must be a valid integer"),
    ],
)
def test_what_no_run_takes_is_named(tmp_path, typed, said):
    (tmp_path / "space.yaml").write_text(typed, encoding="utf-8")
    done = call("sweep", "--data", "sample", "--out", tmp_path / "out", "--space", tmp_path / "space.yaml")
    assert done.returncode == 1 and said in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("typed", "said"), [('{"lr": 1', "not JSON: Expecting"), ("[1]", "no names with values")])
def test_one_that_is_no_configuration_is_a_wrong_use(tmp_path, typed, said):
    (tmp_path / "one.json").write_text(typed, encoding="utf-8")
    done = call("sweep", "--data", "sample", "--out", tmp_path / "out", "--one", tmp_path / "one.json")
    assert done.returncode == 2 and f"--one {tmp_path / 'one.json'}: {said}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_trial_is_lost(swept):
    trials = ended(swept)
    assert 6 <= len(trials) <= 7, "the last two may run at the same time"
    assert trials[0][0] == 0, "the first one is from before the break"
    assert "the best: accuracy" in (swept / "said.txt").read_text(encoding="utf-8")
    assert (swept / "sweep/parallel.png").stat().st_size and (swept / "sweep/importance.png").stat().st_size
    assert not list(swept.glob("sweep/trial*/*.pth")), "weights of trials are not kept"


def test_a_hopeless_trial_is_given_up_and_a_good_one_is_not(tmp_path):
    study = open_study(tmp_path)
    for accuracy in (0.7, 0.8, 0.8, 0.9):
        trial = study.ask()
        for epoch in (1, 2):
            trial.report(accuracy, epoch)
        study.tell(trial, accuracy)

    def epochs(accuracy: float) -> int:
        report = Report(study.ask())
        recorder = SimpleNamespace(metric_names=["epoch", "accuracy", "time"], values=[[accuracy]])
        report.learn = SimpleNamespace(recorder=recorder)
        for _ in range(3):
            report("after_epoch")  # as fastai calls it, which changes what a callback raises
        return report.epochs

    assert epochs(0.85) == 3
    with pytest.raises(optuna.TrialPruned):
        epochs(0.3)


def test_the_winner_is_a_file_of_parameters_for_the_notebook(swept):
    import papermill

    winner = yaml.safe_load((swept / "sweep/winner.yaml").read_bytes())
    assert check_config(**winner).backbone == "mobilenetv3_small_100"
    assert set(winner) <= set(papermill.inspect_notebook(training_notebook()))


def test_wandb_would_run_what_was_exported(swept, tmp_path):
    "W&B's own code turns the sweep's command and a configuration into the words that its agent starts."
    from wandb.sdk.launch.sweeps import utils

    exported = yaml.safe_load((swept / "sweep/wandb.yaml").read_bytes())
    chosen = {"lr": 1e-3, "weight_decay": 0.01, "label_smoothing": 0.1, "crop_mode": "center"}
    same = {name: one["value"] for name, one in exported["parameters"].items() if "value" in one}
    assert set(chosen) | set(same) == set(exported["parameters"])
    given = {"program": exported["program"]}
    given["args"] = {name: {"value": value} for name, value in {**chosen, **same}.items()}
    (tmp_path / "args.json").write_text(utils.create_sweep_command_args(given)["args_json"][0], encoding="utf-8")
    places = {"${program}": str(COMMAND), "${args_json_file}": str(tmp_path / "args.json")}
    command = [places.get(word, word) for word in utils.create_sweep_command(exported["command"])]
    asked = {**ONE_THREAD, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_RUN_ID": "asked1"}
    done = subprocess.run(command, env=asked, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    (written,) = swept.glob("sweep/asked1/wandb/offline-run-*-asked1/run-asked1.wandb")
    assert b"accuracy" in written.read_bytes()
