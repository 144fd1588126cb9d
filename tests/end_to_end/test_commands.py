"""Every command and program in the README and in the tutorials is executed, as it stands or by the table below."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trashsorting.data.sample import draw_picture, draw_sample

ROOT = Path(__file__).resolve().parents[2]
GUIDE = "google_cloud"  # its commands need an account: tests/test_workflows.py looks at them
TUTORIALS = sorted(path for path in (ROOT / "nbs" / "tutorials").glob("*.ipynb") if path.stem != GUIDE)
PAGES = [ROOT / "nbs" / "index.ipynb", *TUTORIALS]
ADDRESS = "http://127.0.0.1:8080"

# What is executed instead, because the command itself takes minutes, or needs photographs.
SHORTER = {"trashsorting data check photos": "trashsorting data check photos --hashes-only"}
# The test that executes it, or looks at it where it needs Docker.
ELSEWHERE = {
    "make run": "end_to_end/test_run.py::test_a_stranger_gets_an_answer",
    "make test": "test_repo.py::test_readme_is_what_the_notebook_makes",  # it is what runs this
    "make runtime": "serving/test_page_device.py::test_a_copy_without_a_service_answers_and_follows_its_host",
    "pip install .": "test_repo.py::test_wheel_is_complete",
    "pip install '.[train]'": "test_repo.py::test_lock_holds_what_settings_ask_for",
    "pip install '.[train,cloud]'": "test_repo.py::test_lock_holds_what_settings_ask_for",
    "python bench/serve.py --photos photos": "test_bench.py::test_serve",
    "TRASHSORTING_MODEL=run/model.onnx trashsorting serve --port 8080": "conftest.py::running",
    "trashsorting train": "training/test_train.py::",
    "trashsorting crossval": "training/test_crossval.py::",
    "trashsorting export": "training/test_crossval.py::test_the_calibration_reaches_the_card",
    "docker build": "end_to_end/test_api_image.py::test_it_is_small",
    "docker run": "end_to_end/test_api_image.py::test_it_predicts_a_photograph_and_refuses_a_bad_one",
    "docker compose up": "end_to_end/test_compose.py::test_they_find_each_other",
    "HEIC=0 tools/push_image api REGISTRY": "serving/test_routes.py::test_a_service_without_heic",
    "trashsorting data pull": "data/test_dvc.py::test_push_clone_pull_and_back_to_the_older_version",
    "trashsorting data push": "data/test_dvc.py::test_push_clone_pull_and_back_to_the_older_version",
    "trashsorting data import photos": "data/test_dvc.py::test_the_tracked_data_is_reproduced_from_the_photographs",
    "dvc remote modify": "data/test_dvc.py::test_push_clone_pull_and_back_to_the_older_version",
    "dvc add": "data/test_dvc.py::test_push_clone_pull_and_back_to_the_older_version",
    "dvc repro": "end_to_end/test_pipeline.py::test_a_second_repro_runs_nothing",
    "dvc metrics diff": "end_to_end/test_pipeline.py::test_metrics_and_plots_are_compared_with_the_last_commit",
}


def blocks(page: Path, language: str) -> list[str]:
    "The fenced blocks of a language in a notebook's text."
    cells = json.loads(page.read_bytes())["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    "Each command once, without its comment."
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return list(dict.fromkeys(re.sub(r"\s+# .*$", "", line) for line in lines if line.strip()))


def covered_by(command: str) -> str | None:
    "The test that the table names for a command; the longest entry that it starts with counts."
    entries = [entry for entry in ELSEWHERE if command == entry or command.startswith(f"{entry} ")]
    return ELSEWHERE[max(entries, key=len)] if entries else None


HERE = [command for command in commands() if not covered_by(command)]


def run(command: str, folder: Path, url: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    words = shlex.split(command.replace(ADDRESS, url))
    return subprocess.run(
        words, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=150
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "The files of the commands: a photograph, and a folder of drawings with one sub-folder per class."
    work = tmp_path_factory.mktemp("commands")
    draw_picture("glass", 0, (512, 384)).save(work / "photo.jpg")
    draw_sample(work / "photos", per_class=2)
    return work


@pytest.mark.parametrize("command", HERE)
def test_the_command_works(command, folder, server):
    done = run(SHORTER.get(command, command), folder, server.url)
    assert done.returncode == 0 and done.stdout, done.stdout + done.stderr
    if command.startswith("curl"):
        assert json.loads(done.stdout)["predicted_class"]


@pytest.mark.parametrize("program", [block for page in PAGES for block in blocks(page, "python")])
def test_the_program_works(program, folder, server):
    before = os.getcwd()
    os.chdir(folder)
    try:
        exec(compile(program.replace(ADDRESS, server.url), "README", "exec"), {})  # noqa: S102
    finally:
        os.chdir(before)


def test_the_table_is_about_what_is_written():
    written = commands()
    assert len(HERE) >= 5, "the README teaches by commands"
    for entry in [*SHORTER, *ELSEWHERE]:
        used = any(command == entry or command.startswith(f"{entry} ") for command in written)
        assert used, f"no page has {entry!r}"
    for test in ELSEWHERE.values():
        name, function = test.split("::")
        assert f"def {function}" in (ROOT / "tests" / name).read_text(encoding="utf-8"), test
