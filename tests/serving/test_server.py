"""Connections and workers: early answers, upgrades, connection limits, failed starts."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from conftest import Server, encode

from trashsorting.data.sample import draw_picture
from trashsorting.serving.client import Client, Refused

GLASS = encode(draw_picture("glass", 0, (256, 192)))
HEAD = b"POST /api/predict HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
FORM = PART + GLASS + b"\r\n--x--\r\n"
LATE = 30  # Seconds after which a test counts as hanging


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=LATE)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes. Raises `ConnectionResetError`."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunks(body: bytes, size: int = 1000) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    coded = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"Transfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"


def wait_until(condition, seconds: float = LATE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# Responses before the request has ended


@pytest.fixture(scope="module")
def locked(serve) -> Iterator[Server]:
    """A service that wants a key, and takes files up to a megabyte."""
    with serve(TRASHSORTING_API_KEY="correct horse", TRASHSORTING_MAX_BYTES="1000000") as server:
        yield server


KEY = b"Authorization: Bearer correct horse\r\n"
CLOSE = b"Connection: close\r\n"
EARLY = {
    "too large": (HEAD + KEY + CLOSE + length(PART + bytes(12_000_000)), 413),
    "too large, in chunks": (HEAD + KEY + CLOSE + chunks(PART + bytes(12_000_000), 100_000), 413),
    "too large, HTTP/1.0": (HEAD.replace(b"/1.1", b"/1.0") + KEY + length(PART + bytes(12_000_000)), 413),
    "no key": (HEAD + CLOSE + length(PART + bytes(900_000)), 401),
    "no such address": (HEAD.replace(b"/predict", b"/x") + CLOSE + length(PART + bytes(900_000)), 404),
    "no chunk": (HEAD + KEY + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + bytes(12_000_000), 400),
    "long headers": (HEAD + KEY + b"A: " + b"a" * 300_000, 431),
}


@pytest.mark.parametrize("name", EARLY)
def test_an_early_response_reaches_a_client_that_is_still_sending(locked, name):
    request, status = EARLY[name]
    for _ in range(5):
        with connect(locked) as connection:
            connection.sendall(request)
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:80]
        assert b"connection: close" in answer.lower()


def test_the_client_gets_the_reason_for_a_large_file_or_a_wrong_key(locked):
    for _ in range(5):
        with pytest.raises(Refused, match=r"limit of 1 MB.*413"):
            Client(locked.url, key="correct horse", retries=0).predict(bytes(12_000_000))
        with pytest.raises(Refused, match="401 no-key"):
            Client(locked.url, key="battery staple", retries=0).predict(bytes(900_000))


def test_a_client_that_never_stops_sending_is_cut_off(serve):
    with serve(TRASHSORTING_UPLOAD_SECONDS="2") as server, connect(server) as connection:
        connection.sendall(HEAD + CLOSE + b"Content-Length: 99000000\r\n\r\n" + PART)
        start = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - start < LATE:
                connection.sendall(bytes(1000))
                time.sleep(0.05)
        assert httpx.get(f"{server.url}/api/health").status_code == 200


@pytest.mark.parametrize("close", [CLOSE, b""], ids=["close", "keep-alive"])
def test_discarded_bytes_are_bounded(server, close):
    part, sent = bytes(1_000_000), 0
    with connect(server) as connection:
        connection.sendall(HEAD + close + b"Content-Length: 900000000000\r\n\r\n" + PART)
        with pytest.raises(ConnectionError):
            while sent < 1_000_000_000:
                connection.sendall(part)
                sent += len(part)
    print(f"{sent / 1e6:.0f} MB")


# Upgrades: offers of another protocol

UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
BATCH = HEAD.replace(b"predict", b"predict/batch")
FILES = FORM.replace(b'"file"', b'"files"')
UPGRADES = {
    "length": HEAD + UPGRADE + length(FORM),
    "chunks": HEAD + UPGRADE + chunks(FORM),
    "batch": BATCH + UPGRADE + length(FILES),
    "batch in chunks": BATCH + UPGRADE + chunks(FILES),
    "upgrade after the length": HEAD + b"Content-Length: %d\r\n" % len(FORM) + UPGRADE + b"\r\n" + FORM,
    "web sockets": HEAD + b"Connection: upgrade\r\nUpgrade: websocket\r\n" + length(FORM),
    "no body": b"GET /api/health HTTP/1.1\r\nHost: test\r\n" + UPGRADE + b"\r\n",
}


@pytest.mark.parametrize("pause", [False, True], ids=["at once", "in parts"])
@pytest.mark.parametrize("name", UPGRADES)
def test_an_upgrade_is_ignored(server, name, pause):
    "Three requests on one connection: all are answered."
    request = UPGRADES[name]
    with connect(server) as connection:
        for part in [request[:100], request[100:400], request[400:], request] if pause else [request * 2]:
            connection.sendall(part)
            time.sleep(0.05 if pause else 0)
        connection.sendall(UPGRADES["no body"].replace(b"Upgrade, HTTP2", b"close, Upgrade, HTTP2"))
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200 OK") == 3 and answers.count(b"HTTP/1.1") == 3, answers[:200]
    assert answers.count(b'"predicted_class"') == (0 if name == "no body" else 2)


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
@pytest.mark.parametrize("headers", [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]])
def test_curl_with_http2(server, headers, tmp_path):
    path = tmp_path / "bottle.png"
    path.write_bytes(GLASS)
    for url, field in ((f"{server.url}/api/predict", "file"), (f"{server.url}/api/predict/batch", "files")):
        words = ["curl", "-sS", "--http2", *headers, "-F", f"{field}=@{path}", url]
        done = subprocess.run(words, capture_output=True, text=True, timeout=LATE)
        assert "predicted_class" in done.stdout, done.stdout + done.stderr


def test_the_service_is_no_proxy(server):
    with connect(server) as connection:
        connection.sendall(b"CONNECT nowhere.invalid:80 HTTP/1.1\r\nHost: nowhere.invalid\r\n\r\nhello")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


# Too many connections


@contextmanager
def crowd(server: Server, number: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that send these bytes, and nothing more."""
    connections = []
    try:
        for _ in range(number):
            connections.append(connect(server))
            connections[-1].sendall(sent)
        yield connections
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("sent", [b"", b"GET /", HEAD + b"Content-Length: 1000\r\n\r\n" + PART])
def test_probes_are_answered_beyond_the_connection_limit(serve, sent):
    with serve(TRASHSORTING_CONNECTIONS="20") as server, crowd(server, 100, sent):
        for _ in range(30):
            for path in ("/api/health", "/api/ready"):
                assert httpx.get(server.url + path, timeout=LATE).status_code == 200
        answer = httpx.post(f"{server.url}/api/predict", files={"file": GLASS}, timeout=LATE)
        assert (answer.status_code, answer.json()["code"]) == (503, "too-many-connections")
        assert "Traceback" not in server.said()


