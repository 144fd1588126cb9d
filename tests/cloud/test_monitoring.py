"""`trashsorting job monitor`: what it sends is what Google's own types read, and a second run sends nothing."""

import json
from urllib.parse import parse_qs

import pytest
import yaml
from test_jobs import WHERE, cloud_run, error_of, google, invoke, login, refusal  # noqa: F401  fixtures

from trashsorting.cloud.monitoring import ALERTS

REPORT = "trashsorting-drift"
COMMAND = ["job", "monitor", "--url", "https://trashsorting-abc.run.app", "--email", "ops@example.com"]
KINDS = {  # Of a document -> module and type of Google's client library
    "channels": ("google.cloud.monitoring_v3", "NotificationChannel"),
    "checks": ("google.cloud.monitoring_v3", "UptimeCheckConfig"),
    "policies": ("google.cloud.monitoring_v3", "AlertPolicy"),
    "dashboards": ("google.cloud.monitoring_dashboard_v1", "Dashboard"),
}


class Google:
    "Cloud Monitoring and Cloud Logging as a function: keeps documents, and adds what Google adds."

    def __init__(self):
        self.documents, self.page = {}, 100

    def __call__(self, method, path, body):
        path, _, query = path.partition("?")
        if method == "GET":
            ours = [document for address, document in self.documents.items() if address.rpartition("/")[0] == path]
            end = int(parse_qs(query).get("pageToken", ["0"])[0]) + self.page
            more = {"nextPageToken": str(end)} if end < len(ours) else {}
            return 200, {path.rpartition("/")[2]: ours[end - self.page : end]} | more
        if method == "DELETE":
            return 200, self.documents.pop(path) and {}
        if method == "POST":
            path = f"{path}/{body.get('name', query.removeprefix('jobId=') or str(len(self.documents))).split('/')[-1]}"
        elif path not in self.documents:
            return refusal(404, "no such document")
        etag = self.documents.get(path, {}).get("etag", "none")
        assert method == "POST" or body.get("etag", etag) == etag, "somebody else has changed it"
        name = path.split("/", 2)[2] if "/metrics/" not in path else path.rpartition("/")[2]
        self.documents[path] = {"name": name} | body | {"etag": f"e{len(json.dumps(body))}", "creationRecord": {}}
        return 200, self.documents[path]


@pytest.fixture
def fake(login, monkeypatch):  # noqa: F811
    "Google on loopback; the commands of this test ask it."
    with google(Google()) as server:
        login(server.address)
        monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_MONITORING", server.address)
        yield server


def states(*words) -> dict[str, int]:
    "How many documents a run created, updated, left or deleted."
    done = invoke(*words)
    assert done.exit_code == 0, done.output + repr(done.exception)
    first = [line.split()[0] for line in done.stdout.splitlines()]
    return {state: first.count(state) for state in sorted(set(first))}


@pytest.mark.parametrize("kind", KINDS)
def test_googles_types_read_the_documents(kind):
    module, name = KINDS[kind]
    types = pytest.importorskip(module, reason="!!! google-cloud-monitoring is missing: no document was read by it")
    documents = yaml.safe_load(invoke(*COMMAND, "--dry-run").stdout)[kind]
    assert documents
    for document in documents:
        read = getattr(types, name).from_json(json.dumps(document), ignore_unknown_fields=False)
        assert read.display_name == document["displayName"]
        if kind == "policies":
            assert read.severity.name == document["severity"]
            assert read.conditions[0].condition_prometheus_query_language.query


def test_a_second_run_changes_nothing(fake):
    assert states(*COMMAND) == {"created": len(ALERTS) + 4}
    sent = len(fake.requests)
    assert states(*COMMAND) == {"unchanged": len(ALERTS) + 4}
    assert {method for method, *_ in fake.requests[sent:]} == {"GET"}


def test_policies_name_the_channel_that_google_has_made(fake):
    invoke(*COMMAND)
    documents = fake.answers[0].documents
    (channel,) = [document["name"] for path, document in documents.items() if "notificationChannels" in path]
    policies = [document for path, document in documents.items() if "alertPolicies" in path]
    assert all(policy["notificationChannels"] == [channel] for policy in policies) and len(policies) == len(ALERTS)
    without = states(*COMMAND[:4])
    assert without == {"unchanged": len(ALERTS) + 3}, "without --email the channel stays"


