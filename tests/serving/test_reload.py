"""A model that changes while real services run: swaps under load, broken versions, and a candidate in the shadow."""

import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import encode
from versions import add_version

from trashsorting.core.card import file_sha256, read_card, write_card
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.sample import draw_picture

GLASS = encode(draw_picture("glass", 0, (256, 192)))
SWAPS = int(os.environ.get("CHECK_SWAPS", "10"))  # 100 in `make check-long`
ANONYMOUS = {"token": "anon"}  # How gcsfs is told that there is no login
LATE = 60  # Seconds after which a test calls it a hang


def wait_until(condition) -> None:
    deadline = time.monotonic() + LATE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def model_name(server) -> str:
    return httpx.get(f"{server.url}/api/model/info", timeout=LATE).json()["name"]


def metric(server, name: str) -> float:
    "The value of one series in /metrics; 0 if it is not there."
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{server.url}/metrics", timeout=LATE).text, re.M)
    return float(found[1]) if found else 0.0


def predict(server) -> int:
    return httpx.post(f"{server.url}/api/predict", files={"file": GLASS}, timeout=LATE).status_code


VERSIONS = 'trashsorting_model_versions_total{outcome="%s",role="%s"}'


def test_no_request_fails_during_a_hundred_swaps(serve, tmp_path):
    for name in ("v1", "v2"):
        add_version(tmp_path / "all", name)
    place = tmp_path / "place"
    shutil.copytree(tmp_path / "all" / "v1", place / "v1")
    with serve(TRASHSORTING_MODEL=str(place), TRASHSORTING_MODEL_SECONDS="3600") as server:
        statuses, names, stop = [], set(), False

        def send(_) -> None:
            with httpx.Client(base_url=server.url, timeout=LATE) as client:
                while not stop:
                    statuses.append(client.post("/api/predict", files={"file": GLASS}).status_code)

        with ThreadPoolExecutor(8) as pool:
            clients = pool.map(send, range(8))
            for swap in range(1, SWAPS + 1):
                if swap % 2:
                    os.rename(shutil.copytree(tmp_path / "all" / "v2", place / ".v2"), place / "v2")
                else:
                    os.rename(place / "v2", gone := place / ".gone")
                    shutil.rmtree(gone)
                os.kill(server.pid, signal.SIGHUP)
                wait_until(lambda: metric(server, VERSIONS % ("served", "model")) == swap + 1)  # noqa: B023
                names.add(model_name(server))
            stop = True
            list(clients)
        assert names == {"v1", "v2"} and len(statuses) > SWAPS and set(statuses) == {200}
        print(f"{len(statuses)} requests, {SWAPS} swaps")


def break_card(folder: Path) -> None:
    (folder / "model.json").write_text("{}", encoding="utf-8")


def break_bytes(folder: Path) -> None:
    with (folder / "model.onnx").open("r+b") as file:
        file.truncate(100_000)


def break_parity(folder: Path) -> None:
    card = read_card(folder / "model.onnx")
    write_card(folder / "model.onnx", card.model_copy(update={"temperature": 30.0}))


