"""The INT8 file of the model that ships: inputs and outputs, size, and how many predictions change."""

import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import call, run_light
from onnxruntime.quantization.shape_inference import quant_pre_process

from trashsorting.core.card import file_sha256, read_card, write_card
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.core.system import read_csv
from trashsorting.data.manifest import Entry, Manifest, read_folder
from trashsorting.data.sample import draw_sample
from trashsorting.data.splits import split_by_hash
from trashsorting.export.onnx import to_onnx
from trashsorting.export.quantize import (
    FLOAT_CONVOLUTIONS,
    channel_ranges,
    check_install_criteria,
    choose_photographs,
    compare,
    equalization_groups,
    equalize_cross_layer,
    executed_operators,
    load_inputs,
    quantize,
    time_in_turns,
)
from trashsorting.inference.predictor import Predictor
from trashsorting.inference.session import open_session, run_logits, run_network, softmax
from trashsorting.training.backbone import create_backbone

TRASHNET = os.environ.get("TRASHNET")
FLOAT = Path(__file__).parents[2] / "models" / "trashnet.onnx"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return split_by_hash(read_folder(draw_sample(tmp_path_factory.mktemp("sample"), per_class=8)))


@pytest.fixture(scope="module")
def int8(manifest, tmp_path_factory) -> Path:
    return quantize(FLOAT, choose_photographs(manifest, 18), tmp_path_factory.mktemp("int8") / "model.onnx")


@pytest.fixture(scope="module")
def float_of_the_sample(manifest, tmp_path_factory) -> Path:
    "The float file of the model that ships, with a card that names the drawn sample."
    file, card = tmp_path_factory.mktemp("float") / "model.onnx", read_card(FLOAT)
    shutil.copyfile(FLOAT, file)
    held_out = len(manifest.subset("val").entries)
    of_sample = card.provenance.model_copy(update={"manifest_sha256": manifest.sha256, "n_valid": held_out})
    write_card(file, card.model_copy(update={"provenance": of_sample}))
    return file


