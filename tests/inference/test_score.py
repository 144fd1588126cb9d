"""`trashsorting score`: the predictions of `predict`, resumed after SIGKILL, any source, bounded memory, Ray.

CHECK_SCORE is how many links to a few pictures are scored while memory is watched; `make check-long` takes 100,000.
CHECK_RAY starts a Ray cluster of two nodes on loopback; it needs the extra `ray`.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from command import call
from conftest import encode
from test_models import write_model

from trashsorting.core.card import read_card
from trashsorting.core.errors import TrashsortingError
from trashsorting.data.entries import Entry, EntryList, read_entry
from trashsorting.data.sample import draw_picture, draw_sample
from trashsorting.data.storage import ResultFolder
from trashsorting.inference.score import ScoringTask, score_all, score_on_processes

pq = pytest.importorskip("pyarrow.parquet", reason="!!! pyarrow is missing (the extra `score`): nothing was scored")
LINKS = int(os.environ.get("CHECK_SCORE", "3000"))
GROWTH = 40  # Megabytes, from a tenth of the links to all of them
SMALL = (64, 48)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    "A model that needs no time."
    return write_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "A dozen pictures, and what cannot be classified."
    folder = draw_sample(tmp_path_factory.mktemp("score") / "photos", 2)
    (folder / "glass/empty.jpg").touch()
    (folder / "glass/notes.jpg").write_text("no picture", encoding="utf-8")
    (folder / "glass/cut.png").write_bytes(encode(draw_picture("glass", 0, SMALL))[:200])
    (folder / "glass/lost.png").symlink_to("nowhere.png")
    (folder / "readme.md").touch()
    return folder


def read_all(out: Path) -> list[dict]:
    "Every row, in the order of the parts."
    return [row for part in sorted(out.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def link(folder: Path, count: int) -> Path:
    "Many links to six pictures, a thousand in a folder."
    (folder / "pictures").mkdir(parents=True)
    pictures = [folder.resolve() / f"pictures/{seed}.png" for seed in range(6)]
    for seed, path in enumerate(pictures):
        draw_picture("glass", seed, SMALL).save(path)
    for number in range(count):
        path = folder / "links" / f"{number // 1000:04}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(pictures[number % len(pictures)])
    return folder / "links"


def command(*words) -> list[str]:
    return [sys.executable, "-m", "trashsorting", "score", *map(str, words)]


# The predictions


def test_rows_are_what_predict_says_to_the_last_digit(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TRASHSORTING_THREADS", "1")  # as a process of `score`; more threads add in another order
    done = call("score", photos, "--out", tmp_path / "out", "--processes", "2")
    assert done.returncode == 3 and "classified 12 of 16 photographs" in done.stdout, done.stderr
    assert "not read 1: the suffix" in done.stdout and done.stdout.count("left out 1: ") == 4
    predicted = {item["file"]: item for item in json.loads(call("predict", photos, "--json").stdout)}
    rows = read_all(tmp_path / "out")
    assert {row["file"] for row in rows} == predicted.keys() and len(rows) == len(predicted) == 16
    for row in rows:
        wanted = predicted[row["file"]]
        if "error" in wanted:
            assert row["error"] == wanted["error"] and row["class"] is row["probabilities"] is None
        else:
            assert row["probabilities"] == wanted["all_probabilities"] and row["confidence"] == wanted["confidence"]
            assert (row["class"], row["unsure"], row["error"]) == (wanted["predicted_class"], wanted["unsure"], None)


def test_every_kind_of_source(photos, tmp_path, tiny, store, monkeypatch):
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    fsspec = pytest.importorskip("fsspec")
    bucket = store.make_bucket("score")
    picture = (photos / "metal/metal000.png").read_bytes()
    fsspec.filesystem("gcs").pipe({"score/p/a.png": picture, "score/p/b/c.png": b"", "score/p/b/d.txt": b"x"})
    with zipfile.ZipFile(tmp_path / "some.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.write(photos / "glass/glass000.png", "in/one.png")
        zipped.writestr("in/two.jpg", "no picture")
    (tmp_path / "list.txt").write_text(f"some.png\n{bucket}/p/a.png\n{bucket}/p/none.png\n", encoding="utf-8")
    (tmp_path / "some.png").write_bytes(picture)
    sources = [photos / "metal", tmp_path / "some.zip", tmp_path / "list.txt", f"{bucket}/p"]
    words = ["score", *sources, "--out", f"{bucket}/out", "--model", tiny, "--processes", "1"]
    done = call(*words)
    assert done.returncode == 3 and "classified 6 of 9 photographs" in done.stdout, done.stdout + done.stderr
    gcs = fsspec.filesystem("gcs")
    (tmp_path / "part-0.parquet").write_bytes(gcs.cat_file("score/out/part-000000.parquet"))
    rows = read_all(tmp_path)
    ends = ["metal000.png", "metal001.png", "in/one.png", "in/two.jpg", "some.png", "p/a.png", "none.png", "a.png"]
    assert all(row["file"].endswith(end) for row, end in zip(rows, [*ends, "c.png"], strict=True))
    assert rows[0]["confidence"] == rows[5]["confidence"] and "No such file" in rows[6]["error"]
    assert call(*words, "--accept-errors").returncode == 0, "it is finished, and looks there"


def test_a_store_that_is_gone_ends_the_run_and_counts_no_photograph(tmp_path, tiny):
    (tmp_path / "list.txt").write_text("nowhere://bucket/a.png\n", encoding="utf-8")
    done = call("score", tmp_path / "list.txt", "--out", tmp_path / "out", "--model", tiny, "--processes", "1")
    assert done.returncode == 1 and "nowhere://bucket/a.png cannot be used" in done.stderr
    assert not list((tmp_path / "out").glob("part*"))


# Interruptions


def test_killed_in_the_middle_and_resumed(tmp_path, tiny):
    photos = link(tmp_path, 4000)
    words = command(photos, "--out", tmp_path / "out", "--model", tiny, "--processes", "2")
    killed = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "out").glob("part-*"))) < 20 and killed.poll() is None:
        time.sleep(0.02)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text(encoding="utf-8").split()
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    size = json.loads((tmp_path / "out/_run.json").read_text(encoding="utf-8"))["part_size"]
    assert size <= 0.005 * 4000 and 20 <= len(before) < 4000 / size
    deadline = time.monotonic() + 30
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) >= 2 and not any(map(is_running, children)), "the processes end with the program"
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and f"{len(before) * size:,} of them before" in done.stdout, done.stderr
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), "no part is done twice"
    rows = read_all(tmp_path / "out")
    files = sorted(str(path) for path in photos.rglob("*.png"))
    assert [row["file"] for row in rows] == files and not any(row["error"] for row in rows)


def is_running(pid: str) -> bool:
    "Whether a process does anything yet; one that nobody has waited for does not."
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def read_or_die(entry: Entry) -> bytes:
    "A photograph that ends its process, as one does that breaks a decoder."
    if "metal001" in entry.file:
        os._exit(9)
    return read_entry(entry)


def test_a_photograph_that_ends_its_process_is_left_out_alone(photos, tmp_path, tiny):
    entries = EntryList([str(photos)])
    summary = score_all(ScoringTask(read_or_die, tiny), entries, ResultFolder(str(tmp_path)), processes=1)
    assert (summary.total, summary.left_out) == (16, 5)
    (row,) = [row for row in read_all(tmp_path) if "metal001" in row["file"]]
    assert row["error"] == "its process ended (exit code 9), twice"


class Deadly:
    "Ends the process that receives it."

    def __reduce__(self):
        return os._exit, (7,)


def test_a_process_that_cannot_start_ends_the_run(tiny):
    with pytest.raises(TrashsortingError, match=r"a process ended while it started \(exit code 7\); allow fewer"):
        list(score_on_processes(ScoringTask(Deadly(), tiny), None, [(0, [1])], 1))


def note_and_read(entry: Entry) -> bytes:
    "A photograph, of which a file beside it says that it was read."
    Path(entry.file).touch()
    return read_entry(entry)


def test_a_process_works_while_the_program_writes(photos, tmp_path, tiny):
    entries = [Entry(str(tmp_path / f"{number}.read"), str(photos / "metal/metal000.png")) for number in range(9)]
    parts = ((number, [entry]) for number, entry in enumerate(entries))
    finished = score_on_processes(ScoringTask(note_and_read, tiny), read_card(tiny), parts, 1)
    assert next(finished).number == 0, "for this, photograph 1 was classified, too"
    deadline = time.monotonic() + 60
    while not (tmp_path / "2.read").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "2.read").exists(), "the process has the next one already"
    assert [part.number for part in finished] == list(range(1, 9))


# Several tasks


def test_tasks_share_a_run_whatever_their_order(photos, tmp_path, tiny):
    words = ["score", *[photos] * 4, "--model", tiny, "--processes", "1", "--accept-errors"]
    assert call(*words, "--out", tmp_path / "one").returncode == 0
    for index in (1, 0):
        variables = {"CLOUD_RUN_TASK_INDEX": str(index), "CLOUD_RUN_TASK_COUNT": "2"}
        assert call(*words, "--out", tmp_path / "two", **variables).returncode == 0
    assert read_all(tmp_path / "one") == read_all(tmp_path / "two") and len(read_all(tmp_path / "one")) == 64
    outside = call(*words, "--out", tmp_path / "x", "--task-index", "3", "--task-count", "3")
    assert outside.returncode == 2 and "--task-index 3: it is below --task-count" in outside.stderr


def test_errors_are_sentences(photos, tmp_path, tiny):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/part-000000.parquet").touch()
    (tmp_path / "file").touch()
    (tmp_path / "powershell.txt").write_text("photo.jpg\n", encoding="utf-16")
    for words, message in (
        ([tmp_path / "nothing", "--out", tmp_path / "out"], "no photographs in the sources"),
        ([tmp_path / "nowhere", "--out", tmp_path / "out"], "nowhere: nothing there"),
        ([photos, "--out", tmp_path / "theirs"], "there are parts of something else"),
        ([photos, "--out", tmp_path / "file/out"], "cannot be written"),
        ([tmp_path / "powershell.txt", "--out", tmp_path / "out"], "line 1: is not UTF-8 text; save the list as UTF-8"),
    ):
        done = call("score", *words, "--model", tiny)
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


# Memory


def peak_memory(photos: Path, out: Path, model: Path) -> float:
    "The largest resident memory of a run, megabytes: of the program, or of its process where that has more."
    words = command(photos, "--out", out, "--model", model, "--processes", "1")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss / 1e3


def test_memory_does_not_grow_with_the_number(tmp_path, tiny, capsys):
    few = peak_memory(link(tmp_path / "few", LINKS // 10), tmp_path / "a", tiny)
    many = peak_memory(link(tmp_path / "many", LINKS), tmp_path / "b", tiny)
    with capsys.disabled():
        print(f" [{LINKS // 10} links {few:.0f} MB, {LINKS} links {many:.0f} MB]", end="")
    assert many - few < GROWTH
    assert sum(pq.read_metadata(path).num_rows for path in (tmp_path / "b").glob("part-*")) == LINKS


# Ray


def start_node(folder: Path, nodes: list[subprocess.Popen], *words: str) -> str:
    "Start a node with one core, in a process group of its own, until it runs; returns what it says."
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    start += ["--object-store-memory", "100000000", "--disable-usage-stats", "--node-ip-address", *words]
    log = folder / f"log{len(nodes)}"
    for _ in range(5):  # Ray gives a node's helpers 15 seconds, which is too short on a busy machine
        with log.open("w", encoding="utf-8") as stream:
            nodes.append(subprocess.Popen(start, stdout=stream, stderr=stream, start_new_session=True))
        while nodes[-1].poll() is None:
            if "Ray runtime started" in log.read_text(encoding="utf-8"):
                return log.read_text(encoding="utf-8")
            time.sleep(0.2)
    raise AssertionError(log.read_text(encoding="utf-8"))


@contextmanager
def ray_cluster(folder: Path):
    "Two nodes on loopback; yields the address. The folder's path is short: it holds sockets."
    nodes: list[subprocess.Popen] = []
    try:
        head = ["127.0.0.2", "--head", "--port", "0", "--include-dashboard", "false", "--temp-dir", str(folder)]
        address = re.search(r"--address='([\d.:]+)'", start_node(folder, nodes, *head))[1]
        start_node(folder, nodes, "127.0.0.3", "--address", address)
        yield address
    finally:
        for node in nodes:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()


@pytest.mark.skipif("CHECK_RAY" not in os.environ, reason="CHECK_RAY is unset: a cluster belongs to make check-long")
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="!!! ray is missing (the extra `ray`): no cluster was started"
)
def test_two_nodes_give_the_same_parts(photos, tmp_path, monkeypatch):
    words = [*[photos] * 4, "--processes", "2"]
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("HOME", folder)  # Ray writes a token there, which the nodes and the program share
        with ray_cluster(Path(folder)) as address:
            ray_words = command(*words, "--out", tmp_path / "ray-out", "--engine", "ray", "--ray-address", address)
            done = subprocess.run(ray_words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 3 and "classified 48 of 64" in done.stdout, done.stdout + done.stderr
    assert subprocess.run(command(*words, "--out", tmp_path / "out"), capture_output=True).returncode == 3
    assert read_all(tmp_path / "ray-out") == read_all(tmp_path / "out")


def test_ray_is_an_extra(photos, tmp_path, monkeypatch):
    if importlib.util.find_spec("ray"):
        pytest.skip("ray is installed here")
    done = call("score", photos, "--out", tmp_path, "--engine", "ray")
    assert done.returncode == 1 and "pip install 'trashsorting[ray]'" in done.stderr
