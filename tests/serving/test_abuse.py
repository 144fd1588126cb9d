"""Hostile files, forms and connections, overload, stuck threads, and processes that die.

CHECK_FUZZ is the number of mutated uploads and CHECK_SCHEMATHESIS that of examples for each operation;
`make check-long` sets them high.
"""

import asyncio
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from base64 import b64encode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import uvicorn
from conftest import Server, encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from uvicorn.server import ServerState

from trashsorting.data.sample import draw_picture
from trashsorting.serving.schemas import CODES
from trashsorting.serving.server import Connection

FUZZ = int(os.environ.get("CHECK_FUZZ", "200"))
SCHEMATHESIS = int(os.environ.get("CHECK_SCHEMATHESIS", "10"))
GLASS = encode(draw_picture("glass", 0, (256, 192)))
JPEG = encode(draw_picture("glass", 0, (256, 192)), "JPEG")
LARGE = encode(draw_picture("glass", 0, (4000, 3000)), "PNG", compress_level=1)
HEAD = b"POST /api/predict HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
FORM = PART + GLASS + b"\r\n--x--\r\n"


def predict(client: httpx.Client, data: bytes, **options) -> httpx.Response:
    return client.post("/api/predict", files={"file": ("upload", data)}, **options)


def check_problem(answer: httpx.Response) -> str:
    """Check that an answer is a documented error, and return its code."""
    problem = answer.json()
    assert problem.keys() == {"code", "detail"} and isinstance(problem["detail"], str), answer.text
    assert CODES[problem["code"]][0] == answer.status_code, answer.text
    return problem["code"]


def memory(pid: int, field: str = "VmRSS") -> float:
    """Of a process, megabytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1000


def depth(server: Server) -> float:
    """How many photographs wait or are computed."""
    page = httpx.get(f"{server.url}/metrics", timeout=30).text
    return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith("trashsorting_queue_depth"))


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition has not come true in time"
        time.sleep(0.02)


# Hostile files


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, data: bytes = b"") -> bytes:
    """A PNG that claims any size and holds any chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size than it has."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def jpeg_of_scans(number: int) -> bytes:
    """A JPEG of fifty megapixels whose components come by themselves, in scans without data."""
    start, picture = JPEG.index(b"\xff\xda"), jpeg_of_size(7071, 7071)
    return picture[:start] + number * bytes.fromhex("ffda0008010100003f00") + b"\xff\xd9"


