"""Drift in the real service: over two workers, over the death of one and over a restart, and as metrics."""

import shutil
from pathlib import Path

import httpx
import pytest
from conftest import encode
from test_monitor import read_metrics, replace_a_worker

from trashsorting.core.card import card_path, read_card, write_card
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.sample import DRAW, draw_picture
from trashsorting.evaluation.drift import photographs_reference
from trashsorting.serving.client import Client

PICTURES = [draw_picture(label, number) for number in range(20) for label in sorted(DRAW)]


@pytest.fixture(scope="module")
def model(tmp_path_factory, predictor) -> Path:
    """The shipped model, with a reference of drawings."""
    copy = tmp_path_factory.mktemp("model") / "model.onnx"
    shutil.copyfile(SHIPPED_MODEL, copy)
    write_card(copy, predictor.card.model_copy(update={"reference": photographs_reference(predictor, PICTURES)}))
    return copy


def test_drift_through_two_workers_a_killed_one_and_a_restart(serve, model, tmp_path):
    clean = [encode(draw_picture(label, number)) for number in range(50, 55) for label in sorted(DRAW)]
    drawn = [draw_picture(label, number) for number in range(4) for label in sorted(DRAW)]
    dark = [encode(picture.point(lambda value: value // 3)) for picture in drawn]
    options = {"workers": 2, "TRASHSORTING_MODEL": str(model), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    with serve(**options) as server:
        client = Client(server.url)
        assert client.drift().photographs == 0 and client.drift().estimated_accuracy is None
        for picture in clean:
            client.predict(picture)
        report = client.drift()
        assert report.photographs == len(clean) and not report.alarm and report.since
        assert {feature.name for feature in report.features} >= {"confidence", "brightness", "class"}
        assert client.drift(window=5).photographs == 5 and client.drift(window=5).features == []
        replace_a_worker(server)
        assert client.drift().photographs == len(clean), "a dead worker's photographs are kept"
    assert len(list(tmp_path.glob("window_*.rows"))) == 2
    with serve(**options) as server:
        client = Client(server.url)
        assert client.drift().photographs == len(clean), "they outlive the service in a folder that stays"
        for picture in dark:
            client.predict(picture)
            if (report := client.drift()).alarm:
                break
        number, samples = report.photographs - len(clean), read_metrics(server)
        assert report.alarm, "24 dark photographs raise the alarm"
        values = {name: value for (name, *labels), value in samples.items() if not labels}
        assert values["trashsorting_drift_alarm"] == 1
        assert values["trashsorting_drift_window_photographs"] == report.photographs == len(clean) + number
        assert values["trashsorting_estimated_accuracy"] == pytest.approx(report.estimated_accuracy)
        assert values["trashsorting_unsure_total"] >= 0 and values["process_cpu_seconds_total"] > 0
        assert values["process_resident_memory_bytes"] > 100e6
        page = httpx.get(f"{server.url}/metrics").text
        assert 'trashsorting_drift_p_value{feature="brightness"}' in page


def test_a_card_without_reference_says_so(serve, tmp_path):
    copy = tmp_path / "model.onnx"
    shutil.copyfile(SHIPPED_MODEL, copy)
    shutil.copyfile(card_path(SHIPPED_MODEL), card_path(copy))
    write_card(copy, read_card(copy).model_copy(update={"reference": None}))
    with serve(TRASHSORTING_MODEL=str(copy)) as server:
        answer = httpx.get(f"{server.url}/api/drift")
        assert answer.status_code == 501 and answer.json()["code"] == "no-reference"
        assert "trashsorting reference" in answer.json()["detail"]
        assert "trashsorting_drift_alarm" not in httpx.get(f"{server.url}/metrics").text


@pytest.mark.parametrize("window", ["0", "201", "many"])
def test_a_wrong_window_is_422(client, window):
    assert client.get("/api/drift", params={"window": window}).status_code == 422
