"""The service's image, really built (without Docker, by tools/build_image) and run as a platform would run it."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import httpx
import pytest
from conftest import encode
from test_repo import check, copy_repo, run, settings

from trashsorting.data.sample import draw_picture

TOOLS = ("buildah", "mmdebstrap", "podman", "runc")
IMAGE = "localhost/trashsorting-api"
MEGABYTES = 350  # Beyond the base, unpacked
BUILD_SECONDS = 900  # Generous: for two shared cores
START_SECONDS = 120
MARK = f"not-for-images-{secrets.token_hex(8)}"
PRIVATE = (  # Files in a working checkout that an image must not hold
    ".env",
    ".git/credentials",
    "id_ed25519",
    "service-account.json",
    "data/glass/photo.jpg",
    "nbs/notes.txt",
    "runs/first/model.onnx",
    "trashsorting/.env",
    "trashsorting/models/key.pem",
    "trashsorting/static/.netrc",
)
# Neither systemd nor the usual cgroups are needed where this is tested.
PODMAN = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


@dataclass(frozen=True)
class Store:
    """A folder with images and containers."""

    folder: Path
    source: Path  # The checkout that was built

    def podman(self, *words, **options) -> subprocess.CompletedProcess:
        "Run podman on this folder."
        folders = ["--root", self.folder / "store", "--runroot", self.folder / "run"]
        driver = ["--storage-driver", os.environ.get("STORAGE_DRIVER", "overlay")]
        environment = {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")}
        return run("podman", *folders, *driver, *words, env=environment, timeout=START_SECONDS, **options)

    def inspect(self, name: str, kind: str = "image") -> dict:
        "The facts about an image or a container."
        return json.loads(check(self.podman(kind, "inspect", name)))[0]

    def remove(self) -> None:
        "Leave no container, no mount and no file."
        self.podman("rm", "--all", "--force", "--time", "0")
        self.podman("image", "unmount", "--all")
        run("umount", "--lazy", self.folder / "store" / "overlay")
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory, request) -> Iterator[Store]:
    "The image, built from a checkout with private files."
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid() or missing:
        pytest.skip(f"!!! no image was built: that needs root and {', '.join(missing or TOOLS)}")
    source = copy_repo(tmp_path_factory.mktemp("checkout"))
    check(run("git", "init", "--quiet", cwd=source))
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    check(run("git", *identity, "commit", "--quiet", "--allow-empty", "--message", "first", cwd=source))
    for name in PRIVATE:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(MARK, encoding="utf-8")
    store = Store(Path(mkdtemp(prefix="images-")), source)  # podman takes no path of more than 50 characters
    (store.folder / "containers.conf").write_text(PODMAN, encoding="utf-8")
    start = time.perf_counter()
    try:
        check(run(source / "tools" / "build_image", "api", store.folder, timeout=BUILD_SECONDS))
        report(request, f"{time.perf_counter() - start:.0f} s to build the image")
        yield store
    finally:
        store.remove()


def report(request, text: str) -> None:
    "Show a measurement beside the test's dot."
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f" [{text}]", end="")


@dataclass(frozen=True)
class Container:
    """The image, running."""

    store: Store
    name: str
    url: str

    def execute(self, *words) -> subprocess.CompletedProcess:
        "Run a command in it, as its user."
        return self.store.podman("exec", self.name, *words)

    def check_health(self) -> int:
        "The exit status of the image's own health check."
        kind, *words = self.store.inspect(IMAGE)["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.execute(*words).returncode

    def logs(self) -> str:
        "Its output."
        done = self.store.podman("logs", self.name)
        return done.stdout + done.stderr


@contextmanager
def running(store: Store, name: str, **environment: str) -> Iterator[Container]:
    "Run the image as a strict platform does: only /tmp is writable, and it has no capabilities."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    strict = ["--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp", "--cap-drop", "all"]  # noqa: S108
    strict += ["--security-opt", "no-new-privileges", "--network", "host", "--no-healthcheck"]
    variables = [
        word for key, value in {"PORT": str(port), **environment}.items() for word in ("--env", f"{key}={value}")
    ]
    check(store.podman("run", "--detach", "--name", name, *strict, *variables, IMAGE))
    try:
        yield Container(store, name, f"http://127.0.0.1:{port}")
    finally:
        store.podman("rm", "--force", "--time", "0", name)


def wait_for(container: Container, path: str) -> httpx.Response:
    "The first answer that is anything but a refused connection."
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            return httpx.get(f"{container.url}{path}", timeout=60)
        except httpx.TransportError:
            time.sleep(0.02)
    raise AssertionError(f"no answer:\n{container.logs()}")


@pytest.fixture(scope="module")
def service(store, request) -> Iterator[Container]:
    "The image, ready."
    start = time.perf_counter()
    with running(store, "service") as container:
        answer = wait_for(container, "/api/ready")
        report(request, f"{time.perf_counter() - start:.1f} s from `podman run` to ready")
        assert answer.json() == {"ready": True}, container.logs()
        yield container


def test_labels_and_user(store):
    facts = store.inspect(IMAGE)
    labels = facts["Labels"]
    assert labels["org.opencontainers.image.version"] == settings()["version"]
    assert (
        labels["org.opencontainers.image.revision"] == check(run("git", "rev-parse", "HEAD", cwd=store.source)).strip()
    )
    assert facts["Config"]["User"] == "10001:10001" and "PORT=8080" in facts["Config"]["Env"]
    assert "8080/tcp" in facts["Config"]["ExposedPorts"]


def test_it_is_small(store, request):
    recipe = (store.source / "dockerfiles" / "api.dockerfile").read_text(encoding="utf-8")
    base = re.search(r"^FROM (\S+)", recipe, re.MULTILINE)[1]
    megabytes = (store.inspect(IMAGE)["Size"] - store.inspect(f"docker.io/library/{base}")["Size"]) / 1e6
    report(request, f"{megabytes:.0f} MB beyond the base")
    assert megabytes <= MEGABYTES


def test_it_holds_no_private_files(store):
    inside = Path(check(store.podman("image", "mount", IMAGE)).strip())
    search = run("grep", "--recursive", "--files-with-matches", "--fixed-strings", MARK, inside)
    assert (search.returncode, search.stdout) == (1, ""), search.stderr
    venv = inside / "opt" / "venv"
    here = {path.name for path in next(venv.glob("lib/python*/site-packages")).iterdir()}
    assert here >= {"onnxruntime", "fastapi", "trashsorting"}
    assert not here & {"torch", "torchvision", "fastai", "timm", "dvc", "wandb", "pytest", "nbdev", "pip"}
    package = next(venv.glob("lib/python*/site-packages/trashsorting"))
    assert (package / "models" / "trashnet.onnx").read_bytes() == Path("trashsorting/models/trashnet.onnx").read_bytes()
    names = {".git", ".env", ".netrc", "id_ed25519", "service-account.json", "photo.jpg", "key.pem", "src", "tests"}
    top = {path.name for folder in (inside, inside / "opt", inside / "root", package) for path in folder.iterdir()}
    assert not names & (top - {"src"}) and not (inside / "src").exists()


def test_it_runs_without_privileges_on_a_read_only_file_system(service):
    assert check(service.execute("id", "-u")).strip() == "10001"
    for folder in ("/", "/opt/venv/bin", "/home", "/var/tmp", "/etc"):  # noqa: S108
        assert service.execute("python", "-c", f"open('{folder}/x', 'w')").returncode == 1, folder
    status = check(service.execute("cat", "/proc/1/status"))
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    assert service.check_health() == 0


def test_it_predicts_a_photograph_and_refuses_a_bad_one(service, predictor):
    photograph = encode(
        draw_picture("glass", 0, (1600, 1200)), compress_level=0
    )  # over a megabyte: it passes through a file
    assert len(photograph) > 1_000_000
    answer = httpx.post(f"{service.url}/api/predict", files={"file": photograph}, timeout=60)
    assert answer.status_code == 200, answer.text
    expected = predictor.predict_one(photograph)
    assert answer.json()["predicted_class"] == expected.predicted_class
    assert answer.json()["confidence"] == pytest.approx(expected.confidence, abs=1e-3)
    refused = httpx.post(f"{service.url}/api/predict", files={"file": b"a bottle"}, timeout=60)
    assert (refused.status_code, refused.json()["code"]) == (415, "not-an-image")
    for path, kind in {"/": "text/html", "/docs": "text/html", "/metrics": "text/plain"}.items():
        page = httpx.get(service.url + path, timeout=60)
        assert page.status_code == 200 and page.headers["content-type"].startswith(kind), path


def test_it_stops_cleanly_on_sigterm(service):
    "Stays last, since it stops the service. podman sends SIGTERM, and SIGKILL (status 137) if needed."
    check(service.store.podman("stop", "--time", "40", service.name))
    state = service.store.inspect(service.name, "container")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0), service.logs()
    logs = service.logs()
    assert f"ready at {service.url}" in logs and "Traceback" not in logs and "onnxruntime" not in logs, logs


def test_without_its_model_it_is_unhealthy(store):
    with running(store, "broken", TRASHSORTING_MODEL="/nowhere.onnx") as container:
        assert wait_for(container, "/api/ready").status_code == 503
        assert httpx.get(f"{container.url}/api/health", timeout=60).json()["status"] == "degraded"
        assert container.check_health() == 1
