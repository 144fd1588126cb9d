"""`make load` against real services on loopback: a few seconds, a few users."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(url: str, seconds: int = 2, users: int = 3) -> subprocess.CompletedProcess:
    """Run `make load` in the environment of the tests."""
    words = ["make", "--no-print-directory", "-o", "setup", "load", f"BIN={Path(sys.executable).parent}"]
    words += [f"URL={url}", f"SECONDS={seconds}", f"USERS={users}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_service_holds_still(server):
    done = load(server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stderr + done.stdout
    for line in ("predict", "predict, 12 MP", "explain", "health", "model info", "page", "Aggregated"):
        assert line in table, table
    assert "95%" in table, "percentiles stand below the counts"


GOOD = {
    "/": {},
    "/api/health": {"status": "ok"},
    "/api/model/info": {"explains": False},
    "/api/predict": {"predicted_class": "a", "confidence": 1.0, "all_probabilities": {"a": 1.0, "b": 0.0}},
}


@contextmanager
def pretending(answer: Callable[[str], tuple[int, dict, dict]]) -> Iterator[str]:
    """A service that answers a path with a status, headers and a body, as it is told."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, said = answer(self.path)
            body = json.dumps(said).encode()
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def refuses(status: int, **headers: str) -> Callable[[str], tuple[int, dict, dict]]:
    """Predictions get this status, everything else is well."""
    return lambda path: (status, headers, {}) if path == "/api/predict" else (200, {}, GOOD[path])


def test_come_back_later_is_no_failure(tmp_path):
    with pretending(refuses(503, **{"retry-after": "0.2"})) as url:
        done = load(url)
    table = done.stderr + done.stdout
    assert done.returncode == 0, table
    assert "predict: 503, come back later" in table


WRONG = {**GOOD["/api/predict"], "all_probabilities": {"a": 1.0, "b": 1.0}}
IMAGE_ERRORS = {
    "500": (refuses(500), "status 500"),
    "503 without Retry-After": (refuses(503), "status 503"),
    "422": (refuses(422), "status 422"),
    "wrong sum": (lambda path: (200, {}, WRONG if path == "/api/predict" else GOOD[path]), "do not sum to 1"),
}


@pytest.mark.parametrize("fault", IMAGE_ERRORS)
def test_anything_else_is_a_failure(fault):
    answer, said = IMAGE_ERRORS[fault]
    with pretending(answer) as url:
        done = load(url)
    table = done.stderr + done.stdout
    assert done.returncode == 1 and said in table, table


def test_nobody_there():
    done = load("http://127.0.0.1:9")
    assert done.returncode == 1, done.stdout + done.stderr


def test_an_address_is_needed():
    done = subprocess.run(["make", "load"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "make load needs URL" in done.stderr
