"""`/api/explain` over real HTTP: its class activation maps, and its errors, which are those of `/api/predict`."""

import httpx
import numpy as np
import pytest
from conftest import encode
from starlette.testclient import TestClient

from trashsorting.core.image import to_input
from trashsorting.data.sample import draw_picture
from trashsorting.inference.predictor import Predictor
from trashsorting.inference.session import run_network, softmax
from trashsorting.serving.app import create_app
from trashsorting.serving.schemas import BAD_FORM, NO_FILE, NO_MODEL

GLASS = draw_picture("glass", 0, (512, 384))


def explain(client: httpx.Client, data: bytes, **params: str) -> httpx.Response:
    return client.post("/api/explain", params=params, files={"file": ("upload", data)})


def test_the_installed_model_has_activation_maps(client, predictor):
    assert predictor.card.has_activation_map and client.get("/api/model/info").json()["has_activation_map"] is True


def test_explain(client, predictor, picture):
    answer = explain(client, encode(picture))
    assert answer.status_code == 200
    explanation = answer.json()
    assert explanation.keys() == {"prediction", "label", "activation_map", "box"}
    predicted = client.post("/api/predict", files={"file": encode(picture)}).json()
    assert explanation["prediction"]["all_probabilities"] == pytest.approx(predicted["all_probabilities"], abs=1e-6)
    assert explanation["label"] == explanation["prediction"]["predicted_class"] == predicted["predicted_class"]
    assert np.allclose(explanation["activation_map"], predictor.explain(picture)[1], atol=2e-3)
    assert np.min(explanation["activation_map"]) >= 0 and 0 < np.max(explanation["activation_map"]) <= 1
    left, upper, right, lower = explanation["box"]
    assert 0 <= left < right <= 1 and 0 <= upper < lower <= 1


def test_the_mean_of_an_activation_map_is_the_logit(predictor, picture):
    inputs = to_input(picture, predictor.card.preprocessing)[None]
    logits, maps = run_network(predictor.session, ["logits", "evidence"], inputs)
    assert np.allclose(softmax(maps.mean(axis=(2, 3))), softmax(logits), atol=1e-5)


def test_every_class_can_be_explained(client, predictor):
    maps = {}
    for label in predictor.card.classes:
        explanation = explain(client, encode(GLASS), label=label).json()
        assert explanation["label"] == label
        maps[label] = explanation["activation_map"]
    assert len({str(grid) for grid in maps.values()}) > 1
    assert max(np.max(grid) for grid in maps.values()) == 1 and min(np.min(grid) for grid in maps.values()) >= 0


def test_the_box_of_a_centre_cropping_network():
    predictor = Predictor()
    middle = predictor.card.preprocessing.model_copy(update={"crop_mode": "center", "crop_pct": 0.5})
    predictor.card = predictor.card.model_copy(update={"preprocessing": middle})
    with TestClient(create_app(predictor=predictor)) as client:
        assert explain(client, encode(GLASS)).json()["box"] == [0.3125, 0.25, 0.6875, 0.75]


# Errors


@pytest.mark.parametrize(
    "data, status, word",
    [
        (b"", 422, "empty"),
        (b"a green bottle", 415, "not a picture"),
        (encode(GLASS, "GIF"), 415, "accepted format"),
        (encode(GLASS)[:2000], 422, "cut off"),
        (bytes(11_000_000), 413, "limit of 10 MB"),
    ],
    ids=["empty", "text", "GIF", "half a PNG", "11 MB"],
)
def test_bad_file(client, data, status, word):
    answer, predicted = explain(client, data), client.post("/api/predict", files={"file": data})
    assert (answer.status_code, answer.json()) == (predicted.status_code, predicted.json())
    assert answer.status_code == status and word in answer.json()["detail"]


def test_bad_form(client):
    for request, status, detail in [
        ({}, 422, NO_FILE),
        ({"files": {"picture": b"photograph"}}, 422, NO_FILE),
        ({"files": [("file", b"one"), ("file", b"two")]}, 400, BAD_FORM),
    ]:
        answer = client.post("/api/explain", **request)
        assert (answer.status_code, answer.json()["detail"]) == (status, detail)


@pytest.mark.parametrize("label", ["banana", "", "GLASS"])
def test_unknown_class(client, predictor, label):
    answer = explain(client, encode(GLASS), label=label)
    assert answer.status_code == 422
    assert f"choose one of these: {', '.join(predictor.card.classes)}" in answer.json()["detail"]


def test_a_model_without_activation_maps():
    predictor = Predictor()
    predictor.card = predictor.card.model_copy(update={"has_activation_map": False})
    with TestClient(create_app(predictor=predictor)) as client:
        answer = explain(client, encode(GLASS))
        assert (answer.status_code, answer.json()["code"]) == (501, "no-explanation")
        assert client.get("/api/model/info").json()["has_activation_map"] is False
        assert client.post("/api/predict", files={"file": encode(GLASS)}).status_code == 200


def test_without_a_model(serve, tmp_path):
    with serve(TRASHSORTING_MODEL=str(tmp_path / "none.onnx")) as server:
        answer = httpx.post(f"{server.url}/api/explain", files={"file": encode(GLASS)}, timeout=60)
    assert (answer.status_code, answer.json()["detail"]) == (503, NO_MODEL)
