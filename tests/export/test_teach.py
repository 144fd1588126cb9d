"""A class that is taught to a finished file: what stays, what is refused, and that every command takes the new file."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from command import call
from PIL import Image, ImageDraw

from trashsorting.core.card import ModelCard, card_path, file_sha256, read_card, write_card
from trashsorting.core.image import open_rgb, to_input
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.duplicates import compute_hashes, pack_hashes
from trashsorting.data.sample import draw_sample
from trashsorting.evaluation.metrics import evaluate
from trashsorting.export.onnx import to_onnx
from trashsorting.export.quantize import quantize
from trashsorting.export.teach import Features, fit_row, left_out_odds, teach
from trashsorting.inference.features import has_features, unpack_features
from trashsorting.inference.predictor import Predictor
from trashsorting.inference.session import open_session, run_network
from trashsorting.training.backbone import create_backbone

FLOAT = Path(__file__).parents[2] / "models" / "trashnet.onnx"


def draw_battery(seed: int) -> Image.Image:
    "A battery that lies somewhere, in any direction, on a coloured table."
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (160, 120), tuple(rng.integers(120, 255, 3).tolist()))
    pen, left, top = ImageDraw.Draw(picture), int(rng.integers(5, 60)), int(rng.integers(5, 85))
    pen.rectangle((left, top, left + 65, top + 28), fill=(35, 35, 40))
    pen.rectangle((left + 65, top, left + 95, top + 28), fill=(190, 120, 60))
    return picture.rotate(int(rng.integers(360)), fillcolor=picture.getpixel((0, 0)))


@pytest.fixture(scope="module")
def battery(tmp_path_factory) -> Path:
    "Eight photographs of batteries in a folder of that name."
    folder = tmp_path_factory.mktemp("new") / "battery"
    folder.mkdir()
    for seed in range(8):
        draw_battery(seed).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return draw_sample(tmp_path_factory.mktemp("sample"), per_class=4)


@pytest.fixture(scope="module")
def taught(battery, tmp_path_factory) -> Path:
    "The model that ships, with batteries."
    out = tmp_path_factory.mktemp("taught") / "model.onnx"
    teach(SHIPPED_MODEL, battery, out)
    return out


def assert_known_stays(before: Path, after: Path, pictures: list[Path], exactly: bool = True) -> None:
    "Logits and activation maps of the known classes are what they were."
    old, new = Predictor(before), Predictor(after)
    inputs = np.stack([to_input(open_rgb(path), old.card.preprocessing) for path in pictures])
    index = new.card.classes.index(new.card.taught[-1].name)
    names = ["logits", "evidence"] if old.card.has_activation_map else ["logits"]
    pairs = zip(run_network(old.session, names, inputs), run_network(new.session, names, inputs), strict=True)
    for outputs, more in pairs:
        rest = np.delete(more, index, axis=1)
        assert more.shape[1] == outputs.shape[1] + 1
        assert np.array_equal(rest, outputs) if exactly else np.allclose(rest, outputs, atol=1e-4)
    if old.card.has_activation_map:
        logits, maps = run_network(new.session, names, inputs)
        assert np.allclose(maps.mean(axis=(2, 3))[:, index], logits[:, index], atol=1e-3)


def test_the_model_that_ships_learns_batteries_and_forgets_nothing(taught, sample):
    assert_known_stays(SHIPPED_MODEL, taught, sorted(sample.rglob("*.png")))
    predictor = Predictor(taught)
    answers = [predictor.predict_image(draw_battery(seed)).predicted_class for seed in range(100, 110)]
    assert answers.count("battery") >= 8
    assert has_features(predictor.session)


def test_the_card_says_how_the_class_was_made_and_measured(taught):
    before, card = read_card(SHIPPED_MODEL), read_card(taught)
    item = card.taught[0]
    assert (item.name, item.n, item.n_known) == ("battery", 8, before.feature_sample.n)
    assert 0 <= item.answered <= item.recognized <= 8 and "logistic regression" in item.method
    assert item.recall_interval[0] <= item.recognized / 8 <= item.recall_interval[1]
    assert card.classes == tuple(sorted([*before.classes, "battery"]))
    assert card.evaluation == before.evaluation
    assert card.evaluation_note.startswith("Measured before the class 'battery' was added")
    assert card.unsure_below <= before.unsure_below and card.reference is None
    assert card.file_sha256 == file_sha256(taught) and len(card.perceptual_hashes) > len(before.perceptual_hashes)
    assert unpack_features(card.feature_sample)[1].shape == (before.feature_sample.n + 8, 7)


def draw_features(rng: np.random.Generator, n: int, place: int) -> np.ndarray:
    "A class that differs in two of a hundred features; its photographs differ most in the first, the light."
    features = rng.normal(size=(n, 100))
    features[:, 0] *= 10
    features[:, place : place + 2] += 2
    return features


def draw_classes(seed: int, n_known: int) -> tuple[Features, Features, Features]:
    "Five photographs of a new class, two known classes, and 200 more of the new one."
    rng = np.random.default_rng(seed)
    known = np.concatenate([draw_features(rng, n_known // 2, place) for place in (10, 20)])
    parts = draw_features(rng, 5, 30), known, draw_features(rng, 200, 30)
    return tuple(Features(part, part[:, [10, 20]]) for part in parts)


def test_what_differs_within_each_class_does_not_hide_a_class():
    recalls = []
    for seed in range(5):
        new, known, more = draw_classes(seed, 60)
        recalls.append((fit_row(new, known).logits(more.features) > more.logits.max(axis=1)).mean())
    assert np.mean(recalls) > 0.5  # A third without whitening and with a penalty of 1e-5


def test_a_photograph_that_is_left_out_is_nowhere():
    """Neither in the regression nor in the covariance: its odds are those by the row of all others."""
    new, known, _ = draw_classes(3, 20)
    odds = left_out_odds(new, known)
    for left in range(25):
        others, parts = np.delete(np.arange(25), left), new + known
        first, rest = (
            Features(parts.features[chosen], parts.logits[chosen])
            for chosen in (others[others < 5], others[others >= 5])
        )
        alone = fit_row(first, rest).logits(parts.features[left : left + 1])[0] + parts.offsets[left]
        assert abs(odds[left] - alone) < 0.02


def test_an_older_file_is_taught_with_known_photographs(battery, sample, tmp_path):
    file = tmp_path / "float.onnx"
    shutil.copyfile(FLOAT, file)
    write_card(file, read_card(FLOAT).model_copy(update={"feature_sample": None}))
    refused = call("teach", file, "--add", battery, "--out", tmp_path / "new.onnx")
    assert refused.returncode == 1 and "name a folder with some of their photographs with --known" in refused.stderr
    done = call("teach", file, "--add", battery, "--out", tmp_path / "new.onnx", "--known", sample)
    assert done.returncode == 0 and "'battery' from 8 photographs" in done.stdout
    assert_known_stays(file, tmp_path / "new.onnx", sorted(sample.rglob("*.png"))[:6])


def plain_card(file: Path, backbone: str, has_maps: bool, classes: tuple[str, ...]) -> ModelCard:
    "A card for a network that was not trained."
    shipped, halves = read_card(SHIPPED_MODEL), np.eye(len(classes)) * 0.5 + 0.5 / len(classes)
    fields = {
        "architecture": backbone,
        "classes": classes,
        "preprocessing": shipped.preprocessing.model_copy(update={"input_size": 64}),
        "has_activation_map": has_maps,
        "file_sha256": file_sha256(file),
        "file_bytes": file.stat().st_size,
        "evaluation": evaluate(halves, np.arange(len(classes)), classes),
        "quantization": None,
        "reference": None,
        "feature_sample": None,
    }
    return ModelCard.model_validate(shipped.model_copy(update=fields).model_dump())


@pytest.mark.parametrize(("backbone", "has_maps"), [("resnet10t", True), ("mobilenetv3_small_050", False)])
def test_plain_files_are_taught_and_quantized_ones(backbone, has_maps, battery, sample, tmp_path):
    if not has_maps and "CHECK_TEACH" not in os.environ:
        pytest.skip("a second network, and its INT8 file: `make check-long` teaches them")
    model = create_backbone(backbone, 2, pretrained=False)[0].eval()
    file = to_onnx(model, 64, tmp_path / "plain.onnx")
    assert {value.name for value in open_session(file).get_outputs()} >= {"logits", "features"}
    write_card(file, plain_card(file, backbone, has_maps, ("glass", "paper")))
    pictures = sorted([*sample.glob("glass/*.png"), *sample.glob("paper/*.png")])
    files = [file]
    if not has_maps:
        int8 = quantize(file, pictures, tmp_path / "int8.onnx")
        write_card(int8, plain_card(int8, backbone, has_maps, ("glass", "paper")))
        files.append(int8)
    for before in files:
        out = tmp_path / f"taught-{before.name}"
        card = teach(before, battery, out, known=sample)
        assert card.classes == ("battery", "glass", "paper") and len(onnx.load(out).graph.output) == 2 + has_maps
        assert_known_stays(before, out, pictures[:3], exactly=False)


def test_a_network_without_a_linear_classifier_is_refused(battery, sample, tmp_path):
    model, file = onnx.load(SHIPPED_MODEL), tmp_path / "odd.onnx"
    model.graph.output.remove(next(output for output in model.graph.output if output.name == "features"))
    onnx.save(model, file)
    fields = {"file_sha256": file_sha256(file), "file_bytes": file.stat().st_size}
    write_card(file, read_card(SHIPPED_MODEL).model_copy(update=fields))
    done = call("teach", file, "--add", battery, "--out", tmp_path / "new.onnx")
    assert done.returncode == 1 and f"{file}: it cannot be taught: of its linear layers 0 have 6 rows" in done.stderr
    assert not (tmp_path / "new.onnx").exists()


def test_a_zip_of_the_page_gives_the_name_and_reports_what_cannot_be_read(battery, tmp_path):
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in battery.iterdir():
            zipped.write(path, f"Batterie/{path.name}")
        zipped.writestr("Batterie/broken.jpg", b"\xff\xd8\xff no picture")
        zipped.write(battery / "3.png", "Batterie/once more.png")
        zipped.writestr("Batterie/notes.txt", "mine")
    done = call("teach", "--add", archive, "--out", tmp_path / "new.onnx")
    assert done.returncode == 0 and "'Batterie' from 8 photographs" in done.stdout
    skipped = done.stderr.splitlines()
    assert len(skipped) == 3 and all(line.startswith("skipped: ") for line in skipped)
    reasons = (
        "notes.txt: the suffix '.txt'",
        "broken.jpg: the picture's header",
        "once more.png: a copy of another one",
    )
    assert all(reason in done.stderr for reason in reasons), done.stderr


def few(folder: Path, n: int) -> Path:
    "A folder with some batteries and a file that is no picture."
    folder.mkdir()
    for seed in range(n):
        draw_battery(seed).save(folder / f"{seed}.png")
    (folder / "torn.jpg").write_bytes(b"torn")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--add", "{few}"], "3 photographs can be used, 5 or more are needed; torn.jpg: not a picture"),
        (["--add", "{many}"], "51 photographs can be used, at most 50 are taken; with more, train a model"),
        (["--add", "{battery}", "--name", "Glass"], "the model knows a class 'glass' already: choose another name"),
        (["--add", "{battery}", "--name", "a/b"], "'a/b' cannot be a class"),
        (["--add", "{battery}", "--name", "other"], "stands for what is none of the classes"),
        (["--add", "{sample}"], "its photographs lie in 6 folders (cardboard, glass, metal, paper, plastic): name"),
        (["--add", "{empty}"], "there are no photographs in it"),
        (["--add", "{few}/torn.jpg"], "torn.jpg: neither a zip nor a tar"),
        (["--add", "nowhere"], "'nowhere' does not exist"),
        (["--add", "{battery}", "--out", "{model}"], "would overwrite"),
        (["--add", "{battery}", "--out", "{empty}/model.bin"], "a model's file ends in .onnx"),
    ],
)
def test_errors_are_one_sentence_and_nothing_is_written(words, message, battery, sample, tmp_path):
    places = {"few": few(tmp_path / "few", 3), "many": tmp_path / "many", "battery": battery, "sample": sample}
    if "{many}" in words:
        few(places["many"], 51)
    places |= {"empty": tmp_path / "empty", "model": SHIPPED_MODEL}
    places["empty"].mkdir()
    before = file_sha256(SHIPPED_MODEL), file_sha256(card_path(SHIPPED_MODEL))
    out = [] if "--out" in words else ["--out", places["empty"] / "new.onnx"]
    done = call("teach", *(word.format(**places) for word in words), *out)
    assert done.returncode != 0 and done.stdout == "" and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not any(places["empty"].iterdir())
    assert before == (file_sha256(SHIPPED_MODEL), file_sha256(card_path(SHIPPED_MODEL)))


def test_predict_evaluate_and_serve_take_the_new_file(taught, battery, sample, serve, tmp_path):
    shutil.copytree(battery, tmp_path / "photos" / "battery")
    shutil.copytree(sample / "glass", tmp_path / "photos" / "glass")
    done = call("predict", "--model", taught, battery, "--json", "--place", "Berlin")
    answers = json.loads(done.stdout)
    assert done.returncode == 0 and len(answers[0]["all_probabilities"]) == 7 and answers[0]["bin"]["place"]
    done = call("evaluate", tmp_path / "photos", "--model", taught, "--json", tmp_path / "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_bytes())
    assert done.returncode == 0 and metrics["n_seen"] >= 8 and metrics["per_class"]["battery"]["recall"] >= 0.8
    with serve(TRASHSORTING_MODEL=str(taught)) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        picture = {"file": (battery / "0.png").read_bytes()}
        assert len(client.post("/api/predict", files=picture).json()["all_probabilities"]) == 7
        assert client.post("/api/explain", files=picture).status_code == 200
        assert "battery" in client.get("/api/model/info").json()["classes"]


@pytest.mark.skipif("CHECK_TEACH" not in os.environ, reason="classifies 216 pictures; `make check-long` does")
def test_reference_writes_the_sample_that_teach_needs(battery, tmp_path):
    file, photos = tmp_path / "float.onnx", draw_sample(tmp_path / "photos", per_class=18)
    shutil.copyfile(FLOAT, file)
    hashes = pack_hashes(compute_hashes(sorted(photos.glob("glass/*.png"))))
    write_card(file, read_card(FLOAT).model_copy(update={"feature_sample": None, "perceptual_hashes": hashes}))
    done = call("reference", file, "--data", photos)
    assert done.returncode == 0 and "of these 108 photographs: it is surer of them" in done.stderr, done
    assert read_card(file).feature_sample.n == 108
    assert call("teach", file, "--add", battery, "--out", tmp_path / "new.onnx").returncode == 0


def test_a_zip_that_unpacks_to_more_than_fifty_photographs_is_refused(tmp_path):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("Batterie/1.jpg", bytes(2**20))
    data, declared = archive.read_bytes(), (2**32 - 2).to_bytes(4, "little")
    archive.write_bytes(data.replace((2**20).to_bytes(4, "little"), declared))
    done = call("teach", "--add", archive, "--out", tmp_path / "new.onnx")
    assert done.returncode == 1 and "bomb.zip: unpacks to more than 3 GiB" in done.stderr
