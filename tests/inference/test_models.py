"""Model files of other exporters, of runs that diverged, and files that are no models: refused in a sentence."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import call
from conftest import encode
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from starlette.testclient import TestClient

from trashsorting.core.card import card_path, file_sha256, read_card, write_card
from trashsorting.core.errors import ModelError
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.sample import draw_picture, draw_sample
from trashsorting.data.sources import load_manifest
from trashsorting.inference.predictor import Predictor
from trashsorting.serving.app import create_app
from trashsorting.serving.schemas import NO_MODEL

SIDE, N = 32, 6
WEIGHTS = np.linspace(-1, 1, 3 * N).reshape(3, N)
GLASS = encode(draw_picture("glass", 0, (64, 48)))
WHITE, BLACK = (encode(Image.new("RGB", (64, 48), colour)) for colour in ("white", "black"))
CARD = read_card(SHIPPED_MODEL)


def write_model(
    path: Path,
    shape=("batch", 3, SIDE, SIDE),
    kind: int = TensorProto.FLOAT,
    output: str = "logits",
    weights: np.ndarray = WEIGHTS,
    more: tuple[str, ...] = (),  # Further inputs
    nodes: tuple[tuple[str, str], ...] = (("GlobalAveragePool", ""),),  # Before the classifier: operator, domain
    gives: tuple | None = (None, N),  # The declared shape of the output
) -> Path:
    "A small network of a few operators, with the card of the model that ships, as far as it fits."
    number, type_ = (np.float16, kind) if kind == TensorProto.FLOAT16 else (np.float32, TensorProto.FLOAT)
    flows = ["pixels", *(f"flow{at}" for at in range(len(nodes)))]
    graph = [
        helper.make_node(name, [flows[at]], [flows[at + 1]], domain=domain) for at, (name, domain) in enumerate(nodes)
    ]
    graph += [helper.make_node("Flatten", [flows[-1]], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["sums"])]
    for at, name in enumerate(more):
        graph.append(helper.make_node("Identity", [name], [f"unused{at}"]))
    graph.append(helper.make_node("Identity", ["sums"], [output]))
    inputs = [helper.make_tensor_value_info("pixels", kind, shape)]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in more]
    outputs = [helper.make_tensor_value_info(output, type_, gives)]
    made = helper.make_graph(graph, "g", inputs, outputs, [numpy_helper.from_array(weights.astype(number), "w")])
    domains = [helper.make_opsetid(domain, 1) for domain in {domain for _, domain in nodes if domain}]
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18), *domains])
    model.ir_version = 9
    onnx.save(model, path)
    return add_card(path)


def add_card(path: Path) -> Path:
    "The card of the model that ships, for another file."
    preprocessing = CARD.preprocessing.model_copy(update={"input_size": SIDE})
    fits = {
        "file_sha256": file_sha256(path),
        "preprocessing": preprocessing,
        "has_activation_map": False,
        "unsure_below": None,
    }
    write_card(path, CARD.model_copy(update=fits))
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("shape", [("batch", 3, SIDE, SIDE), (None, None, None, None), ("n", 3, "h", "w"), None])
def test_axes_that_may_have_any_length_are_taken(path, shape):
    predictor = Predictor(write_model(path, shape))
    together = list(predictor.predict([GLASS, WHITE, BLACK], batch_size=3))
    assert together == [predictor.predict_one(picture) for picture in (GLASS, WHITE, BLACK)]


@pytest.mark.parametrize("gives", [(None, N), ("n", "classes"), None])
def test_a_declared_shape_may_say_nothing(path, gives):
    assert Predictor(write_model(path, gives=gives)).predict_one(GLASS).confidence > 1 / N


def test_a_batch_of_one_is_run_one_by_one(path, tmp_path):
    (tmp_path / "other").mkdir()
    one, many = Predictor(write_model(path, (1, 3, SIDE, SIDE))), Predictor(write_model(tmp_path / "other" / "m.onnx"))
    pictures = [GLASS, WHITE, BLACK, GLASS, WHITE]
    for ours, theirs in zip(one.predict(pictures, batch_size=4), many.predict(pictures, batch_size=4), strict=True):
        assert ours.all_probabilities == pytest.approx(theirs.all_probabilities)


TAKES = rf"expected is one input, tensor\(float\) \['batch' or 1, 3, {SIDE}, {SIDE}\], the size from its card"


@pytest.mark.parametrize(
    ("built", "said"),
    [
        ({"kind": TensorProto.FLOAT16}, rf"takes 'pixels' tensor\(float16\) .*; {TAKES}"),
        ({"shape": ("batch", 3, 64, 64)}, rf"takes 'pixels' tensor\(float\) \['batch', 3, 64, 64\]; {TAKES}"),
        ({"shape": (8, 3, SIDE, SIDE)}, rf"\[8, 3, {SIDE}, {SIDE}\]; {TAKES}"),
        ({"shape": ("n", 1, SIDE, SIDE), "weights": np.ones((1, N))}, rf"\['n', 1, {SIDE}, {SIDE}\]; {TAKES}"),
        ({"shape": ("n", SIDE, SIDE, 3), "weights": np.ones((SIDE, N))}, rf"\['n', {SIDE}, {SIDE}, 3\]; {TAKES}"),
        ({"more": ("scale",)}, rf"'pixels' .*, 'scale' tensor\(float\) \[1\]; {TAKES}"),
        ({"output": "probs"}, r"no output 'logits' but 'probs' tensor\(float\) .*; expected is a tensor 'logits'"),
        ({"weights": np.ones((3, 5)), "gives": (None, 5)}, "has 5 logits, its card 6 classes"),
        ({"weights": np.ones((3, 5)), "gives": None}, "has 5 logits, its card 6 classes"),
        ({"weights": np.full((3, N), np.nan)}, r"its answer is not finite \(NaN or infinite\).*with a lower lr"),
        ({"weights": np.full((3, N), 3e38)}, "its answer is not finite"),
        ({"nodes": (("Magic", "my.ops"),)}, r"cannot open it \(.*my.ops.*Magic.*standard operators"),
    ],
)
def test_what_does_not_fit_is_named_when_it_is_opened(path, built, said):
    write_model(path, **built)
    with pytest.raises(ModelError, match=said) as refused:
        Predictor(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"no model", SHIPPED_MODEL.read_bytes()[:100_000]])
def test_bytes_that_are_no_model_are_a_sentence(path, content):
    path.write_bytes(content)
    add_card(path)
    done = call("predict", "-", "--model", path)
    assert (
        done.returncode == 1 and "ONNX Runtime cannot open it (" in done.stderr and len(done.stderr.splitlines()) == 1
    )


def test_weights_in_a_missing_file_are_named(path):
    model = onnx.load(write_model(path))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights.bin.*a model is one whole ONNX file .* with its weights inside"):
        Predictor(add_card(path))


def test_the_service_logs_the_reason_and_lives(path, monkeypatch, caplog):
    write_model(path, (8, 3, SIDE, SIDE))
    monkeypatch.setenv("TRASHSORTING_MODEL", str(path))
    with TestClient(create_app()) as client:
        assert client.get("/api/health").json()["status"] == "degraded"
        answer = client.post("/api/predict", files={"file": GLASS})
    assert (answer.status_code, answer.json()["detail"]) == (503, NO_MODEL)
    (logged,) = [record for record in caplog.records if "cannot be loaded" in record.message]
    assert f"[8, 3, {SIDE}, {SIDE}]; expected is" in logged.message and not logged.exc_info


def half_broken(path: Path) -> Path:
    "A network that answers NaN for what is brighter than middle grey."
    return write_model(path, nodes=(("GlobalAveragePool", ""), ("Neg", ""), ("Log", "")))


def test_one_answer_that_is_no_number_is_a_problem_and_no_traceback(path, caplog):
    predictor = Predictor(half_broken(path))
    with TestClient(create_app(predictor=predictor)) as client:
        good, bad = (client.post("/api/predict", files={"file": picture}) for picture in (BLACK, WHITE))
        both = client.post("/api/predict/batch", files=[("files", BLACK), ("files", WHITE)])
    assert (good.status_code, bad.status_code, bad.json()["code"]) == (200, 503, "no-model")
    assert [item["status"] for item in both.json()["answers"]] == [200, 503]
    assert str(path) not in bad.text and f"{path}: its answer is not finite" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_no_command_counts_what_is_no_number(path, tmp_path):
    folder = draw_sample(tmp_path / "photos", per_class=2)
    half_broken(path)
    for words in (["predict", folder], ["evaluate", folder], ["evaluate", folder, "--json", tmp_path / "f.json"]):
        done = call(*words, "--model", path)
        assert done.returncode == 1 and f"trashsorting: {path}: its answer is not finite" in done.stderr
    assert not (tmp_path / "f.json").exists()


def test_no_int8_file_is_made_of_a_model_that_diverged(path, tmp_path):
    folder = draw_sample(tmp_path / "photos", per_class=5)
    out = tmp_path / "manifest.csv"
    assert call("data", "manifest", folder, "--out", out).returncode == 0
    manifest = load_manifest(str(folder), tmp_path / "data", None, 0)
    write_model(path, weights=np.full((3, N), np.nan))
    card = json.loads(card_path(path).read_bytes())
    held_out = len(manifest.subset("val").entries)
    card["provenance"] |= {"manifest_sha256": manifest.sha256, "seed": 0, "n_valid": held_out}
    card["quantization"] = None
    card_path(path).write_text(json.dumps(card), encoding="utf-8")
    done = call("quantize", path, "--data", folder, "--out", tmp_path / "made.onnx")
    assert done.returncode == 1 and f"{path}: its answer is not finite" in done.stderr, done.stderr
    assert not (tmp_path / "made.onnx").exists()
