"""Harvesting corrections: the command, poisoning, what strangers may write, and the review page in a real browser."""

import csv
import random
import shutil
from pathlib import Path

import pytest
from command import call
from conftest import encode

from trashsorting.core.correction import LICENCE, Correction
from trashsorting.data.harvest import Candidate, find_poisoners, read_corrections, set_apart, write_harvest
from trashsorting.data.sample import draw_picture

LABELS = ("cardboard", "glass", "metal", "paper", "plastic")


def correct(number: int, label: str, predicted: str, source: int, drawn: str | None = None) -> Correction:
    picture = encode(draw_picture(drawn or label, number, (320, 240)), "JPEG", quality=90)
    known = {"predicted_class": predicted, "confidence": 0.6, "margin": 0.2, "label": label, "picture": picture}
    return Correction(day="2026-05-04", source=f"{source:016x}", **known)


def keep(place: Path, corrections: dict[str, Correction]) -> Path:
    "Write corrections as the service does."
    for name, correction in corrections.items():
        path = place / str(correction.day) / correction.source / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(correction.model_dump_json(), encoding="utf-8")
    return place


def rows(out: Path) -> list[dict]:
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_command(tmp_path):
    corrections = {f"{label}{n}": correct(n, label, "glass", 10 * n) for n in range(2) for label in LABELS}
    corrections["copy"] = correct(0, "metal", "glass", 3)  # of metal0, by somebody else
    corrections["dispute"] = correct(5, "plastic", "glass", 3)
    corrections["disputed"] = correct(5, "paper", "glass", 4, "plastic")  # the same, under another class
    corrections["other"] = correct(2, "other", "glass", 3, "paper")
    corrections["counted"] = correct(3, "paper", "glass", 3).model_copy(update={"picture": None})
    place = keep(tmp_path / "kept", corrections)
    done = call("data", "harvest", place, "--out", tmp_path / "out", "--hashes-only")
    assert done.returncode == 0, done.stderr
    assert "14 corrections with a photograph, 10 accepted" in done.stdout
    assert "1 dropped: a copy of another correction" in done.stdout
    assert "2 set apart: people disagree about this photograph" in done.stdout
    listed = rows(tmp_path / "out")
    assert list(listed[0]) == ["file", "label", "source", "group", "licence"] and len(listed) == 10
    for row in listed:
        assert (tmp_path / "out" / row["file"]).is_file() and row["file"].startswith(f"photographs/{row['label']}/")
        assert (row["source"], row["licence"]) == ("feedback", LICENCE) and row["group"].startswith("feedback-")
    assert len(list((tmp_path / "out" / "set-apart").rglob("*.jpg"))) == 3
    again = call("data", "harvest", place, "--out", tmp_path / "out", "--hashes-only")
    assert again.returncode == 1 and "there is something in it already" in again.stderr
    assert call("data", "import", tmp_path / "out" / "photographs", "--out", tmp_path / "data").returncode == 0


def test_copies_of_training_photographs_are_dropped(tmp_path):
    for label in ("glass", "paper"):
        (tmp_path / "trained" / label).mkdir(parents=True)
        draw_picture(label, 0, (320, 240)).resize((640, 480)).save(tmp_path / "trained" / label / "0.png")
    place = keep(tmp_path / "kept", {"seen": correct(0, "glass", "metal", 1), "new": correct(1, "glass", "metal", 1)})
    words = ("--out", tmp_path / "out", "--hashes-only", "--against", tmp_path / "trained")
    done = call("data", "harvest", place, *words)
    assert "1 dropped: a copy of a training photograph" in done.stdout, done.stderr
    assert [Path(row["file"]).stem for row in rows(tmp_path / "out")] == ["new"]


def test_with_embeddings(tmp_path):
    "The pretrained network is a package."
    corrections = {f"{label}{n}": correct(n, label, "glass", n) for n in range(2) for label in ("metal", "paper")}
    done = call("data", "harvest", keep(tmp_path / "kept", corrections), "--out", tmp_path / "out")
    assert done.returncode == 0 and "4 accepted" in done.stdout, done.stderr


def test_a_bucket(tmp_path, store, monkeypatch):
    import fsspec

    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    bucket = store.make_bucket("harvest")
    local = keep(tmp_path / "kept", {"a": correct(0, "paper", "glass", 1), "b": correct(0, "metal", "glass", 2)})
    for path in local.rglob("*.json"):
        with fsspec.open(f"{bucket}/kept/{path.relative_to(local).as_posix()}", "wb") as stream:
            stream.write(path.read_bytes())
    done = call("data", "harvest", f"{bucket}/kept", "--out", tmp_path / "out", "--hashes-only")
    assert done.returncode == 0 and len(rows(tmp_path / "out")) == 2, done.stderr


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_nothing_to_harvest(tmp_path, place):
    (tmp_path / "empty").mkdir()
    done = call("data", "harvest", tmp_path / place, "--out", tmp_path / "out")
    assert done.returncode == 1 and "TRASHSORTING_FEEDBACK" in done.stderr and not (tmp_path / "out").exists()


