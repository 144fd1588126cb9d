"""Runs that are killed with -9, that lack disk space, that are repeated, and that use two processes."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing import get_context
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
from trashsorting.training.checkpoint import FILE, Checkpointer, check_disk_space
from trashsorting.training.learner import create_learner, fit
from trashsorting.training.run import initialize_from, save_run, train

BIN = Path(sys.executable).parent
COMMAND = BIN / "trashsorting"
SECONDS = 600
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TOLERANCE = 1e-4  # Of losses and weights, between a resumed run and an uninterrupted one
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
PARAMETERS = [word for name, value in asdict(CONFIG).items() for word in ("-p", name, str(value))]


def history(folder: Path) -> list[dict[str, float]]:
    "The metrics of each epoch, without the times."
    with open(folder / "history.csv", encoding="utf-8") as stream:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def train_here(folder: Path, *cbs: Callback) -> list[dict[str, float]]:
    "Train as the notebook does, in this process with one thread."
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


def train_command(out: Path, *options: str) -> list[str]:
    return ["train", "--data", "sample", "--out", str(out), *PARAMETERS, *options]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train_here(folder)
    return folder


def test_the_same_seed_gives_identical_metrics(uninterrupted, tmp_path):
    assert train_here(tmp_path / "again") == history(uninterrupted)
    assert torch.equal(weights(tmp_path / "again"), weights(uninterrupted))


def kernel_of(pid: int) -> int:
    "The kernel process of a command's notebook."
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split())
    return next(child for child in children if b"ipykernel" in Path(f"/proc/{child}/cmdline").read_bytes())


def test_a_killed_run_resumes_to_the_same_result(uninterrupted, tmp_path):
    out = tmp_path / "run"
    started = subprocess.Popen(
        [COMMAND, *train_command(out)], env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + SECONDS
    while not (out / FILE).exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(kernel_of(started.pid), signal.SIGKILL)
    _, stderr = started.communicate(timeout=SECONDS)
    assert started.returncode == 1 and "Traceback" not in stderr, stderr
    assert len(history(out)) == 1 and not (out / "run.json").exists()

    refused = call(*train_command(out))
    assert refused.returncode == 1 and "a run that was cut off: go on with --resume" in refused.stderr
    resumed = call(*train_command(out, "--resume"), **ONE_THREAD)
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 1/2  done" not in resumed.stdout and "epoch 2/2  done" in resumed.stdout
    for row, expected in zip(history(out), history(uninterrupted), strict=True):
        assert row == pytest.approx(expected, abs=TOLERANCE)
    assert (weights(out) - weights(uninterrupted)).abs().max() < TOLERANCE
    assert (out / "model.onnx").exists() and not (out / FILE).exists()


class PowerCut(Callback):
    "Ends a run after its first epoch."

    order = 200  # after the checkpoint

    def after_epoch(self):
        raise KeyboardInterrupt


class MakeNaN(Callback):
    "Makes the weights NaN after some steps."

    def __init__(self, steps: int):
        self.steps = steps

    def after_step(self):
        self.steps -= 1
        if self.steps <= 0:
            next(self.model.parameters()).data.fill_(float("nan"))


def test_a_diverged_run_keeps_the_state_of_its_last_good_epoch(tmp_path):
    manifest = load_manifest("sample", tmp_path / "data", seed=CONFIG.seed)
    learn = create_learner(manifest, CONFIG, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(learn, CONFIG, [Checkpointer(tmp_path, CONFIG, manifest, learn), PowerCut()])
    state = (tmp_path / FILE).read_bytes()
    for _ in range(2):
        learn = create_learner(manifest, CONFIG, tmp_path)
        with pytest.raises(
            Diverged, match=r"^epoch 2 of 2: train_loss is nan and valid_loss is nan, so the run has div"
        ):
            fit(learn, CONFIG, [Checkpointer(tmp_path, CONFIG, manifest, learn), MakeNaN(1)])
        assert (tmp_path / FILE).read_bytes() == state and not (tmp_path / "checkpoint.pth").exists()


def test_other_synthetic_images_or_weights_are_refused_on_resume(tmp_path):
    manifest = split_by_hash(read_folder(draw_sample(tmp_path / "data", per_class=5)))
    synthesize_folder(manifest, tmp_path / "synthetic", n_each=1)
    with_synthetic = create_learner(manifest, CONFIG, tmp_path, tmp_path / "synthetic")
    with pytest.raises(KeyboardInterrupt):
        fit(with_synthetic, CONFIG, [Checkpointer(tmp_path, CONFIG, manifest, with_synthetic), PowerCut()])
    assert Checkpointer(tmp_path, CONFIG, manifest, with_synthetic).saved["epoch"] == 0
    without = create_learner(manifest, CONFIG, tmp_path)
    with pytest.raises(TrashsortingError, match=r"cut off with synthetic='1 of each of .*', not '': choose another"):
        Checkpointer(tmp_path, CONFIG, manifest, without)
    save_run(with_synthetic, manifest, CONFIG, "drawn")
    with_synthetic.save("checkpoint", with_opt=False)
    initialize_from(with_synthetic, tmp_path, manifest)
    with pytest.raises(TrashsortingError, match="weights='random', not 'random; initialised from another run': choose"):
        Checkpointer(tmp_path, CONFIG, manifest, with_synthetic)


def test_another_init_from_is_refused_on_resume(tmp_path):
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
    assert Checkpointer(tmp_path, CONFIG, manifest, first).saved["epoch"] == 0
    saved, current = (repr(learn.initialized_from) for learn in learners)
    with pytest.raises(
        TrashsortingError, match=f"cut off with initialized_from={saved}, not {current}: choose another folder"
    ):
        Checkpointer(tmp_path, CONFIG, manifest, second)


def test_resume_without_an_interrupted_run_is_refused(tmp_path):
    done = call(*train_command(tmp_path / "run", "--resume"))
    assert done.returncode == 1 and "holds no run that was cut off" in done.stderr


@contextmanager
def mounted(folder: Path, options: str):
    "A file system in memory; skips the test where mounting is not allowed."
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("!!! a full disk was not tried: mounting a tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_before_training(tmp_path):
    with mounted(tmp_path / "small", "size=2m") as folder:
        check_disk_space(folder, 1_000_000)
        with pytest.raises(DataError, match=r"a run needs 3 MB there, and writing them failed \(No space left"):
            check_disk_space(folder, 3_000_000)
        assert list(folder.iterdir()) == []


def test_an_unwritable_folder_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = call(*train_command(tmp_path / "file" / "run"))
    assert done.returncode == 1 and "file: is a file, and a folder is needed; choose another one" in done.stderr
    with mounted(tmp_path / "fixed", "ro") as folder:
        done = call(*train_command(folder))
        assert done.returncode == 1 and "fixed: cannot be written (Read-only file system)" in done.stderr


def train_as(rank: int, port: int, folder: Path) -> None:
    "One of two processes of a run, as torch's launcher begins it."
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in ours.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    manifest = load_manifest("sample", folder.parent / f"data{rank}", seed=CONFIG.seed)
    train(manifest, CONFIG, folder)
    torch.distributed.destroy_process_group()


def test_two_processes_train_like_one(tmp_path):
    "With frozen batch-norm statistics, which torch cannot synchronise on a CPU."
    single, two = train_here(tmp_path / "one", FreezeNorm()), tmp_path / "two"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = get_context("forkserver")  # torch is loaded once; a process that has trained cannot always be forked
    server.set_forkserver_preload(["trashsorting.training.run"])
    processes = [server.Process(target=train_as, args=(rank, port, two)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    assert [process.exitcode for process in processes] == [0, 0]
    for row, expected in zip(history(two), single, strict=True):
        assert row == pytest.approx(expected, abs=PROCESSES_TOLERANCE)
    assert (two / "run.json").exists() and not list(two.glob("space-*"))