# Addresses


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6")
def test_all_interfaces_means_ipv6_and_ipv4():
    command = [sys.executable, "-m", "trashsorting", "serve", "--host", "::", "--port", "0", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = process.stdout.readline().rpartition(":")[2].strip()
        for host in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{host}:{port}/api/health", timeout=LATE).status_code == 200
    finally:
        process.terminate()
        assert process.wait(LATE) == 0, "it ends"


# Workers that fail to start or die


@contextmanager
def started(folder: Path, workers: int, broken: str = "", **environment: str) -> Iterator[subprocess.Popen]:
    """The service, whose processes run a line of Python first; its standard error is the file `log`."""
    (folder / "sitecustomize.py").write_text(broken, encoding="utf-8")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "trashsorting", "serve", "--port", "0", "--workers", str(workers)]
    with (folder / "log").open("w", encoding="utf-8") as log:
        environment = {**os.environ, "PYTHONPATH": path, **environment}
        words = {"stdout": subprocess.DEVNULL, "stderr": log, "env": environment, "start_new_session": True}
        process = subprocess.Popen(command, **words)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def lines(folder: Path) -> tuple[list[dict], list[str]]:
    """The log: its lines of JSON, and the others."""
    log = (folder / "log").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in log if line.startswith("{")], [line for line in log if line[:1] != "{"]


WORKER = "import os, sys, time\nif '--multiprocessing-fork' in sys.orig_argv: "
BROKEN = {
    "raises": "import trashsorting.serving.app as app\napp.create_app = lambda: print(missing)",
    "exits": WORKER + "os._exit(7)",
    "killed": WORKER + "os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize(("workers", "name"), [(1, "raises"), *((2, name) for name in BROKEN)])
def test_the_service_ends_if_no_worker_can_start(tmp_path, workers, name):
    with started(tmp_path, workers, BROKEN[name]) as process:
        assert process.wait(LATE) == 1
    records, others = lines(tmp_path)
    assert others == ["trashsorting: the service could not start: the log says why"]
    messages = [record["message"] for record in records]
    if name == "raises":
        assert (
            1 <= messages.count("the service cannot start") <= workers
            and "'missing' is not defined" in records[0]["traceback"]
        )
    else:
        ended = "exit status 7" if name == "exits" else "SIGKILL"
        assert len(messages) == 3 and all(f"has ended: {ended}" in message for message in messages)


def test_a_signal_is_handled_while_a_worker_starts(tmp_path):
    "A worker that sleeps instead of starting."
    with started(tmp_path, 2, WORKER + "time.sleep(99)") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: len(children.read_text(encoding="utf-8").split()) >= 3)  # with the resource tracker
        time.sleep(1)
        process.terminate()
        assert process.wait(9) == 0  # platforms allow ten seconds


def both_answer(server: Server) -> bool:
    """Send a request, and say whether each of two workers has answered one."""
    assert httpx.get(f"{server.url}/api/health", timeout=LATE).status_code == 200
    workers = server.workers()
    return len(workers) == 2 and {*workers} <= {line["pid"] for line in server.lines()}


def test_a_dead_worker_is_logged_and_replaced(serve):
    with serve(workers=2) as server:
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL, signal.SIGKILL):
            wait_until(lambda: both_answer(server))
            victim = server.workers()[0]
            os.kill(victim, number)
            wait_until(lambda: f"worker {victim} has ended: {number.name}" in server.said())  # noqa: B023
        wait_until(lambda: both_answer(server))
        assert server.said().count("has ended") == 4 and server.process.poll() is None
