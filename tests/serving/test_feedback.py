"""Corrections from people: what is kept, what is refused, and what happens when processes die or a disk is full."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from conftest import encode
from PIL import Image
from test_abuse import HOSTILE, check_problem

from trashsorting.core.correction import Correction
from trashsorting.core.errors import MissingExtra, TrashsortingError
from trashsorting.core.prediction import Prediction
from trashsorting.core.settings import Settings
from trashsorting.data.sample import draw_picture
from trashsorting.serving import feedback as module
from trashsorting.serving.app import create_app
from trashsorting.serving.feedback import Feedback

GLASS = encode(draw_picture("glass", 0, (512, 384)))


@contextmanager
def connected(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def predict(client: httpx.Client, **options) -> dict:
    answer = client.post("/api/predict", files={"file": GLASS}, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def give(client: httpx.Client, answer: dict, data: bytes | None = GLASS, **fields) -> httpx.Response:
    "Say that an answer is wrong, with the photograph, unless the fields say something else."
    fields = {"answer_id": answer["id"], "correct": "false", "label": "other", **fields}
    if data is None:
        return client.post("/api/feedback", files={name: (None, value) for name, value in fields.items()})
    return client.post("/api/feedback", data={"consent": "true", **fields}, files={"file": ("photo.jpg", data)})


def kept(folder: Path) -> list[Correction]:
    "The corrections in a folder; each must be whole."
    return [Correction.model_validate_json(path.read_bytes()) for path in sorted(folder.rglob("[!.]*.json"))]


def samples(client: httpx.Client, name: str) -> dict[str, float]:
    "The values of a metric, by its labels."
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"trashsorting_{name}")]
    return {line.partition("{")[2].partition("}")[0]: float(line.split()[-1]) for line in lines}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("feedback") / "corrections"


@pytest.fixture(scope="module")
def service(serve, place):
    "Two workers that take corrections."
    with serve(workers=2, TRASHSORTING_FEEDBACK=str(place), TRASHSORTING_FEEDBACK_PER_DAY="10000") as server:
        yield server


@pytest.fixture
def asking(service) -> Iterator[httpx.Client]:
    with connected(service) as client:
        yield client


# Giving and deleting


def test_off_by_default(client):
    answer = predict(client)
    assert "id" not in answer and client.get("/api/model/info").json()["feedback"] is False
    assert check_problem(give(client, {"id": "x"})) == "feedback-off"
    assert check_problem(client.delete("/api/feedback/x")) == "feedback-off"


def test_a_correction_with_its_photograph(asking, place):
    before, answer = len(kept(place)), predict(asking, params={"top_k": 1})
    receipt = give(asking, answer, label="metal")
    assert receipt.status_code == 201 and receipt.json().keys() == {"token", "stored"} and receipt.json()["stored"]
    (correction,) = [each for each in kept(place) if each.label == "metal"]
    assert (correction.predicted_class, correction.day) == (answer["predicted_class"], datetime.now(UTC).date())
    assert correction.confidence == pytest.approx(answer["confidence"], abs=1e-3) and 0 < correction.margin < 1
    with Image.open(BytesIO(correction.picture)) as picture:
        assert (picture.format, picture.size, picture.getexif()) == ("JPEG", (512, 384), {})
    token = receipt.json()["token"]
    deleted = asking.delete(f"/api/feedback/{token}")
    assert (deleted.status_code, deleted.content, len(kept(place))) == (204, b"", before)
    assert check_problem(asking.delete(f"/api/feedback/{token}")) == "unknown-feedback"


def test_without_consent_no_photograph_is_kept(asking, place):
    receipt = give(asking, predict(asking), None, label="paper")
    assert receipt.status_code == 201 and receipt.json()["stored"] is False
    assert [each.picture for each in kept(place) if each.label == "paper"] == [None]
    assert asking.delete(f"/api/feedback/{receipt.json()['token']}").status_code == 204
    before = len(kept(place))
    for consent in ("false", ""):
        refused = give(asking, predict(asking), consent=consent)
        assert check_problem(refused) == ("no-consent" if consent else "bad-feedback")
    assert check_problem(give(asking, predict(asking), None, consent="true")) == "no-file"
    assert len(kept(place)) == before


def test_metadata_and_what_lies_behind_the_picture_are_not_kept(asking, place):
    exif = Image.Exif()
    exif[0x010E], exif.get_ifd(0x8825)[1] = "taken in my kitchen", "N"
    upload = encode(draw_picture("glass", 1, (3000, 2000)), "JPEG", exif=exif, comment=b"a comment") + b"PK\3\4<script>"
    receipt = give(asking, predict(asking), upload)
    name = module._file_name(receipt.json()["token"])
    correction = Correction.model_validate_json((place / name).read_bytes())
    assert not any(word in correction.picture for word in (b"kitchen", b"comment", b"<script>", b"Exif"))
    with Image.open(BytesIO(correction.picture)) as picture:
        assert max(picture.size) == 1024 and len(correction.picture) < 1_500_000
    content = json.loads((place / name).read_bytes())
    assert content.keys() == Correction.model_fields.keys() and "127.0.0.1" not in (place / name).read_text("utf-8")
    assert all(path.stat().st_mode & 0o077 == 0 for path in (place / name).parents[1].rglob("*.json"))


def test_metrics_count_by_both_classes(asking):
    answer = predict(asking)
    label = next(label for label in answer["all_probabilities"] if label != answer["predicted_class"])
    before, confirmed = samples(asking, "feedback_total"), samples(asking, "feedback_confirmed_total")
    assert give(asking, answer, None, label=label).status_code == 201
    assert give(asking, predict(asking), None, correct="true", label="").status_code == 201
    predicted = answer["predicted_class"]
    for key, values, old in [
        (f'label="{label}",predicted="{predicted}"', samples(asking, "feedback_total"), before),
        (f'label="{predicted}",predicted="{predicted}"', samples(asking, "feedback_total"), before),
        (f'predicted="{predicted}"', samples(asking, "feedback_confirmed_total"), confirmed),
    ]:
        assert values[key] == old.get(key, 0) + 1


def test_every_worker_knows_the_answers_of_the_others(service):
    "A new connection may go to any worker."
    for _ in range(8):
        with connected(service) as first:
            answer = predict(first)
        with connected(service) as second:
            assert give(second, answer, None).status_code == 201


def test_an_answer_of_a_batch_can_be_corrected(asking):
    answers = asking.post("/api/predict/batch", files=[("files", GLASS)] * 2).json()["answers"]
    assert [give(asking, each["answer"], None).status_code for each in answers] == [201, 201]


# What is refused


def test_an_answer_is_corrected_once(asking):
    answer = predict(asking)
    token = give(asking, answer, None).json()["token"]
    assert check_problem(give(asking, answer, None, label="metal")) == "already-given"
    assert asking.delete(f"/api/feedback/{token}").status_code == 204
    assert give(asking, answer, None, label="metal").status_code == 201


def test_only_answers_of_this_service(asking, place):
    answer, before = predict(asking), len(kept(place))
    content, signature = answer["id"].split(".")
    foreign = Feedback(Settings(feedback=str(place)))
    damaged = (content, f"{content}.{signature[::-1]}", f"{content[:-2]}AA.{signature}")
    for wrong in ("", "x", ".", *damaged, "\u00e4.\u00f6", "a" * 4000):
        assert check_problem(give(asking, {"id": wrong}, None)) == "unknown-answer"
    prediction = Prediction(predicted_class="glass", confidence=1, all_probabilities={"glass": 1})
    assert (
        check_problem(give(asking, {"id": foreign.answer_id(prediction, "127.0.0.1")}, None)) == "unknown-answer"
        and len(kept(place)) == before
    )


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"correct": ""}, "bad-feedback"),
        ({"correct": "yes"}, "bad-feedback"),
        ({"label": ""}, "unknown-class"),
        ({"label": "../../etc"}, "unknown-class"),
        ({"label": "banana"}, "unknown-class"),
        ({"consent": "1"}, "bad-feedback"),
        ({"note": "x" * 5000}, "bad-form"),
        ({name: "x" for name in "abcdefghi"}, "bad-form"),
        ({"file": "text"}, "no-file"),
    ],
)
def test_wrong_fields(asking, fields, code):
    assert check_problem(give(asking, predict(asking), None, **fields)) == code


def test_half_a_character_is_no_answer(asking):
    form = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = form % (b"answer_id", rb"\ud800.a") + form % (b"correct", b"true") + b"--x--\r\n"
    charset = {"content-type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    assert check_problem(asking.post("/api/feedback", content=body, headers=charset)) == "unknown-answer"


def test_the_own_answer_is_no_correction(asking):
    answer = predict(asking)
    assert "correct=true" in give(asking, answer, None, label=answer["predicted_class"]).json()["detail"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures(asking, place, name):
    "What is accepted is stored as a new JPEG; what is not, leaves nothing."
    data, before = HOSTILE[name][0], len(kept(place))
    answer = give(asking, predict(asking), data)
    if answer.status_code == 201:
        name = module._file_name(answer.json()["token"])
        stored = Correction.model_validate_json((place / name).read_bytes()).picture
        assert stored.startswith(b"\xff\xd8") and len(stored) < 1_500_000 and b"script" not in stored
    else:
        assert check_problem(answer) and len(kept(place)) == before


def test_tokens_reach_no_other_file(asking, place):
    (place / "outside.json").write_text("{}", encoding="utf-8")
    tokens = ("x", "..%2Foutside.json", "%2e%2e%2f%2e%2e", "outside", "%00", "a" * 5000)
    for token in (*tokens, "2026-05-04-0123456789abcdef-" + "A" * 22):
        assert check_problem(asking.delete(f"/api/feedback/{token}")) in ("unknown-feedback", "not-found")
    assert (place / "outside.json").exists()


def test_too_large_an_upload(asking):
    assert check_problem(give(asking, predict(asking), bytes(11_000_000))) == "too-many-bytes"


def test_quota_of_an_address_and_key(serve, tmp_path):
    environment = {"TRASHSORTING_FEEDBACK": str(tmp_path / "kept"), "TRASHSORTING_API_KEY": "correct horse"}
    with serve(TRASHSORTING_FEEDBACK_PER_DAY="3", **environment) as server, connected(server) as client:
        assert check_problem(give(client, {"id": "x"})) == "no-key"
        assert check_problem(client.delete("/api/feedback/x")) == "no-key"
        client.headers["Authorization"] = "Bearer correct horse"
        assert [give(client, predict(client), None).status_code for _ in range(4)] == [201, 201, 201, 429]
        elsewhere = {"X-Forwarded-For": "203.0.113.7"}  # trusted from this machine: a proxy's
        answer = predict(client, headers=elsewhere)
        assert give(client, answer, None).status_code == 201
        assert "203.0.113.7" not in server.said() and "Traceback" not in server.said()
    assert len(kept(tmp_path / "kept")) == 4 and len({each.source for each in kept(tmp_path / "kept")}) == 2


# Retention


def test_old_corrections_go_at_the_start(serve, tmp_path):
    today = datetime.now(UTC).date()
    for days in (0, 29, 31, 400):
        folder = tmp_path / (today - timedelta(days)).isoformat() / "0123456789abcdef"
        folder.mkdir(parents=True)
        (folder / "a.json").touch()
        (folder / ".b.json.1234").touch()  # of a process that was killed
    (tmp_path / "notes").mkdir()
    with serve(TRASHSORTING_FEEDBACK=str(tmp_path), TRASHSORTING_FEEDBACK_DAYS="30") as server:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) > 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "Traceback" not in server.said()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"notes", *((today - timedelta(days)).isoformat() for days in (0, 29))}


# Processes that die, disks that are full


def test_what_was_accepted_survives_kill_9(tmp_path, serve):
    "A worker is killed again and again while four clients send corrections."
    accepted: list[str] = []
    with serve(workers=2, TRASHSORTING_FEEDBACK=str(tmp_path), TRASHSORTING_FEEDBACK_PER_DAY="10000") as server:
        end = threading.Event()

        def send(_: int) -> None:
            while not end.is_set():
                try:
                    with connected(server) as client:
                        receipt = give(client, predict(client))
                    accepted.extend([receipt.json()["token"]] if receipt.status_code == 201 else [])
                except httpx.TransportError:
                    continue

        with ThreadPoolExecutor(4) as pool:
            sending = pool.map(send, range(4))
            for _ in range(4):
                target = len(accepted) + 4
                deadline = time.monotonic() + 60
                while len(accepted) < target and time.monotonic() < deadline:
                    time.sleep(0.01)
                os.kill(server.workers()[0], signal.SIGKILL)
            end.set()
            list(sending)
        assert kept(tmp_path) and len(accepted) >= 16
        for token in accepted:
            correction = Correction.model_validate_json((tmp_path / module._file_name(token)).read_bytes())
            with Image.open(BytesIO(correction.picture)) as picture:
                picture.load()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_disk_is_507_and_nothing_is_half_written(tmp_path, serve):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("!!! a full disk was not tried: mounting a tmpfs is forbidden here")
    try:
        with serve(TRASHSORTING_FEEDBACK=str(tmp_path), TRASHSORTING_FEEDBACK_PER_DAY="1000") as server:
            with connected(server) as client:
                (tmp_path / "filler").write_bytes(bytes(200_000))
                noisy = encode(Image.effect_noise((700, 700), 90).convert("RGB"))
                refused = give(client, predict(client), noisy)
                assert refused.status_code == 507 and check_problem(refused) == "storage-full"
                assert not kept(tmp_path) and not list(tmp_path.rglob(".*"))
                (tmp_path / "filler").unlink()
                assert give(client, predict(client)).status_code == 201 and len(kept(tmp_path)) == 1
                assert predict(client)["predicted_class"] and "Traceback" not in server.said()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_place_that_cannot_be_used_stops_the_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrashsortingError, match=r"TRASHSORTING_FEEDBACK=.*file/kept: corrections cannot be kept there"):
        create_app(Settings(feedback=str(tmp_path / "file" / "kept")))


def test_a_bucket_needs_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="'cloud' extra"):
        create_app(Settings(feedback="gs://bucket/corrections"))


# A bucket


def test_a_bucket(serve, store):
    bucket = store.make_bucket("feedback-service")
    environment = {**store.environment, "TRASHSORTING_FEEDBACK": f"{bucket}/corrections"}
    with serve(TRASHSORTING_FEEDBACK_PER_DAY="3", **environment) as server:
        with connected(server) as client:
            answer = predict(client)
            token = give(client, answer).json()["token"]
            assert check_problem(give(client, answer)) == "already-given"
            (item,) = store.objects("feedback-service")
            assert item["name"] == f"corrections/{module._file_name(token)}"
            assert [give(client, predict(client), None).status_code for _ in range(3)] == [201, 201, 429]
            assert client.delete(f"/api/feedback/{token}").status_code == 204
            assert check_problem(client.delete(f"/api/feedback/{token}")) == "unknown-feedback"
            assert len(store.objects("feedback-service")) == 2 and "Traceback" not in server.said()


def test_old_corrections_in_a_bucket_go(store, monkeypatch):
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    bucket, today = store.make_bucket("feedback-old"), datetime.now(UTC).date()
    feedback = Feedback(Settings(feedback=f"{bucket}/corrections"))
    assert feedback.remove_old() == 0
    for days in (0, 400):
        feedback.store.write(f"{today - timedelta(days)}/0123456789abcdef/a.json", b"{}")
    assert feedback.remove_old() == 1
    assert [item["name"] for item in store.objects("feedback-old")] == [f"corrections/{today}/0123456789abcdef/a.json"]


def test_a_bucket_that_cannot_be_reached_is_503(store, serve):
    "The store is not there: nothing is kept, and the answer says so."
    environment = store.environment
    with serve(TRASHSORTING_FEEDBACK="gs://no-such-bucket/kept", **environment) as server, connected(server) as client:
        refused = give(client, predict(client), None)
        assert check_problem(refused) == "no-storage" and "retry-after" not in refused.headers
        assert predict(client) and not any(line.get("status") == 500 for line in server.lines())
