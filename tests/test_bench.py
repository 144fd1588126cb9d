"""Benchmarks and experiments run and print their tables; no time is asserted."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trashsorting.data.sample import draw_sample

BENCH = Path(__file__).resolve().parents[1] / "bench"


def run(*words: str) -> str:
    "What a benchmark prints."
    done = subprocess.run([sys.executable, *words], cwd=BENCH.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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


def test_decode():
    table = run("bench/decode.py", "--quick")
    assert "| decode + to input, whole | " in table and "| decode + to input, reduced | " in table


def test_copies():
    table = run("experiments/copies.py", "--quick")
    assert "| JPEG, quality 40 | 100.0% | 12 | 75.8% to 100.0% |" in table
    assert "66 pairs of 12 pictures; 0 count as copies (at most 6 grey bits and 16 of all)" in table


def test_backbones(tmp_path):
    photos = draw_sample(tmp_path, per_class=10)
    table = run("experiments/backbones.py", "--data", str(photos), "--backbones", "tf_efficientnet_lite0")
    assert "48 photographs of manifest" in table
    assert re.search(r"lite0 \| 224 \| \d+\.\d% \| .* \| 0, 0 \|$", table, re.M)


def test_train():
    table = run("experiments/train.py", "--quick")
    for what in ("loading alone", "loading alone, in this process", "forward and backward alone", "both"):
        assert f"| {what}" in table
    assert "loader's share of a step" in table
