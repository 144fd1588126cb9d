"""Prometheus on loopback, from Debian's package; tests skip, loudly, where it is missing."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

START_SECONDS = 60


def program(name: str) -> str:
    "The path of `promtool` or `prometheus`."
    path = shutil.which(name)
    if not path:
        pytest.skip(f"!!! {name} is missing (apt-get install prometheus): the alerts were not tried")
    return path


@dataclass(frozen=True)
class Pace:
    """How fast the rules' time passes: a machine that is busy with other things gets more of it."""

    slowness: float = 1.0  # How much longer something takes than on a quiet machine

    @property
    def minute(self) -> float:
        "What a minute of the rules takes here, seconds: between 3 and 60."
        return 3 * self.slowness

    @property
    def slow(self) -> float:
        "From when on a photograph counts as slow, seconds; the rules say 1."
        return max(1.0, self.slowness / 2)

    def apply(self, text: str) -> str:
        "Change the durations of the rules, and the limit of the alert Slow."
        text, n = re.subn(r"(inference_seconds_count\[\w+\]\)) > 1\b", rf"\1 > {self.slow:.2f}", text)
        assert n == 1, "the alert Slow has another form now"
        minutes = {"m": 1, "h": 60, "d": 24 * 60}
        in_seconds = lambda duration: f"{round(self.minute * int(duration[1]) * minutes[duration[2]])}s"  # noqa: E731
        return re.sub(r"\b(\d+)([mhd])\b", in_seconds, text)


def measure_pace(work: Callable[[], object]) -> Pace:
    "The pace for this machine now, by the slowest of some predictions, which take 50 ms on a quiet one."
    longest = 0.0
    for _ in range(20):
        start = time.monotonic()
        work()
        longest = max(longest, time.monotonic() - start)
    return Pace(min(20.0, max(1.0, longest / 0.05)))


def configure(folder: Path, rules: dict, target: str, pace: Pace) -> Path:
    "Write rules and configuration; there are three scrapes in a minute of the rules."
    (folder / "rules.yaml").write_text(pace.apply(yaml.safe_dump(rules, width=10_000)), encoding="utf-8")
    scrape = {"job_name": "trashsorting", "static_configs": [{"targets": [target]}]}
    interval = f"{round(1000 * pace.minute / 3)}ms"
    times = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    document = {"global": times, "rule_files": ["rules.yaml"], "scrape_configs": [scrape]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder / "prometheus.yaml"


@contextmanager
def prometheus(folder: Path, rules: dict, target: str, pace: Pace) -> Iterator[str]:
    "Run Prometheus against a service; its address."
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [f"--config.file={configure(folder, rules, target, pace)}", f"--storage.tsdb.path={folder / 'data'}"]
    words += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen([program("prometheus"), *words], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/-/ready").raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def alarms(url: str) -> set[str]:
    "The names of the alerts that fire now."
    listed = httpx.get(f"{url}/api/v1/alerts", timeout=30).json()["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in listed if alert["state"] == "firing"}


def samples(url: str, metric: str) -> int:
    "How many values of a metric have been collected, of the series that has most."
    query = {"query": f"max(count_over_time({metric}[1h]))"}
    result = httpx.get(f"{url}/api/v1/query", params=query, timeout=30).json()["data"]["result"]
    return int(float(result[0]["value"][1])) if result else 0
