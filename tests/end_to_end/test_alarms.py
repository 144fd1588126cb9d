"""Faults of a real service, watched by a real Prometheus: the right alarm comes, and no other."""

import csv
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from conftest import Server, encode, find_photograph
from PIL import Image, ImageFilter
from prometheus import Pace, alarms, measure_pace, program, prometheus, samples
from versions import add_version

from trashsorting.cloud.monitoring import prometheus_rules

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    "CHECK_ALARMS" not in os.environ,
    reason="CHECK_ALARMS is unset: minutes of a real Prometheus belong to make check-long",
)
LATE = 40  # Minutes of the rules until an alarm must have come
QUIET = 12  # Minutes that are watched for others: the longest window and the longest wait that these faults touch
PROCESS = "import os, sys\nif '--multiprocessing-fork' in sys.orig_argv or 'serve' in sys.orig_argv:\n"
RAISES = """import trashsorting.serving.routes as routes
def fail(*arguments): raise RuntimeError("injected")
routes._open_upload = fail"""
SLOW = """import time
import trashsorting.inference.predictor as predictor
fast = predictor.run_logits
predictor.run_logits = lambda *arguments: time.sleep(SECONDS) or fast(*arguments)"""


def clean_photographs() -> list[bytes]:
    "TrashNet's photographs, a few of each class; skips the test, loudly, without them."
    find_photograph()
    with (Path(os.environ["TRASHNET"]) / "split.csv").open(encoding="utf-8") as stream:
        files = [row["file"] for row in csv.DictReader(stream) if row["split"] == "val"]
    files.sort(key=lambda file: file[::-1])  # classes mixed
    return [(Path(os.environ["TRASHNET"]) / "images" / file).read_bytes() for file in files[:120]]


def darker(photograph: bytes) -> bytes:
    "The same in half the light: another kind of photograph, and the model is still right in most of them."
    with Image.open(BytesIO(photograph)) as picture:
        return encode(picture.point(lambda value: value * 0.5), "JPEG")


def blurred(photograph: bytes) -> bytes:
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
                httpx.post(f"{server.url}/api/predict", files={"file": next(photographs)}, timeout=120)
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
            thread.join(120)


@dataclass(frozen=True)
class Observed:
    """A service and a Prometheus that watches it."""

    server: Server
    url: str  # Of Prometheus
    pace: Pace

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        "Wait for a state; it is an error if it does not come."
        deadline = time.monotonic() + LATE * self.pace.minute
        while not true():
            assert time.monotonic() < deadline, f"{what} did not come; firing: {alarms(self.url)}"
            time.sleep(self.pace.minute / 15)

    def wait_for_samples(self, metric: str, n: int = 3) -> None:
        "Wait until Prometheus knows what a metric is before the fault."
        self.wait_until(lambda: samples(self.url, metric) >= n, metric)

    def watch(self, expected: str = "") -> None:
        "Wait for the alarm, if there should be one; then watch a little longer. Any other is an error at once."
        allowed = {expected} - {""}

        def fires() -> bool:
            firing = alarms(self.url)
            assert firing <= allowed, f"expected {expected or 'none'}, {self.pace}"
            return firing == allowed

        self.wait_until(fires, expected)
        end = time.monotonic() + QUIET * self.pace.minute
        while time.monotonic() < end:
            fires()
            time.sleep(self.pace.minute / 15)


@pytest.fixture
def pace(predictor) -> Pace:
    "How much time the rules need on this machine now."
    photograph = clean_photographs()[0]
    return measure_pace(lambda: predictor.predict_one(photograph))


@pytest.fixture
def observed(serve, tmp_path, pace):
    "Start a service with a fault and a Prometheus that watches it."
    program("prometheus")

    @contextmanager
    def start(fault: str = "", **options) -> Iterator[Observed]:
        lines = "".join(f"    {line}\n" for line in fault.splitlines())
        (tmp_path / "sitecustomize.py").write_text(PROCESS + lines if fault else "", encoding="utf-8")
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (
            serve(PYTHONPATH=path, **options) as server,
            prometheus(tmp_path, prometheus_rules(), server.url.removeprefix("http://"), pace) as url,
        ):
            yield Observed(server, url, pace)

    return start


def slow(seconds: float) -> str:
    "A fault: each prediction takes so much longer."
    return SLOW.replace("SECONDS", f"{seconds:.2f}")


def test_a_healthy_service_raises_no_alarm(observed):
    with observed(workers=2) as service, traffic(service.server):
        service.wait_for_samples("trashsorting_predictions_total")
        service.watch()


def test_no_model(observed, tmp_path):
    with observed(TRASHSORTING_MODEL=str(tmp_path / "missing.onnx")) as service, traffic(service.server):
        service.watch("NoModel")


def test_answers_that_are_failures(observed):
    with observed(RAISES) as service, traffic(service.server):
        service.watch("Failing")


def test_a_slow_model(observed, pace):
    with observed(slow(1.5 * pace.slow), TRASHSORTING_PARALLEL="2") as service, traffic(service.server):
        service.watch("Slow")


def test_a_full_queue(observed, pace):
    settings = {"TRASHSORTING_QUEUE": "2", "TRASHSORTING_PARALLEL": "1"}
    with observed(slow(0.5 * pace.slow), **settings) as service, traffic(service.server, 8):
        service.watch("Saturated")


def test_a_killed_worker(observed):
    with observed(workers=2) as service, traffic(service.server):
        service.wait_for_samples("trashsorting_workers_ended_total")
        os.kill(service.server.workers()[0], signal.SIGKILL)
        service.watch("WorkerLost")


def test_a_service_that_is_gone(observed):
    with observed() as service:
        service.wait_for_samples("trashsorting_queue_places")
        os.kill(service.server.pid, signal.SIGSTOP)
        try:
            service.watch("Gone")
        finally:
            os.kill(service.server.pid, signal.SIGCONT)


@pytest.mark.parametrize(("change", "alarm"), [(darker, "Drift"), (blurred, "Inaccurate")])
def test_a_drifted_stream(observed, change, alarm):
    with observed(workers=2) as service:
        if "trashsorting_drift_alarm" not in httpx.get(f"{service.server.url}/metrics").text:
            pytest.skip("!!! the card of the model has no reference: no drift can be measured")
        with traffic(service.server, 2, change):
            service.watch(alarm)


def test_a_broken_version(observed, tmp_path):
    (tmp_path / "versions").mkdir()
    add_version(tmp_path / "versions", "v1")
    settings = {"TRASHSORTING_MODEL": str(tmp_path / "versions"), "TRASHSORTING_MODEL_SECONDS": "0.5"}
    with observed(**settings) as service, traffic(service.server):
        service.wait_for_samples("trashsorting_model_versions_total")
        folder = add_version(tmp_path / "aside", "v2")
        (folder / "model.json").write_text("{}", encoding="utf-8")
        folder.rename(tmp_path / "versions" / "v2")
        service.watch("ModelRefused")
