"""Prometheus on loopback, from Debian's package; tests skip, loudly, where it is missing."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def faster(text: str) -> str:
    "Durations of the rules, twenty times shorter: a minute takes three seconds."
    minutes = {"m": 1, "h": 60, "d": 24 * 60}
    return re.sub(r"\b(\d+)([mhd])\b", lambda duration: f"{3 * int(duration[1]) * minutes[duration[2]]}s", text)


def configure(folder: Path, rules: dict, target: str) -> Path:
    "Write rules and configuration; the rules and the scrapes are fast."
    (folder / "rules.yaml").write_text(faster(yaml.safe_dump(rules, width=10_000)), encoding="utf-8")
    scrape = {"job_name": "trashsorting", "static_configs": [{"targets": [target]}]}
    times = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    document = {"global": times, "rule_files": ["rules.yaml"], "scrape_configs": [scrape]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder / "prometheus.yaml"


@contextmanager
def prometheus(folder: Path, rules: dict, target: str) -> Iterator[str]:
    "Run Prometheus against a service; its address."
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [f"--config.file={configure(folder, rules, target)}", f"--storage.tsdb.path={folder / 'data'}"]
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
