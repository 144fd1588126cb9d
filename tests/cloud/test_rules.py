"""The alerts, tried by `promtool`: each fires alone in a story made for it, and stays silent just below its limit."""

import json
import runpy
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus import program

from trashsorting.cloud.monitoring import ALERTS, prometheus_rules

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "dockerfiles" / "monitoring"
STEPS = 156  # Of a minute, or of ten where a story lasts longer than a day
LABELS = {"instance": "api:8080", "job": "trashsorting"}
VERSION = 'trashsorting_model_versions_total{role="model",outcome="refused"}'
FAILED = 'trashsorting_requests_total{route="/api/predict",status="503"}'
ANSWERED = 'trashsorting_requests_total{route="/api/predict",status="200"}'


def steady(value: float) -> str:
    "The same value each minute."
    return f"{value}x{STEPS}"


def growing(step: float) -> str:
    "A counter."
    return f"0+{step}x{STEPS}"


HEALTHY = {
    "up": steady(1),
    'trashsorting_model_info{name="trashnet"}': steady(1),
    "trashsorting_queue_places": steady(65),
    "trashsorting_queue_depth": steady(3),
    ANSWERED: growing(60),
    FAILED: growing(1),
    'trashsorting_requests_total{route="/metrics",status="200"}': growing(6),
    "trashsorting_decode_seconds_sum": growing(1),
    "trashsorting_inference_seconds_sum": growing(2),
    "trashsorting_inference_seconds_count": growing(60),
    'trashsorting_predictions_total{predicted_class="glass"}': growing(60),
    "trashsorting_unsure_total": growing(5),
    "trashsorting_expected_unsure": steady(0.27),
    "trashsorting_estimated_accuracy": steady(0.95),
    "trashsorting_drift_window_photographs": steady(200),
    "trashsorting_drift_alarm": steady(0),
    "trashsorting_workers_ended_total": steady(3),
    "process_resident_memory_bytes": steady(6e8),
    VERSION: steady(2),
}
NIGHT = f"0+600x{STEPS - 12} {600 * (STEPS - 12)}x12"  # A counter that stands still for the last two hours
FIRING = {
    "Gone": {"up": steady(0)},
    "NoModel": {'trashsorting_model_info{name="trashnet"}': steady(0), FAILED: growing(60), ANSWERED: None},
    "ModelRefused": {VERSION: f"2x{STEPS - 5} 3x5"},
    "Failing": {FAILED: growing(6)},
    "Saturated": {"trashsorting_queue_depth": steady(60), FAILED: growing(60)},
    "Slow": {"trashsorting_inference_seconds_sum": growing(70)},
    "NoTraffic": {ANSWERED: NIGHT, FAILED: steady(0)},
    "Inaccurate": {"trashsorting_estimated_accuracy": steady(0.7), "trashsorting_drift_alarm": steady(1)},
    "Drift": {"trashsorting_drift_alarm": steady(1), "trashsorting_unsure_total": growing(30)},
    "Unsure": {"trashsorting_unsure_total": growing(36)},
    "WorkerLost": {"trashsorting_workers_ended_total": f"3x{STEPS - 5} 4x5"},
    "Memory": {"process_resident_memory_bytes": steady(4e9)},
}
SILENT = {
    "all is well": {},
    "one scrape fails": {"up": f"1x{STEPS - 30} 0 1x29"},
    "a new model replaces the old one": {
        'trashsorting_model_info{name="trashnet"}': steady(0),
        'trashsorting_model_info{name="better"}': steady(1),
        'trashsorting_model_versions_total{role="model",outcome="served"}': growing(1),
    },
    "one answer in forty fails": {FAILED: growing(1.5)},
    "the queue is half full": {"trashsorting_queue_depth": steady(40)},
    "half a second each": {"trashsorting_inference_seconds_sum": growing(30)},
    "never any traffic": {ANSWERED: steady(0), FAILED: steady(0)},
    "no drift is measured": {
        "trashsorting_estimated_accuracy": None,
        "trashsorting_drift_alarm": None,
        "trashsorting_drift_window_photographs": None,
    },
    "few photographs": {
        "trashsorting_estimated_accuracy": steady(0.5),
        "trashsorting_drift_window_photographs": steady(20),
    },
    "half is unsure": {"trashsorting_unsure_total": growing(30)},
    "the card does not say how often": {"trashsorting_unsure_total": growing(36), "trashsorting_expected_unsure": None},
    "a worker ended an hour ago": {"trashsorting_workers_ended_total": f"3x{STEPS - 60} 4x60"},
    "three gigabytes": {"process_resident_memory_bytes": steady(3e9)},
}
OWN_LABELS = {  # Of an alarm, beside the instance's; None: the question has no labels
    "Failing": {"job": ""},
    "NoTraffic": {"job": "", "instance": ""},
    "Unsure": {"job": ""},
    "Memory": {"job": ""},
    "ModelRefused": {"role": "model", "outcome": "refused"},
}


def series(changes: dict[str, str | None]) -> list[dict[str, str]]:
    "The service's series, with some changed or (None) left out."
    labels = ",".join(f'{name}="{value}"' for name, value in LABELS.items())
    values = {name: value for name, value in (HEALTHY | changes).items() if value}
    with_labels = {name: f"{name[:-1]},{labels}}}" if name.endswith("}") else f"{name}{{{labels}}}" for name in values}
    return [{"series": with_labels[name], "values": value} for name, value in values.items()]


def expected_alarm(name: str) -> dict[str, dict[str, str]]:
    "Labels and annotations of a firing alert."
    (rule,) = [rule for rule in prometheus_rules()["groups"][0]["rules"] if rule["alert"] == name]
    labels = {key: value for key, value in {**LABELS, **OWN_LABELS.get(name, {})}.items() if value}
    return {"exp_labels": labels | rule["labels"], "exp_annotations": rule["annotations"]}


def check_story(folder: Path, changes: dict[str, str | None], firing: str | None) -> None:
    "Let promtool compare the alarms at the end of a story with what is expected of every alert."
    interval = "10m" if firing == "NoTraffic" else "1m"
    expectations = [
        {
            "alertname": alert.name,
            "eval_time": f"{STEPS * int(interval[:-1])}m",
            "exp_alerts": [expected_alarm(alert.name)] if alert.name == firing else [],
        }
        for alert in ALERTS
    ]
    test = {"interval": interval, "input_series": series(changes), "alert_rule_test": expectations}
    file = folder / "test.yaml"
    document = {"rule_files": [str(FILES / "rules.yaml")], "evaluation_interval": interval, "tests": [test]}
    file.write_text(json.dumps(document), encoding="utf-8")
    done = subprocess.run([program("promtool"), "test", "rules", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_are_written_from_the_notebook():
    for name, text in runpy.run_path(str(ROOT / "tools" / "monitoring.py"))["monitoring_files"]().items():
        assert (FILES / name).read_text(encoding="utf-8") == text, f"{name}: run `make export`"
    assert yaml.safe_load((FILES / "rules.yaml").read_bytes()) == prometheus_rules()


def test_every_alert_has_a_story():
    assert list(FIRING) == [alert.name for alert in ALERTS]


@pytest.mark.parametrize("name", FIRING)
def test_an_alert_fires_and_no_other(name, tmp_path):
    check_story(tmp_path, FIRING[name], name)


@pytest.mark.parametrize("name", SILENT)
def test_no_alert_fires(name, tmp_path):
    check_story(tmp_path, SILENT[name], None)


def test_prometheus_takes_its_configuration():
    done = subprocess.run(
        [program("promtool"), "check", "config", "prometheus.yaml"], cwd=FILES, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
