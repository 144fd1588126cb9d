"""The bin in a place, from the real service: over HTTP, by the client, and by the command on the same photograph."""

import json
from urllib.parse import quote

import pytest
from command import call
from conftest import encode

from trashsorting.core.places import read_places
from trashsorting.data.sample import draw_picture
from trashsorting.serving.client import Client, Refused

GLASS = encode(draw_picture("glass", 0, (512, 384)))
FIELDS = {"place", "id", "name", "advice", "language", "source", "read", "confidence"}
LEFT_OUT = {"colour", "candidates", "conditions"}  # where there is none


def predict(client, query: str = ""):
    return client.post(f"/api/predict{query}", files={"file": ("upload", GLASS)})


def test_places(client):
    answer = client.get("/api/places")
    assert answer.status_code == 200
    places = answer.json()
    assert len(places) == len(read_places()) >= 20
    for place in places:
        assert place.keys() == {"id", "name", "country", "language", "bins", "source", "read"}
        assert all(bin.keys() == {"id", "name", "colour"} for bin in place["bins"])


def test_without_a_place_the_answer_is_as_it_was(client):
    assert predict(client).json().keys() == {"predicted_class", "confidence", "all_probabilities", "unsure"}


@pytest.mark.parametrize("place", [place.id for place in read_places()])
def test_every_place_answers(client, place):
    answer = predict(client, f"?place={place}&top_k=1")
    assert answer.status_code == 200
    bin_answer = answer.json()["bin"]
    assert FIELDS <= bin_answer.keys() <= FIELDS | LEFT_OUT and bin_answer["place"] == place
    assert len(answer.json()["all_probabilities"]) == 1, "the bin is the sum over all classes, however many are named"


def test_the_bin_is_unsure_below_the_threshold_of_the_card(client, predictor):
    for place in read_places():
        bin_answer = predict(client, f"?place={place.id}").json()["bin"]
        assert ("candidates" in bin_answer) == (bin_answer["confidence"] < predictor.card.unsure_below)


@pytest.mark.parametrize("name", ["dk-copenhagen", "København", "copenhagen", "DK-COPENHAGEN"])
def test_a_place_has_several_names(client, name):
    assert predict(client, f"?place={quote(name)}").json()["bin"]["place"] == "dk-copenhagen"


@pytest.mark.parametrize("path", ["/api/predict", "/api/predict/batch"])
@pytest.mark.parametrize(
    ("name", "words"),
    [("kopenhagen", "dk-copenhagen (København)"), ("atlantis", "GET /api/places"), ("", "GET /api/places")],
)
def test_an_unknown_place_names_the_nearest(client, path, name, words):
    answer = client.post(f"{path}?place={name}", files={"file": GLASS, "files": GLASS})
    assert answer.status_code == 422 and answer.json()["code"] == "unknown-place"
    assert words in answer.json()["detail"] and "no such place" in answer.json()["detail"]


def test_a_long_place_is_refused(client):
    answer = predict(client, f"?place={'x' * 65}")
    assert answer.status_code == 422 and answer.json()["code"] == "bad-parameter"


def test_a_batch_has_a_bin_for_each_picture(client):
    damaged = ("files", ("b", b"no picture"))
    answer = client.post("/api/predict/batch?place=dk-odense", files=[("files", ("a", GLASS)), damaged])
    first, second = answer.json()["answers"]
    assert first["answer"]["bin"] == predict(client, "?place=dk-odense").json()["bin"]
    assert second["status"] == 415 and "answer" not in second


def test_client_and_command_give_the_same_bin(client, tmp_path):
    path = tmp_path / "glass.png"
    path.write_bytes(GLASS)
    by_http = predict(client, "?place=dk-odense").json()["bin"]
    python = Client(str(client.base_url))
    by_client = python.predict(path, place="Odense").bin
    by_batch = python.predict_batch([path], place="dk-odense")[0].answer.bin
    assert by_client == by_batch and by_client.model_dump(mode="json", exclude_none=True) == by_http
    by_command = json.loads(call("predict", path, "--place", "odense", "--json").stdout)[0]["bin"]
    assert by_command.pop("confidence") == pytest.approx(by_http.pop("confidence"), abs=1e-6)
    for bin in (*by_command.get("candidates", ()), *by_http.get("candidates", ())):
        bin.pop("confidence")
    assert by_command == by_http
    assert {place.id for place in python.places()} == {place.id for place in read_places()}
    with pytest.raises(Refused, match="dk-odense") as refused:
        python.predict(path, place="odensee")
    assert refused.value.code == "unknown-place"


def test_the_command_names_the_nearest_place():
    done = call("predict", "photo.jpg", "--place", "kopenhagen")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("trashsorting: there is no such place; the nearest are dk-copenhagen (København)")
