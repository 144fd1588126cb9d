"""Training runs as a person starts them: the command, papermill, a folder full of results. On drawn pictures."""

import csv
import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import nbformat
import pytest
import timm
import torch
import yaml
from command import call

from trashsorting.core.card import Preprocessing, card_path, read_card
from trashsorting.core.config import TrainConfig, check_config
from trashsorting.core.errors import TrashsortingError
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.manifest import read_folder
from trashsorting.data.sample import draw_picture, draw_sample
from trashsorting.data.sources import SAMPLE_NAME, TRASHNET_COUNTS, load_manifest
from trashsorting.data.splits import split_by_hash
from trashsorting.export.onnx import export_run
from trashsorting.training.backbone import create_backbone, split_parameters
from trashsorting.training.callbacks import Diverged
from trashsorting.training.dataloaders import make_dataloaders
from trashsorting.training.run import load_run, train

COMMAND = Path(sys.executable).parent / "trashsorting"
CLONE_NEWNS = 0x00020000  # Of Linux: a mount namespace of one's own
PREPROCESSING = Preprocessing(
    input_size=64, crop_mode="squash", crop_pct=1.0, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
)
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there
SMALL = ("-p", "image_size", "64", "-p", "freeze_epochs", "0", "-p", "num_workers", "0")
TINY = TrainConfig("test_efficientnet", pretrained=False, image_size=64, freeze_epochs=0, num_workers=0, batch_size=8)


def launch(*words, **environment) -> subprocess.CompletedProcess:
    "Run the command in a new process, because it reads the hub's address when it starts."
    return subprocess.run(
        [COMMAND, *map(str, words)], capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )


