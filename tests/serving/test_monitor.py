"""The metrics, for one worker and for several, and the files that the workers count in."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import encode
from prometheus_client.parser import text_string_to_metric_families

from trashsorting.data.sample import draw_picture
from trashsorting.serving.monitor import FILE_BYTES, FILE_KINDS, WINDOW_BYTES
from trashsorting.serving.schemas import CODES

GLASS = encode(draw_picture("glass", 0, (256, 192)))


def read_metrics(server) -> dict[tuple, float]:
    """Every sample of /metrics, by its name and its labels."""
    response = httpx.get(f"{server.url}/metrics", timeout=30)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def wait_for_sample(server, name: tuple, value: float) -> dict[tuple, float]:
    """The samples once one of them has this value: a request is counted a moment after its answer."""
    deadline = time.monotonic() + 10
    while (samples := read_metrics(server)).get(name) != value and time.monotonic() < deadline:
        time.sleep(0.05)
    assert samples.get(name) == value, samples
    return samples


def requests(route: str, status: int) -> tuple:
    return ("trashsorting_requests_total", ("route", route), ("status", str(status)))


def test_metrics_count_requests(serve, predictor):
    with serve() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        start = time.monotonic()
        answers = [client.post("/api/predict?timing=true", files={"file": GLASS}).json() for _ in range(3)]
        client.post("/api/predict", files={"file": b"a bottle"})
        elapsed = time.monotonic() - start
        files = [("files", GLASS), ("files", b""), ("files", GLASS)]
        batch = client.post("/api/predict/batch?timing=true", files=files).json()["answers"]
        for n in range(20):
            client.get(f"/nowhere/{n}")
        samples = wait_for_sample(server, requests("other", 404), 20)
    assert samples[requests("/api/predict", 200)] == 3 and samples[requests("/api/predict", 415)] == 1
    assert samples[requests("/api/predict/batch", 200)] == 1
    assert samples["trashsorting_request_seconds_count", ("route", "/api/predict")] == 4
    by_class = {key[1][1]: value for key, value in samples.items() if key[0] == "trashsorting_predictions_total"}
    assert by_class == {label: 5 * (label == answers[0]["predicted_class"]) for label in predictor.card.classes}
    timings = [answer["timing"] for answer in [*answers, *(item["answer"] for item in batch if "answer" in item)]]
    for name in ("decode", "inference", "queue"):
        assert samples[(f"trashsorting_{name}_seconds_count",)] == 5, name
        total = sum(timing[f"{name}_ms"] for timing in timings) / 1000
        assert samples[(f"trashsorting_{name}_seconds_sum",)] == pytest.approx(total), name
    seconds = samples["trashsorting_request_seconds_sum", ("route", "/api/predict")]
    assert sum(sum(answer["timing"].values()) for answer in answers) / 1000 <= seconds <= elapsed
    assert samples[("trashsorting_confidence_count",)] == 5
    assert samples[("trashsorting_confidence_sum",)] == pytest.approx(5 * answers[0]["confidence"])
    assert samples[("trashsorting_queue_depth",)] == 0
    labels = next(dict(key[1:]) for key in samples if key[0] == "trashsorting_model_info")
    card = predictor.card
    assert labels == {"name": card.name, "architecture": card.architecture, "sha256": card.file_sha256[:12]}
    routes = {dict(key[1:])["route"] for key in samples if key[0] == "trashsorting_requests_total"}
    assert routes <= {"/", "/api/predict", "/api/predict/batch", "/api/ready", "/metrics", "other"}


def test_a_request_refused_before_routing_has_its_route(serve):
    with serve(TRASHSORTING_MAX_BYTES="1000", TRASHSORTING_CORS_ORIGINS="https://one.example") as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            preflight = {"Origin": "https://one.example", "Access-Control-Request-Method": "POST"}
            assert client.options("/api/explain", headers=preflight).status_code == 200
            responses = [
                client.post(path, content=bytes(2_000_000)) for path in ("/api/predict", "/api/explain", "/a", "/b")
            ]
        assert [response.status_code for response in responses] == [413] * 4
        samples = wait_for_sample(server, requests("other", 413), 2)
        logged = [line["route"] for line in server.lines() if line.get("status") == 413]
    assert samples[requests("/api/predict", 413)] == samples[requests("/api/explain", 413)] == 1
    assert samples[requests("/api/explain", 200)] == 1
    assert logged == ["/api/predict", "/api/explain", "other", "other"]


def test_metrics_are_summed_over_workers(serve):
    with serve(workers=2) as server:
        deadline, sent = time.monotonic() + 60, 0
        served = Counter()
        while time.monotonic() < deadline and (sent < 40 or len(served) < 2):
            assert httpx.post(f"{server.url}/api/predict", files={"file": GLASS}, timeout=60).status_code == 200
            sent += 1
            lines = [line for line in server.lines() if line.get("route") == "/api/predict"]
            served = Counter(line["pid"] for line in lines)
        samples = wait_for_sample(server, requests("/api/predict", 200), sent)
        totals = {
            sum(value for key, value in read_metrics(server).items() if key[0] == "trashsorting_predictions_total")
        }
        folder = re.search(
            rb"PROMETHEUS_MULTIPROC_DIR=([^\0]+)", Path(f"/proc/{server.workers()[0]}/environ").read_bytes()
        )[1]
    print(f"{dict(served)} of {sent}")
    assert len(served) == 2 and totals == {sent}
    assert samples[("trashsorting_inference_seconds_count",)] == sent
    assert samples[("trashsorting_queue_depth",)] == 0
    assert not Path(folder.decode()).exists(), "the folder of the counts is removed at the end"


# The workers' metrics files


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory, of a limited size."""
    folder.mkdir()
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"no file system of a limited size: {result.stderr.strip() or 'mount has failed'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mounts one for the test; the test is skipped where that is not allowed."""
    with ExitStack() as stack:
        yield lambda options: stack.enter_context(mounted(tmp_path / "disk", options))