def inputs_of(manifest: Manifest, n: int) -> np.ndarray:
    step = max(1, len(manifest.entries) // n)
    paths = [manifest.root / entry.file for entry in manifest.entries[::step][:n]]
    return load_inputs(paths, read_card(FLOAT).preprocessing)


def signature(file: Path) -> list[tuple]:
    session = open_session(file)
    return [(value.name, value.type, value.shape) for value in [*session.get_inputs(), *session.get_outputs()]]


def test_inputs_and_outputs_are_those_of_the_float_file(int8):
    assert signature(int8) == signature(FLOAT)


def test_it_is_small_and_holds_no_path_of_this_machine(int8):
    assert int8.stat().st_size < min(0.4 * FLOAT.stat().st_size, 5_000_000)
    for trace in (b"site-packages", b"stack_trace", b".venv", str(int8.parent).encode()):
        assert trace not in int8.read_bytes()


def test_every_convolution_is_fused(int8):
    operators, before = executed_operators(int8), executed_operators(FLOAT)
    assert operators["Conv"] == FLOAT_CONVOLUTIONS
    assert operators["QLinearConv"] == before["Conv"] - FLOAT_CONVOLUTIONS
    assert "Clip" not in operators and operators["QuantizeLinear"] == 1


def test_most_drawn_pictures_keep_their_class(int8, manifest):
    inputs = inputs_of(manifest, 24)
    before, after = (run_logits(open_session(file), inputs) for file in (FLOAT, int8))
    assert (before.argmax(1) == after.argmax(1)).mean() >= 0.85
    assert np.sqrt(((before - after) ** 2).mean()) < 0.2 * before.std()


def test_the_mean_of_the_activation_maps_is_the_logits(int8, manifest):
    inputs = inputs_of(manifest, 4)
    logits, maps = run_network(open_session(int8), ["logits", "evidence"], inputs)
    assert np.allclose(softmax(maps.mean(axis=(2, 3))), softmax(logits), atol=1e-5)


def test_a_prediction_does_not_depend_on_its_batch(int8, manifest):
    session, inputs = open_session(int8), inputs_of(manifest, 5)
    alone = np.concatenate([run_logits(session, array[None]) for array in inputs])
    assert np.allclose(run_logits(session, inputs), alone, atol=1e-4)


def test_weights_do_not_overflow_without_vnni(int8):
    "Two neighbouring weights of one sign times inputs of 255 stay below 2**15."
    tensors = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(int8).graph.initializer]
    dense = [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim == 4 and tensor.shape[1] > 1]
    assert len(dense) > 20
    for weights in dense:
        rows = weights.transpose(0, 2, 3, 1).reshape(len(weights), -1).astype(int)
        pairs = rows[:, : rows.shape[1] // 2 * 2].reshape(len(weights), -1, 2)
        assert pairs.clip(min=0).sum(axis=2).max() <= 128 and pairs.clip(max=0).sum(axis=2).min() >= -128


def test_the_command_makes_file_and_card_without_torch(float_of_the_sample, manifest, tmp_path):
    split, out = tmp_path / "split.csv", tmp_path / "new" / "int8.onnx"
    split.write_text(manifest.to_csv(), encoding="utf-8")
    words = ("quantize", float_of_the_sample, "--data", manifest.root, "--split", split, "--out", out)
    done = run_light("-m", "trashsorting", *words)
    assert done.returncode == 0, done.stderr
    card, before = Predictor(out).card, read_card(float_of_the_sample)
    n = len(manifest.subset("val").entries)
    assert f"{n} photographs" in done.stdout and "times as fast with 1 thread " in done.stdout
    assert (card.file_sha256, card.quantization.float_sha256) == (file_sha256(out), before.file_sha256)
    assert card.evaluation.n == card.quantization.comparison.n == n
    changed = {"name", "file_sha256", "file_bytes", "evaluation", "quantization"}
    assert card.model_dump(exclude=changed) == before.model_dump(exclude=changed)


def test_the_shipped_file_meets_the_install_criteria():
    shipped, before = read_card(SHIPPED_MODEL), read_card(FLOAT)
    quantization = shipped.quantization
    assert quantization.float_sha256 == before.file_sha256 == file_sha256(FLOAT)
    assert quantization.compared_on == "out of fold" and quantization.comparison.n > 1700
    assert SHIPPED_MODEL.stat().st_size < 5_000_000
    check_install_criteria(shipped)
    same = {"classes", "temperature", "unsure_below", "perceptual_hashes", "provenance"}
    assert shipped.model_dump(include=same) == before.model_dump(include=same)


def test_equalization_evens_out_ranges_and_changes_no_float_output(manifest, tmp_path):
    network = to_onnx(create_backbone("tf_efficientnet_lite0", 6)[0].eval(), 224, tmp_path / "float.onnx")
    quant_pre_process(network, tmp_path / "prepared.onnx", skip_symbolic_shape=True)
    model, inputs = onnx.load(tmp_path / "prepared.onnx"), inputs_of(manifest, 6)
    equalize_cross_layer(model, inputs)
    onnx.save(model, tmp_path / "equalized.onnx")
    (group,) = (group for group in equalization_groups(model) if len(group) == 7)
    ranges = np.maximum.reduce(list(channel_ranges(model, group, inputs).values()))
    assert len(ranges) == 192 and ranges == pytest.approx(ranges.max(), rel=1e-4)
    before, after = (
        open_session(file).run(None, {"pixels": inputs}) for file in (network, tmp_path / "equalized.onnx")
    )
    for old, new in zip(before, after, strict=True):
        assert new == pytest.approx(old, abs=1e-3)


def test_equalization_skips_outputs_and_survives_zeros(manifest, tmp_path):
    quant_pre_process(FLOAT, tmp_path / "prepared.onnx", skip_symbolic_shape=True)
    model, inputs = onnx.load(tmp_path / "prepared.onnx"), inputs_of(manifest, 1)
    (first, *_), *_ = groups = equalization_groups(model)
    model.graph.output.append(next(value for value in model.graph.value_info if value.name == first))
    assert equalization_groups(model) == groups[1:]
    equalize_cross_layer(model, 0 * inputs)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims:
            zeros = onnx.numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name)
            tensor.CopyFrom(zeros)
    equalize_cross_layer(model, inputs)
    assert all(np.isfinite(onnx.numpy_helper.to_array(tensor)).all() for tensor in model.graph.initializer)


