"""The light installation: the commands that work in it, and the extra that the others name."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import click
import httpx
import pytest
from conftest import running

from trashsorting.cli.main import cli
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.sample import draw_sample

ROOT = Path(__file__).parents[2]
WORKS = [
    "--version",
    "predict photos/glass",
    "predict --json photos/glass/glass000.png",
    "evaluate photos --json metrics.json --predictions predictions.csv",
    "evaluate photos --unseen-only",
    "evaluate sample",
    "data sample drawn",
    "data manifest photos --out manifest.csv",
    "data manifest photos --split manifest.csv",
    "data import photos --out prepared",
    "data notice photos",
    "drift photos",
    "serve --help",
    "job --help",
]
NEEDS = [
    ("evaluate hub", "train"),
    ("evaluate garythung/trashnet", "train"),
    ("evaluate sources.json", "train"),
    ("evaluate gs://bucket/photos.zip", "cloud"),
    ("robustness photos", "train"),
    ("data manifest hub", "train"),
    ("data manifest gs://bucket/photos", "cloud"),
    ("data import hub --out new", "train"),
    ("data synthesize photos --out synthetic", "train"),
    ("data check photos", "train"),
    ("data check photos --hashes-only", "train"),
    ("data report photos --out report", "train"),
    ("data harvest photos --out new", "train"),
    ("data push photos", "cloud"),
    ("data pull photos", "cloud"),
    ("train --data photos --out new", "train"),
    ("train --data hub --out new", "train"),
    ("train --data photos --out gs://bucket/run", "train"),
    ("sweep --data photos --out new", "train"),
    ("crossval --data photos --out new", "train"),
    ("average run run --out new", "train"),
    ("export run", "train"),
    ("quantize {model} --data photos --out new.onnx", "train"),
    ("teach --add photos/glass --name bottle --out new.onnx", "teach"),
    ("score photos --out answers", "score"),
    ("job score gs://bucket/photos --out gs://bucket/answers --image {image} {project}", "cloud"),
    ("job train --image {image} {places} --dry-run", "cloud"),
    ("job train --image {image} {places} {project}", "cloud"),
    ("job train --image {image} --bucket gs://bucket {places} --dry-run", "cloud"),
    ("job list {project}", "cloud"),
    ("job monitor {project} --url https://a.example --dry-run", "cloud"),
    ("job drift {project} --image {image} --bucket gs://bucket --service-account a@b.c --dry-run", "cloud"),
    ("job logs 1 {project}", "cloud"),
    ("job cancel 1 {project}", "cloud"),
    ("job deploy --image {image} --dry-run", "cloud"),
    ("job deploy --image {image} {project}", "cloud"),
]

ARGUMENTS = {
    "model": str(SHIPPED_MODEL),
    "image": "europe-west4-docker.pkg.dev/my-project/a/b:1",
    "places": "--data gs://bucket/photos --out gs://bucket/run",
    "project": "--project my-project --region europe-west4",
}


def link_package(name: str, into: Path) -> None:
    "Link an installed distribution into a folder, without its neighbours in shared folders such as google/."
    files = [path for path in distribution(name).files or () if ".." not in path.parts]
    packages = {path.parts[0] for path in files if path.parts[1:] == ("__init__.py",)}
    for path in {path.parts[: 1 if path.parts[0] in packages else 2] for path in files}:
        link = into.joinpath(*path)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path(str(distribution(name).locate_file(""))).joinpath(*path))


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> dict[str, str]:
    "Environment variables with which Python finds only what requirements/serve.txt lists."
    folder = tmp_path_factory.mktemp("light")
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements/serve.txt").read_text(encoding="utf-8"), re.MULTILINE)
    for name in sorted(set(pinned)):
        link_package(name, folder)
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "Arguments for the commands: photographs, and folders that must exist."
    folder = tmp_path_factory.mktemp("folder")
    draw_sample(folder / "photos", 2)
    (folder / "run").mkdir()
    for suffix in (".onnx", ".json"):
        shutil.copy(SHIPPED_MODEL.with_suffix(suffix), folder / f"model{suffix}")
    (folder / "photos.dvc").write_text("outs:\n- md5: 0\n  path: photos\n", encoding="utf-8")
    return folder


def call(words: str, light: dict[str, str], folder: Path) -> subprocess.CompletedProcess:
    "Run the command in the light install."
    command = [sys.executable, "-S", "-m", "trashsorting", *words.split()]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **light}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("words", WORKS)
def test_light_commands_work(words, light, folder):
    done = call(words, light, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout and "Traceback" not in done.stderr


REFERENCE = "reference model.onnx --data photos"


def test_a_reference_of_few_photographs_is_refused(light, folder):
    done = call(REFERENCE, light, folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "trashsorting: a reference needs 100 photographs or more, there are 12\n"


EACH_COMMAND = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from trashsorting.cli.main import main

for words in json.loads(sys.argv[1]):
    before, sys.argv = sorted(Path().rglob("*")), ["trashsorting", *words.split()]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([status, out.getvalue(), errors.getvalue(), sorted(Path().rglob("*")) == before]))
"""


