"""A run that is killed with -9, one that has no room, one that is done twice, and one on two processes."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from command import call
from fastai.callback.core import Callback

from trashsorting.core.config import TrainConfig
from trashsorting.core.errors import DataError, TrashsortingError
from trashsorting.data.cutpaste import synthesize_folder
from trashsorting.data.manifest import read_folder
from trashsorting.data.sample import draw_sample
from trashsorting.data.sources import load_manifest
from trashsorting.data.splits import split_by_hash
from trashsorting.training.callbacks import Diverged, FreezeNorm
from trashsorting.training.checkpoint import FILE, Checkpointer, check_room
from trashsorting.training.learner import create_learner, fit
from trashsorting.training.run import initialize_from, save_run

BIN = Path(sys.executable).parent
COMMAND = BIN / "trashsorting"
SECONDS = 600
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TOLERANCE = 1e-4  # Of losses and weights, between a broken run and an unbroken one
PROCESSES_TOLERANCE = 2e-3  # Of losses, between two processes and one: sums are taken in another order
CONFIG = TrainConfig(
    backbone="test_efficientnet",
    pretrained=False,
    image_size=64,
    freeze_epochs=0,
    epochs=2,
    batch_size=16,
    num_workers=0,
    lr=4e-3,
    augment=False,
    mixed_precision=False,
)
WORDS = [word for name, value in asdict(CONFIG).items() for word in ("-p", name, str(value))]


def history(folder: Path) -> list[dict[str, float]]:
    "The figures of each epoch, without the clock's."
    with open(folder / "history.csv", encoding="utf-8") as stream:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def train_here(folder: Path, *cbs: Callback) -> list[dict[str, float]]:
    "What `train` does until the model is trained, in this process and one thread."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    learn = create_learner(load_manifest("sample", folder / "data", seed=CONFIG.seed), CONFIG, folder)
    fit(learn, CONFIG, cbs)
    torch.set_num_threads(threads)
    return history(folder)


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "checkpoint.pth", map_location="cpu", weights_only=True)
    return torch.cat([tensor.flatten().float() for tensor in state.values()])


def words(out: Path, *more: str) -> list[str]:
    return ["train", "--data", "sample", "--out", str(out), *WORDS, *more]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    train_here(folder)
    return folder


def test_the_same_seed_gives_identical_figures(unbroken, tmp_path):
    assert train_here(tmp_path / "again") == history(unbroken)
    assert torch.equal(weights(tmp_path / "again"), weights(unbroken))


def kernel_of(pid: int) -> int:
    "The process in which the notebook of a command runs."
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split())
    return next(child for child in children if b"ipykernel" in Path(f"/proc/{child}/cmdline").read_bytes())


def test_killed_in_the_middle_it_ends_as_the_unbroken_one(unbroken, tmp_path):
    out = tmp_path / "run"
    started = subprocess.Popen(
        [COMMAND, *words(out)], env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + SECONDS
    while not (out / FILE).exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(kernel_of(started.pid), signal.SIGKILL)
    _, said = started.communicate(timeout=SECONDS)
    assert started.returncode == 1 and "Traceback" not in said, said
    assert len(history(out)) == 1 and not (out / "run.json").exists()

    refused = call(*words(out))
    assert refused.returncode == 1 and "a run that was cut off: go on with --resume" in refused.stderr
    resumed = call(*words(out, "--resume"), **ONE_THREAD)
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 1/2  done" not in resumed.stdout and "epoch 2/2  done" in resumed.stdout
    for row, wanted in zip(history(out), history(unbroken), strict=True):
        assert row == pytest.approx(wanted, abs=TOLERANCE)
    assert (weights(out) - weights(unbroken)).abs().max() < TOLERANCE
    assert (out / "model.onnx").exists() and not (out / FILE).exists()


class PowerCut(Callback):
    "Ends a run after its first epoch."

    order = 200  # after the recovery

    def after_epoch(self):
        raise KeyboardInterrupt


class Spoil(Callback):
    "Makes the weights no numbers after some steps."

    def __init__(self, steps: int):
        self.steps = steps

    def after_step(self):
        self.steps -= 1
        if self.steps <= 0:
            next(self.model.parameters()).data.fill_(float("nan"))


def test_a_resumed_run_that_diverges_stops_too_and_keeps_its_last_good_epoch(tmp_path):
    manifest = load_manifest("sample", tmp_path / "data", seed=CONFIG.seed)
    learn = create_learner(manifest, CONFIG, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(learn, CONFIG, [Checkpointer(tmp_path, CONFIG, manifest, learn), PowerCut()])
    kept = (tmp_path / FILE).read_bytes()
    for _ in range(2):
        learn = create_learner(manifest, CONFIG, tmp_path)
        with pytest.raises(
            Diverged, match=r"^epoch 2 of 2: train_loss is nan and valid_loss is nan, so the run has div"
        ):
            fit(learn, CONFIG, [Checkpointer(tmp_path, CONFIG, manifest, learn), Spoil(1)])
        assert (tmp_path / FILE).read_bytes() == kept and not (tmp_path / "checkpoint.pth").exists()


def test_with_other_composites_or_weights_it_is_another_run(tmp_path):
    manifest = split_by_hash(read_folder(draw_sample(tmp_path / "data", per_class=5)))
    synthesize_folder(manifest, tmp_path / "composites", n_each=1)
    composed = create_learner(manifest, CONFIG, tmp_path, tmp_path / "composites")

    with pytest.raises(KeyboardInterrupt):
        fit(composed, CONFIG, [Checkpointer(tmp_path, CONFIG, manifest, composed), PowerCut()])
    assert Checkpointer(tmp_path, CONFIG, manifest, composed).found["epoch"] == 0
    plain = create_learner(manifest, CONFIG, tmp_path)
    with pytest.raises(TrashsortingError, match=r"cut off with synthetic='1 of each of .*', not '': choose another"):
        Checkpointer(tmp_path, CONFIG, manifest, plain)
    save_run(composed, manifest, CONFIG, "drawn")
    composed.save("checkpoint", with_opt=False)
    initialize_from(composed, tmp_path, manifest)
    with pytest.raises(TrashsortingError, match="weights='random', not 'random; initialised from another run': choose"):
        Checkpointer(tmp_path, CONFIG, manifest, composed)


def test_with_another_start_of_the_same_kind_it_is_another_run(tmp_path):
    manifest = split_by_hash(read_folder(draw_sample(tmp_path / "data", per_class=5)))
    learners = []
    for seed in (0, 1):
        config, folder = replace(CONFIG, seed=seed), tmp_path / f"run{seed}"
        folder.mkdir()
        started = create_learner(manifest, config, folder)
        started.save("checkpoint", with_opt=False)
        save_run(started, manifest, config, "drawn")
        learners.append(create_learner(manifest, CONFIG, tmp_path))
        initialize_from(learners[-1], folder, manifest)
    first, second = learners
    assert first.weights == second.weights == "random; initialised from another run"
    with pytest.raises(KeyboardInterrupt):
        fit(first, CONFIG, [Checkpointer(tmp_path, CONFIG, manifest, first), PowerCut()])
    assert Checkpointer(tmp_path, CONFIG, manifest, first).found["epoch"] == 0
    one, other = (repr(learn.initialized_from) for learn in learners)
    with pytest.raises(TrashsortingError, match=f"cut off with initialized_from={one}, not {other}: choose"):
        Checkpointer(tmp_path, CONFIG, manifest, second)


def test_without_a_broken_run_there_is_nothing_to_go_on_with(tmp_path):
    done = call(*words(tmp_path / "run", "--resume"))
    assert done.returncode == 1 and "holds no run that was cut off" in done.stderr


@contextmanager
def mounted(folder: Path, options: str):
    "A file system of our own in memory; skips where that is not allowed."
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("!!! a full disk was not tried: mounting a tmpfs takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_before_training(tmp_path):
    with mounted(tmp_path / "small", "size=2m") as folder:
        check_room(folder, 1_000_000)
        with pytest.raises(DataError, match=r"a run needs 3 MB there, and writing them failed \(No space left"):
            check_room(folder, 3_000_000)
        assert list(folder.iterdir()) == []


def test_an_unwritable_folder_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = call(*words(tmp_path / "file" / "run"))
    assert done.returncode == 1 and re.search(r"file/run: this folder cannot be made .*choose another", done.stderr)
    with mounted(tmp_path / "fixed", "ro") as folder:
        done = call(*words(folder))
        assert done.returncode == 1 and "fixed: this folder cannot be written to" in done.stderr


def test_two_processes_give_what_one_gives(tmp_path):
    "Equal batches over all, frozen batch-norm statistics: what torch has no synchronised form of on a CPU."
    one, two = train_here(tmp_path / "one", FreezeNorm()), tmp_path / "two"
    # Its `--cpu` starts one process, unless there is MPI; this starts two, which find no GPU and talk by gloo.
    launch = (BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    plain = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    typed = [*map(str, launch), *plain, "-m", "trashsorting", *words(two)]
    done = subprocess.run(typed, capture_output=True, text=True, timeout=SECONDS, env=ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    for row, wanted in zip(history(two), one, strict=True):
        assert row == pytest.approx(wanted, abs=PROCESSES_TOLERANCE)
    assert done.stdout.count("epoch 2/2  done") == 1, "only the first process says what happens"
    assert (two / "model.onnx").exists() and not list(two.glob("room-*"))
