"""The Python client against a real service."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import sleep

import pytest
from conftest import encode

from trashsorting.core.correction import Correction
from trashsorting.data.sample import draw_picture
from trashsorting.serving.client import Client, Refused, Unreachable
from trashsorting.serving.schemas import ApiError

GLASS = encode(draw_picture("glass", 0, (256, 192)))


@pytest.fixture
def service_client(server) -> Client:
    return Client(server.url)


def test_predict(service_client, predictor, tmp_path):
    path = tmp_path / "bottle.png"
    path.write_bytes(GLASS)
    expected = predictor.predict_one(GLASS)
    for photograph in (GLASS, path, str(path)):
        answer = service_client.predict(photograph)
        assert answer.predicted_class == expected.predicted_class and answer.timing is None
        assert answer.all_probabilities == pytest.approx(expected.all_probabilities, abs=1e-6)
    short = service_client.predict(GLASS, top_k=2, timing=True)
    assert len(short.all_probabilities) == 2 and short.timing.inference_ms > 0


def test_predict_batch(service_client):
    glass, text, empty = service_client.predict_batch([GLASS, b"a bottle", b""], top_k=1)
    assert glass.status == 200 and list(glass.answer.all_probabilities) == [glass.answer.predicted_class]
    assert [text.problem.code, empty.problem.code] == ["not-an-image", "empty-image"] and text.answer is None


def test_health_and_info(service_client, predictor):
    assert service_client.health().model_loaded
    assert (
        service_client.info().classes == predictor.card.classes
        and service_client.info().metrics == predictor.card.evaluation
    )


def test_errors_have_types(service_client, tmp_path):
    with pytest.raises(Refused, match="not a picture in an accepted format") as refused:
        service_client.predict(b"a bottle")
    assert (refused.value.status, refused.value.code) == (415, "not-an-image")
    with pytest.raises(Refused) as refused:
        service_client.predict(GLASS, top_k=0)
    assert refused.value.code == "bad-parameter"
    assert len(service_client.predict_batch([GLASS] * 16)) == 16
    with pytest.raises(Refused, match=r"the limit of 16 .*; send it in parts") as refused:
        service_client.predict_batch([GLASS] * 17)
    assert (refused.value.status, refused.value.code) == (413, "too-many-files")
    with pytest.raises(OSError, match=r"nowhere\.jpg"):
        service_client.predict(tmp_path / "nowhere.jpg")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9/api/health: Connection refused; is the service running"):
        Client("http://127.0.0.1:9", retries=0).health()


def test_api_key(serve):
    with serve(TRASHSORTING_API_KEY="correct horse") as server:
        assert Client(server.url, key="correct horse").predict(GLASS).confidence > 0
        with pytest.raises(Refused) as refused:
            Client(server.url, key="battery staple").predict(GLASS)
    assert (refused.value.status, refused.value.code) == (401, "no-key")


def test_feedback(serve, tmp_path):
    place, path = tmp_path / "corrections", tmp_path / "bottle.png"
    path.write_bytes(GLASS)
    with serve(TRASHSORTING_FEEDBACK=str(place), TRASHSORTING_FEEDBACK_PER_DAY="4") as server:
        client = Client(server.url)
        right, wrong, pictured, last, late = (item.answer for item in client.predict_batch([GLASS] * 5))
        label = next(label for label in right.all_probabilities if label != right.predicted_class)
        receipts = [client.feedback(right), client.feedback(wrong, label), client.feedback(pictured, "other", path)]
        assert [receipt.stored for receipt in receipts] == [False, False, True]
        kept = [Correction.model_validate_json(file.read_bytes()) for file in place.rglob("[!.]*.json")]
        assert {(each.label, each.picture is not None) for each in kept} == {
            (right.predicted_class, False),
            (label, False),
            ("other", True),
        }
        for answer, wanted, code in [
            (right, None, "already-given"),
            (last, "glas", "unknown-class"),
            (last, "", "unknown-class"),
            (last.model_copy(update={"id": "a.b"}), None, "unknown-answer"),
        ]:
            with pytest.raises(Refused) as error:
                client.feedback(answer, wanted)
            assert error.value.code == code
        client.feedback(last)
        with pytest.raises(Refused, match="too many corrections came from this address today"):
            client.feedback(late)
        client.delete_feedback(receipts[2].token)
        assert len(list(place.rglob("[!.]*.json"))) == 3
        for token in (receipts[2].token, "../drift"):
            with pytest.raises(Refused) as error:
                client.delete_feedback(token)
            assert error.value.status == 404


def test_feedback_that_is_off(service_client):
    with pytest.raises(Refused, match="this service takes no corrections"):
        service_client.feedback(service_client.predict(GLASS))


class Forwarding(BaseHTTPRequestHandler):
    """Redirects every request to the server's `target`, and records it."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.requests.append((self.command, self.headers.get("authorization")))
        self.send_response(302)
        self.send_header("location", self.server.target + self.path)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST = answer

    def log_message(self, *arguments) -> None:
        """Nothing."""


