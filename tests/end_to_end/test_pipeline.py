"""The pipeline as a newcomer runs it: `dvc repro` in a fresh copy, on drawn pictures of two sources; and papermill."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import yaml
from PIL import Image
from test_repo import copy_repo

from trashsorting.cli.train import run_notebook
from trashsorting.core.card import read_card
from trashsorting.core.config import RUN_PATHS, TrainConfig
from trashsorting.core.errors import TrashsortingError
from trashsorting.data.sample import DRAW, draw_picture, draw_sample
from trashsorting.evaluation.oof import load_predictions

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "nbs" / "train.ipynb"
TINY = {
    "backbone": "test_efficientnet",
    "pretrained": False,
    "zero_shot_weight": 0.0,
    "image_size": 64,
    "freeze_epochs": 0,
    "epochs": 1,
    "batch_size": 8,
    "lr": 0.01,
    "num_workers": 0,
}
SMALL = {**TINY, "frozen_stages": 2, "stored_views": 2}
PER_CLASS = 9  # Twice six classes of it are more than the 100 photographs that a reference needs


def run(*words, cwd: Path, fails: bool = False, **environment) -> str:
    "Run a command with the environment of these tests; what it printed."
    variables = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}
    variables |= {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(cwd / ".dvc" / "tmp" / "site")} | environment
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=variables, capture_output=True, text=True, timeout=1200
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def set_parameters(folder: Path, file: str = "params.yaml", **values) -> None:
    parameters = yaml.safe_load((folder / file).read_bytes())
    (folder / file).write_text(yaml.safe_dump({**parameters, **values}, sort_keys=False), encoding="utf-8")


# The parameters have one source


def test_notebook_and_file_have_the_parameters_of_the_configuration():
    defaults = asdict(TrainConfig())
    parameters = papermill.inspect_notebook(NOTEBOOK)
    in_notebook = {name: eval(parameter["default"]) for name, parameter in parameters.items()}  # noqa: S307
    in_file = yaml.safe_load((ROOT / "params.yaml").read_bytes())
    names = {*RUN_PATHS, *defaults}
    assert set(in_notebook) == names, "the parameters cell of nbs/train.ipynb is not RUN_PATHS and TrainConfig's fields"
    assert set(in_file) == names, "params.yaml is not RUN_PATHS and TrainConfig's fields"
    assert {name: in_notebook[name] for name in defaults} == defaults, "the notebook's defaults are not TrainConfig's"
    # Stored views need a backbone of timm's EfficientNet family and pay on a CPU only, a zero-shot classifier needs
    # classes that ImageNet knows: so they are in the file, which has both, and not in the defaults, which all share.
    here = defaults | {"stored_views": 12, "zero_shot_weight": 0.3}
    assert {name: in_file[name] for name in defaults} == here, "the values of params.yaml are not TrainConfig's"


# dvc repro


def draw_sources(folder: Path) -> Path:
    "A list of two sources: drawings on a plain background, and the same kinds on noise, which cannot be cut out."
    draw_sample(folder / "plain", per_class=PER_CLASS)
    rng = np.random.default_rng(0)
    for label in DRAW:
        (folder / "noisy" / label).mkdir(parents=True)
        for number in range(PER_CLASS):
            drawn = np.asarray(draw_picture(label, 100 + number), float)
            noisy = np.where(
                np.abs(drawn - drawn[0, 0]).sum(2, keepdims=True) < 90, rng.uniform(0, 255, drawn.shape), drawn
            )
            Image.fromarray(noisy.astype(np.uint8)).save(folder / "noisy" / label / f"{number}.png")
    facts = {"plain": {"licence": "CC0", "attribution": "Somebody", "url": "https://example.org"}, "noisy": {}}
    sources = [{"name": name, "where": str(folder / name)} | more for name, more in facts.items()]
    (folder / "sources.json").write_text(json.dumps(sources), encoding="utf-8")
    return folder / "sources.json"


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    "A copy of this repository with its own drawn data, after one `dvc repro` that leaves no branch out."
    folder = copy_repo(tmp_path_factory.mktemp("pipeline") / "repository")
    set_parameters(folder, **SMALL)
    folders = {"external": "others", "backgrounds": "backgrounds", "other": "things"}
    set_parameters(folder, "pipeline.yaml", synthetic_each=1, folds=2, source_folds=2, risk=0.99, **folders)
    run("git", "init", "-q", cwd=folder)
    for name, value in (("user.name", "a"), ("user.email", "a@example.org")):
        run("git", "config", name, value, cwd=folder)
    draw_sample(folder / "others", per_class=1)
    for name in ("backgrounds", "things/wood"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            draw_picture("cardboard", 200 + number).rotate(30).save(folder / name / f"{number}.png")
    sources = draw_sources(folder / "raw")
    run("trashsorting", "data", "import", sources, cwd=folder, PYTHONPATH=str(folder))
    shutil.rmtree(folder / "raw")
    run("dvc", "add", "-q", "data", cwd=folder)
    output = run("dvc", "repro", cwd=folder, PYTHONPATH=str(folder))
    (folder / "repro.log").write_text(output, encoding="utf-8")
    for stage in yaml.safe_load((folder / "dvc.yaml").read_bytes())["stages"]:
        assert f"Running stage '{stage}'" in output
    assert "epoch 1/1  done" in output, "the run's progress reaches the terminal"
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "-q", "-m", "first", cwd=folder)
    return folder


def test_a_run_says_its_parameters_commit_and_data(repository):
    from trashsorting.data.dvc import tracked_version

    info = json.loads((repository / "artifacts/run/run.json").read_bytes())
    assert info["data_version"] == tracked_version(repository / "data") and "commit" in info
    assert {name: info["config"][name] for name in SMALL} == SMALL
    notebook = nbformat.read(repository / "artifacts/run/train.ipynb", 4)
    assert notebook.metadata.papermill.parameters["out"] == "artifacts/run"
    assert any(info["data_version"] in str(cell.get("outputs")) for cell in notebook.cells)


def test_the_file_at_the_end_has_everything_that_ships(repository):
    artifacts = repository / "artifacts"
    card = read_card(artifacts / "model/int8/model.onnx")
    info = json.loads((artifacts / "crossval/mean/run.json").read_bytes())
    assert [run["seed"] for run in info["averaged"]] == [0, 1], "the two folds"
    assert all(run["synthetic"].startswith("1 of each of") for run in info["averaged"])
    calibration = json.loads((artifacts / "crossval/calibration.json").read_bytes())
    assert card.unsure_below == calibration["unsure_below"] and card.temperature == info["calibration"]["temperature"]
    float_card = read_card(artifacts / "model/float/model.onnx")
    assert card.quantization.float_sha256 == float_card.file_sha256 and card.quantization.compared_on == "out of fold"
    predictions = load_predictions(artifacts / "model/measured/out_of_fold.csv")
    right = int((predictions.logits.argmax(1) == predictions.targets).sum())
    assert card.evaluation.n == len(predictions.files) == card.provenance.n_train and card.provenance.n_valid == 0
    assert card.evaluation.accuracy == right / card.evaluation.n and "Out of fold" in card.evaluation_note
    names = {path.name for path in (artifacts / "model/measured").iterdir()}
    assert names == {"out_of_fold.csv", "others.csv", "trashnet_groups.csv", "stress.json"}
    assert not list(artifacts.rglob("views.json")), "stored views are removed when the folds are trained"


def test_the_card_has_both_sources_and_what_was_measured_without_them(repository):
    card = read_card(repository / "artifacts/model/int8/model.onnx")
    assert [source.name for source in card.provenance.sources] == ["plain", "noisy"]
    assert (card.provenance.sources[0].licence, card.provenance.sources[0].attribution) == ("CC0", "Somebody")
    assert card.out_of_fold.keys() == card.held_out_sources.keys() == {"plain", "noisy"}
    assert sum(row.n for row in card.out_of_fold.values()) == card.evaluation.n
    assert card.other_things.n == 2 and card.other_things.by_source.keys() == {"wood"}
    assert "2 photographed backgrounds" in card.provenance.synthetic
    logged = (repository / "repro.log").read_text(encoding="utf-8")
    assert "there are no synthetic images of noisy: it is trained on photographs alone" in logged
    assert "there is no validation split" not in logged


def test_a_second_repro_runs_nothing(repository):
    output = run("dvc", "repro", cwd=repository, PYTHONPATH=str(repository))
    assert "Running stage" not in output and "Data and pipelines are up to date." in output


def test_a_parameter_reruns_what_depends_on_it(repository):
    set_parameters(repository, label_smoothing=0.3)
    output = run("dvc", "repro", "--dry", cwd=repository, PYTHONPATH=str(repository))
    assert "Stage 'prepare' didn't change, skipping" in output
    assert all(f"Running stage '{stage}'" in output for stage in ("train", "crossval"))
    (changed,) = json.loads(run("dvc", "params", "diff", "--json", cwd=repository)).values()
    assert set(changed) == {"label_smoothing"}
    assert (changed["label_smoothing"]["old"], changed["label_smoothing"]["new"]) == (0.1, 0.3)
    set_parameters(repository, label_smoothing=0.1)


def test_metrics_and_plots_are_compared_with_the_last_commit(repository):
    metrics = json.loads((repository / "metrics.json").read_bytes())
    (repository / "metrics.json").write_text(json.dumps(metrics | {"accuracy": 0.125}), encoding="utf-8")
    changes = json.loads(run("dvc", "metrics", "diff", "--json", "--all", cwd=repository))["metrics.json"]
    assert (changes["accuracy"]["old"], changes["accuracy"]["new"]) == (metrics["accuracy"], 0.125)
    assert all(changes[name]["new"] == metrics[name] for name in ("macro_f1", "nll", "ece"))
    run("dvc", "plots", "diff", "HEAD", "--out", "plots", cwd=repository)
    page = (repository / "plots" / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("valid_loss", "accuracy", "actual", "predicted"))


# papermill


def test_papermill_from_and_to_a_bucket(store, tmp_path):
    "Read from a bucket, written to it; wrong names are refused there before anything is read or trained."
    import gcsfs

    bucket = store.make_bucket("notebooks")
    files = gcsfs.GCSFileSystem(token="anon", endpoint_url=store.url)  # noqa: S106
    files.put(str(NOTEBOOK), f"{bucket}/train.ipynb")
    wrong = {"data": "sample", "out": "run", **TINY, "epochs": 1, "epoch": 30}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    words = ("papermill", f"{bucket}/train.ipynb", f"{bucket}/out.ipynb", "-f", "params.yaml")
    addresses = {
        name: store.environment[name] for name in ("STORAGE_EMULATOR_HOST", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT")
    }
    output = run(*words, cwd=tmp_path, fails=True, **addresses)
    assert "unknown parameter 'epoch'; known are backbone" in output and "Executing:" in output
    left = nbformat.reads(files.cat(f"{bucket}/out.ipynb").decode(), 4)
    errors = [out for cell in left.cells for out in cell.get("outputs", []) if out.output_type == "error"]
    assert errors and "unknown parameter 'epoch'" in errors[0].evalue
    (heavy,) = (cell for cell in left.cells if "import fetch_synthetic, train" in cell.source)
    assert heavy.execution_count is None, "what is refused does not wait for torch"
    assert not (tmp_path / "run").exists()

    del wrong["epoch"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    run(*words, cwd=tmp_path, **addresses)
    made = nbformat.reads(files.cat(f"{bucket}/out.ipynb").decode(), 4)
    assert made.metadata.papermill.parameters == wrong and not made.metadata.papermill.exception
    assert read_card(tmp_path / "run" / "model.onnx").architecture == TINY["backbone"]


# The notebook that a command runs


@pytest.mark.parametrize(
    ("kernel", "code", "message"),
    [
        (None, "assert epochs == 3 and sys.executable == interpreter", None),
        ("nowhere", "assert epochs == 3 and sys.executable == interpreter", None),
        (None, "raise RuntimeError('odd')", r"^RuntimeError: odd\nThe notebook with the error in it: {executed}$"),
        (
            None,
            "import os; os.kill(os.getpid(), 9)",
            r"process died .*--resume\nThe notebook up to there: {executed}$",
        ),
    ],
)
def test_any_kernel_name_runs_here_and_every_end_is_a_sentence(tmp_path, monkeypatch, kernel, code, message):
    folder = tmp_path / "100% {of} {0}"
    folder.mkdir()
    cells = [
        nbformat.v4.new_code_cell(f"import sys\nepochs, interpreter = 1, {sys.executable!r}"),
        nbformat.v4.new_code_cell(code),
    ]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": kernel, "display_name": "?", "language": "R"}} if kernel else {}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "source.ipynb")
    monkeypatch.setattr("trashsorting.cli.train.training_notebook", lambda: folder / "source.ipynb")
    executed = folder / "train.ipynb"
    expected = (
        pytest.raises(TrashsortingError, match=message.format(executed=re.escape(str(executed))))
        if message
        else nullcontext()
    )
    with expected:
        run_notebook(folder, str(executed), {"epochs": 3})
    assert any(cell.source == "# Parameters\nepochs = 3\n" for cell in nbformat.read(executed, 4).cells)


# What the commands log


def test_verbose_shows_steps_with_counts_and_seconds(tmp_path):
    run("trashsorting", "data", "sample", "raw", "--per-class", "10", cwd=tmp_path)
    (tmp_path / "raw/glass/notes.txt").write_text("buy milk", encoding="utf-8")
    loud = run("trashsorting", "data", "import", "raw", "--out", "a", "--verbose", cwd=tmp_path)
    assert "INFO    reading photographs: 61 files of 6 classes in raw, " in loud
    assert "INFO    copying photographs: 60 files, " in loud and "WARNING skipped: glass/notes.txt" in loud
    plain = run("trashsorting", "data", "import", "raw", "--out", "b", cwd=tmp_path)
    assert "skipped: glass/notes.txt" in plain and "INFO" not in plain
