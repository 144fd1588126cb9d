"""`trashsorting job` with fakes: Google's REST interface on loopback, and a `gcloud` that keeps its state in a file."""

import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import requests
import yaml
from click.testing import CliRunner

from trashsorting.cli.main import cli
from trashsorting.cloud.vertex import CloudClient, CloudError, TrainingJob, get_job, list_jobs, submit
from trashsorting.core.errors import TrashsortingError
from trashsorting.core.settings import read_settings
from trashsorting.data.dvc import tracked_version
from trashsorting.training.launch import find_nodes, process_rank

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sys.executable).parent / "trashsorting"
IMAGE = "europe-west4-docker.pkg.dev/my-project/trashsorting/train:1"
TRAIN = [
    "job",
    "train",
    "--image",
    IMAGE,
    "--data",
    "gs://bkt/photos",
    "--out",
    "gs://bkt/runs/one",
    "-p",
    "epochs",
    "12",
]
PARENT = "/v1/projects/my-project/locations/europe-west4/customJobs"


# Google on loopback


class FakeGoogle(BaseHTTPRequestHandler):
    """Answers from a list of (status, JSON), the last one repeatedly; None hangs up, a function is asked."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        if self.path == "/token":
            assert b"subject_token=signed-by-github" in body
            token = {"access_token": "from-the-pool", "expires_in": 3600, "token_type": "Bearer"}
            return self.reply(200, token | {"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})
        if self.path == "/revoked":
            return self.reply(400, {"error": "invalid_grant", "error_description": "The pool is gone."})
        self.server.requests.append(
            (self.command, self.path, self.headers["authorization"], json.loads(body or "null"))
        )
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if callable(answer):
            answer = answer(self.command, self.path, json.loads(body or "null"))
        self.reply(*answer)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

    def reply(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def google(*answers):
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeGoogle) as server:
        server.answers, server.requests, server.daemon_threads = list(answers), [], True
        server.address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def refusal(status, message):
    return status, {"error": {"code": status, "message": message, "status": "WHATEVER"}}


def custom_job(state, number=42, **more):
    name = f"projects/123/locations/europe-west4/customJobs/{number}"
    common = {
        "name": name,
        "displayName": f"trashsorting-{number}",
        "createTime": f"2026-01-31T09:00:{number % 60:02}Z",
    }
    return 200, common | {"state": f"JOB_STATE_{state}"} | more


@pytest.fixture
def login(tmp_path, monkeypatch):
    "Workload identity federation as in a GitHub workflow: the fake exchanges the token in a file."

    def log_in(address, path="/token"):
        (tmp_path / "github-token").write_text("signed-by-github", encoding="utf-8")
        account = {
            "type": "external_account",
            "universe_domain": "example.test",  # with Google's own, the library would ask Google about the account
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/github/providers/one",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{address}{path}",
            "credential_source": {"file": str(tmp_path / "github-token")},
        }
        (tmp_path / "account.json").write_text(json.dumps(account), encoding="utf-8")
        for name, value in {
            "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json"),
            "GOOGLE_CLOUD_PROJECT": "my-project",
            "GOOGLE_CLOUD_REGION": "europe-west4",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": address,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_LOGGING": address,
        }.items():
            monkeypatch.setenv(name, value)

    return log_in


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def error_of(*words) -> str:
    "The message of the error that a command ends with."
    done = invoke(*words)
    assert isinstance(done.exception, TrashsortingError), done.output + repr(done.exception)
    return str(done.exception)


# Training


def test_a_dry_run_prints_the_request(login):
    printed = yaml.safe_load(invoke(*TRAIN, "--dry-run").stdout)
    with google(custom_job("PENDING")) as server:
        login(server.address)
        done = subprocess.run([COMMAND, *TRAIN], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "42  trashsorting-42",
        "gs://bkt/runs/one",
        "what it says: trashsorting job logs 42",
    ]
    ((method, path, authorization, body),) = server.requests
    assert (method, path, authorization) == ("POST", PARENT, "Bearer from-the-pool")
    assert re.fullmatch(r"trashsorting-\d{8}-\d{6}-[0-9a-f]{7}", body["displayName"])
    assert body | {"displayName": ""} == printed | {"displayName": ""}


def test_the_request_in_full(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "data.dvc").write_text((ROOT / "data.dvc").read_text(encoding="utf-8"), encoding="utf-8")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "data"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    monkeypatch.chdir(tmp_path)
    words = ["job", "train", "--image", IMAGE, "--bucket", "gs://bkt/", "--machine", "g2-standard-8"]
    words += ["--accelerator", "NVIDIA_L4", "--no-spot", "--hours", "1.5", "-p", "lr", "1e-3", "-p", "augment", "false"]
    words += ["--service-account", "trainer@my-project.iam.gserviceaccount.com", "--dry-run"]
    sent = yaml.safe_load(invoke(*words).stdout)
    md5 = tracked_version(ROOT / "data").removesuffix(".dir")
    name = sent["displayName"]
    assert name.endswith(head[:7])
    arguments = [
        "--data",
        f"gs://bkt/data/{md5}",
        "--out",
        f"gs://bkt/runs/{name}",
        "-p",
        "lr",
        "0.001",
        "-p",
        "augment",
        "false",
    ]
    machine = {"machineType": "g2-standard-8", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
    pool = {"machineSpec": machine, "replicaCount": "1", "containerSpec": {"imageUri": IMAGE, "args": arguments}}
    assert sent == {
        "displayName": name,
        "jobSpec": {
            "workerPoolSpecs": [pool],
            "scheduling": {"strategy": "STANDARD", "timeout": "5400s"},
            "serviceAccount": "trainer@my-project.iam.gserviceaccount.com",
        },
        "labels": {"app": "trashsorting", "commit": head, "data": md5},
    }
    (tmp_path / "data.dvc").write_text((tmp_path / "data.dvc").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert yaml.safe_load(invoke(*words).stdout)["labels"]["commit"] == f"{head}-dirty"


def test_replicas_are_two_pools_with_the_same_container(login):
    with google(custom_job("PENDING")) as server:
        login(server.address)
        assert invoke(*TRAIN, "--replicas", "4").exit_code == 0
    ((_, _, _, body),) = server.requests
    chief, workers = body["jobSpec"]["workerPoolSpecs"]
    assert (chief.pop("replicaCount"), workers.pop("replicaCount")) == ("1", "3") and chief == workers
    assert body["jobSpec"]["scheduling"]["restartJobOnWorkerRestart"], "all machines start again together"


def test_each_replica_finds_its_place(monkeypatch):
    "By the variable that Vertex AI sets, whatever stands in those that torchrun sets."
    pools = {"workerpool0": ["chief-0:2222"], "workerpool1": ["worker-0:2222", "worker-1:2222", "worker-2:2222"]}
    monkeypatch.setenv("RANK", "7")
    for rank, (pool, index) in enumerate([("workerpool0", 0), *(("workerpool1", number) for number in range(3))]):
        spec = {"cluster": pools, "environment": "cloud", "task": {"type": pool, "index": index, "trial": ""}}
        monkeypatch.setenv("CLUSTER_SPEC", json.dumps(spec))
        nodes = find_nodes()
        assert (nodes.nnodes, nodes.node_rank, nodes.rdzv_endpoint) == (4, rank, "chief-0:2222")
        assert process_rank(nodes) == rank
    alone = {"cluster": {"workerpool0": ["chief-0:2222"]}, "task": {"type": "workerpool0", "index": 0}}
    monkeypatch.setenv("CLUSTER_SPEC", json.dumps(alone))
    assert find_nodes().world_size == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--replicas", "3"], "--replicas 3: batch_size=32 must be a multiple of it (-p batch_size 48)"),
        (["--replicas", "0"], "--replicas: "),
        (
            ["--machine", "e2-standard-4", "--accelerator", "NVIDIA_TESLA_T4"],
            "does not carry NVIDIA_TESLA_T4; it goes with n1-",
        ),
        (["--hours", "nan"], "--hours"),
        (["--out", "gs://bkt/photos/run"], "lies in --data"),
        (["--out", "s3://bkt/run"], "--out: got 's3://bkt/run', wanted an address gs://BUCKET/FOLDER"),
        (["--image", "train:latest"], "the tag latest does not say what runs"),
        (["-p", "epochs", "many"], "epochs='many': must be a valid integer"),
        (["-p", "lr", "-1"], "lr=-1: must be greater than or equal to"),
        (["-p", "epoch", "3"], "unknown parameter 'epoch'; known are backbone, "),
        (["-p", "out", "elsewhere"], "say --out instead"),
    ],
)
def test_wrong_options_are_refused_before_a_request(words, sentence, login):
    with google(custom_job("PENDING")) as server:
        login(server.address)
        assert sentence in error_of(*TRAIN, *words)
        assert not server.requests


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, ""), (401, "gcloud auth"), (403, "the API is not enabled"), (404, "look at the name"), (500, ""), (503, "")],
)
def test_a_refusal_is_a_sentence_and_the_job_is_not_submitted_again(status, advice, login):
    with google(refusal(status, "Because of this.")) as server:
        login(server.address)
        sentence = error_of(*TRAIN)
    assert sentence.startswith(f"Because of this. ({status})") and advice in sentence and "Traceback" not in sentence
    names = {body["displayName"] for _, _, _, body in server.requests}
    assert len(names) == 1 and len(server.requests) <= (3 if status == 401 else 1), (
        "google-auth renews its token on 401"
    )


def client(address, retry_timeout=5.0):
    session, delays = requests.Session(), {"retry_delay": 0.01, "retry_timeout": retry_timeout}
    return CloudClient(session, "my-project", "europe-west4", address, address, **delays)


def make_job():
    return TrainingJob(name="one", image=IMAGE, data="gs://bkt/photos", out="gs://bkt/runs/one")


def test_a_full_quota_is_retried():
    full = refusal(429, "Quota exceeded.")
    with google(full, full, custom_job("PENDING")) as server:
        assert submit(client(server.address), make_job()).id == "42"
        assert len(server.requests) == 3


def test_a_full_quota_is_an_error_in_the_end():
    with (
        google(refusal(429, "Quota exceeded.")) as server,
        pytest.raises(CloudError, match=r"Quota exceeded. \(429\)\nthe quota is used up"),
    ):
        submit(client(server.address, retry_timeout=0.1), make_job())
    assert len(server.requests) > 1


def test_reading_is_retried_and_submitting_is_not():
    with google(refusal(503, "Busy."), None, refusal(429, "Slowly."), custom_job("RUNNING")) as server:
        assert get_job(client(server.address), "42").state == "RUNNING"
        assert len(server.requests) == 4
    with (
        google(None, custom_job("PENDING")) as server,
        pytest.raises(CloudError, match=r"no usable answer from http.*: ConnectionError"),
    ):
        submit(client(server.address), make_job())
    assert len(server.requests) == 1, "the first may have arrived: a second job would cost twice"


def test_no_network(login):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with google(custom_job("PENDING")) as server:
        login(server.address)
        os.environ["CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM"] = closed  # monkeypatch puts it back
        assert error_of(*TRAIN).startswith(f"no usable answer from {closed}: ConnectionError\nlook at the network")
    with pytest.raises(CloudError, match="no usable answer"):
        get_job(client(closed, retry_timeout=0.1), "42")


def test_an_answer_that_is_no_job(login):
    with google((200, {"hello": "world"})) as server:
        login(server.address)
        assert "not a job of Vertex AI's" in error_of(*TRAIN)


def test_waiting_for_a_job(login):
    failed = custom_job(
        "FAILED", error={"code": 9, "message": "The replica workerpool0-0 exited with a non-zero status of 1."}
    )
    with google(custom_job("QUEUED"), failed) as server:
        login(server.address)
        done = invoke(*TRAIN, "--wait")
    assert done.exit_code == 1 and "42  trashsorting-42" in done.stdout
    assert str(done.exception) == (
        "job 42 has failed: The replica workerpool0-0 exited with a non-zero status of 1.\ntrashsorting job logs 42"
    )
    with google(custom_job("QUEUED"), custom_job("SUCCEEDED")) as server:
        login(server.address)
        done = invoke(*TRAIN, "--wait")
    assert done.exit_code == 0 and done.stdout.endswith("succeeded\n")
    assert [(method, path) for method, path, _, _ in server.requests] == [("POST", PARENT), ("GET", f"{PARENT}/42")]


def test_list_reads_all_pages_and_sorts_by_time():
    pages = [
        (200, {"customJobs": [custom_job("RUNNING", 7)[1]], "nextPageToken": "more"}),
        (200, {"customJobs": [custom_job("FAILED", 9)[1], custom_job("SUCCEEDED", 8, labels={"data": "4989fc48"})[1]]}),
    ]
    with google(*pages) as server:
        assert [run.id for run in list_jobs(client(server.address), most=2)] == ["9", "8"]
    assert [path for _, path, _, _ in server.requests] == [
        f"{PARENT}?filter=labels.app%3Dtrashsorting&pageSize=100",
        f"{PARENT}?filter=labels.app%3Dtrashsorting&pageSize=100&pageToken=more",
    ]


def test_list_logs_and_cancel_as_commands(login):
    listed = 200, {"customJobs": [custom_job("RUNNING", labels={"data": "4989fc48eb"})[1]]}
    entries = [
        (
            200,
            {
                "entries": [{"timestamp": "2026-01-31T09:05:00.123Z", "textPayload": "pulling\n"}],
                "nextPageToken": "more",
            },
        ),
        (200, {"entries": [{"timestamp": "2026-01-31T09:06:00.123Z", "jsonPayload": {"message": "epoch 1"}}]}),
    ]
    with google(listed, custom_job("FAILED", error={"message": "exited"}), *entries, (200, {})) as server:
        login(server.address)
        table = invoke("job", "list").stdout.splitlines()
        logs = invoke("job", "logs", "42")
        ended = invoke("job", "cancel", "projects/1/locations/europe-west4/customJobs/42")
    assert table[1].split() == ["42", "running", "2026-01-31T09:00:42", "4989fc48", "trashsorting-42"]
    assert logs.stdout.splitlines() == ["2026-01-31T09:05:00 pulling", "2026-01-31T09:06:00 epoch 1"]
    assert logs.stderr == "42: failed, exited\n" and ended.exit_code == 0
    _, _, first, second, last = server.requests
    assert first[1] == "/v2/entries:list" and first[3]["resourceNames"] == ["projects/my-project"]
    assert (
        'resource.type="ml_job" AND resource.labels.job_id="42"' in first[3]["filter"]
        and second[3]["pageToken"] == "more"
    )
    assert (last[0], last[1], last[3]) == ("POST", f"{PARENT}/42:cancel", {})
    assert "is no job's number" in error_of("job", "cancel", "../../models")
    assert "is no job's number" in error_of("job", "cancel", "12²")


# Logging in


def test_no_credentials(monkeypatch, tmp_path):
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    for name, value in {"HOME": tmp_path, "CLOUDSDK_CONFIG": tmp_path, "NO_GCE_CHECK": "true"}.items():
        monkeypatch.setenv(name, str(value))
    where = ["--project", "my-project", "--region", "europe-west4"]
    assert re.match(r"no credentials: .*\nlog in: gcloud auth application-default login", error_of(*TRAIN, *where))


def test_revoked_credentials(login):
    with google(custom_job("PENDING")) as server:
        login(server.address, path="/revoked")
        sentence = error_of(*TRAIN)
    assert (
        sentence.startswith("the login does not work: ") and "invalid_grant" in sentence and "gcloud auth" in sentence
    )


def test_no_project(monkeypatch):
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    assert error_of(*TRAIN) == "which project? Say --project, or set GOOGLE_CLOUD_PROJECT"


def test_the_light_install_names_the_extra():
    code = "import sys; sys.modules['google.auth'] = sys.modules['yaml'] = None\n"
    code += "from trashsorting.cli.main import main; main()"
    where = ["--project", "my-project", "--region", "europe-west4"]
    for words in ([*TRAIN, "--dry-run"], [*TRAIN, *where]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "pip install 'trashsorting[cloud]'" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


# Serving

GCLOUD = r"""#!{python} -S
# Cloud Run in a file: keeps revisions and traffic, and answers like Cloud Run.
import json, os, pathlib, sys
sys.path.append({packages!r})
words, store = sys.argv[1:], pathlib.Path(os.environ["STORE"])
state = json.loads(store.read_bytes()) if store.exists() else {{"revisions": [], "traffic": [], "calls": []}}
state["calls"].append(words)
def set_traffic(split):
    newest = state["revisions"][-1]["metadata"]["name"]
    state["traffic"] = [part | {{"revisionName": part.get("revisionName", newest)}} for part in split]