@contextmanager
def forwarding(target: str) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Forwarding) as server:
        server.target, server.requests = target, []
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def test_redirects_are_not_followed():
    with forwarding("http://nowhere.invalid") as elsewhere:
        with forwarding(f"http://localhost:{elsewhere.server_port}") as first:
            service_client = Client(f"http://127.0.0.1:{first.server_port}", key="correct horse", retries=0)
            for ask in (service_client.health, lambda: service_client.predict(GLASS)):
                with pytest.raises(
                    Refused, match=f"302 Found, and that it is at http://localhost:{elsewhere.server_port}"
                ):
                    ask()
        assert elsewhere.requests == []
        assert first.requests == [("GET", "Bearer correct horse"), ("POST", "Bearer correct horse")]


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "127.0.0.1:8080", "http://", "http://[::1", "http://127.0.0.1/\u00e4"]
)
def test_a_wrong_address_is_refused_at_once(url):
    with pytest.raises(ValueError, match=r"address of a service begins with http|Invalid IPv6 URL"):
        Client(url)


@pytest.mark.parametrize("key", ["\u043a\u043b\u044e\u0447 \u043a\u043b\u044e\u0447", "correct\nhorse"])
def test_a_wrong_key_is_refused_at_once(key):
    with pytest.raises(ValueError, match="key"):
        Client(key=key)


@pytest.mark.parametrize("url", ["http://127.0.0.1/?page=1", "http://127.0.0.1#top"])
def test_an_address_with_a_query_is_refused_at_once(url):
    with pytest.raises(ValueError, match="ends before"):
        Client(url)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_wrong_timeout_is_refused_at_once(timeout):
    with pytest.raises(ValueError, match="seconds above 0"):
        Client(timeout=timeout)


def test_a_negative_length_is_no_answer():
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n{}"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as connection:
                connection.recv(65_536)
                connection.sendall(head)

        Thread(target=answer, daemon=True).start()
        with pytest.raises(Unreachable, match="is this its address"):
            Client(f"http://127.0.0.1:{server.getsockname()[1]}", retries=0).health()


@pytest.mark.parametrize("photograph", [b"abc", "photo.jpg", Path("photo.jpg")])
def test_a_batch_of_one_photograph_without_a_list(photograph):
    with pytest.raises(TypeError, match="a list of photographs; `predict` takes one"):
        Client().predict_batch(photograph)


def test_an_invalid_host_name():
    with pytest.raises(Unreachable):
        Client("http://a..b", retries=0).health()


def test_a_silent_service_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(Unreachable, match="timed out"):
            Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2, retries=0).health()


@contextmanager
def hanging_up(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Reads a head, answers this, and closes; records each head. The system resets the connection on further bytes."""
    heads = []

    def refuse(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                heads.append(connection.recv(1000))
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                if answer:
                    connection.recv(1_000_000)
                    sleep(0.2)  # the response has arrived, and the rest of the body is not read
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=refuse, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
        listener.shutdown(socket.SHUT_RDWR)


def test_an_early_answer_is_read_when_sending_fails():
    body = ApiError("too-many-bytes").problem().model_dump_json().encode()
    answer = b"HTTP/1.1 413 No\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    with hanging_up(answer) as (url, heads):
        with pytest.raises(Refused, match="too-many-bytes"):
            Client(url).predict(bytes(50_000_000))
        assert len(heads) == 1


def test_a_file_refused_without_an_answer_is_sent_once():
    with hanging_up(b"") as (url, heads):
        with pytest.raises(Unreachable, match="closed before all was sent: is the file too large"):
            Client(url).predict(bytes(50_000_000))
        assert len(heads) == 1


def test_a_file_that_is_too_large_is_sent_once(serve):
    with serve(TRASHSORTING_MAX_BYTES="1000000") as server:
        for size in (1_100_000, 5_000_000, 50_000_000):
            with pytest.raises(Refused, match="limit of 1 MB"):
                Client(server.url).predict(bytes(size))
        assert sum(line.get("status") == 413 for line in server.lines()) == 3


def test_retries_while_the_queue_is_full(serve):
    "One queue place and eight clients: without retries most are refused, with retries all are answered."
    large = encode(draw_picture("glass", 0, (3000, 2000)))

    def ask(retries):
        try:
            return Client(server.url, retries=retries).predict(large).predicted_class
        except Refused as refused:
            assert refused.code == "queue-full" and refused.retry_after == 1
            return refused

    with serve(TRASHSORTING_QUEUE="0", TRASHSORTING_PARALLEL="1") as server, ThreadPoolExecutor(8) as pool:
        without_retries = list(pool.map(ask, [0] * 8))
        with_retries = list(pool.map(ask, [60] * 8))
    refused = [answer for answer in without_retries if isinstance(answer, Refused)]
    print(f"{len(refused)} of 8 refused without retries")
    assert refused and len(refused) < 8
    assert len(set(with_retries)) == 1 and isinstance(with_retries[0], str)


def test_the_client_imports_no_model_runtime_and_no_web_framework():
    heavy = "{'onnxruntime', 'fastapi', 'starlette', 'PIL', 'numpy'}"
    code = f"import sys, trashsorting.serving.client; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
