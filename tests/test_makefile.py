"""What a user gives `make` is data: it reaches commands through the environment, and is never run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GIVEN = ["TAG", "PORT", "ARGS", "NAME", "TITLE"]
HOSTILE = ['v0";touch bad;"', "0;touch bad", "$(shell touch bad)", "`touch bad`", "$$(touch bad)", "'|touch bad|'"]
TARGETS = ["wheel", "run", "test", "check-long", "lab", "new-module"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """The Makefile, where each program it calls only prints its arguments, a line each."""
    for name in ("Makefile", "settings.ini"):
        shutil.copy(ROOT / name, tmp_path)
    for place in (".venv/bin", ".venv-serve/bin", "requirements", "tools", "trashsorting/static/runtime"):
        (tmp_path / place).mkdir(parents=True)
    made_of = ["requirements/serve.txt", "requirements/dev.txt", "requirements/uv.txt", "setup.py", "pyproject.toml"]
    made_of += ["package-lock.json", "tools/runtime.mjs"]
    made = "trashsorting/static/runtime/ort.wasm.gz"
    for name in (*made_of, made, ".venv-serve/.stamp", ".venv/.requirements", ".venv/.package"):  # in this order
        (tmp_path / name).touch()
    programs = [".venv-serve/bin/python", "stub", *(f".venv/bin/{name}" for name in PROGRAMS)]
    for program in programs:
        (tmp_path / program).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
        (tmp_path / program).chmod(0o755)
    return tmp_path


PROGRAMS = ["python", "ruff", "mypy", "vulture", "deptry", "lint-imports", "nbdev_test", "pytest", "jupyter"]
PROGRAMS += ["nbdev_export", "nbdev_clean", "nbdev_readme", "nbdev_install_hooks", "pre-commit"]


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run make there. No environment is made: they are newer than what they are made of."""
    command = ["make", "--no-print-directory", "PYTHON=./stub", *words]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


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
    assert make(folder, "new-module", "NAME=data.foo", "TITLE=A 'title'").stdout.endswith("data.foo\nA 'title'\n")


RUNTIME = "trashsorting/static/runtime/ort.wasm.gz"
TOOLS = ("awk", "cat", "env", "make", "node", "rm", "sed", "sh", "touch")


def path_of(folder: Path, *more: Path) -> str:
    """A PATH with nothing but these programs and those that make needs."""
    folder.mkdir()
    found = [tool for name in TOOLS if (tool := shutil.which(name))]
    for program in [*found, *more]:
        (folder / Path(program).name).symlink_to(program)
    return str(folder)


@pytest.mark.parametrize("npm", ["missing", "without a registry"])
def test_run_starts_without_the_runtime_of_the_page(folder, tmp_path_factory, npm):
    """Where npm is missing or reaches no registry, one line says so, and the service starts all the same."""
    (folder / RUNTIME).unlink()
    shutil.copy(ROOT / "package.json", folder)
    shutil.copy(ROOT / "package-lock.json", folder)
    place = tmp_path_factory.mktemp(f"npm {npm}")
    found = shutil.which("npm")
    if npm != "missing" and found is None:
        pytest.skip("npm is not installed")
    path = path_of(place / "bin", *([Path(found)] if npm != "missing" else []))
    nowhere = {"npm_config_registry": "http://127.0.0.1:9/", "npm_config_cache": str(place / "cache")}
    done = make(folder, "run", PATH=path, **nowhere)
    assert done.returncode == 0 and "--port\n8080\n" in done.stdout
    assert len(done.stderr.splitlines()) == 1 and "so the page asks the server only" in done.stderr
    if npm != "missing":
        failed = make(folder, "runtime", PATH=path, npm_config_fetch_retries="0", **nowhere)
        assert failed.returncode == 2 and "could not fetch ONNX Runtime Web" in failed.stderr


def test_run_fetches_the_runtime_of_the_page(folder):
    """As `test`, `docs` and `wheel` do, and once."""
    (folder / RUNTIME).unlink()
    assert "npm ci" in make(folder, "--dry-run", "run").stdout
    (folder / RUNTIME).touch()
    assert "npm ci" not in make(folder, "--dry-run", "run").stdout


def test_help_lists_every_target():
    "A target that a person may call has a sentence, and no sentence is longer than a line of a terminal."
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split())
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert set(re.findall(r"^  make (\S+)", shown, re.MULTILINE)) == targets and len(targets) <= 16
    assert max(map(len, shown.splitlines())) <= 120


def test_outputs_finds_notebooks_in_folders(folder):
    "And runs neither the training run nor a checkpoint of JupyterLab."
    names = ("index", "train", "data/01_sample", "tutorials/train", "data/.ipynb_checkpoints/01_sample-checkpoint")
    for name in names:
        (folder / "nbs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "nbs" / f"{name}.ipynb").touch()
    done = make(folder, "outputs")
    assert done.returncode == 0, done.stderr
    run = set(re.findall(r"^nbs/(\S+)\.ipynb$", done.stdout, re.MULTILINE))
    assert run == {"index", "data/01_sample", "tutorials/train"}


def test_torch_writes_no_trace_while_notebooks_are_tested(folder):
    "It reads its log level when it is loaded: where notebooks share a process, `launch` would set it too late."
    (folder / ".venv/bin/nbdev_test").write_text('#!/bin/sh\necho "level $TORCH_CPP_LOG_LEVEL"\n', encoding="utf-8")
    assert "\nlevel FATAL\n" in make(folder, "test").stdout