if words[:3] == ["run", "services", "replace"]:
    import yaml
    wanted = yaml.safe_load(pathlib.Path(words[3]).read_bytes())
    number = len(state["revisions"]) + 1
    ready = {{"type": "Ready", "status": "True"}}
    meta = {{"name": f"{{wanted['metadata']['name']}}-{{number:05}}"}}
    meta["creationTimestamp"] = f"2026-01-31T09:00:{{number:02}}Z"
    spec, status = wanted["spec"]["template"]["spec"], {{"conditions": [ready]}}
    state["revisions"].append({{"metadata": meta, "spec": spec, "status": status}})
    state["spec"] = wanted["spec"]
    set_traffic(wanted["spec"]["traffic"])
elif words[:3] == ["run", "services", "update-traffic"]:
    flag = words[4]
    revision = {{}} if flag == "--to-latest" else {{"revisionName": flag.split("=")[1]}}
    set_traffic([revision | {{"percent": 100}}])
elif os.environ.get("REFUSE"):
    print("ERROR: (gcloud.run) PERMISSION_DENIED", file=sys.stderr)
    sys.exit(1)
elif words[:3] == ["run", "services", "list"]:
    if not state["revisions"]:
        sys.exit(print("[]"))
    assert words[3] == "--filter=metadata.name=trashsorting"
    newest = state["revisions"][-1]["metadata"]["name"]
    status = {{"latestReadyRevisionName": newest, "traffic": state["traffic"], "url": "https://trashsorting.example"}}
    print(json.dumps([{{"spec": state["spec"], "status": {{}} if os.environ.get("NEVER_READY") else status}}]))
