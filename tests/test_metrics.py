"""The numbers at /metrics: what they say, for one worker and for several."""

import re
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from conftest import encode
from prometheus_client.parser import text_string_to_metric_families

from trashsorting.dataset import draw_picture

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
