"""Versions of the data in an object store: push, pull, an older version, and a killed transfer."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from gcs import Store
from PIL import Image

from trashsorting.data.dvc import data_version, tracked_version

COMMAND = Path(sys.executable).parent / "trashsorting"
ROOT = Path(__file__).resolve().parents[2]
ADVICE = (
    "gcloud auth application-default login",
    "dvc remote modify --local gcs url",
    "trashsorting data import DIR",
)
QUIET = {"DVC_NO_ANALYTICS": "1", "NO_GCE_CHECK": "true", "GIT_AUTHOR_NAME": "a", "GIT_COMMITTER_NAME": "a"}
QUIET |= {"GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_EMAIL": "a@example.org"}


class Checkout:
    "A repository with our DVC configuration, whose remote is a bucket of the store."

    def __init__(self, folder: Path, store: Store, bucket: str):
        self.folder = folder
        self.environment = {**store.environment, **QUIET, "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
        shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=lambda _, names: {*names} - {"config", ".gitignore"})
        shutil.copy(ROOT / ".dvcignore", folder)
        if not (folder / ".git").exists():
            self.run("git", "init", "-q")
            (folder / ".gitignore").write_text("/data\n", encoding="utf-8")
        local = f"['remote \"gcs\"']\n    url = {bucket}\n"
        (folder / ".dvc" / "config.local").write_text(local, encoding="utf-8")

    def start(self, *words) -> subprocess.Popen:
        return subprocess.Popen(
            [str(word) for word in words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words, fails: bool = False) -> str:
        "Run a command and return its output, or its standard error if it is to fail."
        process = self.start(*words)
        out, err = process.communicate(timeout=240)
        assert (process.returncode != 0) == fails, out + err
        return err if fails else out

    def commit(self) -> str:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", "data")
        return self.run("git", "rev-parse", "HEAD").strip()

    def bytes(self) -> dict[str, bytes]:
        "Every file of data/."
        files = [path for path in (self.folder / "data").rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}


def draw(checkout: Checkout, per_class: int) -> None:
    checkout.run(COMMAND, "data", "sample", "raw", "--per-class", per_class)
    checkout.run(COMMAND, "data", "import", "raw", "--replace")
    shutil.rmtree(checkout.folder / "raw")
    checkout.run(COMMAND.with_name("dvc"), "add", "-q", "data")


def clone(checkout: Checkout, folder: Path, store: Store, bucket: str) -> Checkout:
    checkout.run("git", "clone", "-q", checkout.folder, folder)
    shutil.rmtree(folder / ".dvc")
    return Checkout(folder, store, bucket)


def push_for_jobs(checkout: Checkout) -> str:
    "The address that `tools/push_data` prints for data/, with a gcloud that only prints its arguments."
    programs = checkout.folder / "tools"
    programs.mkdir(exist_ok=True)
    shutil.copy(ROOT / "tools/push_data", programs)
    (programs / "gcloud").write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    (programs / "gcloud").chmod(0o755)
    search_path = os.pathsep.join([str(programs), str(COMMAND.parent), os.environ["PATH"]])
    done = subprocess.run(
        [programs / "push_data", "gs://jobs/"],
        env={**checkout.environment, "PATH": search_path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    shutil.rmtree(programs)
    assert done.returncode == 0, done.stderr
    address = done.stdout.strip()
    assert f"storage rsync --recursive --checksums-only data {address}\n" in done.stderr
    return address


def test_push_clone_pull_and_back_to_the_older_version(store, tmp_path):
    bucket = store.make_bucket("versions")
    (tmp_path / "ours").mkdir()
    ours = Checkout(tmp_path / "ours", store, bucket)
    draw(ours, 2)
    version = tracked_version(ours.folder / "data")
    assert version == yaml.safe_load((ours.folder / "data.dvc").read_bytes())["outs"][0]["md5"]
    address = f"gs://jobs/data/{version.removesuffix('.dir')}"
    assert push_for_jobs(ours) == address
    assert "13 files sent" in ours.run(COMMAND, "data", "push")
    note = yaml.safe_load((ours.folder / "data.dvc").read_bytes())["outs"][0]
    assert all(file["cloud"]["gcs"]["version_id"] for file in note["files"])
    assert tracked_version(ours.folder / "data") == data_version(ours.folder / "data") == version
    assert push_for_jobs(ours) == address
    first, before = ours.commit(), ours.bytes()

    # A changed photograph is reported, and pushed as a new version.
    changed = ours.folder / "data/glass/glass000.png"
    Image.open(changed).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(ours.folder / "flipped.png")
    os.replace(ours.folder / "flipped.png", changed)
    assert data_version(ours.folder / "data") == f"{version}-changed"
    assert "glass/glass000.png is not the file that is listed" in ours.run(
        COMMAND, "data", "manifest", "data", fails=True
    )
    ours.run(COMMAND, "data", "import", "data", "--replace")
    ours.run(COMMAND.with_name("dvc"), "add", "-q", "data")
    assert "2 files sent" in ours.run(COMMAND, "data", "push")
    ours.commit()
    assert len(store.objects("versions")) == 13 and len(store.objects("versions", versions=True)) == 15

    # Another clone pulls both versions.
    theirs = clone(ours, tmp_path / "theirs", store, bucket)
    assert "13 files fetched" in theirs.run(COMMAND, "data", "pull")
    assert theirs.bytes() == ours.bytes() != before
    theirs.run("git", "checkout", "-q", first)
    theirs.run(COMMAND, "data", "pull")
    assert theirs.bytes() == before


def wait_for(count_items, least: int, process: subprocess.Popen) -> int:
    "Wait for so many items; fails if the process ends before."
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (count := count_items()) >= least:
            return count
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    raise AssertionError("nothing was transferred in two minutes")


def test_killed_in_the_middle_and_repeated(store, tmp_path):
    bucket, total = store.make_bucket("killed"), 6 * 30 + 1
    (tmp_path / "ours").mkdir()
    ours = Checkout(tmp_path / "ours", store, bucket)
    draw(ours, 30)
    ours.run(COMMAND.with_name("dvc"), "remote", "modify", "--local", "gcs", "jobs", "1")

    push = ours.start(COMMAND, "data", "push")
    wait_for(lambda: len(store.objects("killed")), 10, push)
    push.send_signal(signal.SIGKILL)
    push.communicate(timeout=60)
    assert 10 <= len(store.objects("killed")) < total
    ours.run(COMMAND, "data", "push")
    assert len(store.objects("killed")) == total
    ours.commit()

    theirs = clone(ours, tmp_path / "theirs", store, bucket)
    theirs.run(COMMAND.with_name("dvc"), "remote", "modify", "--local", "gcs", "jobs", "1")
    cache = theirs.folder / ".dvc" / "cache" / "files"
    pull = theirs.start(COMMAND, "data", "pull")
    wait_for(lambda: sum(path.is_file() for path in cache.rglob("*")), 10, pull)
    pull.send_signal(signal.SIGKILL)
    pull.communicate(timeout=60)
    assert len(theirs.bytes()) < total
    theirs.run(COMMAND, "data", "pull")
    assert theirs.bytes() == ours.bytes() and len(theirs.bytes()) == total


@pytest.fixture
def closed_store():
    "A store that answers like Google's without a login."

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = {"error": {"code": 401, "message": "Anonymous caller does not have storage.objects.list access."}}
            body = json.dumps(answer).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Store(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()


def refused(checkout: Checkout, *words) -> str:
    "The message of a command that cannot reach its bucket: one line, with all advice."
    message = checkout.run(COMMAND, "data", *words, fails=True)
    assert message.startswith("trashsorting: gs://") and message.count("\n") == 1, message
    assert all(advice in message for advice in ADVICE), message
    return message


def test_an_unreachable_bucket_is_one_sentence_with_advice(store, closed_store, tmp_path):
    (tmp_path / "ours").mkdir()
    ours = Checkout(tmp_path / "ours", store, "gs://trash_classification_data")
    shutil.copy(ROOT / "data.dvc", ours.folder)
    for word in ("pull", "push"):
        message = refused(ours, word)
        assert message.startswith(
            "trashsorting: gs://trash_classification_data cannot be used: there is no such bucket;"
        )

    (ours.folder / ".dvc/config.local").write_text(
        f"['remote \"gcs\"']\n    url = {store.make_bucket('empty')}\n", encoding="utf-8"
    )
    assert "data was never pushed there" in refused(ours, "pull")

    (ours.folder / ".dvc/config.local").write_text(
        "['remote \"gcs\"']\n    url = gs://empty\n    credentialpath = nowhere.json\n", encoding="utf-8"
    )
    assert "its credentials cannot be read" in refused(ours, "pull")

    (ours.folder / ".dvc/config.local").write_text("['remote \"gcs\"']\n    url = gs://empty\n", encoding="utf-8")
    ours.environment |= {**closed_store.environment, **QUIET}
    assert "no credentials that may read it were found" in refused(ours, "pull")


def test_without_a_note_or_a_repository(tmp_path):
    done = subprocess.run([COMMAND, "data", "pull"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and done.stderr.startswith("trashsorting: data.dvc: no such file; `dvc add data`")


def test_the_default_remote_keeps_versions():
    config = (ROOT / ".dvc" / "config").read_text(encoding="utf-8")
    assert "url = gs://" in config and "version_aware = true" in config
    (out,) = yaml.safe_load((ROOT / "data.dvc").read_bytes())["outs"]
    assert out["path"] == "data"


@pytest.mark.skipif(
    not {"TRASHNET", "OPEN_PHOTOS"} <= os.environ.keys(),
    reason="!!! TRASHNET or OPEN_PHOTOS is unset: the tracked data was not reproduced",
)
def test_the_tracked_data_is_reproduced_from_the_photographs(tmp_path):
    "`data import sources.json` gives exactly the folder in data.dvc."
    shutil.copy(ROOT / "sources.json", tmp_path)
    (tmp_path / "trashnet").symlink_to(os.environ["TRASHNET"], target_is_directory=True)
    (tmp_path / "open_photos").symlink_to(os.environ["OPEN_PHOTOS"], target_is_directory=True)
    words = [COMMAND, "data", "import", tmp_path / "sources.json", "--out", tmp_path / "data"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shutil.copy(ROOT / "data.dvc", tmp_path)
    assert data_version(tmp_path / "data") == tracked_version(ROOT / "data")