@pytest.fixture(scope="module")
def refusals(light, folder) -> dict[str, list]:
    "Status, output, errors, and whether no file was made: by command, all in one process that starts once."
    (folder / "sources.json").write_text('["garythung/trashnet"]', encoding="utf-8")
    typed = json.dumps([words.format(**ARGUMENTS) for words, _ in NEEDS])
    environment = {**os.environ, **light, "PATH": ""}  # without gcloud, too
    done = subprocess.run(
        [sys.executable, "-S", "-c", EACH_COMMAND, typed], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {words: line for (words, _), line in zip(NEEDS, lines, strict=True)}


@pytest.mark.parametrize(("words", "extra"), NEEDS)
def test_other_commands_name_the_extra(words, extra, refusals):
    status, output, errors, unchanged = refusals[words]
    assert (status, output) == (1, "")
    assert re.fullmatch(rf"trashsorting: .+ needs the '{extra}' extra: pip install 'trashsorting\[{extra}\]'\n", errors)
    assert unchanged, "the check comes before any work"


def test_teach_needs_onnx_and_no_torch(light, tmp_path):
    (tmp_path / "onnx-only").mkdir()
    for name in ("onnx", "protobuf", "ml_dtypes", "threadpoolctl"):
        link_package(name, tmp_path / "onnx-only")
    draw_sample(tmp_path / "photos", 6, ("glass",))
    with_onnx = light | {"PYTHONPATH": os.pathsep.join([light["PYTHONPATH"], str(tmp_path / "onnx-only")])}
    done = call("teach --add photos/glass --name bottle --out new.onnx", with_onnx, tmp_path)
    assert done.returncode == 0 and "'bottle' from " in done.stdout, done.stderr


@pytest.mark.parametrize("word", ["promote", "rollback"])
def test_a_missing_gcloud_is_reported(word, light, folder):
    done = call(f"job {word} {ARGUMENTS['project']}", light | {"PATH": ""}, folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no gcloud here: install the Google Cloud CLI" in done.stderr and "Traceback" not in done.stderr


def test_the_light_install_serves(light, tmp_path):
    with running(tmp_path / "log", **light) as server:
        photograph = draw_sample(tmp_path / "photos", 1, ("glass",)) / "glass/glass000.png"
        answered = httpx.post(f"{server.url}/api/predict", files={"file": photograph.read_bytes()}, timeout=60)
    assert answered.status_code == 200 and "all_probabilities" in answered.json()


def names(group: click.Group, before: str = "") -> set[str]:
    "Every command with its groups."
    inner = [
        names(command, f"{before}{name} ")
        for name, command in group.commands.items()
        if isinstance(command, click.Group)
    ]
    single = {before + name for name, command in group.commands.items() if not isinstance(command, click.Group)}
    return single.union(*inner)


def test_every_command_is_tested():
    tried = [*WORKS, REFERENCE, *(words for words, _ in NEEDS), *(f"job {word}" for word in ("promote", "rollback"))]
    assert {name for name in names(cli) if not any(words.startswith(name) for words in tried)} == set()


def test_the_light_install_is_light(light):
    modules = ["torch", "fastai", "timm", "matplotlib", "scipy", "sklearn", "cv2", "yaml", "fsspec", "dvc", "cleanlab"]
    modules += ["google.auth", "google.api_core", "huggingface_hub", "papermill", "optuna", "wandb", "pandas", "nbdev"]
    code = f"""for name in {modules}:
    try: __import__(name)
    except ModuleNotFoundError: continue
    print(name)"""
    environment = {**os.environ, **light}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