BROKEN = {
    "card": (break_card, "Field required"),
    "checksum": (break_bytes, "is not the file that model.json describes"),
    "parity": (break_parity, "differ by"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_version_never_answers(serve, tmp_path, name):
    corrupt, reason = BROKEN[name]
    add_version(tmp_path, "v1")
    with serve(workers=2, TRASHSORTING_MODEL=str(tmp_path), TRASHSORTING_MODEL_SECONDS="0.5") as server:
        corrupt(add_version(tmp_path / "aside", "v2"))
        (tmp_path / "aside" / "v2").rename(tmp_path / "v2")
        wait_until(lambda: metric(server, VERSIONS % ("refused", "model")) == 2)
        assert {model_name(server) for _ in range(10)} == {"v1"} and predict(server) == 200
        time.sleep(1)
        assert metric(server, VERSIONS % ("refused", "model")) == 2, "each worker tries it once"
        assert reason in server.said() and "Traceback" not in server.said()
        add_version(tmp_path, "v3")
        wait_until(lambda: metric(server, VERSIONS % ("served", "model")) == 4)
        assert {model_name(server) for _ in range(10)} == {"v3"}
        named = [line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if "model_info{" in line]
        assert sorted(line[-3:] for line in named) == ["0.0", "1.0"]


def test_hangup_reaches_every_worker_and_ends_none(serve, tmp_path):
    add_version(tmp_path, "v1")
    with serve(workers=2, TRASHSORTING_MODEL=str(tmp_path), TRASHSORTING_MODEL_SECONDS="3600") as server:
        wait_until(lambda: metric(server, VERSIONS % ("served", "model")) == 2)
        before = sorted(server.workers())
        add_version(tmp_path, "v2")
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: metric(server, VERSIONS % ("served", "model")) == 4)
        assert sorted(server.workers()) == before and predict(server) == 200


def test_a_service_without_a_model_gets_one(serve, tmp_path):
    "Beside folders of any name."
    for name in ("²", "v²", "①", "emoji 💩", "a\nb", os.fsdecode(b"\xff"), "x" * 255):
        (tmp_path / name).mkdir()
        (tmp_path / name / "parity.json").touch()
    with serve(TRASHSORTING_MODEL=str(tmp_path), TRASHSORTING_MODEL_SECONDS="0.5") as server:
        assert predict(server) == 503
        add_version(tmp_path, "v1")
        wait_until(lambda: predict(server) == 200)


def test_a_single_file_is_read_again_after_hangup(serve, tmp_path):
    folder = add_version(tmp_path, "v1", "first")
    with serve(TRASHSORTING_MODEL=str(folder / "model.onnx")) as server:
        assert model_name(server) == "first"
        second = add_version(tmp_path / "aside", "v1", "second")
        for name in ("model.json", "model.onnx"):
            os.replace(second / name, folder / name)
        os.utime(folder / "model.onnx", ns=(1, 1))
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: model_name(server) == "second")


def test_a_candidate_in_the_shadow(serve, tmp_path):
    "It predicts, is counted, and never answers; one that is broken is refused."
    candidate = add_version(tmp_path / "candidate", "v9")
    settings = {"TRASHSORTING_SHADOW_MODEL": str(tmp_path / "candidate"), "TRASHSORTING_SHADOW_FRACTION": "1"}
    agreed, served = 'trashsorting_shadow_predictions_total{outcome="agreed"}', VERSIONS % ("served", "candidate")
    with serve(**settings, TRASHSORTING_MODEL_SECONDS="0.5") as server:
        wait_until(lambda: metric(server, served) == 1)
        shipped = model_name(server)
        for _ in range(5):
            assert predict(server) == 200
        wait_until(lambda: metric(server, agreed) >= 1)
        assert model_name(server) == shipped != "v9"
        shutil.copytree(candidate, tmp_path / "candidate" / "v10")
        break_card(tmp_path / "candidate" / "v10")
        wait_until(lambda: metric(server, VERSIONS % ("refused", "candidate")) == 1)
        assert predict(server) == 200


def test_versions_of_a_bucket(serve, store, tmp_path):
    pytest.importorskip("gcsfs")
    import fsspec

    bucket = store.make_bucket("model-versions")
    add_version(tmp_path, "v1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", store.url)
        fsspec.filesystem("gcs", skip_instance_cache=True, **ANONYMOUS).put(
            str(tmp_path / "v1"), f"{bucket}/models/v1", recursive=True
        )
    settings = {"TRASHSORTING_MODEL": f"{bucket}/models", "TRASHSORTING_MODEL_SECONDS": "0.5"}
    with serve(**settings, **{name: store.environment[name] for name in store.environment}) as server:
        wait_until(lambda: predict(server) == 200)
        assert model_name(server) == "v1"


def test_metrics_have_a_port_without_a_key(serve, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with serve(workers=2, TRASHSORTING_API_KEY="correct horse", TRASHSORTING_METRICS_PORT=str(port)) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics")
        assert answer.status_code == 200 and "trashsorting_queue_places" in answer.text
        assert "trashsorting_workers_ended_total 0.0" in answer.text
        assert httpx.get(f"http://127.0.0.1:{port}/api/model/info").status_code == 404
        assert file_sha256(SHIPPED_MODEL)[:12] in answer.text