ZEROS = zlib.compress(bytes(200_000_000), 9)
HOSTILE = {
    "1 pixel": (encode(Image.new("RGB", (1, 1))), 200),
    "1 x 10,000 pixels": (encode(Image.new("RGB", (1, 10_000))), 200),
    "no byte": (b"", 422),
    "one byte": (b"\xff", 415),
    "a signature alone": (b"\x89PNG\r\n\x1a\n", (415, 422)),
    "49 megapixels of one colour": (encode(Image.new("1", (7000, 7000))), 200),
    "a PNG of 4 gigapixels": (png(65_535, 65_535, data=ZEROS), 413),
    "a PNG of no width": (png(0, 100), (415, 422)),
    "more pixels in the data than in the header": (png(10, 10, data=ZEROS), 200),
    "a text that unpacks to 200 MB": (png(10, 10, chunk(b"zTXt", b"a\0\0" + ZEROS), data=ZEROS), 200),
    "a colour profile that unpacks to 200 MB": (png(10, 10, chunk(b"iCCP", b"a\0\0" + ZEROS), data=ZEROS), 200),
    "a text with a wrong checksum": (png(10, 10, chunk(b"tEXt", b"a\0b")[:-4] + bytes(4), data=ZEROS), 200),
    "800,000 chunks": (png(10, 10, 800_000 * chunk(b"tIME", b""), data=ZEROS), 422),
    "one pixel wide and 50 million high": (png(1, 50_000_000, data=ZEROS), 413),
    "50 million pixels wide": (png(50_000_000, 1, data=ZEROS), 413),
    "2 million segments": (JPEG[:2] + 2_000_000 * b"\xff\xe5\0\2" + JPEG[2:], 422),
    "400 scans": (jpeg_of_scans(400), 422),
    "60 segments with a profile": (JPEG[:2] + 60 * (b"\xff\xe2\xff\xff" + bytes(65_533)) + JPEG[2:], 200),
    "a JPEG of 4 gigapixels": (jpeg_of_size(65_500, 65_500), 413),
    "a JPEG of 40 megapixels with data for few": (jpeg_of_size(8000, 5000), (200, 422)),
    "JPEG and ZIP": (JPEG + b"PK\x03\x04" + bytes(1000), 200),
    "JPEG and a page": (JPEG + b"<script>alert(1)</script>", 200),
    "two PNGs": (GLASS + GLASS, 200),
    "GIF and JavaScript": (b"GIF89a/*" + bytes(100) + b"*/=alert(1)", 415),
    "PDF around a JPEG": (b"%PDF-1.4\n" + JPEG, 415),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 415),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage", 415),
    "animated WebP of 1,000 frames": (
        encode(
            Image.new("RGB", (8, 8)),
            "WEBP",
            save_all=True,
            append_images=[Image.new("RGB", (8, 8), (n % 256, n // 256, 0)) for n in range(999)],
        ),
        200,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(server, client, name):
    data, expected = HOSTILE[name]
    before = memory(server.pid)
    answer = predict(client, data)
    assert answer.status_code in ([expected] if isinstance(expected, int) else expected), answer.text
    if answer.status_code != 200:
        check_problem(answer)
    assert memory(server.pid) - before < 400


def test_the_content_decides_the_format(client):
    expected = predict(client, JPEG).json()
    for kind in ("text/html", "image/gif", "application/x-sh", "", "\tnonsense; charset=utf-16"):
        answer = client.post("/api/predict", files={"file": ("../../etc/passwd\x00.png", JPEG, kind)})
        assert (answer.status_code, answer.json()) == (200, expected)
    answer = client.post("/api/predict", content=JPEG, headers={"content-type": "image/jpeg"})
    assert check_problem(answer) == "no-file"


# Hostile forms


def form(boundary: str = "x", body: bytes = FORM) -> dict:
    return {"content": body, "headers": {"content-type": f"multipart/form-data; boundary={boundary}"}}


def fields(number: int, name: str = "a") -> bytes:
    return b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s%d"\r\n\r\n\r\n' % (name.encode(), n) for n in range(number)
    )


FORMS = {
    "thousands of fields": (form(body=fields(5000) + FORM), {"bad-form"}),
    "thousands of files": (form(body=PART.replace(b"\r\n\r\n", b"\r\n\r\n\r\n") * 5000 + b"--x--\r\n"), {"bad-form"}),
    "thousands of headers": (
        form(body=PART[:-2] + b"A: b\r\n" * 50_000 + b"\r\n" + GLASS + b"\r\n--x--\r\n"),
        {"bad-form"},
    ),
    "a header without an end": (form(body=b"--x\r\nContent-Disposition: " + b"a" * 1_000_000), {"bad-form"}),
    "another boundary": (form(boundary="y"), {"bad-form"}),
    "a long boundary": (form(boundary="y" * 5000), {"bad-form"}),
    "an empty boundary": (form(boundary='""'), {"bad-form"}),
    "no end": (form(body=FORM[:-8]), {"no-file"}),
    "no body": (form(body=b""), {"no-file", "bad-form"}),
    "only an end": (form(body=b"--x--\r\n"), {"no-file"}),
    "parts in parts": (form(body=FORM.replace(GLASS, FORM.replace(b"--x", b"--y"))), {"not-an-image"}),
}


def test_an_urlencoded_form_is_refused_unread(client):
    "Parsing ten megabytes of & would block the event loop for seven seconds."
    start = time.monotonic()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert check_problem(client.post("/api/predict", content=b"&" * 9_900_000, headers=headers)) == "no-file"
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("name", FORMS)
def test_hostile_form(client, name):
    request, codes = FORMS[name]
    assert check_problem(client.post("/api/predict", **request)) in codes


def test_a_body_without_a_length(client):
    chunks = (FORM[at : at + 100] for at in range(0, len(FORM), 100))
    answer = client.post("/api/predict", content=chunks, headers={"content-type": "multipart/form-data; boundary=x"})
    assert "content-length" not in answer.request.headers
    assert (answer.status_code, answer.json()) == (200, predict(client, GLASS).json())


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01" + bytes(100),
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        HEAD + b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["version", "TLS", "long path", "negative", "two lengths", "length and chunks", "no chunk"],
)
def test_invalid_http(server, request_):
    with connect(server) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert not answer or answer.split()[1] in (b"400", b"404", b"414", b"422"), answer
    assert not answer or set(json.loads(answer.rpartition(b"\r\n\r\n")[2])) == {"code", "detail"}, answer
    assert httpx.get(f"{server.url}/api/health").status_code == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /api/predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /api/health HTTP/1.1\r\n\r\nzz\r\n\r\n",
    ],
    ids=["no chunk", "no second request"],
)
def test_what_cannot_be_read_gets_the_last_answer(server, request_):
    """Nothing is written behind it, so nothing is logged as an error of the service."""
    before = len(server.lines())
    with connect(server) as connection:
        connection.sendall(request_)
        answer = read_all(connection)
    assert answer.split()[1] == b"400" and answer.count(b"content-length") == 1, answer
    wait_until(lambda: any(line["message"] == "request" for line in server.lines()[before:]))
    assert not any("traceback" in line for line in server.lines()[before:])


