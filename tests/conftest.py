"""What several test files need: a real server on a port, pictures, and where to find photographs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from gcs import Store, object_store
from PIL import Image

from trashsorting.core.settings import read_settings
from trashsorting.data.sample import draw_picture
from trashsorting.inference.predictor import Predictor

if TYPE_CHECKING:
    from playwright.sync_api import Browser

START_SECONDS = 60
LONG = (
    "crossval",
    "checkpoint",
    "train",
    "pipeline",
    "abuse",
    "sweep",
    "train_image",
    "api_image",
    "page",
    "page_bins",
    "page_device",
    "languages",
)  # minutes each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: one that begins last has a processor, and the others have nothing left to do."""
    names = [f"test_{name}.py" for name in LONG]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


@dataclass(frozen=True)
class Server:
    """A service that runs in processes of its own."""

    url: str
    log: Path
    process: subprocess.Popen

    @property
    def pid(self) -> int:
        """Of the process that was started; several workers are children of it."""
        return self.process.pid

    def said(self) -> str:
        """What it has written to its log so far."""
        return self.log.read_text(encoding="utf-8")

    def lines(self) -> list[dict]:
        """What it has logged so far, a line of JSON each."""
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]

    def workers(self) -> list[int]:
        """The processes that answer."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="utf-8").split()
        named = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        return [pid for pid, command in named.items() if b"spawn_main" in command] or [self.pid]


def wait_for_address(process: subprocess.Popen, log: Path) -> str:
    """Where the service answers, once it says so."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"(?:ready|answers) at (http://127\.0\.0\.1:\d+)", log.read_text(encoding="utf-8")):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the service did not start:\n{log.read_text(encoding='utf-8')}")


@contextmanager
def running(log: Path, workers: int = 1, **environment: str) -> Iterator[Server]:
    """Run the service as a deployment does, on loopback and a free port, with these environment variables."""
    command = [sys.executable, "-m", "trashsorting", "serve", "--port", "0", "--workers", str(workers)]
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, **environment})
    try:
        yield Server(wait_for_address(process, log), log, process)
    finally:
        process.terminate()
        try:
            assert process.wait(timeout=40) == 0, log.read_text(encoding="utf-8")
        finally:
            process.kill()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Server]]:
    """Start a service of one's own: `with serve(workers=2, TRASHSORTING_MAX_BYTES="1000") as server`."""
    return lambda **options: running(tmp_path_factory.mktemp("service") / "log", **options)


@pytest.fixture(scope="session")
def server(serve) -> Iterator[Server]:
    """The service with its defaults, shared by all tests."""
    with serve() as started:
        yield started


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the shared service."""
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
SWITCHES += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator["Browser"]:
    """Chromium as the system has it, with the module's own MORE_SWITCHES; skips, loudly, where it has none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser: install chromium to test the page")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        switches = SWITCHES + getattr(request.module, "MORE_SWITCHES", [])
        started = playwright.chromium.launch(executable_path=chromium, args=switches)
        yield started
        started.close()


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """The model that the service loads, in this process."""
    return Predictor(read_settings().model)


def find_photograph() -> Path:
    """A photograph of TrashNet; skips the test, loudly, where there is none."""
    if "TRASHNET" not in os.environ:
        pytest.skip("no real photograph: set TRASHNET to a folder that holds TrashNet's images/<class>/*.jpg")
    return sorted(Path(os.environ["TRASHNET"]).glob("images/glass/*.jpg"))[0]


@pytest.fixture(params=["drawn", "photograph"])
def picture(request: pytest.FixtureRequest) -> Image.Image:
    """A picture in RGB: one that we draw, and a real one where TRASHNET says where they are."""
    if request.param == "drawn":
        return draw_picture("glass", 0, (512, 384))
    with Image.open(find_photograph()) as opened:
        return opened.convert("RGB")


def encode(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    """A picture as the bytes of a file."""
    stream = BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An object store with versions, shared by all tests; each makes a bucket of its own."""
    with object_store(tmp_path_factory.mktemp("store") / "log") as started:
        yield started
