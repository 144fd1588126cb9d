"""Benchmarks and experiments run and print their tables; no time is asserted."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import call

from trashsorting.core.card import read_card
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.sample import draw_sample

BENCH = Path(__file__).resolve().parents[1] / "bench"
experiment = pytest.mark.skipif("CHECK_EXPERIMENTS" not in os.environ, reason="once in a while: `make check-long`")


def run(*words: str) -> str:
    "What a benchmark prints."
    done = subprocess.run([sys.executable, *words], cwd=BENCH.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@experiment
@pytest.mark.skipif(
    not shutil.which("wrk"), reason="!!! wrk is missing (apt-get install wrk): bench/serve.py was not run"
)
def test_serve():
    table = run("bench/serve.py", "--quick", "--sizes", "small", "--connections", "1", "4")
    for what in (
        "HTTP throughput, 4 connections",
        "processor time, in-process : service, 4 connections",
        "one client's median",
        "`/api/health` p99",
        "p99 : median at 70 % load",
        "start to first prediction",
        "memory of a worker",
        "processor time of drift : prediction",
        "one client's p95, with a shadow : without",
    ):
        assert f"| {what}" in table
    assert "refused" not in table and "failed" not in table


def test_the_servers_of_the_comparison_are_pinned(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    others = importlib.import_module("others")
    for server in others.OTHERS.values():
        assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\d.]+", name) for name in (*server.requirements, *others.ONNX))
        compile(server.app, "app.py", "exec")
    compile(others.MODEL, "model.py", "exec")


@experiment
def test_speed(tmp_path):
    photos = draw_sample(tmp_path, per_class=2)
    options = ["--data", str(photos), "--sides", "96", "--factors", "1", "--count", "4"]
    table = run("experiments/speed.py", str(SHIPPED_MODEL), *options)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| trashnet.onnx")]
    names = [f"trashnet.onnx, {side} pixels, factor {factor}" for side in (224, 96) for factor in (2, 1)]
    assert [row[0] for row in rows] == names and rows[0][6:10:3] == ["1.00", "0"]
    assert all(float(value) >= 0 for row in rows for value in row[1:9])


@experiment
@pytest.mark.skipif(
    not importlib.util.find_spec("torch_pruning"),
    reason="!!! torch-pruning is missing: experiments/prune.py was not run",
)
def test_prune(tmp_path):
    photos = draw_sample(tmp_path / "sample", per_class=6)
    words = "-p backbone mobilenetv2_050 -p pretrained false -p image_size 64 -p epochs 1 -p freeze_epochs 0".split()
    done = call("train", "--data", photos, "--out", tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    options = ["--data", str(photos), "--out", str(tmp_path / "pruned"), "--amounts", "0.3", "--epochs", "1"]
    table = run("experiments/prune.py", str(tmp_path / "run"), *options)
    assert re.search(r"^\| 30% \| \d\d% \| \d\.\d \|", table, re.M)
    assert read_card(tmp_path / "pruned" / "0.3" / "model.onnx").provenance.parameters["pruned_channels"] == 0.3


def test_decode():
    table = run("bench/decode.py", "--quick")
    assert "| decode + to input, whole | " in table and "| decode + to input, reduced | " in table


def test_copies():
    table = run("experiments/copies.py", "--quick")
    assert "| JPEG, quality 40 | 100.0% | 12 | 75.8% to 100.0% |" in table
    assert "66 pairs of 12 pictures; 0 count as copies (at most 6 grey bits and 16 of all)" in table


@experiment
def test_backbones(tmp_path):
    photos = draw_sample(tmp_path, per_class=10)
    table = run("experiments/backbones.py", "--data", str(photos), "--backbones", "tf_efficientnet_lite0")
    assert "48 photographs of manifest" in table
    assert re.search(r"lite0 \| 224 \| \d+\.\d% \| .* \| 0, 0 \|$", table, re.M)


@experiment
def test_train():
    table = run("experiments/train.py", "--quick")
    for what in ("loading alone", "loading alone, in this process", "forward and backward alone", "both"):
        assert f"| {what}" in table
    assert "loader's share of a step" in table
