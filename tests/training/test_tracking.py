"""What the trackers record, read back: local files, TensorBoard's events, and the offline file of Weights & Biases."""

import csv
import hashlib
import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trashsorting.core.card import read_card
from trashsorting.core.config import TrainConfig
from trashsorting.data.sources import load_manifest
from trashsorting.export.onnx import export_run
from trashsorting.training.learner import create_learner, fit
from trashsorting.training.run import save_run
from trashsorting.training.tracking import TRACKERS, TrackCallback, _Profiler, start_tracker, track_model

METRICS = {"loss", "lr/group0", "train_loss", "valid_loss", "accuracy", "images_per_second", "system/cpu"}


class Second(TrackCallback):
    "A second name, so that a learner can have both trackers."


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Path:
    "A run on the drawn sample, recorded by both trackers."
    out = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        small = TrainConfig("test_efficientnet", pretrained=False, image_size=64, batch_size=16, num_workers=0)
        config = replace(small, freeze_epochs=0, epochs=1, lr=1e-3)
        configs = [replace(config, tracker=kind) for kind in ("files", "wandb")]
        manifest = load_manifest("sample", out / "data", seed=0)
        trackers = [start_tracker(config, out, manifest, "drawn") for config in configs]
        learn = create_learner(manifest, configs[0], out)
        fit(learn, configs[0], [TrackCallback(trackers[0]), Second(trackers[1])])
        save_run(learn, manifest, configs[0], "drawn")
        file = export_run(out)
        for tracker in trackers:
            track_model(tracker, file, manifest)
    return out


def history(out: Path) -> dict[str, float]:
    with open(out / "history.csv", encoding="utf-8") as stream:
        return {name: float(value) for name, value in next(csv.DictReader(stream)).items()}


def test_every_tracker_name_has_a_tracker():
    assert set(TRACKERS) == {"none", "files", "wandb"}


def test_file_tracker_metrics(tracked):
    folder = tracked / "tracking"
    with open(folder / "metrics.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["name"] for row in rows} >= METRICS
    assert [row["step"] for row in rows if row["name"] == "loss"] == [str(step) for step in range(1, 7)]
    facts = json.loads((folder / "facts.json").read_bytes())
    assert (facts["lr"], facts["data"], facts["photographs"]) == (1e-3, "drawn", {"train": 96, "val": 24})
    model = json.loads((folder / "model.json").read_bytes())
    assert model["aliases"] == ["latest", f"data-{facts['manifest_sha256'][:8]}"]
    assert model["files"]["model.onnx"] == hashlib.sha256((tracked / "model.onnx").read_bytes()).hexdigest()


def test_file_tracker_predictions_and_confusion(tracked):
    evaluation = read_card(tracked / "model.onnx").evaluation
    with open(tracked / "tracking/confusion.csv", encoding="utf-8") as stream:
        assert [list(map(int, row[1:])) for row in list(csv.reader(stream))[1:]] == evaluation.confusion
    with open(tracked / "tracking/predictions.csv", encoding="utf-8") as stream:
        predictions = list(csv.DictReader(stream))
    right = sum(row["label"] == row["predicted"] for row in predictions)
    assert len(predictions) == evaluation.n and right / len(predictions) == pytest.approx(evaluation.accuracy)
    assert predictions[0]["label"] != predictions[0]["predicted"] or right == len(predictions), "the worst comes first"
    assert max(Image.open(tracked / "tracking" / predictions[0]["thumbnail"]).size) == 96


def test_tensorboard(tracked):
    events = EventAccumulator(str(tracked / "tracking")).Reload()
    assert set(events.Tags()["scalars"]) >= METRICS
    (accuracy,) = events.Scalars("accuracy")
    assert (accuracy.step, accuracy.value) == (6, pytest.approx(history(tracked)["accuracy"], abs=1e-5))
    pictures = events.Tags()["images"]
    assert "confusion" in pictures and sum(name.startswith("predictions/") for name in pictures) == 24


def test_the_profiler_writes_its_trace_and_nothing_else(tmp_path, capfd):
    profiler = _Profiler(tmp_path, steps=1)
    profiler.learn = SimpleNamespace(training=True)
    for _ in range(3):
        profiler.before_train()
        torch.ones(3).sum()
        profiler.after_batch()
    assert "aten::ones" in (tmp_path / "trace.json").read_text(encoding="utf-8")
    assert capfd.readouterr() == ("", "")


# Weights & Biases


def records(path: Path) -> Iterator:
    "Messages in the log of W&B: LevelDB's format, blocks of 32 kB, (checksum, length, kind) before each chunk."
    from wandb.proto import wandb_internal_pb2

    data, offset, chunks = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        chunks += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last chunk
            yield wandb_internal_pb2.Record.FromString(chunks)
            chunks = b""


@pytest.fixture(scope="module")
def messages(tracked) -> dict[str, list]:
    "Messages by kind."
    (log,) = tracked.glob("wandb/offline-run-*/run-*.wandb")
    by_kind = defaultdict(list)
    for record in records(log):
        kind = record.WhichOneof("record_type")
        inner = getattr(record, kind)
        if kind == "request":
            kind = inner.WhichOneof("request_type")
            inner = getattr(inner, kind)
        by_kind[kind].append(inner)
    return by_kind


def items(record) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.item}


def test_wandb_metrics(tracked, messages):
    rows = [items(record) for record in messages["history"]]
    assert set().union(*rows) >= METRICS
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 6 and losses[0] > losses[-1]
    (accuracy,) = {row["accuracy"] for row in rows if "accuracy" in row}
    assert accuracy == pytest.approx(history(tracked)["accuracy"], abs=1e-5)


def test_wandb_configuration_and_data_version(tracked, messages):
    config = {}
    for run in messages["run"]:
        config |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in run.config.update}
    for record in messages["config"]:
        config |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.update}
    facts = json.loads((tracked / "tracking/facts.json").read_bytes())
    assert (config["lr"], config["tracker"]) == (1e-3, "wandb")
    assert config["manifest_sha256"] == facts["manifest_sha256"]


def test_wandb_tables_and_thumbnails(tracked, messages):
    folder = next(tracked.glob("wandb/offline-run-*/files"))
    predictions = json.loads(next(folder.glob("media/table/predictions_*.json")).read_text(encoding="utf-8"))
    assert predictions["columns"] == ["file", "thumbnail", "label", "predicted", "confidence"]
    assert len(predictions["data"]) == 24
    (table,) = [
        artifact for artifact in messages["artifact"] if artifact.type == "run_table" and "predictions" in artifact.name
    ]
    assert sum(entry.path.endswith(".png") for entry in table.manifest.contents) == 24, "thumbnails belong to it"
    confusion = json.loads(next(folder.glob("media/table/confusion_*.json")).read_text(encoding="utf-8"))
    assert [row[1:] for row in confusion["data"]] == read_card(tracked / "model.onnx").evaluation.confusion


def test_wandb_model_artifact(tracked, messages):
    (model,) = [artifact for artifact in messages["artifact"] if artifact.type == "model"]
    facts = json.loads((tracked / "tracking/facts.json").read_bytes())
    assert set(model.aliases) == {"latest", f"data-{facts['manifest_sha256'][:8]}"}
    assert {entry.path for entry in model.manifest.contents} == {"model.onnx", "model.json"}
    assert json.loads(model.metadata)["manifest_sha256"] == facts["manifest_sha256"]