@pytest.mark.skipif("CHECK_EXPERIMENTS" not in os.environ, reason="once in a while: `make check-long`")
def test_the_benchmark_of_layers_in_float(float_of_the_sample, manifest, tmp_path, monkeypatch, capsys):
    done = call("data", "synthesize", manifest.root, "--out", tmp_path / "synthetic", "-n", 1)
    assert done.returncode == 0, done.stderr
    options = ["--data", manifest.root, "--synthetic", tmp_path / "synthetic", "--first", 9, 40, "-n", 6]
    program = Path(__file__).parents[2] / "experiments" / "quantize.py"
    monkeypatch.setattr(sys, "argv", list(map(str, [program, float_of_the_sample, *options])))
    runpy.run_path(str(program), run_name="__main__")
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["first convolutions in float", "9", "40"]
    nine, forty = ([float(row[1]), float(row[2]), float(row[4])] for row in rows[1:])
    assert all(0 < change < 0.5 for change in (*nine[:2], *forty[:2])) and nine[2] < forty[2] < 13


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.onnx", "model.onnx would overwrite {file} or its card: choose another name or folder"),
        ("../float/model.onnx", "model.onnx would overwrite {file} or its card: choose another name or folder"),
        ("model.int8", "model.int8: a model's file ends in .onnx"),
        ("model.json", "model.json: a model's file ends in .onnx"),
    ],
)
def test_the_source_is_never_overwritten(float_of_the_sample, manifest, tmp_path, name, message):
    folder = shutil.copytree(float_of_the_sample.parent, tmp_path / "float")
    split, file = tmp_path / "split.csv", folder / "model.onnx"
    split.write_text(manifest.to_csv(), encoding="utf-8")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = call("quantize", file, "--data", manifest.root, "--split", split, "--out", folder / name)
    assert done.returncode == 1 and message.format(file=file) in done.stderr, done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_photographs_are_refused(manifest, tmp_path):
    done = call("quantize", FLOAT, "--data", manifest.root, "--out", tmp_path / "int8.onnx")
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "int8.onnx").exists()
    assert "not the photographs that" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not TRASHNET, reason="!!! TRASHNET is unset: nothing was measured on photographs")
def test_photographs_keep_their_class(tmp_path, capsys):
    rows = [row for _, row in read_csv(Path(TRASHNET) / "split.csv", ("file", "label", "split"))]
    # Unread: a look at each of 2,527 photographs takes longer than what is tested.
    entries = [Entry(row["file"], row["label"], row["split"], row["file"], 512, 384) for row in rows]
    photographs = Manifest(Path(TRASHNET) / "images", tuple(entries))
    file = quantize(FLOAT, choose_photographs(photographs, 24), tmp_path / "int8.onnx")
    val, classes = photographs.subset("val"), read_card(FLOAT).classes
    inputs = inputs_of(val, 48)
    step = max(1, len(val.entries) // 48)
    targets = np.array([classes.index(entry.label) for entry in val.entries[::step][:48]])
    before, after = (run_logits(open_session(model), inputs) for model in (FLOAT, file))
    result, times = compare(before, after, targets), time_in_turns(FLOAT, file, inputs[:1], threads=1)
    with capsys.disabled():
        print(f" [{result}, {np.median(times[:, 0] / times[:, 1]):.2f} times as fast]", end="")
    assert result.n == 48 and result.changed <= 2 and result.lost <= 1
