"""The numbers at /metrics: what they say, for one worker and for several."""

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
from trashsorting.serving.monitor import KINDS, ROOM
from trashsorting.serving.schemas import CODES

GLASS = encode(draw_picture("glass", 0, (256, 192)))


def read(server) -> dict[tuple, float]:
    """Every sample, by its name and its labels."""
    answer = httpx.get(f"{server.url}/metrics", timeout=30)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def settled(server, name: tuple, value: float) -> dict[tuple, float]:
    """The samples once one of them has this value: a request is counted a moment after its answer."""
    deadline = time.monotonic() + 10
    while (samples := read(server)).get(name) != value and time.monotonic() < deadline:
        time.sleep(0.05)
    assert samples.get(name) == value, samples
    return samples


def requests(route: str, status: int) -> tuple:
    return ("trashsorting_requests_total", ("route", route), ("status", str(status)))


def test_values(serve, predictor):
    with serve() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        start = time.monotonic()
        said = [client.post("/api/predict?timing=true", files={"file": GLASS}).json() for _ in range(3)]
        client.post("/api/predict", files={"file": b"a bottle"})
        waited = time.monotonic() - start
        files = [("files", GLASS), ("files", b""), ("files", GLASS)]
        batch = client.post("/api/predict/batch?timing=true", files=files).json()["answers"]
        for n in range(20):
            client.get(f"/nowhere/{n}")
        samples = settled(server, requests("other", 404), 20)
    assert samples[requests("/api/predict", 200)] == 3 and samples[requests("/api/predict", 415)] == 1
    assert samples[requests("/api/predict/batch", 200)] == 1
    assert samples["trashsorting_request_seconds_count", ("route", "/api/predict")] == 4
    by_class = {key[1][1]: value for key, value in samples.items() if key[0] == "trashsorting_predictions_total"}
    assert by_class == {label: 5 * (label == said[0]["predicted_class"]) for label in predictor.card.classes}
    timings = [answer["timing"] for answer in [*said, *(item["answer"] for item in batch if "answer" in item)]]
    for name in ("decode", "inference", "queue"):
        assert samples[(f"trashsorting_{name}_seconds_count",)] == 5, name
        spent = sum(timing[f"{name}_ms"] for timing in timings) / 1000
        assert samples[(f"trashsorting_{name}_seconds_sum",)] == pytest.approx(spent), name
    asked = samples["trashsorting_request_seconds_sum", ("route", "/api/predict")]
    assert sum(sum(answer["timing"].values()) for answer in said) / 1000 <= asked <= waited
    assert samples[("trashsorting_confidence_count",)] == 5
    assert samples[("trashsorting_confidence_sum",)] == pytest.approx(5 * said[0]["confidence"])
    assert samples[("trashsorting_queue_depth",)] == 0
    model = next(dict(key[1:]) for key in samples if key[0] == "trashsorting_model_info")
    card = predictor.card
    assert model == {"name": card.name, "architecture": card.architecture, "sha256": card.file_sha256[:12]}
    routes = {dict(key[1:])["route"] for key in samples if key[0] == "trashsorting_requests_total"}
    assert routes <= {"/", "/api/predict", "/api/predict/batch", "/api/ready", "/metrics", "other"}


def test_what_is_refused_before_it_is_routed_has_its_name(serve):
    with serve(TRASHSORTING_MAX_BYTES="1000", TRASHSORTING_CORS_ORIGINS="https://one.example") as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            asked = {"Origin": "https://one.example", "Access-Control-Request-Method": "POST"}
            assert client.options("/api/explain", headers=asked).status_code == 200
            large = [
                client.post(path, content=bytes(2_000_000)) for path in ("/api/predict", "/api/explain", "/a", "/b")
            ]
        assert [answer.status_code for answer in large] == [413] * 4
        samples = settled(server, requests("other", 413), 2)
        logged = [line["route"] for line in server.lines() if line.get("status") == 413]
    assert samples[requests("/api/predict", 413)] == samples[requests("/api/explain", 413)] == 1
    assert samples[requests("/api/explain", 200)] == 1
    assert logged == ["/api/predict", "/api/explain", "other", "other"]


def test_summed_over_two_workers(serve):
    with serve(workers=2) as server:
        deadline, asked = time.monotonic() + 60, 0
        served = Counter()
        while time.monotonic() < deadline and (asked < 40 or len(served) < 2):
            assert httpx.post(f"{server.url}/api/predict", files={"file": GLASS}, timeout=60).status_code == 200
            asked += 1
            lines = [line for line in server.lines() if line.get("route") == "/api/predict"]
            served = Counter(line["pid"] for line in lines)
        samples = settled(server, requests("/api/predict", 200), asked)
        found = {sum(value for key, value in read(server).items() if key[0] == "trashsorting_predictions_total")}
        folder = re.search(
            rb"PROMETHEUS_MULTIPROC_DIR=([^\0]+)", Path(f"/proc/{server.workers()[0]}/environ").read_bytes()
        )[1]
    print(f"{dict(served)} of {asked}")
    assert len(served) == 2 and found == {asked}
    assert samples[("trashsorting_inference_seconds_count",)] == asked
    assert samples[("trashsorting_queue_depth",)] == 0
    assert not Path(folder.decode()).exists(), "the folder of the counts is removed at the end"


