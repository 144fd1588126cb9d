"""What the training image starts, with photographs in a bucket and a run that goes to one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gcsfs
import nbformat
import pytest
from gcs import object_store

from trashsorting.core.card import read_card
from trashsorting.data.sample import draw_sample

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"epochs": 1, "image_size": 64, "freeze_epochs": 0, "num_workers": 0, "lr": 4e-3}
SMALL |= {"backbone": "test_efficientnet", "pretrained": False}


def entry_point() -> list[str]:
    "Of the image."
    (words,) = re.findall(
        r"^ENTRYPOINT (\[.*\])$", (ROOT / "dockerfiles/train.dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    command, *rest = json.loads(words)
    return [str(Path(sys.executable).parent / command), *rest]


def start(*words: str, **environment: str) -> subprocess.CompletedProcess:
    "What the container does."
    everything = {**os.environ, **environment}
    return subprocess.run(
        [*entry_point(), *words], capture_output=True, text=True, timeout=600, env=everything, check=False
    )


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    "A bucket with photographs, and how to reach it."
    folder = tmp_path_factory.mktemp("bucket")
    draw_sample(folder / "photos", 10)
    with object_store(folder / "log") as store:
        reached = {
            key: store.environment[key] for key in ("STORAGE_EMULATOR_HOST", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT")
        }
        with pytest.MonkeyPatch.context() as patch:
            for key, value in reached.items():
                patch.setenv(key, value)
            address = store.make_bucket("trash")
            files = gcsfs.GCSFileSystem(skip_instance_cache=True, use_listings_cache=False)
            files.put(f"{folder / 'photos'}/", "trash/photos/", recursive=True)
            yield address, files, reached


def test_parameters_in_notebook_and_model_out(bucket, tmp_path):
    address, files, reached = bucket
    words = [word for name, value in SMALL.items() for word in ("-p", name, str(value))]
    done = start("--data", f"{address}/photos", "--out", f"{address}/runs/first", *words, **reached)
    assert done.returncode == 0, done.stderr
    assert f"the model: {address}/runs/first/model.onnx" in done.stdout
    left = {name.removeprefix("trash/runs/first/") for name in files.find("trash/runs/first")}
    assert left >= {"train.ipynb", "model.onnx", "model.json", "run.json", "history.csv", "confusion.png"}
    assert not [name for name in left if name.startswith("data/")], "the photographs are where they were"
    files.get("trash/runs/first/", f"{tmp_path}/run/", recursive=True)
    card = read_card(tmp_path / "run" / "model.onnx")
    assert card.provenance.data == f"{address}/photos"
    assert card.provenance.n_train + card.provenance.n_valid == 60
    assert {name: card.provenance.parameters[name] for name in SMALL} == SMALL
    notebook = nbformat.read(tmp_path / "run" / "train.ipynb", 4)
    injected = next(cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert "epochs = 1" in injected.source and f'data = "{address}/photos"' in injected.source
    again = start("--data", f"{address}/photos", "--out", f"{address}/runs/first", **reached)
    assert again.returncode == 1 and "holds a finished run already" in again.stderr


def test_a_run_that_fails_leaves_its_notebook(bucket):
    address, files, reached = bucket
    done = start("--data", f"{address}/nothing", "--out", f"{address}/runs/failed", **reached)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{address}/nothing: nothing there" in done.stderr
    assert f"{address}/runs/failed/train.ipynb" in done.stderr
    assert files.find("trash/runs/failed") == ["trash/runs/failed/train.ipynb"]
