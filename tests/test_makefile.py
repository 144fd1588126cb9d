"""What a caller gives `make` is data: it reaches commands by their environment, and is never run."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GIVEN = ["TAG", "TORCH", "PORT", "URL", "SECONDS", "USERS", "DATA", "OUT", "SPLIT", "EPOCHS", "ARGS"]
GIVEN += ["TRASHNET", "OTHERS", "CV"]
HOSTILE = ['v0";touch bad;"', "0;touch bad", "$(shell touch bad)", "`touch bad`", "$$(touch bad)", "'|touch bad|'"]
TARGETS = ["wheel", "test-torch", "run", "load", "train", "measured", "check-long", "coverage", "lab"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """The Makefile, where each program it calls only prints its arguments, a line each."""
    for name in ("Makefile", "settings.ini"):
        shutil.copy(ROOT / name, tmp_path)
    for place in (".venv/bin", ".venv-serve/bin", "requirements"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "requirements" / "serve.txt").touch()
    (tmp_path / ".venv-serve" / ".stamp").touch()
    programs = [".venv-serve/bin/python", "stub", *(f".venv/bin/{name}" for name in PROGRAMS)]
    for program in programs:
        (tmp_path / program).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
        (tmp_path / program).chmod(0o755)
    return tmp_path


PROGRAMS = [
    "python",
    "locust",
    "trashsorting",
    "ruff",
    "mypy",
    "vulture",
    "nbdev_test",
    "pytest",
    "coverage",
    "jupyter",
]


def make(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run make there. No environment is made: `setup` counts as done."""
    command = ["make", "--no-print-directory", "-o", "setup", "-o", "hooks", "-o", "check-outputs", "PYTHON=./stub"]
    return subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_given_is_never_run(folder, target, hostile):
    given = [f"{name}={hostile}" for name in GIVEN]
    shown = make(folder, "--dry-run", target, *given)
    assert shown.returncode == 0 and "touch bad" not in shown.stdout, shown.stdout
    done = make(folder, target, *given)
    assert not list(folder.rglob("bad")), done.stdout
    if target == "wheel":
        assert done.returncode == 2 and f"the tag is {hostile}, and settings.ini says" in done.stderr


def test_what_is_given_arrives(folder):
    assert "--port\n9000\n" in make(folder, "run", "PORT=9000").stdout
    assert "--port\n8080\n" in make(folder, "run").stdout
    assert make(folder, "test-torch", "TORCH=newest").stdout.splitlines()[-1] == "newest"
    assert make(folder, "test-torch").stdout.splitlines()[-1] == "oldest"
    load = make(folder, "load", "URL=http://127.0.0.1:9", "SECONDS=5").stdout
    assert "--host\nhttp://127.0.0.1:9\n" in load and "--run-time\n5s\n" in load and "--users\n8\n" in load
    train = make(folder, "train", "DATA=my photos", "OUT=here", "SPLIT=a b.csv").stdout
    assert train.endswith("train\n--data\nmy photos\n--split\na b.csv\n--out\nhere\n")
    assert make(folder, "train", "DATA=x").returncode == make(folder, "load").returncode == 2
