"""Faults of a real service, watched by a real Prometheus: the right alarm comes, and no other."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from conftest import Server, encode
from prometheus import alarms, program, prometheus

from trashsorting.cloud.monitoring import prometheus_rules
from trashsorting.data.sample import draw_picture

GLASS = encode(draw_picture("glass", 0, (256, 192)))
LATE = 90  # Seconds until an alarm must have come
QUIET = 5  # Seconds that are watched after it
MODEL = "import trashsorting.inference.predictor as p\nnetwork = p.run_network\n"
SLOW = (
    f"{MODEL}import time\np.run_logits = lambda *given: time.sleep(1.5) or network(given[0], ['logits'], given[1])[0]"
)
RAISES = f"{MODEL}def fail(*given): raise RuntimeError('injected')\np.to_input = fail"
STARTED = "import os, sys\nif '--multiprocessing-fork' in sys.orig_argv or 'serve' in sys.orig_argv:\n"


@contextmanager
def traffic(server: Server, clients: int = 1) -> Iterator[None]:
    "Photographs from some clients at a time."
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.1):
            try:
                httpx.post(f"{server.url}/api/predict", files={"file": GLASS}, timeout=LATE)
            except httpx.HTTPError:
                pass

    threads = [threading.Thread(target=send, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    yield
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
        (tmp_path / "sitecustomize.py").write_text(STARTED + lines if fault else "", encoding="utf-8")
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
    slow = SLOW.replace("1.5", "0.4")
    with observed(slow, **settings) as (server, url), traffic(server, 8):
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


def test_a_broken_version(observed, tmp_path):
    (tmp_path / "versions").mkdir()
    from test_reload import add_version

    add_version(tmp_path / "versions", "v1")
    settings = {"TRASHSORTING_MODEL": str(tmp_path / "versions"), "TRASHSORTING_MODEL_SECONDS": "0.5"}
    with observed(**settings) as (server, url), traffic(server):
        watch(url, set())
        folder = add_version(tmp_path / "aside", "v2")
        (folder / "model.json").write_text("{}", encoding="utf-8")
        folder.rename(tmp_path / "versions" / "v2")
        watch(url, {"ModelRefused"})