elif words[:3] == ["run", "revisions", "list"]:
    print(json.dumps(state["revisions"]))
store.write_text(json.dumps(state))
"""
API = "europe-west4-docker.pkg.dev/my-project/trashsorting/api"
WHERE = ["--project", "my-project", "--region", "europe-west4"]


@pytest.fixture
def cloud_run(tmp_path, monkeypatch):
    "gcloud on the PATH; returns the state in its file."
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(GCLOUD.format(python=sys.executable, packages=sysconfig.get_path("purelib")), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STORE", str(tmp_path / "store.json"))
    return lambda: json.loads((tmp_path / "store.json").read_bytes())


def percents(state) -> dict[str, int]:
    return {part["revisionName"]: part["percent"] for part in state["traffic"]}


def test_deploy_canary_promote_roll_back(cloud_run):
    def do(*words):
        done = invoke("job", *words, *WHERE)
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.stdout

    assert do("deploy", "--image", f"{API}:1") == "https://trashsorting.example\n"
    assert percents(cloud_run()) == {"trashsorting-00001": 100}
    do("deploy", "--image", f"{API}:2", "--canary", "10")
    assert percents(cloud_run()) == {"trashsorting-00001": 90, "trashsorting-00002": 10}
    assert do("rollback") == "trashsorting: all traffic to trashsorting-00001\n"
    assert percents(cloud_run()) == {"trashsorting-00001": 100}
    do("deploy", "--image", f"{API}:3", "--canary", "50")
    assert percents(cloud_run()) == {"trashsorting-00001": 50, "trashsorting-00003": 50}
    do("promote")
    assert percents(cloud_run()) == {"trashsorting-00003": 100}
    do("rollback")
    assert percents(cloud_run()) == {"trashsorting-00002": 100}
    do("rollback", "--to", "trashsorting-00001")
    assert percents(cloud_run()) == {"trashsorting-00001": 100}
    do("deploy", "--image", f"{API}:4")
    assert percents(cloud_run()) == {"trashsorting-00004": 100}
    assert all(call[-5:] == [*WHERE, "--quiet"] for call in cloud_run()["calls"])


def test_a_dry_run_prints_what_is_deployed(cloud_run):
    words = ["job", "deploy", "--image", f"{API}:1", "--most", "2", "--api-key-secret", "the-key"]
    printed = yaml.safe_load(invoke(*words, "--dry-run").stdout)
    assert invoke(*words, *WHERE).exit_code == 0
    (revision,) = cloud_run()["revisions"]
    assert revision["spec"] == printed["spec"]["template"]["spec"]
    annotations = printed["spec"]["template"]["metadata"]["annotations"]
    assert (
        annotations["autoscaling.knative.dev/minScale"] == "0"
        and annotations["autoscaling.knative.dev/maxScale"] == "2"
    )
    assert annotations["run.googleapis.com/startup-cpu-boost"] == "true"
    env = {variable["name"]: variable for variable in revision["spec"]["containers"][0]["env"]}
    assert env["TRASHSORTING_API_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "the-key", "key": "latest"}}


def test_a_key_is_not_dropped_by_mistake(cloud_run):
    words = ["job", "deploy", "--image", f"{API}:1", *WHERE]
    assert invoke(*words, "--api-key-secret", "the-key").exit_code == 0
    assert "asks for a key now: say --api-key-secret, or --drop-key" in error_of(*words)
    assert len(cloud_run()["revisions"]) == 1
    assert invoke(*words, "--drop-key").exit_code == 0 == invoke(*words).exit_code


def test_errors_of_deployment(cloud_run, monkeypatch):
    assert "there is no service of this name" in error_of("job", "rollback", *WHERE)
    canary = ["job", "deploy", "--image", f"{API}:1", "--canary", "10", *WHERE]
    assert "deploy without --canary first" in error_of(*canary)
    monkeypatch.setenv("REFUSE", "yes")
    assert error_of(*canary).startswith(
        "gcloud run services list --filter=metadata.name=trashsorting has failed with 1"
    )
    monkeypatch.setenv("PATH", "")
    assert "there is no gcloud here" in error_of("job", "promote", *WHERE)


def test_a_service_that_was_never_ready_is_a_sentence(cloud_run, monkeypatch):
    assert invoke("job", "deploy", "--image", f"{API}:1", *WHERE).exit_code == 0
    monkeypatch.setenv("NEVER_READY", "yes")
    assert "was ever ready: deploy again" in error_of("job", "rollback", *WHERE)
    assert "has no address yet" in error_of("job", "monitor", *WHERE)


def test_rollout_is_what_the_workflow_runs(cloud_run, monkeypatch):
    for name, value in {
        "GOOGLE_CLOUD_PROJECT": "my-project",
        "GOOGLE_CLOUD_REGION": "europe-west4",
        "SERVICE_ACCOUNT": "service@my-project.iam.gserviceaccount.com",
        "API_KEY_SECRET": "the-key",  # pragma: allowlist secret
        "PATH": f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}",
    }.items():
        monkeypatch.setenv(name, value)
    for words in (["all", f"{API}:1"], ["canary", f"{API}:2"], ["rollback"], ["promote"]):
        subprocess.run([ROOT / "tools/rollout", *words], cwd=ROOT, check=True, timeout=60)
    state = cloud_run()
    assert percents(state) == {"trashsorting-00002": 100}
    assert state["revisions"][1]["spec"]["serviceAccountName"] == "service@my-project.iam.gserviceaccount.com"
    assert "TRASHSORTING_API_KEY" in json.dumps(state["spec"])


def test_the_service_reads_the_variables(monkeypatch):
    printed = yaml.safe_load(invoke("job", "deploy", "--image", f"{API}:1", "--dry-run").stdout)
    (container,) = printed["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    settings = read_settings()
    values = settings.grace_seconds, settings.max_batch_bytes, settings.queue, settings.queue_seconds
    assert values == (8, 28_000_000, 8, 10)