# Hostile connections


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    received = b""
    try:
        while data := connection.recv(65_536):
            received += data
    except ConnectionResetError:
        pass
    return received


@pytest.fixture(scope="module")
def hasty(serve):
    """A service that gives a request a second to arrive."""
    with serve(TRASHSORTING_UPLOAD_SECONDS="1") as server:
        yield server


SLOW = {
    "nothing": (b"", None),
    "half a line": (b"POST /api/pre", 408),
    "half a head": (HEAD, 408),
    "no body": (HEAD + b"Content-Length: 1000\r\n\r\n", 408),
    "half a body": (HEAD + b"Content-Length: 1000\r\n\r\n" + PART, 408),
    "half a body in chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n--x\r\n\r\n", 408),
    "a body that was refused": (HEAD + b"Content-Length: 99000000\r\n\r\n" + PART, 413),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_stalled_upload_is_ended(hasty, name):
    sent, status = SLOW[name]
    start = time.monotonic()
    with connect(hasty) as connection:
        connection.sendall(sent)
        answer = read_all(connection)
    assert time.monotonic() - start < 10
    assert (int(answer.split()[1]) if answer else None) == status, answer
    assert status != 408 or (b'"slow-upload"' in answer and b"connection: close" in answer.lower())


ENDLESS = {
    "header": (HEAD + b"A: ", b"a" * 1000, 431),
    "headers": (HEAD, b"A: b\r\n" * 200, 431),
    "address": (b"GET /", b"a" * 1000, 431),
    "trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n" * 200, None),
    "extension of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;a=", b"a" * 1000, None),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_headers(server, name):
    "The connection is closed after some tens of kilobytes, and the service does not grow."
    begin, part, status = ENDLESS[name]
    before, sent, answer = memory(server.pid), 0, b""
    with connect(server) as connection:
        try:
            connection.sendall(begin)
            while sent < 50_000_000:
                connection.sendall(part)
                sent += len(part)
        except (BrokenPipeError, ConnectionResetError):
            answer = read_all(connection)
    print(f"{sent} bytes, {answer[:40]}")
    assert sent < 10_000_000 and memory(server.pid) - before < 20
    assert not answer or answer.startswith(b"HTTP/1.1 431 " if status else b"HTTP/1.1 4"), answer
    assert httpx.get(f"{server.url}/api/health").status_code == 200