def test_only_counts(tmp_path):
    counted = correct(0, "paper", "glass", 1).model_copy(update={"picture": None})
    done = call("data", "harvest", keep(tmp_path / "kept", {"a": counted}), "--out", tmp_path / "out", "--hashes-only")
    assert done.returncode == 1 and "no correction has a photograph" in done.stderr


def test_files_of_strangers_leave_the_folder_alone(tmp_path, caplog):
    place = keep(tmp_path / "kept", {"good": correct(0, "paper", "glass", 1)})
    folder = place / "2026-05-04" / "0000000000000001"
    text = (folder / "good.json").read_text(encoding="utf-8")
    hostile = {
        "up": text.replace('"label":"paper"', '"label":"../../../up"'),
        "absolute": text.replace('"label":"paper"', '"label":"/tmp/up"'),
        "no json": "{",
        "no picture": text.replace("_9j_", "AAAA"),
        "a list": "[]",
    }
    for name, content in hostile.items():
        (folder / f"{name}.json").write_text(content, encoding="utf-8")
    (folder / ".unfinished.json").write_text("{", encoding="utf-8")
    assert [candidate.name for candidate in read_corrections(place, tmp_path)] == ["good"]


# Poisoning


@pytest.mark.parametrize("seed", range(5))
def test_poison_of_one_source_stays_apart(seed):
    "Of 300 corrections a tenth are by one source, which calls all answers trash."
    rng = random.Random(seed)  # noqa: S311
    corrections = []
    for number in range(270):
        predicted, label = rng.choice(LABELS), rng.choice(LABELS)
        label = predicted if rng.random() < 0.5 else label
        corrections.append(known(label, predicted, 1 + number % 30))
    poison = [known("trash", rng.choice(LABELS), 999) for _ in range(30)]
    assert find_poisoners(corrections) == {}
    assert find_poisoners(corrections + poison) == {f"{999:016x}": "trash"}
    settled = set_apart([Candidate(str(n), each) for n, each in enumerate(corrections + poison)])
    assert all(bool(candidate.reason) == (candidate.correction.label == "trash") for candidate in settled)


def known(label: str, predicted: str, source: int) -> Correction:
    "A correction without a photograph."
    values = {"predicted_class": predicted, "confidence": 0.6, "margin": 0.2, "label": label}
    return Correction(day="2026-05-04", source=f"{source:016x}", **values)


# The page


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if not path:
        pytest.skip("!!! the page was not tried: there is no chromium")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=words)
        yield started
        started.close()


def test_review_by_keyboard(browser, tmp_path):
    "Two are dropped, one that was set apart is kept, and the saved manifest says so."
    labels = ("glass", "paper", "<script>alert(1)", "metal")
    candidates = [
        Candidate(f"{n}", correct(n, label, "glass", n, "glass"), rank=n + 1) for n, label in enumerate(labels)
    ]
    candidates.append(Candidate("apart", correct(9, "metal", "glass", 9), reason="people, and <b>others</b>, disagree"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trashsorting.data.harvest._write_photographs", lambda *_: None)
        write_harvest(candidates, tmp_path / "out", licence='given, "freely"')
    page, errors = browser.new_page(accept_downloads=True), []
    page.on("pageerror", lambda error: errors.append(error))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda event: errors.append(event))
    page.goto((tmp_path / "out" / "review.html").as_uri())
    assert page.locator("#count").text_content() == "4 of 5 kept" and page.locator("li b").count() == 5
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    for key in ("d", "ArrowRight", "ArrowRight", "d", "k"):  # drops 0 and 3, keeps the one set apart
        page.keyboard.press(key)
    with page.expect_download() as download:
        page.keyboard.press("s")
    download.value.save_as(tmp_path / "saved.csv")
    with (tmp_path / "saved.csv").open(encoding="utf-8", newline="") as stream:
        saved = list(csv.DictReader(stream))
    assert [Path(row["file"]).stem for row in saved] == ["1", "2", "apart"]
    assert saved[1]["label"] == labels[2] and {row["licence"] for row in saved} == {'given, "freely"'}
    assert not errors
    page.close()
