"""GitHub's workflows by rules that no linter knows: thin, least rights, nothing for forks; the scripts behind them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from command import run_light

from trashsorting.cli.main import cli
from trashsorting.core.card import Evaluation, card_path, file_sha256, read_card
from trashsorting.core.errors import ModelError
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.duplicates import compute_hashes, pack_hashes
from trashsorting.data.sample import draw_sample
from trashsorting.data.sources import SAMPLE_NAME
from trashsorting.inference.versions import list_versions

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_bytes()) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))
}
ACTIONS = {
    path.parent.name: yaml.safe_load(path.read_bytes()) for path in (ROOT / ".github/actions").glob("*/action.yml")
}
JOBS = [(name, job, found) for name, flow in WORKFLOWS.items() for job, found in flow["jobs"].items()]
jobs = pytest.mark.parametrize(("name", "job", "found"), JOBS, ids=[f"{name}-{job}" for name, job, _ in JOBS])


def triggers(name: str) -> set[str]:
    said = WORKFLOWS[name][True]  # YAML 1.1 reads `on` as a truth
    return {said} if isinstance(said, str) else set(said)


def steps() -> list[dict]:
    return [step for *_, found in JOBS for step in found.get("steps", [])] + [
        step for action in ACTIONS.values() for step in action["runs"]["steps"]
    ]


def test_everything_that_was_asked_for_is_there():
    wanted = {
        "test",
        "lint",
        "data-report",
        "images",
        "deploy",
        "train",
        "promote",
        "docs",
        "release",
        "update",
        "security",
    }
    assert wanted <= WORKFLOWS.keys() and (ROOT / ".github/dependabot.yml").exists()
    assert WORKFLOWS["test"]["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_starts_with_no_right_to_write_and_never_runs_twice_at_a_time(name):
    assert WORKFLOWS[name]["permissions"] in ({}, {"contents": "read"})
    assert WORKFLOWS[name]["concurrency"]["group"]
    assert not triggers(name) & {"pull_request_target", "workflow_run", "issue_comment"}


@jobs
def test_a_job_ends_and_asks_for_what_it_needs(name, job, found):
    if "uses" not in found:
        assert found["timeout-minutes"] <= 60
    rights = found.get("permissions", {})
    if "pull_request" in triggers(name):
        for right in {right for right, level in rights.items() if level == "write"} - {"security-events"}:
            assert "head.repo.full_name == github.repository" in found["if"], f"{right} in a fork's run"
        assert "secrets." not in json.dumps(found)
    if "google-cloud" in json.dumps(found.get("steps", [])):
        assert rights["id-token"] == "write" and "vars.GCP_PROJECT != ''" in found["if"]
        assert name == "data-report" or found["environment"] == "cloud"
    for step in found.get("steps", []):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_what_a_workflow_does_is_a_target_or_a_script():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    scripts = set()
    for step in steps():
        script = step.get("run", "")
        assert len(script.splitlines()) <= 6 and "${{" not in script, script
        assert not (wrong := set(re.findall(r"^\s*make ([a-z-]+)", script, re.MULTILINE)) - targets), wrong
        scripts |= set(re.findall(r"\btools/[\w.-]+", script))
    for name in scripts:
        assert (ROOT / name).is_file(), f"there is no {name}"
        assert name.endswith(".py") or os.access(ROOT / name, os.X_OK), f"{name} cannot be run"
    assert {"setup", "cloud"} <= targets and len(scripts) >= 6


def test_an_action_is_pinned_and_the_policy_names_its_owner():
    policies = yaml.safe_load((ROOT / ".github/zizmor.yml").read_bytes())["rules"]["unpinned-uses"]["config"][
        "policies"
    ]
    used = {step["uses"] for step in steps() if "uses" in step}
    for one in used:
        if not one.startswith("./"):
            assert re.search(r"@v\d+$", one) and f"{one.split('/')[0]}/*" in policies, one
        else:
            assert (ROOT / one / "action.yml").exists()


TOOLS = sorted(path for path in (ROOT / "tools").iterdir() if path.is_file())
SCRIPTS = [path for path in TOOLS if path.read_bytes().startswith(b"#!/usr/bin/env bash")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_what_it_wants(path):
    done = subprocess.run([path], capture_output=True, text=True, timeout=20)
    assert done.returncode and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_release_says_what_settings_say(tmp_path):
    done = subprocess.run(["make", "wheel", "TAG=v0.0.0"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode and "the tag is v0.0.0, and settings.ini says" in done.stderr


def test_the_oldest_torch_is_the_one_in_settings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from test_torch import wanted

    line = "timm>=1 torch>=2.9,<2.15 torchvision>=0.24"
    assert wanted("oldest", line) == ["torch==2.9.*", "torchvision==0.24.*"]
    assert wanted("newest", line) == ["torch>=2.9,<2.15", "torchvision>=0.24"]


# The guide


def guide() -> str:
    "The commands of the guide to Google Cloud, each on one line."
    cells = json.loads((ROOT / "nbs/tutorials/google_cloud.ipynb").read_bytes())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")


def test_the_guide_sets_what_the_workflows_read():
    flows = "".join(path.read_text(encoding="utf-8") for path in (ROOT / ".github/workflows").glob("*.yml"))
    names = re.search(r"for name in ([a-z ]+); do\s+gh variable set", guide())[1].upper().split()
    given = set(re.findall(r"gh variable set (GCP_[A-Z]+)", guide())) | {f"GCP_{name}" for name in names}
    assert set(re.findall(r"vars\.(GCP_[A-Z]+)", flows)) <= given
    assert set(re.findall(r"secrets\.(\w+)", flows)) == set(re.findall(r"gh secret set (\w+)", guide()))


def test_the_guide_can_be_read_from_top_to_bottom():
    "Nobody is asked for what a later command makes: the login, the project, the budget's interface, the photographs."
    lines = guide().splitlines()
    order = [
        "gcloud auth login",
        "gcloud projects create ",
        "gcloud services enable ",
        "gcloud billing budgets create ",
        "python -m trashsorting data import ",
        "dvc add data",
        "python -m trashsorting data push",
        "tools/push_data ",
    ]
    places = [next(number for number, line in enumerate(lines) if line.startswith(start)) for start in order]
    assert places == sorted(places) and next(line for line in lines if line.startswith("gcloud")) == order[0]
    assert {"billingbudgets", "iam"} <= {name.partition(".")[0] for name in lines[places[2]].split()}


def test_the_guides_commands_are_ones_that_there_are(monkeypatch):
    for name, value in {
        "GOOGLE_CLOUD_PROJECT": "my-project",
        "GOOGLE_CLOUD_REGION": "europe-west4",
        "TRASHSORTING_BUCKET": "gs://my-project-data",
        "REGISTRY": "europe-west4-docker.pkg.dev/my-project/trashsorting",
        "service": "service@my-project.iam.gserviceaccount.com",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    lines = [line.split("#")[0] for line in guide().splitlines()]
    ours = [
        line.replace("$(git rev-parse HEAD)", "0.1.0") for line in lines if line.startswith("python -m trashsorting")
    ]
    assert len(ours) >= 10
    for line in ours:
        group, *words = shlex.split(os.path.expandvars(line))[3:]
        if words[0] in ("train", "deploy"):
            done = CliRunner().invoke(cli, [group, *words, *([] if "--dry-run" in words else ["--dry-run"])])
            assert done.exit_code == 0, f"{line}: {done.output}{done.exception!r}"
        elif group in ("data", "job"):
            command = cli.commands[group].commands[words[0]]
            command.make_context(words[0], words[1:])
    for script in re.findall(r"^tools/\S+", guide(), re.MULTILINE):
        assert (ROOT / script).is_file()


# A model from the registry


@pytest.fixture
def promote(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import promote

    return promote


def figures(**recalls) -> Evaluation:
    "Ten photographs a class, of which these shares were found."
    card = read_card(SHIPPED_MODEL).evaluation
    some = next(iter(card.per_class.values()))
    classes = {name: some.model_copy(update={"recall": recall, "support": 10}) for name, recall in recalls.items()}
    mean = sum(recalls.values()) / len(recalls)
    return card.model_copy(
        update={"per_class": classes, "classes": tuple(recalls), "accuracy": mean, "n": 10 * len(recalls)}
    )


def test_a_candidate_must_not_be_worse_in_any_class(promote):
    now = figures(glass=0.9, paper=0.7)
    assert promote.faults(now, now) == [] == promote.faults(now, figures(glass=0.8, paper=0.9))
    assert promote.faults(now, figures(glass=0.9, paper=0.6))[0].startswith("accuracy 0.7500, now 0.8000")
    assert promote.faults(now, figures(glass=0.6, paper=1.0)) == ["recall of glass 0.6000, now 0.9000"]
    for seen, known, said in ((1, 0, "1 of"), (20, 3, "20 of"), (None, 0, "nobody knows how many of")):
        seeing, current = now.model_copy(update={"n_seen": seen}), now.model_copy(update={"n_seen": known})
        assert promote.faults(current, seeing) == [f"it was trained on {said} the 20 photographs, now {known}"]
        assert promote.faults(seeing, current) == []
    assert "not scored on the same" in promote.faults(now, figures(glass=0.9, metal=0.7))[0]
    assert "| recall of paper | 0.7000 | 0.6000 |" in promote.report(now, figures(glass=0.9, paper=0.6), [])


def test_a_candidate_is_scored_here_and_takes_the_place(promote, monkeypatch, capfd, tmp_path):
    "As a program once, without torch, and then in this process."
    onnx = pytest.importorskip("onnx")
    draw_sample(tmp_path / "sample", 1)
    candidate, shipped = tmp_path / "candidate" / "model.onnx", tmp_path / "shipped" / "model.onnx"
    for model in (candidate, shipped):
        model.parent.mkdir()
        shutil.copy(SHIPPED_MODEL, model)
        shutil.copy(card_path(SHIPPED_MODEL), card_path(model))
    words = [ROOT / "tools/promote.py", candidate.parent, "--data", tmp_path / "sample"]
    words = [*map(str, words), "--installed", str(shipped), "--report", str(tmp_path / "report.md")]
    monkeypatch.setattr(sys, "argv", words)
    same = run_light(*words)
    assert same.returncode == 3 and "ships already" in same.stderr
    renamed = onnx.load(candidate)
    renamed.doc_string = "another file, the same network"
    onnx.save(renamed, candidate)
    with pytest.raises(ModelError, match=r"is not the file that model\.json describes"):
        promote.main()
    card = json.loads(card_path(candidate).read_bytes())
    card["file_sha256"] = file_sha256(candidate)
    before = shipped.read_bytes()
    cheated = card | {"perceptual_hashes": pack_hashes(compute_hashes(sorted((tmp_path / "sample").rglob("*.png"))))}
    drawn = card | {"provenance": card["provenance"] | {"data": SAMPLE_NAME}}
    for wrong, fault in (
        (cheated, "trained on 6 of the 6 photographs, now 0"),
        (drawn, f"was trained on {SAMPLE_NAME}"),
    ):
        card_path(candidate).write_text(json.dumps(wrong), encoding="utf-8")
        assert promote.main() == 3 and fault in (tmp_path / "report.md").read_text(encoding="utf-8")
        assert shipped.read_bytes() == before and read_card(shipped).provenance.data != SAMPLE_NAME
    card_path(candidate).write_text(json.dumps(card), encoding="utf-8")
    assert promote.main() == 0, capfd.readouterr().err
    assert shipped.read_bytes() == candidate.read_bytes() and read_card(shipped).file_sha256 == card["file_sha256"]
    assert "On 6 photographs:" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("versions", "name"),
    [
        ([], "v1"),
        (["v9", "v10"], "v11"),
        (["v1", "v1-hotfix"], "v2"),
        (["2026-09"], "2026-10"),
        (["z1"], "z2"),
        (["best"], "best-1"),
        (["v1", "(v2)"], "v3"),
    ],
)
def test_the_next_version_sorts_after_all_others(promote, tmp_path, versions, name):
    for version in versions:
        folder = tmp_path / version.strip("()")  # in parentheses: a copy that was broken off
        folder.mkdir()
        if version[0] != "(":
            (folder / "parity.json").touch()
    assert promote.next_name(tmp_path) == name
    (tmp_path / name).mkdir()
    (tmp_path / name / "parity.json").touch()
    assert list_versions(tmp_path)[0] == name


def test_versions_in_a_bucket_are_not_written_to_a_folder_of_its_name(promote, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["promote", "model", "--data", "photos", "--versions", "gs://bucket/models"])
    with pytest.raises(SystemExit):
        promote.main()
    assert "gcloud storage rsync" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_model_that_is_not_there_is_a_sentence(tmp_path):
    done = run_light(str(ROOT / "tools/promote.py"), str(tmp_path), "--data", str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith(f"promote: {tmp_path}/model.onnx: no such file")
    assert done.stderr.count("\n") == 1