def test_a_byte_by_byte_upload_times_out(hasty):
    "Each byte arrives within the read timeout, but the whole request does not."
    with connect(hasty) as connection:
        connection.settimeout(0.1)
        connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + PART)
        start, answer = time.monotonic(), b""
        while not answer and time.monotonic() - start < 15:
            connection.sendall(b"x")
            try:
                answer = connection.recv(65_536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408")


GET = b"GET /api/health HTTP/1.1\r\nHost: test\r\n\r\n"
IDLE = {
    "blank lines": (GET, b"\r\n\r\n"),
    "a body of a GET": (GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n"), b"something"),
}


@pytest.mark.parametrize("name", IDLE)
def test_an_idle_connection_is_closed(hasty, name):
    "Bytes that do not begin a request do not reset the timeout."
    request, idle = IDLE[name]
    with connect(hasty) as connection:
        connection.settimeout(20)  # less than the keep-alive timeout
        connection.sendall(request)
        answer = b""
        while not answer.endswith(b"}") and (data := connection.recv(65_536)):  # the head may arrive alone
            answer += data
        assert answer.startswith(b"HTTP/1.1 200")
        connection.sendall(idle)
        assert read_all(connection) == b""


def sockets(pid: int) -> int:
    """The number of open sockets of a process."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return sum(link.startswith("socket:") for link in links)


def test_a_client_that_does_not_read_is_disconnected(hasty):
    "The ten responses have 1.7 MB each, more than the system buffers."
    before = sockets(hasty.pid)
    with connect(hasty) as connection:
        connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: test\r\n\r\n" * 10)
        wait_until(lambda: sockets(hasty.pid) > before)
        wait_until(lambda: sockets(hasty.pid) == before)
    assert "Traceback" not in hasty.said()


def test_slow_uploads_do_not_block_others(serve):
    with serve(TRASHSORTING_UPLOAD_SECONDS="20", TRASHSORTING_QUEUE="4") as server:
        connections = [connect(server) for _ in range(100)]
        try:
            for connection in connections:
                connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + PART)
            with httpx.Client(base_url=server.url, timeout=60) as client:
                assert [predict(client, GLASS).status_code for _ in range(5)] == [200] * 5
        finally:
            for connection in connections:
                connection.close()
        wait_until(lambda: sum(line.get("status") == 499 for line in server.lines()) == 100)
    assert "Traceback" not in server.said()


def test_too_many_connections(serve):
    with serve(TRASHSORTING_CONNECTIONS="10") as server:
        connections = [connect(server) for _ in range(10)]
        try:
            assert httpx.get(f"{server.url}/api/health").status_code == 200, "a probe is answered all the same"
            answer = httpx.get(f"{server.url}/api/model/info")
            assert check_problem(answer) == "too-many-connections"
            assert answer.headers["retry-after"] == "1" and answer.headers["connection"] == "close"
            for connection in [connect(server) for _ in range(15)]:
                connection.close()
        finally:
            for connection in connections:
                connection.close()
        wait_until(lambda: httpx.get(f"{server.url}/api/model/info").status_code == 200)


def test_pipelined_requests_take_linear_time():
    "Waiting requests are in one deque that is never copied."
    number, protocols, seen = 2000, [], []

    async def app(scope, receive, send):
        seen.append((id(protocols[0].unanswered), len(protocols[0].unanswered)))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def answered() -> bytes:
        config = uvicorn.Config(app, log_config=None, access_log=False)
        config.load()
        state = ServerState()

        def make() -> Connection:
            protocols.append(Connection(config, state, {}, max_connections=10, timeout=30))
            return protocols[0]

        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * (number - 1) + b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        received = await reader.read(-1)
        writer.close()
        server.close()
        return received

    assert asyncio.run(answered()).count(b"HTTP/1.1 204") == number
    assert len({identity for identity, _ in seen}) == 1
    assert max(length for _, length in seen) > 100 and not protocols[0].unanswered


# Overload


def predict_at_once(server: Server, number: int, data: bytes = LARGE) -> list[httpx.Response]:
    """Requests at the same time, each on its own connection."""
    with (
        ThreadPoolExecutor(number) as pool,
        httpx.Client(base_url=server.url, timeout=120, limits=httpx.Limits()) as client,
    ):
        return list(pool.map(lambda _: predict(client, data), range(number)))


def test_a_full_queue_refuses_at_once_and_answers_accepted_requests(serve):
    with serve(TRASHSORTING_QUEUE="3", TRASHSORTING_PARALLEL="1") as server:
        answers = predict_at_once(server, 30)
        statuses = Counter(answer.status_code for answer in answers)
        assert depth(server) == 0
        assert predict(httpx.Client(base_url=server.url, timeout=60), GLASS).status_code == 200
    print(dict(statuses))
    assert statuses.keys() == {200, 503} and statuses[200] >= 4
    for answer in answers:
        if answer.status_code == 503:
            assert check_problem(answer) == "queue-full" and int(answer.headers["retry-after"]) >= 1
    slowest = max(answer.elapsed for answer in answers if answer.status_code == 503)
    assert slowest < max(answer.elapsed for answer in answers if answer.status_code == 200)


def test_64_connections_fit_the_queue(serve):
    with serve() as server:
        assert Counter(answer.status_code for answer in predict_at_once(server, 64, GLASS)) == {200: 64}


def test_a_batch_takes_a_queue_place_for_each_file(serve):
    with serve(TRASHSORTING_QUEUE="3", TRASHSORTING_PARALLEL="1") as server:
        with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
            fits = client.post("/api/predict/batch", files=[("files", GLASS)] * 4)
            never = client.post("/api/predict/batch", files=[("files", GLASS)] * 5)
            running = pool.submit(client.post, "/api/predict/batch", files=[("files", LARGE)] * 3)
            wait_until(lambda: depth(server) == 3)
            late = client.post("/api/predict/batch", files=[("files", GLASS)] * 2)
            waiting = depth(server)
            assert running.result().status_code == 200
    assert fits.status_code == 200 and check_problem(never) == "too-many-files"
    assert "the limit of 4 (TRASHSORTING_QUEUE);" in never.json()["detail"]  # waiting requests and the one in work
    assert check_problem(late) == "queue-full" and waiting <= 3, "no file of the batch is begun"


@pytest.mark.parametrize(
    "setting, code", [("TRASHSORTING_QUEUE_SECONDS", "queue-slow"), ("TRASHSORTING_WORK_SECONDS", "too-slow")]
)
def test_time_limits(serve, setting, code):
    with serve(**{setting: "0.05", "TRASHSORTING_PARALLEL": "1"}) as server:
        answers = predict_at_once(server, 6)
        refused = [answer for answer in answers if answer.status_code != 200]
        assert {check_problem(answer) for answer in refused} == {code}
        assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(503, "1")}
        wait_until(lambda: depth(server) == 0)


def test_concurrent_uploads_have_a_total_limit(serve):
    "Ten uploads of a megabyte fit. More are refused, at once if the length is declared."
    limits = {"TRASHSORTING_MAX_BYTES": "1000000", "TRASHSORTING_MAX_BATCH_BYTES": "1000000"}
    with serve(TRASHSORTING_QUEUE="9", TRASHSORTING_PARALLEL="1", **limits) as server:
        connections = [connect(server) for _ in range(10)]
        for connection in connections:
            connection.sendall(HEAD + b"Content-Length: 999999\r\n\r\n" + PART)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            assert predict(client, GLASS).status_code == 200, "declared, and not sent"
            for connection in connections:
                connection.sendall(bytes(999_000))
            wait_until(lambda: refused_early(server))
            assert check_problem(predict(client, JPEG + bytes(900_000 - len(JPEG)))) == "uploads-full"
            headers = {"content-type": "multipart/form-data; boundary=x"}
            chunked = client.post("/api/predict", content=iter([PART, JPEG + bytes(900_000)]), headers=headers)
            assert check_problem(chunked) == "uploads-full" and chunked.headers["retry-after"] == "1"
            for connection in connections:
                connection.close()
            wait_until(lambda: predict(client, JPEG + bytes(900_000 - len(JPEG))).status_code == 200)
    assert "Traceback" not in server.said()


def refused_early(server: Server) -> bool:
    """Whether an upload is refused because of its declared length."""
    with connect(server) as connection:
        connection.settimeout(0.5)
        connection.sendall(HEAD + b"Content-Length: 900000\r\n\r\n")
        try:
            return connection.recv(12) == b"HTTP/1.1 503"
        except TimeoutError:
            return False


def test_a_disconnected_client_frees_its_queue_places(serve):
    "One photograph, two pipelined requests, or a batch of three on each connection."
    single = HEAD + b"Content-Length: %d\r\n\r\n" % len(FORM) + FORM
    three = FORM.replace(b'"file"', b'"files"').removesuffix(b"--x--\r\n") * 3 + b"--x--\r\n"
    batch = HEAD.replace(b"predict", b"predict/batch") + b"Content-Length: %d\r\n\r\n" % len(three) + three
    with serve(TRASHSORTING_PARALLEL="1", TRASHSORTING_QUEUE="60") as server:
        with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, "/api/predict/batch", files=[("files", LARGE)] * 6)
            wait_until(lambda: depth(server) == 6)
            connections = [connect(server) for _ in range(15)]
            for connection, sent in zip(connections, [single, single * 2, batch] * 5, strict=True):
                connection.sendall(sent)
            wait_until(lambda: depth(server) >= 25)
            for connection in connections:
                connection.close()
            wait_until(lambda: depth(server) <= 6)
            assert not first.done()
            assert first.result().status_code == 200
            wait_until(lambda: depth(server) == 0)
            wait_until(lambda: sum(line.get("status") == 499 for line in server.lines()) >= 15)
            page = client.get("/metrics").text
        counted = sum(
            float(line.split()[-1]) for line in page.splitlines() if line.startswith("trashsorting_predictions_total{")
        )
    assert counted == 6 and "Traceback" not in server.said()


# Stuck threads

HANG = """
import time
from PIL import Image, ImageFile

load = ImageFile.ImageFile.load

def hang(picture):
    while picture.size == (77, 55):
        time.sleep(0.1)
    return load(picture)

ImageFile.ImageFile.load = hang
"""
ENDLESS_PICTURE = encode(Image.new("RGB", (77, 55)))


@pytest.fixture
def hanging(tmp_path) -> dict[str, str]:
    """Environment of a service whose decoder hangs at a picture of 77 x 55 pixels."""
    (tmp_path / "sitecustomize.py").write_text(HANG, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "TRASHSORTING_WORK_SECONDS": "1", "TRASHSORTING_PARALLEL": "1"}


def check_stuck(lines: list[dict], pid: int) -> None:
    """One line of the log says where the job was stuck, under its request's id."""
    (stuck,) = [line for line in lines if "WORK_SECONDS" in line["message"]]
    assert (stuck["level"], stuck["pid"], stuck["request_id"]) == ("error", pid, "stuck-1") and stuck["seconds"] > 2
    assert "sitecustomize.py" in stuck["calls"] and "open_rgb" in stuck["calls"]


def test_a_stuck_worker_is_replaced(serve, hanging):
    "Jobs queued behind the stuck one are answered soon; the other worker serves on, and a new one starts."
    with serve(workers=2, **hanging) as server, ThreadPoolExecutor(8) as pool:
        wait_until(lambda: len(server.workers()) == 2)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            assert check_problem(predict(client, ENDLESS_PICTURE, headers={"X-Request-ID": "stuck-1"})) == "too-slow"
        wait_until(lambda: any(line.get("request_id") == "stuck-1" for line in server.lines()))
        victim = next(line["pid"] for line in server.lines() if line.get("request_id") == "stuck-1")
        codes = Counter()
        while victim in server.workers():
            futures = [pool.submit(httpx.post, f"{server.url}/api/predict", files={"file": GLASS}) for _ in range(8)]
            answers = [future.result() for future in futures]
            codes.update("200" if answer.status_code == 200 else check_problem(answer) for answer in answers)
        wait_until(lambda: len(server.workers()) == 2, 60)
        print(dict(codes))
        assert codes["200"] and codes.keys() <= {"200", "draining"}
        assert httpx.get(f"{server.url}/api/ready").status_code == 200
        assert Counter(answer.status_code for answer in predict_at_once(server, 8, GLASS)) == {200: 8}
        assert "Traceback" not in server.said()
    check_stuck(server.lines(), victim)


def test_a_single_stuck_worker_ends_with_status_1(serve, hanging):
    "Until it ends it answers health checks and is not ready."
    with pytest.raises(AssertionError, match="twice"), serve(**hanging) as server:  # its exit status is not 0
        with ThreadPoolExecutor(2) as pool:
            stuck = pool.submit(predict_at, server, ENDLESS_PICTURE, "stuck-1")
            wait_until(lambda: depth(server) == 1)
            waiting = pool.submit(predict_at, server, GLASS, "next")
            statuses = Counter()
            while server.process.poll() is None:
                for path in ("ready", "health"):
                    try:
                        statuses[path, httpx.get(f"{server.url}/api/{path}").status_code] += 1
                    except httpx.TransportError:
                        statuses[path, "gone"] += 1
                time.sleep(0.02)
            assert (check_problem(stuck.result()), check_problem(waiting.result())) == ("too-slow", "draining")
        assert server.process.returncode == 1 and statuses["ready", 503] and statuses["health", 200]
        check_stuck(server.lines(), server.pid)


def predict_at(server: Server, data: bytes, name: str) -> httpx.Response:
    """A prediction with its own id in the log."""
    return httpx.post(f"{server.url}/api/predict", files={"file": data}, headers={"X-Request-ID": name}, timeout=60)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stuck_thread_does_not_prevent_shutdown(serve, hanging, workers):
    long = {**hanging, "TRASHSORTING_WORK_SECONDS": "60", "TRASHSORTING_GRACE_SECONDS": "3"}
    with serve(workers=workers, **long) as server, ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(predict_at, server, ENDLESS_PICTURE, "stuck-1")
        wait_until(lambda: depth(server) == 1)
        os.kill(server.pid, signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert check_problem(stuck.result()) == "draining"


# Killed processes


class Load:
    """Clients that send requests without a pause and count the answers."""

    def __init__(self, server: Server, clients: int):
        self.server, self.stop = server, threading.Event()
        self.answers, self.lost = Counter(), 0
        self.threads = [threading.Thread(target=self.send) for _ in range(clients)]

    def send(self) -> None:
        while not self.stop.is_set():
            try:
                answer = httpx.post(f"{self.server.url}/api/predict", files={"file": GLASS}, timeout=60)
                self.answers[answer.status_code] += 1
            except httpx.TransportError:
                self.lost += 1

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def connections_by_worker(server: Server, number: int) -> Counter:
    """How many of the connections that come at once and stay each worker has."""
    connections = [connect(server) for _ in range(number)]
    ids = [f"held-{time.monotonic_ns()}-{n}" for n in range(number)]
    for connection, name in zip(connections, ids, strict=True):
        connection.sendall(f"GET /api/health HTTP/1.1\r\nHost: test\r\nX-Request-ID: {name}\r\n\r\n".encode())
    assert all(connection.recv(12) == b"HTTP/1.1 200" for connection in connections)
    for connection in connections:
        connection.close()
    wait_until(lambda: sum(line.get("request_id") in ids for line in server.lines()) == number)
    return Counter(line["pid"] for line in server.lines() if line.get("request_id") in ids)


def test_workers_share_connections(serve):
    "With uvicorn's own accept loop one worker may get all connections."
    with serve(workers=2, TRASHSORTING_CONNECTIONS="40") as server:
        wait_until(lambda: len(connections_by_worker(server, 2)) == 2)  # both have started
        for number in (4, 8, 24):
            counts = sorted(connections_by_worker(server, number).values())
            print(number, counts)
            assert len(counts) == 2 and sum(counts) == number and counts[0] >= number // 4
        connections = [connect(server) for _ in range(300)]
        for connection in connections:
            connection.close()
        wait_until(lambda: httpx.get(f"{server.url}/api/health").status_code == 200)
        assert len(connections_by_worker(server, 8)) == 2
        assert "Traceback" not in server.said()


def test_a_killed_worker_is_replaced_while_the_other_serves(serve):
    with serve(workers=2) as server:
        wait_until(lambda: len(server.workers()) == 2)
        with Load(server, clients=4) as load:
            wait_until(lambda: load.answers[200] >= 20, 60)
            victim = server.workers()[0]
            os.kill(victim, signal.SIGKILL)
            before = load.answers[200]
            wait_until(lambda: load.answers[200] >= before + 20, 60)
            wait_until(lambda: len(server.workers()) == 2 and victim not in server.workers(), 60)
            fresh = next(pid for pid in server.workers())
            before = load.answers[200]
            wait_until(lambda: load.answers[200] >= before + 20, 60)
        print(dict(load.answers), f"lost {load.lost}, killed {victim}, now {server.workers()} ({fresh})")
        assert load.answers.keys() == {200}
        assert load.lost <= 4, "no more than were with the worker that was killed"
        assert depth(server) == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_shutdown_waits_for_requests_in_flight(serve, workers, number):
    with serve(workers=workers, TRASHSORTING_PARALLEL="1") as server, ThreadPoolExecutor(13) as pool:
        wait_until(lambda: len(server.workers()) == workers)
        running = [
            pool.submit(httpx.post, f"{server.url}/api/predict", files={"file": LARGE}, timeout=120) for _ in range(12)
        ]
        wait_until(lambda: depth(server) >= 8 or any(future.done() for future in running))
        with httpx.Client(base_url=server.url) as client:
            assert client.get("/api/ready").status_code == 200
            start = time.monotonic()
            os.kill(server.pid, number)
            late = Counter()
            while server.process.poll() is None:
                assert time.monotonic() - start < 40
                for method, path in [("GET", "/api/ready"), ("POST", "/api/predict"), ("GET", "/api/health")]:
                    try:
                        late[f"{path} {httpx.request(method, server.url + path, timeout=10).status_code}"] += 1
                    except httpx.TransportError:
                        late["refused"] += 1
                time.sleep(0.01)
        answers = [future.result() for future in running]
        print(f"{time.monotonic() - start:.1f} s to the end; meanwhile {dict(late)}")
        assert server.process.returncode == 0
    assert Counter(answer.status_code for answer in answers) == {200: 12}
    assert late["/api/ready 503"] and late["/api/predict 503"] and late["/api/health 200"]
    assert "Traceback" not in server.said()


def test_a_stalled_upload_ends_with_the_grace_period(serve):
    with serve(TRASHSORTING_GRACE_SECONDS="3") as server, connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + PART)
        time.sleep(0.5)
        start = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        answer = read_all(connection)
        assert server.process.wait(20) == 0
        assert time.monotonic() - start < 6
    assert answer.startswith(b"HTTP/1.1 503 ") and b'"draining"' in answer and b"retry-after: 1" in answer.lower()
    assert not [line for line in server.lines() if "traceback" in line]


def test_a_second_ctrl_c_stops_at_once(serve):
    "A second SIGTERM, which a supervisor may send to a whole group, changes nothing."
    with serve(TRASHSORTING_GRACE_SECONDS="30") as server, connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + PART)
        time.sleep(0.5)
        for _ in range(2):
            os.kill(server.pid, signal.SIGTERM)
            time.sleep(1.5)
        assert server.process.poll() is None
        os.kill(server.pid, signal.SIGINT)
        assert server.process.wait(10) == 0


# Fuzzing


def seeds() -> list[bytes]:
    """Real files of every accepted format, and photographs where there are some."""
    picture = draw_picture("glass", 0, (64, 48))
    made = [
        encode(picture),
        encode(picture.quantize(16)),
        encode(picture.convert("LA")),
        encode(picture, "JPEG"),
        encode(picture, "JPEG", progressive=True, quality=30),
        encode(picture.convert("CMYK"), "JPEG"),
        encode(picture, "WEBP"),
        encode(picture, "WEBP", lossless=True),
    ]
    if "TRASHNET" in os.environ:
        made.append(sorted(Path(os.environ["TRASHNET"]).glob("images/glass/*.jpg"))[0].read_bytes())
    return made


SEEDS = seeds()
ODD = [
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x80\0\0\0",
    b"--x\r\n",
    b"\r\n\r\n",
    b"--x--\r\n",
    b"IDAT",
    b"\xff\xd8",
]


def mutate(data: bytes, seed: int, times: int) -> bytes:
    """Flip bits, delete, repeat and overwrite bytes, insert unusual values, cut off."""
    rng, data = random.Random(seed), bytearray(data)  # noqa: S311 - the same every time
    for _ in range(times):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 2, 4, 16, 256])
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        elif kind == 3:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 4:
            odd = rng.choice(ODD)
            data[at : at + len(odd)] = odd
        else:
            data = data[:at]
    return bytes(data)


