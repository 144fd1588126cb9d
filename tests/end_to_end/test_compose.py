"""docker-compose.yaml and what watches the service: every name in them is a name that there is."""

import json
import re
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import encode
from prometheus_client.parser import text_string_to_metric_families

from trashsorting.data.sample import draw_picture

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "dockerfiles" / "monitoring"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_bytes())
SERVICES = COMPOSE["services"]
DASHBOARD = json.loads((MONITORING / "dashboards" / "trashsorting.json").read_bytes())


def questions() -> dict[str, str]:
    "What Prometheus is asked, by panel or alert."
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_bytes())["groups"]
    return panels | {rule["alert"]: rule["expr"] for group in rules for rule in group["rules"]}


@pytest.fixture(scope="module")
def samples(serve, tmp_path_factory) -> dict[str, list[dict[str, str]]]:
    "What two workers count once they have predicted: the labels of every sample, by its name."
    found: dict[str, list[dict[str, str]]] = {}
    with serve(workers=2, TRASHSORTING_FEEDBACK=str(tmp_path_factory.mktemp("feedback"))) as server:
        for number in range(24):  # drift is measured from ten on
            glass = encode(draw_picture("glass", number, (256, 192)))
            answered = httpx.post(f"{server.url}/api/predict", files={"file": glass}, timeout=60)
            assert answered.status_code == 200
        answer = answered.json()
        right = {"answer_id": answer["id"], "correct": "true", "label": answer["predicted_class"]}
        form = {name: (None, value) for name, value in right.items()}
        assert httpx.post(f"{server.url}/api/feedback", files=form, timeout=60).status_code == 201
        for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=60).text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
    return found


@pytest.mark.parametrize("name", questions())
def test_what_is_asked_for_is_counted(name, samples):
    expression = questions()[name]
    metrics = re.findall(r"\b(?:trashsorting|process)_\w+", expression)
    assert metrics or name == "Gone"
    for metric, where in re.findall(r"\b((?:trashsorting|process)_\w+)(?:\{([^}]*)\})?", expression):
        assert metric in samples, f"{metric} is not in /metrics"
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', where or ""):
            assert all(label in labels for labels in samples[metric]), f"{metric} has no label {label}"
            assert operator != "=" or value in {labels[label] for labels in samples[metric]}, f"{metric}: {value}"
    for label in re.findall(r"by \(([^)]*)\)", expression):
        for one in re.split(r",\s*", label):
            counted = any(one in labels for metric in metrics for labels in samples[metric])
            assert counted or one in ("instance", "job"), f"no label {one}"  # which Prometheus adds


def test_every_metric_is_watched(samples):
    "The other way round: nothing is counted that nobody looks at."
    asked = " ".join(questions().values())
    families = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in samples}
    assert {name for name in families if name not in asked} == set()


def test_compose_names_what_is_there():
    for name, service in SERVICES.items():
        assert ("build" in service) != ("image" in service), name
        assert not service.get("image", "x:1").endswith(":latest") and ":" in service.get("image", "x:1"), name
        for volume in service.get("volumes", []):
            source, target, mode = volume.split(":")
            assert (ROOT / source).exists() and target.startswith("/") and mode == "ro", volume
        assert set(service.get("depends_on", [])) <= SERVICES.keys()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "reachable from this machine only"
    assert (ROOT / SERVICES["api"]["build"]["dockerfile"]).is_file()


def test_they_find_each_other():
    prometheus = yaml.safe_load((MONITORING / "prometheus.yaml").read_bytes())
    (job,) = prometheus["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in SERVICES and SERVICES[host]["ports"][0].endswith(f":{port}")
    mounted = {volume.split(":")[1] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {f"/etc/prometheus/{name}" for name in ("prometheus.yaml", *prometheus["rule_files"])} <= mounted
    (source,) = yaml.safe_load((MONITORING / "grafana.yaml").read_bytes())["datasources"]
    assert source["url"] == "http://prometheus:9090" and SERVICES["prometheus"]["ports"][0].endswith(":9090")
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    (provider,) = yaml.safe_load((MONITORING / "provider.yaml").read_bytes())["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert provider["options"]["path"] in mounted and home.startswith(provider["options"]["path"])
    assert (MONITORING / "dashboards" / Path(home).name).is_file()


def test_prometheus_is_up_to_the_rules():
    jobs = {job["job_name"] for job in yaml.safe_load((MONITORING / "prometheus.yaml").read_bytes())["scrape_configs"]}
    assert set(re.findall(r'job="([^"]*)"', " ".join(questions().values()))) <= jobs
