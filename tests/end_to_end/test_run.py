"""`make run` for the first time: a fresh copy, no environment, no torch."""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from test_repo import copy_repo

from trashsorting.data.sample import draw_picture

SECONDS = 300  # generous: the first start downloads about 80 MB
MEGABYTES = 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def bare_environment() -> dict[str, str]:
    "The environment variables without those of the development environment."
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != Path(sys.executable).parent]
    removed = ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TRASHSORTING_MODEL", "PORT", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    return {**environment, "PATH": os.pathsep.join(folders)}


class MakeRun:
    "`make run` in a folder, with its output."

    def __init__(self, folder: Path):
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.start = time.perf_counter()
        self.process = subprocess.Popen(
            ["make", "run", f"PORT={self.port}"],
            cwd=folder,
            env=bare_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines, self.ready = [], threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if f"ready at {self.address}" in line:
                self.ready.set()
        self.ready.set()  # it has ended

    def wait(self):
        self.ready.wait(SECONDS)
        assert self.process.poll() is None and f"ready at {self.address}" in "".join(self.lines), "".join(self.lines)

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def group_is_alive(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def stop(self):
        "Ctrl-C reaches the whole process group; what is left is killed."
        if self.group_is_alive():
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(20)
        finally:
            if self.group_is_alive():
                os.killpg(self.process.pid, signal.SIGKILL)
            self.reader.join(5)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = copy_repo(tmp_path_factory.mktemp("checkout"))
    started = MakeRun(folder)
    try:
        started.wait()
        started.folder = folder
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder / ".venv-serve", ignore_errors=True)


def photograph() -> tuple[bytes, str | None]:
    "A photograph of TrashNet with its class; without TrashNet a drawing, for which no answer is right."
    if "TRASHNET" in os.environ:
        path = sorted(Path(os.environ["TRASHNET"]).glob("images/glass/*.jpg"))[0]
        return path.read_bytes(), path.parent.name
    stream = io.BytesIO()
    draw_picture("glass", 0, (512, 384)).save(stream, "JPEG")
    return stream.getvalue(), None


def test_a_stranger_gets_an_answer(service, capsys):
    data, label = photograph()
    answer = httpx.post(f"{service.address}/api/predict", files={"file": ("photo.jpg", data)}, timeout=30)
    seconds = service.seconds()
    with capsys.disabled():
        print(f" [{seconds:.1f} s from `make run` without an environment to the first answer]", end="")
    assert answer.status_code == 200, answer.text
    classes = httpx.get(f"{service.address}/api/model/info").json()["classes"]
    assert answer.json()["predicted_class"] in classes
    if label is not None:
        assert answer.json()["predicted_class"] == label


def test_the_environment_is_light(service):
    environment = service.folder / ".venv-serve"
    packages = next(environment.glob("lib/python*/site-packages"))
    assert (packages / "onnxruntime").exists()
    for name in ("torch", "torchvision", "fastai", "timm", "dvc", "wandb"):
        assert not (packages / name).exists()
    megabytes = sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file()) / 1e6
    assert megabytes < MEGABYTES


def test_a_second_start_installs_nothing(service):
    again = subprocess.run(
        ["make", "--dry-run", "run"], cwd=service.folder, env=bare_environment(), capture_output=True, text=True
    )
    assert "-m trashsorting serve" in again.stdout and "pip" not in again.stdout


def test_ctrl_c_ends_it(service):
    "Stays last, since it ends the shared service."
    os.killpg(service.process.pid, signal.SIGINT)
    service.process.wait(20)
    service.reader.join(20)  # ends when the last worker has closed its output
    assert not service.reader.is_alive()
    assert "Traceback" not in "".join(service.lines), "".join(service.lines)


def test_an_old_python_is_named(tmp_path):
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.20"\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    folder = copy_repo(tmp_path / "checkout")
    done = subprocess.run(
        ["make", "run", f"PYTHON={old}"], cwd=folder, env=bare_environment(), capture_output=True, text=True
    )
    assert done.returncode and "Python 3.8.20" in done.stderr
    assert re.search(r"needs Python 3\.\d+ or newer", done.stderr)
    assert not (folder / ".venv-serve").exists()
