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
BUILD_SECONDS = 900  # Generous: two cores that others use, too
START_SECONDS = 120
MARK = f"not-for-images-{secrets.token_hex(8)}"
PRIVATE = (  # What lies about in a checkout that somebody works in
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
        places = ["--root", self.folder / "store", "--runroot", self.folder / "run"]
        driver = ["--storage-driver", os.environ.get("STORAGE_DRIVER", "overlay")]
        environment = {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")}
        return run("podman", *places, *driver, *words, env=environment, timeout=START_SECONDS, **options)

    def about(self, name: str, kind: str = "image") -> dict:
        "What is known about an image or a container."
        return json.loads(check(self.podman(kind, "inspect", name)))[0]

    def remove(self) -> None:
        "Leave no container, no mount and no file."
        self.podman("rm", "--all", "--force", "--time", "0")
        self.podman("image", "unmount", "--all")
        run("umount", "--lazy", self.folder / "store" / "overlay")
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory, request) -> Iterator[Store]:
    "The image, built from a checkout in which private things lie about."
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
        tell(request, f"{time.perf_counter() - start:.0f} s to build the image")
        yield store
    finally:
        store.remove()


def tell(request, text: str) -> None:
    "Show a figure beside the test's dot."
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f" [{text}]", end="")


@dataclass(frozen=True)
class Container:
    """The image, running."""

    store: Store
    name: str
    url: str

    def do(self, *words) -> subprocess.CompletedProcess:
        "Run a command in it, as its user."
        return self.store.podman("exec", self.name, *words)

    def check_health(self) -> int:
        "What the image's own health check finds; the exit status."
        kind, *words = self.store.about(IMAGE)["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.do(*words).returncode

    def logs(self) -> str:
        "What it has said."
        done = self.store.podman("logs", self.name)
        return done.stdout + done.stderr


@contextmanager
def running(store: Store, name: str, **environment: str) -> Iterator[Container]:
    "Run the image as strictly as a platform may: nothing can be written but /tmp, and nothing is allowed."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    strict = ["--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp", "--cap-drop", "all"]  # noqa: S108
    strict += ["--security-opt", "no-new-privileges", "--network", "host", "--no-healthcheck"]
    given = [word for key, value in {"PORT": str(port), **environment}.items() for word in ("--env", f"{key}={value}")]
    check(store.podman("run", "--detach", "--name", name, *strict, *given, IMAGE))
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
        tell(request, f"{time.perf_counter() - start:.1f} s from `podman run` to ready")
        assert answer.json() == {"ready": True}, container.logs()
        yield container


def test_it_says_what_it_is(store):
    about = store.about(IMAGE)
    labels = about["Labels"]
    assert labels["org.opencontainers.image.version"] == settings()["version"]
    assert (
        labels["org.opencontainers.image.revision"] == check(run("git", "rev-parse", "HEAD", cwd=store.source)).strip()
    )
    assert about["Config"]["User"] == "10001:10001" and "PORT=8080" in about["Config"]["Env"]
    assert "8080/tcp" in about["Config"]["ExposedPorts"]


def test_it_is_small(store, request):
    recipe = (store.source / "dockerfiles" / "api.dockerfile").read_text(encoding="utf-8")
    base = re.search(r"^FROM (\S+)", recipe, re.MULTILINE)[1]
    megabytes = (store.about(IMAGE)["Size"] - store.about(f"docker.io/library/{base}")["Size"]) / 1e6
    tell(request, f"{megabytes:.0f} MB beyond the base")
    assert megabytes <= MEGABYTES


def test_it_holds_nothing_that_it_should_not(store):
    inside = Path(check(store.podman("image", "mount", IMAGE)).strip())
    found = run("grep", "--recursive", "--files-with-matches", "--fixed-strings", MARK, inside)
    assert (found.returncode, found.stdout) == (1, ""), found.stderr
    venv = inside / "opt" / "venv"
    here = {path.name for path in next(venv.glob("lib/python*/site-packages")).iterdir()}
    assert here >= {"onnxruntime", "fastapi", "trashsorting"}
    assert not here & {"torch", "torchvision", "fastai", "timm", "dvc", "wandb", "pytest", "nbdev", "pip"}
    package = next(venv.glob("lib/python*/site-packages/trashsorting"))
    assert (package / "models" / "trashnet.onnx").read_bytes() == Path("trashsorting/models/trashnet.onnx").read_bytes()
    names = {".git", ".env", ".netrc", "id_ed25519", "service-account.json", "photo.jpg", "key.pem", "src", "tests"}
    top = {path.name for folder in (inside, inside / "opt", inside / "root", package) for path in folder.iterdir()}
    assert not names & (top - {"src"}) and not (inside / "src").exists()


def test_it_runs_as_nobody_on_a_file_system_that_nobody_can_write(service):
    assert check(service.do("id", "-u")).strip() == "10001"
    for place in ("/", "/opt/venv/bin", "/home", "/var/tmp", "/etc"):  # noqa: S108
        assert service.do("python", "-c", f"open('{place}/x', 'w')").returncode == 1, place
    status = check(service.do("cat", "/proc/1/status"))
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
    "The last that uses the service. podman sends SIGTERM, and SIGKILL (status 137) when that does not help."
    check(service.store.podman("stop", "--time", "40", service.name))
    state = service.store.about(service.name, "container")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0), service.logs()
    said = service.logs()
    assert f"ready at {service.url}" in said and "Traceback" not in said and "onnxruntime" not in said, said


def test_without_its_model_it_is_unhealthy(store):
    with running(store, "broken", TRASHSORTING_MODEL="/nowhere.onnx") as container:
        assert wait_for(container, "/api/ready").status_code == 503
        assert httpx.get(f"{container.url}/api/health", timeout=60).json()["status"] == "degraded"
        assert container.check_health() == 1