def foreign_kernels(folder: Path) -> str:
    'Where Jupyter finds a kernel "python3" that cannot be started, before it finds its own.'
    (folder / "kernels" / "python3").mkdir(parents=True)
    spec = {"argv": ["/nowhere/python", "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, request) -> Path:
    "A finished run of two epochs on the drawn sample; the folder's name and the terminal's encoding are unusual."
    out = tmp_path_factory.mktemp("runs") / "a {0} {b} 100%s →"
    odd = {"PYTHONIOENCODING": "cp1252", "JUPYTER_PATH": foreign_kernels(tmp_path_factory.mktemp("jupyter"))}
    (out / "views").mkdir(parents=True)
    (out / "views" / "index.html").write_text("mine")
    start = time.perf_counter()
    rates = ("-p", "epochs", "2", "-p", "batch_size", "8", "-p", "lr", "1e-3")
    done = launch("train", "--data", "sample", "--out", out, *SMALL, *rates, **odd)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f" [{seconds:.0f} s for `trashsorting train` on the drawn sample]", end="")
    (out / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    (out / "stderr.txt").write_text(done.stderr, encoding="utf-8")
    return out


def test_a_run_writes_all_its_files(run):
    for name in (
        "train.ipynb",
        "history.csv",
        "curves.png",
        "confusion.png",
        "checkpoint.pth",
        "run.json",
        "manifest.csv",
    ):
        assert (run / name).stat().st_size > 0, name
    card = read_card(run / "model.onnx")
    assert card.evaluation.n == 24 and card.evaluation.accuracy > 0.8
    assert card.preprocessing.input_size == 64
    assert card.provenance.data == SAMPLE_NAME
    assert (card.provenance.n_train, card.provenance.n_valid) == (96, 24)
    assert card.provenance.parameters["lr"] == 1e-3
    assert json.loads((run / "run.json").read_bytes())["cache"].startswith("120 of 120 photographs in memory")
    assert card.provenance.libraries.keys() >= {"torch", "timm", "fastai", "onnx", "onnxruntime", "pillow"}


def test_a_folder_that_was_there_is_still_there(run):
    assert (run / "views" / "index.html").read_text() == "mine"


def test_progress_reaches_the_terminal_and_the_history(run):
    with open(run / "history.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    output = (run / "stdout.txt").read_text(encoding="utf-8")
    for row in rows:
        assert f"epoch {row['epoch']}/2  done" in output
        assert f"valid_loss {float(row['valid_loss']):.4f}" in output


def test_warnings_of_libraries_are_hidden(run, tmp_path):
    average = launch("average", run, run, "--out", tmp_path / "average")
    assert average.returncode == 0
    for errors in ((run / "stderr.txt").read_text(), average.stderr):
        assert "WARNING" not in errors and "Warning" not in errors


def test_an_unprintable_name_is_escaped(run):
    assert r"a {0} {b} 100%s \u2192/model.onnx" in (run / "stdout.txt").read_text(encoding="utf-8")


def test_the_executed_notebook_has_its_parameters_and_no_error(run):
    notebook = nbformat.read(run / "train.ipynb", 4)
    injected = next(cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert "epochs = 2" in injected.source
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_model_can_be_used_at_once(run, tmp_path):
    draw_sample(tmp_path / "fresh", 8)
    done = call("evaluate", tmp_path / "fresh", "--model", run / "model.onnx", "--json", tmp_path / "metrics.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "metrics.json").read_bytes())["accuracy"] > 0.8


def test_export_is_reproducible(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    (again / "model.onnx").unlink()
    (again / "model.json").unlink()
    done = call("export", again)
    assert done.returncode == 0, done.stderr
    assert read_card(again / "model.onnx") == read_card(run / "model.onnx")


def test_an_export_that_fails_leaves_model_and_card_as_they_were(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    before = [(copy / name).read_bytes() for name in ("model.onnx", "model.json")]
    state = torch.load(copy / "checkpoint.pth", weights_only=True)
    state["classifier.bias"] += 1
    torch.save(state, copy / "checkpoint.pth")
    monkeypatch.setattr("trashsorting.export.onnx._make_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_run(copy)
    assert [(copy / name).read_bytes() for name in ("model.onnx", "model.json")] == before


def test_synthetic_images_and_the_weights_of_a_run_are_used_and_recorded(run, tmp_path):
    draw_sample(tmp_path / "photos", 20)  # those of the run, with its split
    assert call("data", "synthesize", tmp_path / "photos", "--out", tmp_path / "synthetic", "-n", 1).returncode == 0
    words = ("--synthetic", f"file://{tmp_path}/synthetic", "--init-from", run, "-p", "epochs", "1")
    done = call("train", "--data", tmp_path / "photos", "--out", tmp_path / "run", *words, *SMALL)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_bytes())["synthetic"].startswith("1 of each of")
    assert read_card(tmp_path / "run" / "model.onnx").provenance.weights.endswith("; initialised from another run")


def test_a_diverged_run_has_a_readable_error_and_no_model(tmp_path):
    manifest, config = load_manifest("sample", tmp_path / "data"), replace(TINY, epochs=2, lr=1e7)
    with pytest.raises(
        Diverged, match="epoch 1 of 2: train_loss is nan and valid_loss is nan, so the run has"
    ) as fault:
        train(manifest, config, tmp_path / "run")
    assert "a lower lr (now 1e+07)" in str(fault.value)
    assert not any((tmp_path / "run" / name).exists() for name in ("run.json", "checkpoint.pth", "resume.pth"))


@pytest.mark.parametrize("command", [("export",), ("average", "--out", "mean")])
def test_non_finite_weights_are_refused(run, tmp_path, command):
    broken = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("model.*", "data"))
    state = torch.load(broken / "checkpoint.pth", weights_only=True)
    state["conv_stem.weight"][0, 0, 0, 0] = float("inf")
    torch.save(state, broken / "checkpoint.pth")
    name, *more = command
    done = call(
        name, *([broken, run] if more else [broken]), *[tmp_path / word if word == "mean" else word for word in more]
    )
    assert done.returncode == 1 and f"{broken / 'checkpoint.pth'}: its weights are not finite" in done.stderr
    assert not (broken / "model.onnx").exists() and not (tmp_path / "mean").exists()


def read_with_little_memory(folder: Path, pipe: Connection) -> None:
    "What a loader says where /dev/shm is too small for a batch, and for the locks of the processes."
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    loaders = make_dataloaders(split_by_hash(read_folder(folder)), PREPROCESSING, 8, num_workers=1, augment=False)
    for size in ("64k", "8k"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)  # noqa: S108
        try:
            next(iter(loaders.train))
        except TrashsortingError as error:
            pipe.send(str(error))


def test_too_little_shared_memory_names_num_workers(tmp_path):
    "In a mount namespace with its own /dev/shm."
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]  # noqa: S108
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("!!! a small /dev/shm was not tried: mounting one takes root and a name space of its own")
    fork, (ours, theirs) = get_context("fork"), Pipe()
    process = fork.Process(target=read_with_little_memory, args=(draw_sample(tmp_path / "sample", 4), theirs))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    for _ in range(2):
        assert ours.poll() and "num_workers 0 (-p num_workers 0), or give them more" in ours.recv()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("checkpoint.pth", b"", "not the weights of a tf_efficientnet_lite0 with 6 classes (EOFError)"),
        ("checkpoint.pth", b"no", "not the weights of a tf_efficientnet_lite0 with 6 classes (UnpicklingError)"),
        ("checkpoint.pth", [1, 2], "not the weights of a tf_efficientnet_lite0 with 6 classes (TypeError)"),
        ("run.json", {"preprocessing": {"input_size": 0}}, "the run cannot be read back: input_size: Input should"),
        ("run.json", {"config": None}, "the run cannot be read back: "),
        ("run.json", {"calibration": {"temperature": "x"}}, "the run cannot be read back: calibration={"),
        ("run.json", {"libraries": None}, "the run cannot be read back: libraries=None: must be"),
        ("run.json", {"labels": list("abcdef")}, "the run cannot be read back: its classes lack 'cardboard'"),
        ("run.json", {"config": {"views": 16}}, "the run cannot be read back: unknown parameter 'views'; known are"),
        ("manifest.csv", b"no", "no column 'file'; needs the columns file,label,"),
    ],
)
def test_a_damaged_run_has_a_readable_error(run, tmp_path, name, content, message):
    broken = shutil.copytree(run, tmp_path / "run")
    if isinstance(content, dict):
        content = json.dumps(json.loads((broken / name).read_bytes()) | content).encode()
    if isinstance(content, list):
        torch.save(content, broken / name)
    else:
        (broken / name).write_bytes(content)
    done = call("export", broken)
    assert done.returncode == 1 and f"{broken / name}: {message}" in done.stderr and "Traceback" not in done.stderr


def test_photographs_that_have_changed_are_not_measured(run, tmp_path):
    changed = shutil.copytree(run, tmp_path / "run")
    photographs = changed / "data"
    held_out = next(entry.file for entry in load_run(run).manifest.entries if entry.split == "val")
    draw_picture("metal", 77).save(photographs / held_out)
    done = call("export", changed)
    assert done.returncode == 1 and f"{photographs / held_out}: is another file than then" in done.stderr


def test_a_run_that_was_moved_takes_its_photographs_along(run, tmp_path):
    moved, info = shutil.copytree(run, tmp_path / "moved"), json.loads((run / "run.json").read_bytes())
    assert load_run(moved).manifest.root.samefile(moved / "data") and info["root"] == "data"
    assert call("average", moved, moved, "--out", tmp_path / "mean").returncode == 0
    assert load_run(tmp_path / "mean").manifest.root.samefile(moved / "data")


def test_a_run_of_other_photographs_cannot_be_gone_on_from(run, tmp_path):
    photographs = draw_sample(tmp_path / "photographs", 4)
    for path in photographs.glob("*/*.png"):
        draw_picture(path.parent.name, 50 + int(path.stem[-3:])).save(path)
    words = ("--data", photographs, "--init-from", run, "--out", tmp_path / "run")
    done = call("train", *words, "-p", "image_size", 64, "-p", "num_workers", 0)
    assert done.returncode == 1 and "which is not among the photographs here" in done.stderr, done


def test_a_model_trained_on_drawings_is_not_installed(run):
    before = card_path(SHIPPED_MODEL).read_bytes()
    done = call("export", run, "--install")
    assert done.returncode == 1 and "what ships is trained on photographs" in done.stderr
    assert card_path(SHIPPED_MODEL).read_bytes() == before


def test_a_finished_run_is_not_overwritten(run):
    before = (run / "model.onnx").stat().st_mtime_ns
    done = call("train", "--data", "sample", "--out", run)
    assert done.returncode == 1 and "holds a finished run already" in done.stderr
    assert (run / "model.onnx").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["manifest.csv", "train.ipynb", "model.onnx", "data/glass/glass000.png"])
def test_files_of_others_are_not_overwritten(run, name, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    done = call("train", "--data", "sample", "--out", tmp_path, "-p", "backbone", "nothing")
    assert done.returncode == 1 and "is not of a run, and" in done.stderr and "choose another folder" in done.stderr
    if "data" not in name:
        done = call("average", run, run, "--out", tmp_path)
        assert done.returncode == 1 and f"{tmp_path / name} is not of a run" in done.stderr
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("command", ["train", "crossval", "sweep", "data synthesize"])
def test_results_do_not_go_among_the_photographs(command, tmp_path):
    photographs = draw_sample(tmp_path / "photographs", 2, ("glass", "metal"))
    source = (photographs,) if command == "data synthesize" else ("--data", photographs)
    for out in (photographs, photographs / "results"):
        done = call(*command.split(), *source, "--out", out)
        assert done.returncode == 1 and "whose folders are read as classes" in done.stderr, done
    assert sorted(path.name for path in photographs.iterdir()) == ["glass", "metal"]


def test_a_wrong_value_is_refused_before_training(tmp_path):
    done = call("train", "--data", "sample", "--out", tmp_path / "run", "-p", "epochs", "many")
    assert done.returncode == 1
    assert "epochs='many': must be a valid integer" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists(), "what is refused leaves nothing behind"


def test_the_recipe_for_a_backbone_of_the_hub_can_be_trained():
    recipe = Path(__file__).resolve().parents[2] / "experiments" / "tiny_vit.yaml"
    config = check_config(**yaml.safe_load(recipe.read_bytes()))
    network, _ = create_backbone(config.backbone, 6, pretrained=False)
    assert timm.is_model_pretrained(config.backbone)
    assert [len(group) > 0 for group in split_parameters(network, config.frozen_stages)] == [True, True]


def test_another_backbone_with_seven_classes_a_zip_and_wandb_offline(tmp_path):
    "Network, classes, archive and tracker changed at once."
    labels = ("cardboard", "glass", "metal", "paper", "plastic", "trash")
    folder = draw_sample(tmp_path / "mine", 6, labels)
    (folder / "batteries").mkdir()
    for number in range(6):
        draw_picture("metal", number, (60, 160)).save(folder / "batteries" / f"{number}.png")
    archive = shutil.make_archive(tmp_path / "mine", "zip", tmp_path, "mine")
    words = ("-p", "backbone", "mobilenetv3_small_100", "-p", "pretrained", "false", "-p", "epochs", "1")
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    out = tmp_path / "run"
    done = call("train", "--data", archive, "--out", out, *SMALL, *words, "-p", "tracker", "wandb", **offline)
    assert done.returncode == 0, done.stderr
    card = read_card(out / "model.onnx")
    assert card.classes == ("batteries", *labels)
    assert (card.architecture, card.provenance.weights) == ("mobilenetv3_small_100", "random")
    assert card.preprocessing.mean == (0.485, 0.456, 0.406)
    (logged,) = out.glob("wandb/offline-run-*/run-*.wandb")
    assert b"valid_loss" in logged.read_bytes()


FAKE_HUB = """
import hashlib, http.server, sys
data = open(sys.argv[1], "rb").read()
class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self, body=b""):
        exists = self.path == "/datasets/garythung/trashnet/resolve/main/dataset-resized.zip"
        self.send_response(200 if exists else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", hashlib.sha256(data).hexdigest())
        self.send_header("Content-Length", str(len(data) if exists else 0))
        self.end_headers()
    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(data)
    def log_message(self, *words): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def hub(tmp_path):
    "A hub on loopback with TrashNet's archive, filled with tiny pictures."
    draw_picture("glass", 0, (16, 12)).save(tmp_path / "tiny.jpg")
    tiny = (tmp_path / "tiny.jpg").read_bytes()
    with zipfile.ZipFile(tmp_path / "hub.zip", "w") as archive:
        for label, count in TRASHNET_COUNTS.items():
            for number in range(count):
                archive.writestr(f"dataset-resized/{label}/{label}{number}.jpg", tiny)
        archive.writestr("__MACOSX/dataset-resized/._glass1.jpg", b"not a picture")
        archive.writestr("dataset-resized/.DS_Store", b"not a picture")
    server = subprocess.Popen([sys.executable, "-c", FAKE_HUB, tmp_path / "hub.zip"], stdout=subprocess.PIPE, text=True)
    yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    server.kill()
    server.wait()


def test_the_hub_archive_gives_each_photograph_once(hub, tmp_path):
    out = tmp_path / "manifest.csv"
    done = launch("data", "manifest", "hub", "--out", out, HF_ENDPOINT=hub, HF_HUB_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "2527 photographs of 6 classes, 0 skipped" in done.stdout
    with open(out, encoding="utf-8") as stream:
        assert len({row["file"] for row in csv.DictReader(stream)}) == 2527


def test_an_unreachable_hub_has_a_readable_error(tmp_path):
    done = launch("data", "manifest", "hub", HF_ENDPOINT=NOWHERE, HF_HUB_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "garythung/trashnet cannot be fetched from the hub" in done.stderr
    assert len(done.stderr.splitlines()) <= 2