# Where the counts are kept


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory, of a size of its own."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system of a size of its own: {done.stderr.strip() or 'mount has failed'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mount one that is gone after the test; skips, loudly, where nobody may."""
    with ExitStack() as stack:
        yield lambda options: stack.enter_context(mounted(tmp_path / "disk", options))


def predictions(server, number: int) -> Counter:
    """Status codes of so many predictions, each on a connection of its own."""
    asked = [httpx.post(f"{server.url}/api/predict", files={"file": GLASS}, timeout=30) for _ in range(number)]
    return Counter(answer.status_code for answer in asked)


def replace_a_worker(server) -> int:
    """Kill one, and return the process that comes in its place."""
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while len(fresh := set(server.workers()) - set(before)) != 1 or len(server.workers()) != 2:
        assert time.monotonic() < deadline, "no worker came back"
        time.sleep(0.05)
    return fresh.pop()


def answering(server, pid: int) -> Counter:
    """Status codes of predictions, until this worker has answered some."""
    codes, deadline = Counter(), time.monotonic() + 60
    while sum(line["pid"] == pid and line.get("route") == "/api/predict" for line in server.lines()) < 3:
        assert time.monotonic() < deadline, "it never answered"
        codes += predictions(server, 4)
    return codes


def metrics_answers(server, number: int = 20) -> Counter:
    """Status codes of /metrics, asked on connections of their own; each fault as documented."""
    answers = [httpx.get(f"{server.url}/metrics", timeout=30) for _ in range(number)]
    assert all(answer.json()["code"] == "no-metrics" for answer in answers if answer.status_code != 200)
    return Counter(answer.status_code for answer in answers)


def test_a_disk_that_fills_up_stops_no_prediction(serve, disk):
    "What is counted has its room already. A worker that comes now has none: it counts alone, and says so."
    folder = disk("size=4m")
    with serve(workers=2, PROMETHEUS_MULTIPROC_DIR=str(folder)) as server:
        wait(lambda: len(list(folder.glob("counter_*.db"))) == 2)
        with (folder / "full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        for number in range(30):  # and some labels that were not there before
            httpx.get(f"{server.url}/nowhere/{number}")
        assert predictions(server, 20) == {200: 20} and metrics_answers(server) == {200: 20}
        fresh = replace_a_worker(server)
        assert answering(server, fresh).keys() == {200} and 200 in metrics_answers(server)
        errors = [line for line in server.lines() if line["level"] == "error"]
    assert [line["pid"] for line in errors if "counts alone" in line["message"]] == [fresh]
    assert all("No space left" in line["message"] or "cannot be read" in line["message"] for line in errors)
    assert "Traceback" not in server.said()


def test_a_folder_that_is_removed_stops_no_prediction(serve, tmp_path):
    folder = tmp_path / "counts"
    folder.mkdir()
    with serve(workers=2, PROMETHEUS_MULTIPROC_DIR=str(folder)) as server:
        wait(lambda: len(list(folder.glob("counter_*.db"))) == 2)
        shutil.rmtree(folder)
        assert predictions(server, 20) == {200: 20} and metrics_answers(server) == {503: 20}
        fresh = replace_a_worker(server)
        assert answering(server, fresh).keys() == {200} and metrics_answers(server) == {503: 20}
        lines = Counter((line["pid"], line["message"][:20]) for line in server.lines() if line["level"] == "error")
    assert lines and set(lines.values()) == {1}, "each worker says it once"
    assert "Traceback" not in server.said()


@pytest.mark.parametrize("options", ["size=64k", "size=256k", "ro"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_with_no_room_is_named_at_the_start(disk, options, workers):
    check_refused(disk(options), workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_no_folder_is_named_at_the_start(tmp_path, workers):
    (tmp_path / "file").touch()
    check_refused(tmp_path / "file", workers)
    check_refused(tmp_path / "nowhere", workers)


def check_refused(folder: Path, workers: int) -> None:
    """The service says in a sentence that it cannot count there, and ends with status 1."""
    command = [sys.executable, "-m", "trashsorting", "serve", "--port", "0", "--workers", str(workers)]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    print(done.stderr)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"PROMETHEUS_MULTIPROC_DIR={folder}" in done.stderr and "or leave the variable out" in done.stderr


def test_all_labels_that_there_can_be_fit_into_the_room(tmp_path):
    "A file that had to grow would be a file that can find no room."
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
    metrics.seconds.labels(f"/api/a-rather-long-address/{{number}}").observe(1)
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    sizes = {file.name.rpartition("_")[0]: file.stat().st_size for file in tmp_path.iterdir()}
    used = {file.name: int.from_bytes(file.read_bytes()[:4], sys.byteorder) for file in tmp_path.iterdir()}
    print(used)
    assert sizes == dict.fromkeys(KINDS, ROOM)


def wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
