"""Faults of a real service, watched by a real Prometheus: the right alarm comes, and no other."""

import csv
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from conftest import Server, encode, find_photograph
from PIL import Image, ImageFilter
from prometheus import alarms, program, prometheus
from versions import add_version

from trashsorting.cloud.monitoring import prometheus_rules

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    "CHECK_ALARMS" not in os.environ,
    reason="CHECK_ALARMS is unset: minutes of a real Prometheus belong to make check-long",
)
LATE = 120  # Seconds until an alarm must have come
QUIET = 20  # Seconds that are watched after it
PROCESS = "import os, sys\nif '--multiprocessing-fork' in sys.orig_argv or 'serve' in sys.orig_argv:\n"
RAISES = """import trashsorting.serving.routes as routes
def fail(*arguments): raise RuntimeError("injected")
routes._open_upload = fail"""
SLOW = """import time
import trashsorting.inference.predictor as predictor
fast = predictor.run_logits
predictor.run_logits = lambda *arguments: time.sleep(1.5) or fast(*arguments)"""


def clean_photographs() -> list[bytes]:
    "TrashNet's photographs, a few of each class; skips the test, loudly, without them."
    find_photograph()
    with (Path(os.environ["TRASHNET"]) / "split.csv").open(encoding="utf-8") as stream:
        files = [row["file"] for row in csv.DictReader(stream) if row["split"] == "val"]
    files.sort(key=lambda file: file[::-1])  # classes mixed
    return [(Path(os.environ["TRASHNET"]) / "images" / file).read_bytes() for file in files[:120]]


def degraded(photograph: bytes) -> bytes:
    "The same at night, by a camera out of focus."
    with Image.open(BytesIO(photograph)) as picture:
        return encode(picture.filter(ImageFilter.GaussianBlur(6)).point(lambda value: value * 0.3), "JPEG")


@contextmanager
def traffic(server: Server, clients: int = 1, change=lambda photograph: photograph) -> Iterator[None]:
    "Photographs from some clients at a time."
    photographs = itertools.cycle([change(photograph) for photograph in clean_photographs()])
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.1):
            try:
                httpx.post(f"{server.url}/api/predict", files={"file": next(photographs)}, timeout=LATE)
            except httpx.HTTPError:
                pass

    threads = [threading.Thread(target=send, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(LATE)


def watch(url: str, expected: set[str]) -> None:
    "Wait for the alarm; then watch a little longer. Any other is an error at once."
    deadline = time.monotonic() + (LATE if expected else QUIET)
    while (firing := alarms(url)) != expected or not expected:
        assert firing <= expected, f"expected {expected or 'none'}"
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert alarms(url) == expected
    end = time.monotonic() + QUIET
    while time.monotonic() < end:
        assert alarms(url) <= expected
        time.sleep(0.5)


@pytest.fixture
def observed(serve, tmp_path):
    "Start a service with a fault and a Prometheus that watches it."
    program("prometheus")

    @contextmanager
    def start(fault: str = "", **options) -> Iterator[tuple[Server, str]]:
        lines = "".join(f"    {line}\n" for line in fault.splitlines())
        (tmp_path / "sitecustomize.py").write_text(PROCESS + lines if fault else "", encoding="utf-8")
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (
            serve(PYTHONPATH=path, **options) as server,
            prometheus(tmp_path, prometheus_rules(), server.url.removeprefix("http://")) as url,
        ):
            yield server, url

    return start


def test_a_healthy_service_raises_no_alarm(observed):
    with observed(workers=2) as (server, url), traffic(server):
        watch(url, set())


def test_no_model(observed, tmp_path):
    with observed(TRASHSORTING_MODEL=str(tmp_path / "missing.onnx")) as (server, url), traffic(server):
        watch(url, {"NoModel"})


def test_answers_that_are_failures(observed):
    with observed(RAISES) as (server, url), traffic(server):
        watch(url, {"Failing"})


def test_a_slow_model(observed):
    with observed(SLOW, TRASHSORTING_PARALLEL="2") as (server, url), traffic(server):
        watch(url, {"Slow"})


def test_a_full_queue(observed):
    settings = {"TRASHSORTING_QUEUE": "2", "TRASHSORTING_PARALLEL": "1"}
    with observed(SLOW.replace("1.5", "0.4"), **settings) as (server, url), traffic(server, 8):
        watch(url, {"Saturated"})


def test_a_killed_worker(observed):
    with observed(workers=2) as (server, url), traffic(server):
        watch(url, set())
        os.kill(server.workers()[0], signal.SIGKILL)
        watch(url, {"WorkerLost"})


def test_a_service_that_is_gone(observed):
    with observed() as (server, url):
        watch(url, set())
        os.kill(server.pid, signal.SIGSTOP)
        try:
            watch(url, {"Gone"})
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_a_drifted_stream(observed):
    with observed(workers=2) as (server, url):
        if "trashsorting_drift_alarm" not in httpx.get(f"{server.url}/metrics").text:
            pytest.skip("!!! the card of the model has no reference: no drift can be measured")
        with traffic(server, 2, degraded):
            watch(url, {"Drift"})


def test_a_broken_version(observed, tmp_path):
    (tmp_path / "versions").mkdir()
    add_version(tmp_path / "versions", "v1")
    settings = {"TRASHSORTING_MODEL": str(tmp_path / "versions"), "TRASHSORTING_MODEL_SECONDS": "0.5"}
    with observed(**settings) as (server, url), traffic(server):
        watch(url, set())
        folder = add_version(tmp_path / "aside", "v2")
        (folder / "model.json").write_text("{}", encoding="utf-8")
        folder.rename(tmp_path / "versions" / "v2")
        watch(url, {"ModelRefused"})