def test_fuzz(serve):
    "Mutated files, alone or in mutated forms: all answers are documented, and memory does not grow."
    answers = Counter()
    strategy = {
        "file": st.sampled_from(range(len(SEEDS))),
        "seed": st.integers(0, 2**32),
        "times": st.integers(1, 12),
        "where": st.sampled_from(["file", "file", "form", "batch"]),
    }
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]

    def fuzz(examples: int) -> None:
        options = {"deadline": None, "database": None, "derandomize": FUZZ <= 1000, "suppress_health_check": checks}
        settings(max_examples=examples, **options)(given(**strategy)(send))()

    def send(file, seed, times, where):
        data = mutate(SEEDS[file], seed, times)
        if where == "form":
            answer = client.post("/api/predict", **form(body=mutate(PART + data + b"\r\n--x--\r\n", seed + 1, times)))
        elif where == "batch":
            answer = client.post("/api/predict/batch", files=[("files", data), ("files", GLASS)])
        else:
            answer = predict(client, data)
        answers[answer.status_code] += 1
        assert answer.status_code in (200, 400, 413, 415, 422), answer.text
        if answer.status_code != 200:
            check_problem(answer)
        elif where == "batch":
            assert answer.json()["answers"][1]["status"] == 200

    with serve(TRASHSORTING_LOG_LEVEL="warning") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for data in SEEDS:
            assert predict(client, data).status_code == 200
        fuzz(max(20, FUZZ // 10))  # fills the allocators' pools
        before = memory(server.pid)
        fuzz(FUZZ)
        after, peak = memory(server.pid), memory(server.pid, "VmHWM")
        assert client.get("/api/ready").status_code == 200
    print(f"{sum(answers.values())} bodies: {dict(sorted(answers.items()))}")
    print(f"memory {before:.0f} -> {after:.0f} MB, at most {peak:.0f}")
    assert after - before < 80 and "Traceback" not in server.said()


HOOKS = """
from base64 import b64decode

import schemathesis
from hypothesis import strategies as st

PICTURES = [b64decode(text) for text in %r]
schemathesis.openapi.format("binary", st.sampled_from(PICTURES) | st.binary())
"""


def test_schemathesis(serve, tmp_path):
    "Requests generated from the OpenAPI document, with and without pictures in the forms."
    (tmp_path / "pictures.py").write_text(
        HOOKS % [b64encode(data).decode() for data in (GLASS, JPEG, b"GIF89a")], encoding="utf-8"
    )
    # An undocumented parameter is ignored.
    (tmp_path / "schemathesis.toml").write_text("[generation]\nallow-extra-parameters = false\n", encoding="utf-8")
    # No schema describes the bytes of a photograph, so the check that all valid data is accepted is left out.
    command = [Path(sys.executable).parent / "schemathesis", "run", "--exclude-checks", "positive_data_acceptance"]
    command += ["--max-examples", str(SCHEMATHESIS), "--seed", "1", "--request-timeout", "30", "--no-color"]
    with serve(TRASHSORTING_LOG_LEVEL="info", TRASHSORTING_FEEDBACK=str(tmp_path / "kept")) as server:
        address, options = f"{server.url}/openapi.json", {"capture_output": True, "text": True, "timeout": 1800}
        hooked = {
            **os.environ,
            "SCHEMATHESIS_HOOKS": "pictures",
            "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        }
        result = subprocess.run([*command, address], cwd=tmp_path, env=hooked, **options)
        answers = Counter((line["route"], line["status"]) for line in server.lines() if line["message"] == "request")
    print(result.stdout[-2000:], dict(answers))
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert answers["/api/predict", 200] and answers["/api/predict/batch", 200] and answers["/api/predict", 422]
    assert answers["/api/feedback", 422] and answers["/api/feedback/{token}", 404]
    assert not any(status >= 500 for _, status in answers) and "Traceback" not in server.said()