def test_what_somebody_changed_is_written_again_and_what_is_not_ours_stays(fake):
    invoke(*COMMAND)
    documents = fake.answers[0].documents
    path = next(path for path in documents if "alertPolicies" in path)
    documents[path]["conditions"][0]["conditionPrometheusQueryLanguage"]["query"] = "vector(1)"
    parent = path.rpartition("/")[0]
    documents[f"{parent}/old"] = documents[path] | {"name": "old", "displayName": "trashsorting Doubtful"}
    documents[f"{parent}/theirs"] = {"name": "theirs", "displayName": "disk", "userLabels": {}}
    assert states(*COMMAND) == {"deleted": 1, "unchanged": len(ALERTS) + 3, "updated": 1}
    assert documents[path]["conditions"][0]["conditionPrometheusQueryLanguage"]["query"] != "vector(1)"
    assert f"{parent}/theirs" in documents and f"{parent}/old" not in documents


def test_a_new_address_gets_a_new_check(fake):
    invoke(*COMMAND)
    moved = ["job", "monitor", "--url", "https://trash.example.com"]
    assert states(*moved) == {"created": 1, "deleted": 1, "unchanged": len(ALERTS) + 1, "updated": 1}


def test_the_address_is_asked_from_cloud_run(cloud_run, fake):  # noqa: F811
    assert "there is no service trashsorting" in error_of("job", "monitor", *WHERE)
    assert invoke("job", "deploy", "--image", "europe-docker.pkg.dev/p/r/api:1", *WHERE).exit_code == 0
    assert invoke("job", "monitor", *WHERE).exit_code == 0
    assert any(
        "trashsorting trashsorting.example" in json.dumps(document) for document in fake.answers[0].documents.values()
    )


def test_the_weekly_report_is_created_and_updated(fake, monkeypatch):
    for name in ("RUN", "CLOUDSCHEDULER"):
        monkeypatch.setenv(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{name}", fake.address)
    words = ["job", "drift", "--image", "europe-docker.pkg.dev/p/r/train:1", "--bucket", "gs://bkt/data"]
    words += ["--service-account", "trainer@my-project.iam.gserviceaccount.com"]
    assert invoke(*words).stdout.split() == ["created", "job", REPORT, "created", "schedule", REPORT]
    assert invoke(*words).stdout.split() == ["updated", "job", REPORT, "updated", "schedule", REPORT]
    printed = yaml.safe_load(invoke(*words, "--dry-run").stdout)
    (job,) = [document for path, document in fake.answers[0].documents.items() if path.startswith("/v2/")]
    assert job["template"] == printed["template"] and '/bucket/data/photographs/"$week"' in str(printed)


def test_the_scoring_job_is_created_and_updated(fake, monkeypatch):
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_RUN", fake.address)
    words = ["job", "score", "gs://bkt/photos", "gs://bkt/list.txt", "--out", "gs://bkt/answers", "--tasks", "50"]
    words += ["--image", "europe-docker.pkg.dev/p/r/train:1", "--cores", "4", *WHERE]
    first = invoke(*words).stdout
    assert first.split()[:3] == ["created", "job", "trashsorting-score"]
    assert "gcloud run jobs execute trashsorting-score --project my-project --region europe-west4 --wait" in first
    assert invoke(*words).stdout.split()[0] == "updated"
    (job,) = [document for path, document in fake.answers[0].documents.items() if path.startswith("/v2/")]
    assert job["template"] == yaml.safe_load(invoke(*words, "--dry-run").stdout)["template"]
    (container,) = job["template"]["template"]["containers"]
    assert container["command"][:4] == ["trashsorting", "score", "gs://bkt/photos", "gs://bkt/list.txt"]
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "8192Mi"} and job["template"]["taskCount"] == 50
    assert "--out gs://bkt/photos/a lies in" in error_of(*words[:3], "--out", "gs://bkt/photos/a", *words[8:])


def test_a_job_on_the_second_page_is_updated(fake, monkeypatch):
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_RUN", fake.address)
    fake.answers[0].page = 1
    words = ["job", "score", "gs://bkt/photos", "--out", "gs://bkt/out", "--image", "europe-docker.pkg.dev/p/r/train:1"]
    lines = [invoke(*words, "--name", name, *WHERE).stdout.split()[0] for name in ("other", "mine", "mine")]
    assert lines == ["created", "created", "updated"]


def test_errors_are_sentences(login):  # noqa: F811
    assert "--url: got 'http://x', wanted an address https://HOST" in error_of(
        *COMMAND[:2], "--url", "http://x", *WHERE
    )
    assert "--email: got 'nobody'" in error_of(*COMMAND[:4], "--email", "nobody", "--dry-run")
    with google(refusal(403, "Permission denied.")) as server, pytest.MonkeyPatch.context() as patch:
        login(server.address)
        patch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_MONITORING", server.address)
        assert error_of(*COMMAND).startswith("Permission denied. (403)\nthe account may not do this")
