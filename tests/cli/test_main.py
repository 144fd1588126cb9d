"""The `trashsorting` command as a process: standard output, standard error and exit status."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import call as call_here

from trashsorting.cli.main import predictions_csv
from trashsorting.core.card import Evaluation, read_card
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.manifest import Entry
from trashsorting.data.sample import draw_picture, draw_sample
from trashsorting.evaluation.calibration import fit_temperature
from trashsorting.evaluation.oof import load_predictions
from trashsorting.inference.session import softmax

COMMAND = Path(sys.executable).parent / "trashsorting"


def call(*words, stdin: bytes = b"", **environment) -> subprocess.CompletedProcess:
    "Run the installed command."
    return subprocess.run(
        [COMMAND, *map(str, words)], input=stdin, capture_output=True, timeout=120, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return draw_sample(tmp_path_factory.mktemp("sample"), per_class=2)


def test_every_command_has_help():
    top = call("--help")
    assert top.returncode == 0
    for name in ("predict", "evaluate", "robustness", "train", "export", "quantize", "data", "serve"):
        assert name in top.stdout.decode()
        done = call(name, "--help")
        assert done.returncode == 0 and b"Usage: trashsorting" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "nowhere.jpg"], "nowhere.jpg: No such file"),
        (["predict", "{empty}"], "no pictures in this folder"),
        (["predict", "--model", "nowhere.onnx", "x.jpg"], "'nowhere.onnx' does not exist"),
        (["evaluate", "nowhere"], "nowhere: no such folder"),
        (["evaluate", "{sample}", "--split", "{sample}/dev.csv"], "unknown split 'dev'"),
        (["export", "nowhere"], "run.json: no such file"),
        (["quantize", "nowhere.onnx", "--data", "sample", "--out", "{empty}/x.onnx"], "'nowhere.onnx' does not exist"),
        (["train", "--data", "nowhere", "--out", "{empty}/run"], "nowhere: no such folder or zip"),
        (["train", "--data", "sample", "--out", "{empty}/run", "-p", "epoch", "3"], "unknown parameter 'epoch'"),
        (["train", "--data", "sample", "--out", "{empty}/run", "-p", "epochs", "x"], "epochs='x': must be a valid int"),
        (["train", "--data", "sample", "--out", "{empty}/run", "-p", "image_size", "3"], "image_size=3: must be"),
        (["train", "--data", "sample", "--out", "{empty}/run", "--synthetic", "none"], "'none' does not exist"),
        (["train", "--data", "sample", "--out", "{empty}/run", "--init-from", "none"], "'none' does not exist"),
        (["crossval", "--data", "{sample}", "--out", "{empty}/cv", "--synthetic", "none"], "'none' does not exist"),
        (["sweep", "--data", "nowhere", "--out", "{empty}/sweep"], "nowhere: no such folder"),
        (["evaluate", "nowhere", "--json", "{empty}/new/x.json"], "nowhere: no such folder"),
        (["data", "check", "nowhere", "--out", "{empty}/new/tables"], "nowhere: no such folder"),
        (["teach", "--add", "{sample}/glass", "--out", "{empty}/new.onnx"], "the model knows a class 'glass' already"),
        (["data", "sample", "{sample}"], "there is something in it already"),
        (["data", "manifest", "{sample}/glass"], "no sub-folders"),
        (
            ["data", "synthesize", "{sample}", "--out", "{empty}/synthetic", "--seed", "-1"],
            "-1 is not in the range x>=0",
        ),
        (["serve", "--port", "99999"], "99999 is not in the range"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_errors_are_one_sentence_on_standard_error(words, message, sample, tmp_path):
    (sample / "dev.csv").write_text("file,label,split\nglass/glass000.png,glass,dev\n", encoding="utf-8")
    done = call_here(*(word.format(sample=sample, empty=tmp_path) for word in words))
    assert done.returncode != 0
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not any(tmp_path.iterdir())  # no file was made


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("THREADS", "-1"),
        ("QUEUE", "many"),
        ("QUEUE_SECONDS", "0"),
        ("WORK_SECONDS", "inf"),
        ("GRACE_SECONDS", "1"),
        ("CORS_ORIGINS", "one.example"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_setting_is_named(name, value):
    done = call("serve", **{f"TRASHSORTING_{name}": value})
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"trashsorting: TRASHSORTING_{name}='{value}': ")


def test_a_misspelt_setting_is_named():
    done = call("serve", TRASHSORTING_APIKEY="correct horse")
    assert done.returncode == 1
    assert done.stderr == b"trashsorting: TRASHSORTING_APIKEY is no setting; is TRASHSORTING_API_KEY meant?\n"


def test_a_too_short_key_is_not_printed():
    done = call("serve", TRASHSORTING_API_KEY="1234")
    assert done.returncode == 1 and done.stderr.startswith(b"trashsorting: TRASHSORTING_API_KEY: ")
    assert b"8 characters or more" in done.stderr
    assert b"1234" not in done.stderr


def test_a_port_in_use_has_a_readable_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = call("serve", "--port", taken.getsockname()[1])
    assert done.returncode == 1 and b"cannot listen on 127.0.0.1, port" in done.stderr
    assert b"Address already in use; choose another one with --port" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_predict_a_folder_a_file_and_standard_input(sample):
    folder = call("predict", sample, "--json")
    answers = json.loads(folder.stdout)
    assert folder.returncode == 0 and len(answers) == 12

    path = sample / "glass" / "glass000.png"
    by_path = next(answer for answer in answers if answer["file"] == str(path))
    piped = json.loads(call("predict", "-", "--json", stdin=path.read_bytes()).stdout)[0]
    assert {**piped, "file": str(path)} == by_path
    assert tuple(sorted(by_path["all_probabilities"])) == read_card(SHIPPED_MODEL).classes

    line = call("predict", path, "--top-k", "3").stdout.decode()
    best = list(by_path["all_probabilities"])[:3]
    assert [word for word in line.split() if word in best] == best


def test_an_unusable_file_does_not_stop_the_others(sample, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"GIF89a")
    done = call("predict", bad, sample / "glass", "--json")
    answers = json.loads(done.stdout)
    assert done.returncode == 1
    assert [("error" in answer) for answer in answers] == [True, False, False]
    assert b"bad.jpg: not a picture in an accepted format" in done.stderr


def test_evaluate_writes_all_metrics(sample, tmp_path):
    done = call("evaluate", sample, "--json", tmp_path / "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_bytes())
    assert done.returncode == 0, done.stderr
    expected = {"accuracy", "accuracy_interval", "macro_f1", "per_class", "confusion", "classes", "n", "ms_per_image"}
    assert expected <= metrics.keys()
    assert metrics["n"] == 12 == sum(map(sum, metrics["confusion"]))
    assert metrics["accuracy"] == sum(metrics["confusion"][i][i] for i in range(6)) / 12
    assert f"{metrics['accuracy']:.4f}" in done.stdout.decode()
    Evaluation.model_validate(metrics)


def test_evaluate_accepts_fewer_classes_and_names_unknown_ones(sample, tmp_path):
    draw_sample(tmp_path / "few", 2, ("glass", "paper"))
    done = call("evaluate", tmp_path / "few", "--json", tmp_path / "few.json")
    assert done.returncode == 0
    metrics = json.loads((tmp_path / "few.json").read_bytes())
    assert metrics["per_class"]["metal"]["support"] == 0
    present = [metrics["per_class"][label]["f1"] for label in ("glass", "paper")]
    assert metrics["macro_f1"] == pytest.approx(sum(present) / 2)

    (tmp_path / "few" / "batteries").mkdir()
    draw_picture("metal", 0).save(tmp_path / "few" / "batteries" / "a.png")
    refused = call("evaluate", tmp_path / "few")
    assert refused.returncode == 1 and b"the model knows no class 'batteries'" in refused.stderr


def test_a_split_selects_the_subset(sample, tmp_path):
    made = call("data", "manifest", sample, "--out", tmp_path / "manifest.csv")
    assert made.returncode == 0, made.stderr
    done = call(
        "evaluate", sample, "--split", tmp_path / "manifest.csv", "--subset", "val", "--json", tmp_path / "val.json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "val.json").read_bytes())["n"] == 6
    absent = call("evaluate", sample, "--split", tmp_path / "manifest.csv", "--subset", "test")
    assert absent.returncode == 1 and b"no photograph is in split 'test'; there is train, val" in absent.stderr


def test_the_light_commands_never_import_torch(sample):
    heavy = "{'torch', 'fastai', 'timm', 'pandas', 'matplotlib', 'papermill'}"
    code = (
        "import sys; from trashsorting.cli.main import cli;"
        f"cli(['predict', {str(sample / 'glass')!r}], standalone_mode=False);"
        f"cli(['evaluate', {str(sample)!r}], standalone_mode=False);"
        f"sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_python_dash_m_runs_the_command(sample):
    done = subprocess.run(
        [sys.executable, "-m", "trashsorting", "predict", sample / "glass" / "glass000.png"],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0 and b"glass000.png\t" in done.stdout


def test_unusual_names_survive_the_predictions_csv(tmp_path):
    name = 'eine "Dose", Müll.png'
    draw_sample(tmp_path / "sample", 1, ("glass", "metal"))
    (tmp_path / "sample/metal/metal000.png").rename(tmp_path / "sample/metal" / name)
    done = call("evaluate", tmp_path / "sample", "--predictions", tmp_path / "predictions.csv")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as stream:
        assert [row["file"] for row in csv.DictReader(stream)] == ["glass/glass000.png", f"metal/{name}"]
    classes = ("paper, clean", 'the "rest"')
    entries = [Entry(name, classes[0], "val", "", 1, 1)]
    head, row = csv.reader(predictions_csv(entries, np.array([[0.25, 0.75]]), classes).splitlines())
    assert head[4:] == [f"probability:{label}" for label in classes]
    assert row == [name, *classes, "0.750000", "0.250000", "0.750000"]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "{sample}", "--json"],
        ["evaluate", "{sample}", "--predictions"],
        ["robustness", "{sample}", "--json"],
        ["data", "manifest", "{sample}", "--out"],
        ["data", "check", "{sample}", "--out"],
        ["data", "report", "{sample}", "--out"],
    ],
)
def test_an_unwritable_output_is_reported_before_the_work(words, sample, tmp_path):
    (tmp_path / "notes").write_text("a file, and no folder", encoding="utf-8")
    target = tmp_path / "notes" / "x.json"
    done = call_here(*(word.format(sample=sample) for word in words), target)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"trashsorting: {target}: cannot be written (Not a directory); choose a place that you may write to\n"
    )
    sealed = call_here(*(word.format(sample=sample) for word in words), "/proc/x.json")
    assert (sealed.returncode, sealed.stdout) == (1, "") and "/proc/x.json: cannot be written" in sealed.stderr


def test_missing_output_folders_are_made(sample, tmp_path):
    metrics, predictions = tmp_path / "new" / "metrics.json", tmp_path / "newer" / "still" / "predictions.csv"
    done = call_here("evaluate", sample, "--json", metrics, "--predictions", predictions)
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(metrics.read_bytes())["n"] == 12 and len(predictions.read_text(encoding="utf-8").splitlines()) == 13
    )
    assert call_here("evaluate", sample / "nowhere", "--json", "/dev/null").stderr.startswith("trashsorting: ")
    assert call_here("evaluate", sample, "--json", "/dev/null").returncode == 0


def test_robustness_reports_skipped_files(tmp_path):
    draw_sample(tmp_path / "few", 2, ("glass", "paper"))
    for n in range(20):
        draw_picture("glass", n).save(tmp_path / "few" / "glass" / f"more{n}.png")
    (tmp_path / "few" / "glass" / "notes.jpg").write_text("no picture", encoding="utf-8")
    results = [
        call_here(command, tmp_path / "few", "--json", tmp_path / f"{command}.json")
        for command in ("evaluate", "robustness")
    ]
    assert [done.returncode for done in results] == [0, 0]
    evaluated, corrupted = ([line for line in done.stderr.splitlines() if "skipped" in line] for done in results)
    assert corrupted == evaluated and len(corrupted) == 1
    assert corrupted[0].startswith("skipped: glass/notes.jpg: not a picture in an accepted format")
    assert json.loads((tmp_path / "robustness.json").read_bytes())["robustness"]["n"] == 24


def test_predict_reads_only_regular_files_of_a_folder(sample, tmp_path):
    os.mkfifo(tmp_path / "f.jpg")
    (tmp_path / "folder.jpg").mkdir()
    alone = call("predict", tmp_path)
    assert alone.returncode == 1 and b"no pictures in this folder" in alone.stderr

    (tmp_path / "folder.jpg" / "a.png").write_bytes((sample / "glass" / "glass000.png").read_bytes())
    (tmp_path / "good.png").symlink_to(sample / "glass" / "glass000.png")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    done = call("predict", tmp_path, "--json")
    errors = {
        Path(answer["file"]).relative_to(tmp_path).as_posix(): answer.get("error") for answer in json.loads(done.stdout)
    }
    pipe = "it is no file but a pipe, a socket or a device"
    assert errors == {"f.jpg": pipe, "folder.jpg/a.png": None, "good.png": None, "lost.jpg": "the link leads nowhere"}
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 2


def test_a_misspelt_parameter_is_refused_before_torch_loads(tmp_path):
    code = "import sys\nfrom trashsorting.cli.main import main\n"
    code += "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, "train", "--data", "sample", "--out", tmp_path / "run", "-p", "epoch", "3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert "unknown parameter 'epoch'" in done.stderr and done.stdout == "False\n"


def test_a_folder_that_is_sorted_by_class_does_not_drift(tmp_path):
    classes = read_card(SHIPPED_MODEL).classes
    folds = load_predictions(Path(__file__).parents[2] / "nbs" / "measured" / "out_of_fold.csv")
    probabilities = softmax(folds.logits, fit_temperature(folds.logits, folds.targets))
    rows = [",".join(f"probability:{label}" for label in classes)]
    rows += [",".join(map(str, row)) for row in probabilities[np.argsort(folds.targets, kind="stable")].tolist()]
    (tmp_path / "predictions.csv").write_text("\n".join(rows), encoding="utf-8")
    done = call_here("drift", tmp_path / "predictions.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("no alarm") and f"{len(rows) - 1} photographs" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_ended_leaves_nothing_behind(number, tmp_path):
    words = [sys.executable, "-m", "trashsorting", "data", "manifest", "sample"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip() == "trashsorting: stopped" and not list(tmp_path.iterdir())