def predictions(server, number: int) -> Counter:
    """Status codes of predictions, each on its own connection."""
    responses = [httpx.post(f"{server.url}/api/predict", files={"file": GLASS}, timeout=30) for _ in range(number)]
    return Counter(response.status_code for response in responses)


def replace_a_worker(server) -> int:
    """Kill a worker, and return the process that replaces it."""
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while len(fresh := set(server.workers()) - set(before)) != 1 or len(server.workers()) != 2:
        assert time.monotonic() < deadline, "no worker came back"
        time.sleep(0.05)
    return fresh.pop()


def predict_until_answered_by(server, pid: int) -> Counter:
    """Status codes of predictions, until this worker has answered some."""
    codes, deadline = Counter(), time.monotonic() + 60
    while sum(line["pid"] == pid and line.get("route") == "/api/predict" for line in server.lines()) < 3:
        assert time.monotonic() < deadline, "the worker has not answered"
        codes += predictions(server, 4)
    return codes


def metrics_answers(server, number: int = 20) -> Counter:
    """Status codes of /metrics, each on its own connection; errors have their code."""
    answers = [httpx.get(f"{server.url}/metrics", timeout=30) for _ in range(number)]
    assert all(answer.json()["code"] == "no-metrics" for answer in answers if answer.status_code != 200)
    return Counter(answer.status_code for answer in answers)


def test_a_full_disk_does_not_stop_predictions(serve, disk):
    "Existing files are large enough. A worker that starts now has no file: it counts in its memory, and logs it."
    folder = disk("size=4m")
    with serve(workers=2, PROMETHEUS_MULTIPROC_DIR=str(folder)) as server:
        wait_until(lambda: len(list(folder.glob("*.db"))) == 3 * len(FILE_KINDS))
        with (folder / "full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        for number in range(30):  # new label values too
            httpx.get(f"{server.url}/nowhere/{number}")
        assert predictions(server, 20) == {200: 20} and metrics_answers(server) == {200: 20}
        fresh = replace_a_worker(server)
        assert predict_until_answered_by(server, fresh).keys() == {200} and 200 in metrics_answers(server)
        errors = [line for line in server.lines() if line["level"] == "error" and "SIGKILL" not in line["message"]]
    assert [line["pid"] for line in errors if "counts alone" in line["message"]] == [fresh]
    assert all("No space left" in line["message"] or "cannot be read" in line["message"] for line in errors)
    assert "Traceback" not in server.said()


def test_a_removed_folder_does_not_stop_predictions(serve, tmp_path):
    folder = tmp_path / "counts"
    folder.mkdir()
    with serve(workers=2, PROMETHEUS_MULTIPROC_DIR=str(folder)) as server:
        wait_until(lambda: len(list(folder.glob("*.db"))) == 3 * len(FILE_KINDS))
        shutil.rmtree(folder)
        assert predictions(server, 20) == {200: 20} and metrics_answers(server) == {503: 20}
        fresh = replace_a_worker(server)
        assert predict_until_answered_by(server, fresh).keys() == {200} and metrics_answers(server) == {503: 20}
        lines = Counter((line["pid"], line["message"][:20]) for line in server.lines() if line["level"] == "error")
    assert lines and set(lines.values()) == {1}, "each worker logs it once"
    assert "Traceback" not in server.said()


@pytest.mark.parametrize("options", ["size=64k", "size=256k", "ro"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_metrics_folder_is_a_start_error(disk, options, workers):
    check_refused(disk(options), workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_metrics_path_that_is_no_folder_is_a_start_error(tmp_path, workers):
    (tmp_path / "file").touch()
    check_refused(tmp_path / "file", workers)
    check_refused(tmp_path / "nowhere", workers)


def check_refused(folder: Path, workers: int) -> None:
    """The service prints one sentence and ends with status 1."""
    command = [sys.executable, "-m", "trashsorting", "serve", "--port", "0", "--workers", str(workers)]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    print(result.stderr)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"PROMETHEUS_MULTIPROC_DIR={folder}" in result.stderr and "or leave the variable out" in result.stderr


def test_all_labels_fit_into_the_reserved_files(tmp_path):
    "A file that must grow would fail on a full disk."
    code = f"""
import trashsorting.serving.monitor as monitor
from trashsorting.serving.app import create_app
from trashsorting.inference.predictor import Predictor
app, predictor = create_app(), Predictor()
metrics = app.state.metrics
monitor.show_model(metrics, predictor.card)
for number in range(30):
    for status in {sorted({200, 304, 499, *(status for status, _ in CODES.values())})}:
        metrics.requests.labels(f"/api/a-rather-long-address/{{number}}", status).inc()
    metrics.request_seconds.labels(f"/api/a-rather-long-address/{{number}}").observe(1)
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    sizes = {file.name.rpartition("_")[0]: file.stat().st_size for file in tmp_path.iterdir()}
    used = {file.name: int.from_bytes(file.read_bytes()[:4], sys.byteorder) for file in tmp_path.iterdir()}
    print(used)
    assert sizes == {**dict.fromkeys(FILE_KINDS, FILE_BYTES), "window": WINDOW_BYTES}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition has not come true in time"
        time.sleep(0.05)
