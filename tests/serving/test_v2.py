"""The Open Inference Protocol: tritonclient against the real service, errors in its form, hostile requests."""

import base64
import json
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from conftest import encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from trashsorting.core.image import to_input
from trashsorting.core.settings import Settings
from trashsorting.data.sample import draw_picture
from trashsorting.inference.predictor import Predictor
from trashsorting.serving.app import create_app
from trashsorting.serving.reload import Serving, Shadow

FUZZ = int(os.environ.get("CHECK_FUZZ", "200"))
NAMES = ("glass", "paper", "metal")
PICTURES = [draw_picture(name, 0, (320, 240)) for name in NAMES]
PHOTOGRAPHS = [encode(picture) for picture in PICTURES]


@pytest.fixture(scope="session")
def model(predictor) -> str:
    """Address of the model."""
    return f"/v2/models/{predictor.card.name}"


@pytest.fixture(scope="session")
def arrays(predictor) -> np.ndarray:
    """The pictures as the network sees them."""
    return np.stack([to_input(picture, predictor.card.preprocessing) for picture in PICTURES])


def elements(*photographs: bytes) -> bytes:
    """A tensor of BYTES in the binary extension."""
    return b"".join(len(data).to_bytes(4, "little") + data for data in photographs)


def texts(*photographs: bytes) -> list[str]:
    return [base64.b64encode(data).decode() for data in photographs]


def pixels(shape: list, datatype: str = "BYTES", **more) -> dict:
    """An input."""
    return {"name": "pixels", "shape": shape, "datatype": datatype, **more}


def send(client, model: str, document: object, data: bytes = b"", size: str | None = None) -> httpx.Response:
    """A request with binary data behind its JSON."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)) if size is None else size}
    return client.post(f"{model}/infer", content=text + data, headers=headers)


def send_binary(client, model: str, data: bytes, tensor: dict, **more) -> httpx.Response:
    return send(client, model, {"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}], **more}, data)


def outputs(answer: httpx.Response) -> dict[str, list]:
    """The outputs of an answer in JSON, by name."""
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def error_of(answer: httpx.Response, *statuses: int) -> str:
    """The sentence of an error, which has the protocol's form."""
    assert answer.status_code in statuses, answer.text
    assert answer.json().keys() == {"error"} and answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.content))
    return answer.json()["error"]


def expected_rows(predictor: Predictor) -> list[list[float]]:
    """The probabilities of the pictures, in the order of the classes."""
    predictions = [predictor.predict_image(picture) for picture in PICTURES]
    return [[prediction.all_probabilities[label] for label in predictor.card.classes] for prediction in predictions]


# tritonclient


@pytest.fixture
def triton(server):
    """A client of the shared service, and its module."""
    module = pytest.importorskip(
        "tritonclient.http", reason="pip install 'tritonclient[http]'; it limits other packages' versions"
    )
    client = module.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60, connection_timeout=60)
    yield client, module
    client.close()


def test_tritonclient_finds_the_model(triton, predictor):
    client, _ = triton
    name, version = predictor.card.name, predictor.card.file_sha256[:12]
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)
    assert client.is_model_ready(name, version) and not client.is_model_ready(name, "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata(name, version)
    side, classes = predictor.card.preprocessing.input_size, predictor.card.classes
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == (name, [version], "onnxruntime_onnx")
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, side, side]}]
    assert metadata["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(classes)]},
        {"name": "predicted_class", "datatype": "BYTES", "shape": [-1]},
        {"name": "unsure", "datatype": "BOOL", "shape": [-1]},
    ]
    assert json.loads(metadata["parameters"]["classes"]) == list(classes)
    assert type(predictor.card.preprocessing).model_validate_json(metadata["parameters"]["preprocessing"])


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_sends_arrays(triton, predictor, arrays, binary):
    "The probabilities are those of the library, for one array and for several."
    client, module = triton
    for number in (1, len(arrays)) if binary else (1,):
        tensor = module.InferInput("pixels", [number, *arrays.shape[1:]], "FP32")
        tensor.set_data_from_numpy(arrays[:number], binary_data=binary)
        result = client.infer(predictor.card.name, [tensor], request_id="array")
        assert np.allclose(result.as_numpy("probabilities"), expected_rows(predictor)[:number], atol=1e-6)
        predictions = predictor.predict_inputs(arrays[:number])
        assert result.as_numpy("predicted_class").tolist() == [item.predicted_class.encode() for item in predictions]
        assert result.as_numpy("unsure").tolist() == [item.unsure for item in predictions]
        assert result.get_response()["id"] == "array"


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_sends_photographs(triton, client, predictor, binary):
    "The answers are those of /api/predict."
    triton_client, module = triton
    sent = PHOTOGRAPHS if binary else [text.encode() for text in texts(*PHOTOGRAPHS)]
    tensor = module.InferInput("pixels", [len(sent)], "BYTES")
    tensor.set_data_from_numpy(np.array(sent, dtype=object), binary_data=binary)
    wanted = [
        module.InferRequestedOutput(name, binary_data=binary) for name in ("unsure", "predicted_class", "probabilities")
    ]
    result = triton_client.infer(predictor.card.name, [tensor], outputs=wanted)
    labels = [label.decode() if binary else label for label in result.as_numpy("predicted_class").tolist()]
    for index, data in enumerate(PHOTOGRAPHS):
        answer = client.post("/api/predict", files={"file": data}).json()
        row = dict(zip(predictor.card.classes, result.as_numpy("probabilities")[index].tolist(), strict=True))
        assert row == pytest.approx(answer["all_probabilities"], abs=1e-6)
        assert (labels[index], result.as_numpy("unsure")[index]) == (answer["predicted_class"], answer["unsure"])


def test_tritonclient_is_told_what_is_not_supported(triton, predictor):
    client, module = triton
    name, tensor = predictor.card.name, module.InferInput("pixels", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(PHOTOGRAPHS[:1], dtype=object))
    shared = module.InferInput("pixels", [1], "BYTES")
    shared.set_shared_memory("region", 100)
    calls: list[tuple[Callable, str, str]] = [
        (lambda: client.get_model_config(name), "404", "nothing at this address"),
        (lambda: client.get_inference_statistics(name), "404", "nothing at this address"),
        (lambda: client.unload_model(name), "404", "nothing at this address"),
        (lambda: client.infer("other", [tensor]), "404", "there is no model 'other'"),
        (lambda: client.infer(name, [shared]), "400", "the parameter 'shared_memory_region' is not supported"),
        (lambda: client.infer(name, [tensor], sequence_id=1), "400", "the parameter 'sequence_id' is not supported"),
        (lambda: client.infer(name, [tensor], timeout=10), "400", "the parameter 'timeout' is not supported"),
        (lambda: client.infer(name, [tensor], request_compression_algorithm="gzip"), "415", "send the body as it is"),
        (
            lambda: client.infer(name, [tensor], outputs=[module.InferRequestedOutput("probabilities", class_count=3)]),
            "400",
            "the parameter 'classification' is not supported",
        ),
    ]
    for call, status, words in calls:
        with pytest.raises(module.InferenceServerException, match=words) as raised:
            call()
        assert raised.value.status() == status


# The same without its package


def test_arrays_and_photographs(client, model, predictor, arrays):
    "Flat, nested and binary arrays, base64 and binary pictures: one answer."
    shape, rows = list(arrays.shape), np.array(expected_rows(predictor)).ravel()
    everything = b"".join(array.astype("<f4").tobytes() for array in arrays)
    answers = [
        client.post(f"{model}/infer", json={"inputs": [pixels(shape, "FP32", data=arrays.ravel().tolist())]}),
        client.post(f"{model}/infer", json={"inputs": [pixels(shape, "FP32", data=arrays.tolist())]}),
        send_binary(client, model, everything, pixels(shape, "FP32")),
        client.post(f"{model}/infer", json={"inputs": [pixels([3], data=texts(*PHOTOGRAPHS))]}),
        client.post(
            f"{model}/infer",
            json={"inputs": [pixels([3], data=texts(*PHOTOGRAPHS), parameters={"content_type": "base64"})]},
        ),
        send_binary(client, model, elements(*PHOTOGRAPHS), pixels([3]), parameters={"binary_data_output": False}),
        send_binary(client, f"{model}/versions/{predictor.card.file_sha256[:12]}", elements(*PHOTOGRAPHS), pixels([3])),
    ]
    for answer in answers:
        assert outputs(answer)["probabilities"] == pytest.approx(rows, abs=1e-6)
        assert answer.json()["model_name"] == predictor.card.name and "id" not in answer.json()


def test_a_full_batch_in_nested_lists(client, model, predictor):
    side, number = predictor.card.preprocessing.input_size, Settings().max_files
    zeros = np.zeros((number, 3, side, side), int).tolist()
    answer = client.post(
        f"{model}/infer", json={"inputs": [pixels([number, 3, side, side], "FP32", data=zeros)]}, timeout=60
    )
    assert len(outputs(answer)["unsure"]) == number


def test_a_photograph_at_the_limit_fits_in_base64(client, model):
    "JPEG data end at a marker, so that any bytes may follow."
    large = encode(PICTURES[0], "JPEG")
    large += bytes(Settings().max_bytes - len(large))
    assert outputs(client.post(f"{model}/infer", json={"inputs": [pixels([1], data=texts(large))]}))["unsure"]
    assert "larger than the limit" in error_of(send_binary(client, model, elements(large + b"\0"), pixels([1])), 413)


def test_one_bad_photograph_of_several_is_named(client, model):
    broken = PHOTOGRAPHS[1][:2000]
    answer = send_binary(client, model, elements(PHOTOGRAPHS[0], broken, PHOTOGRAPHS[2]), pixels([3]))
    assert error_of(answer, 422).startswith("photograph 1: ")
    assert "an accepted format" in error_of(send_binary(client, model, elements(b"a bottle"), pixels([1])), 415)
    wide = encode(Image.new("1", (10_200, 5000)))
    assert "50 megapixels" in error_of(send_binary(client, model, elements(wide), pixels([1])), 413)


def test_counts(server, client, model, arrays):
    "Photographs and arrays are counted as predictions. An array is in no report about drift."

    def counted(start: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(start))

    names = (
        "trashsorting_predictions_total{",
        "trashsorting_inference_seconds_count",
        "trashsorting_decode_seconds_count",
    )
    before, window = [counted(name) for name in names], client.get("/api/drift").json()["photographs"]
    outputs(send_binary(client, model, elements(*PHOTOGRAPHS), pixels([3])))
    outputs(send_binary(client, model, arrays[:1].tobytes(), pixels([1, *arrays.shape[1:]], "FP32")))
    assert [counted(name) - value for name, value in zip(names, before, strict=True)] == [4, 4, 3]
    assert client.get("/api/drift").json()["photographs"] - window in (3, 0)  # 0: the window is full
    assert any(line.get("route") == "/v2/models/{name}/infer" for line in server.lines())


def test_head_and_wrong_methods(client, model):
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", model, f"{model}/ready"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(client.get(path).content))
    assert client.head("/v2/nothing").status_code == 404
    wrong = client.get(f"{model}/infer")
    assert wrong.headers["allow"] == "POST" and "Allow" in error_of(wrong, 405)
    assert "serves health, metadata and infer" in error_of(client.post("/v2/repository/index"), 404)


def test_our_own_api_keeps_its_errors_and_its_document(client):
    assert client.get("/api/nothing").json().keys() == {"code", "detail"}
    assert not any(path.startswith("/v2") for path in client.get("/openapi.json").json()["paths"])


# Key, queue, draining, models


def test_key_queue_and_draining(predictor, model):
    app = create_app(Settings(api_key="correct horse", queue=1, parallel=1), predictor)
    client, key = TestClient(app), {"Authorization": "Bearer correct horse"}
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", f"{model}/ready"):
        assert client.get(path).status_code == 200
    for answer in (client.get(model), client.post(f"{model}/infer")):
        assert "wants a key" in error_of(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
    client.headers.update(key)
    tensor = {"inputs": [pixels([3], data=texts(*PHOTOGRAPHS))]}
    assert "holds 1 to 2 photographs, this one 3" in error_of(client.post(f"{model}/infer", json=tensor), 400)
    app.state.in_flight.draining = True
    for answer in (
        client.get("/v2/health/ready"),
        client.get(f"{model}/ready"),
        client.post(f"{model}/infer", json=tensor),
    ):
        assert "about to stop" in error_of(answer, 503) and answer.headers["retry-after"] == "1"
    assert client.get("/v2/health/live").status_code == 200


def test_a_full_queue_and_too_many_bytes(predictor, model):
    app = create_app(Settings(queue=0, parallel=1, max_batch_bytes=20_000, max_bytes=10_000), predictor)
    client = TestClient(app)
    for content in (bytes(40_000), iter([bytes(1000)] * 40)):
        assert "larger than the limit of 0.02 MB" in error_of(client.post(f"{model}/infer", content=content), 413)
    long = json.dumps({"inputs": [pixels([1], data=["A" * 31_000])]})
    assert "send the data binary" in error_of(client.post(f"{model}/infer", content=long), 413)
    app.state.queue.places = 0
    refused = client.post(f"{model}/infer", json={})
    assert "too many photographs are waiting" in error_of(refused, 503) and refused.headers["retry-after"] == "1"


def test_no_model_is_an_error_of_the_protocol(tmp_path):
    with TestClient(create_app(Settings(model=tmp_path / "none.onnx"))) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        for path in ("/v2/health/ready", "/v2/models/any", "/v2/models/any/ready"):
            assert "no model is loaded" in error_of(client.get(path), 503)


class BrokenSession:
    """A session that cannot run any more."""

    def __init__(self, session):
        self.file, self.get_inputs = session.file, session.get_inputs

    def run(self, names, inputs):
        raise RuntimeError("out of memory")


def test_a_swapped_model_has_another_version(predictor, model):
    "Pictures reach the version before when the network fails; an array does not roll the model back."
    app, failures = create_app(predictor=predictor), []
    client, old = TestClient(app), predictor.card.file_sha256[:12]
    tensor = {"inputs": [pixels([1], data=texts(PHOTOGRAPHS[0]))]}
    assert outputs(client.post(f"{model}/versions/{old}/infer", json=tensor))
    newer = Predictor()
    newer.card = newer.card.model_copy(update={"file_sha256": 64 * "0"})
    shadow = Shadow(0.0, lambda outcome: None)
    before = Serving(predictor, None, lambda failed, error: None, shadow)
    app.state.predictor = Serving(newer, before, lambda failed, error: failures.append(error), shadow)
    refused = client.post(f"{model}/versions/{old}/infer", json=tensor)
    assert "the model is version '000000000000'" in error_of(refused, 404)
    assert client.post(f"{model}/infer", json=tensor).json()["model_version"] == 12 * "0"

    newer.session = BrokenSession(newer.session)
    zeros = pixels([1, 3, 224, 224], "FP32", data=[0] * (3 * 224 * 224))
    assert "no answer that can be used" in error_of(client.post(f"{model}/infer", json={"inputs": [zeros]}), 503)
    assert failures == []
    assert outputs(client.post(f"{model}/infer", json=tensor)) and len(failures) == 1


def test_probes_are_answered_beyond_the_connection_limit(serve, model):
    "Platforms ask these addresses. Whoever asks for more is refused in the protocol's form."
    with serve(TRASHSORTING_CONNECTIONS="5") as server, ExitStack() as stack:
        port = int(server.url.rpartition(":")[2])
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert httpx.get(server.url + path, timeout=60).status_code == 200
        assert "too many connections" in error_of(httpx.get(server.url + model, timeout=60), 503)


# Hostile requests

SHAPE = [1, 3, 224, 224]
LENGTHS = b"\xff\xff\xff\xff" + bytes(8)
HOSTILE: dict[
    str, tuple[object, bytes, str | None, str]
] = {  # JSON, binary data, length of the JSON; words of the error
    "no JSON": (b"", b"", None, "cannot be read as JSON"),
    "half a JSON": (b'{"inputs": [', b"", None, "cannot be read as JSON"),
    "deep lists": (b"[" * 20_000, b"", None, "recursion limit"),
    "deep objects": (b'{"a":' * 20_000, b"", None, "recursion limit"),
    "4 million empty lists": (b'{"data":[' + b"[]," * 4_000_000 + b"[]]}", b"", None, "lists and objects"),
    "not UTF-8": (b'{"id": "\xff"}', b"", None, "cannot be read as JSON"),
    "a list": ([], b"", None, "all of it: Input should be a valid dictionary"),
    "no inputs": ({}, b"", None, "inputs: Field required"),
    "inputs are null": ({"inputs": None}, b"", None, "inputs: Input should be a valid list"),
    "empty inputs": ({"inputs": []}, b"", None, "the model has one input, 'pixels'"),
    "two inputs": ({"inputs": [pixels([1], data=[""])] * 2}, b"", None, "the model has one input"),
    "1,000 inputs": ({"inputs": [pixels([1], data=[""])] * 1000}, b"", None, "inputs: List should have at most 16"),
    "another name": ({"inputs": [pixels([1], data=[""]) | {"name": "image"}]}, b"", None, "the model has one input"),
    "a long name": ({"inputs": [pixels([1]) | {"name": "x" * 10**6}]}, b"", None, "at most 200 characters"),
    "UINT8": ({"inputs": [pixels(SHAPE, "UINT8", data=[])]}, b"", None, "the datatype 'UINT8' is not supported"),
    "lower case": ({"inputs": [pixels(SHAPE, "fp32", data=[])]}, b"", None, "the datatype 'fp32' is not supported"),
    "no shape": ({"inputs": [pixels([], data=[])]}, b"", None, "the shape [] does not fit"),
    "a number as shape": ({"inputs": [pixels([1]) | {"shape": 1}]}, b"", None, "valid list"),
    "negative": ({"inputs": [pixels([-1, 3, 224, 224], "FP32", data=[])]}, b"", None, "greater than or equal to 0"),
    "no photograph": ({"inputs": [pixels([0], data=[])]}, b"", None, "1 to 16 photographs, this one 0"),
    "17 photographs": ({"inputs": [pixels([17], data=[""] * 17)]}, b"", None, "this one 17"),
    "huge": ({"inputs": [pixels([10**18, 3, 224, 224], "FP32", data=[])]}, b"", None, "this one 1000000000000000000"),
    "huge, 100 digits": ({"inputs": [pixels([10**100, 3, 224, 224], "FP32", data=[])]}, b"", None, "this one 1000"),
    "5,000 digits": (b'{"inputs": [{"shape": [' + b"9" * 5000 + b"]}]}", b"", None, "number out of range"),
    "a text as shape": ({"inputs": [pixels(["1"], data=[""])]}, b"", None, "shape.0: Input should be a valid integer"),
    "truth as shape": ({"inputs": [pixels([True], data=[""])]}, b"", None, "valid integer"),
    "a fraction as shape": ({"inputs": [pixels([1.5], data=[""])]}, b"", None, "valid integer"),
    "too many axes": ({"inputs": [pixels([1] * 9, data=[""])]}, b"", None, "at most 8"),
    "other side": ({"inputs": [pixels([1, 3, 112, 448], "FP32", data=[])]}, b"", None, "does not fit"),
    "channels last": ({"inputs": [pixels([1, 224, 224, 3], "FP32", data=[])]}, b"", None, "does not fit"),
    "too few": ({"inputs": [pixels(SHAPE, "FP32", data=[0, 0])]}, b"", None, "as many as the shape"),
    "ragged": ({"inputs": [pixels(SHAPE, "FP32", data=[[[0], [0, 0]]])]}, b"", None, "as many as the shape"),
    "texts as numbers": ({"inputs": [pixels(SHAPE, "FP32", data=["0"] * 150_528)]}, b"", None, "are numbers"),
    "null as numbers": ({"inputs": [pixels(SHAPE, "FP32", data=[None] * 150_528)]}, b"", None, "are numbers"),
    "huge number": ({"inputs": [pixels(SHAPE, "FP32", data=[10**400] + [0] * 150_527)]}, b"", None, "too large"),
    "1e300": ({"inputs": [pixels(SHAPE, "FP32", data=[1e300] + [0] * 150_527)]}, b"", None, "go from 0 to inf"),
    "NaN": ({"inputs": [pixels(SHAPE, "FP32", data=[float("nan")] + [0] * 150_527)]}, b"", None, "from nan"),
    "0 to 255": ({"inputs": [pixels(SHAPE, "FP32", data=[255] * 150_528)]}, b"", None, "subtract the mean"),
    "no base64": ({"inputs": [pixels([1], data=["a bottle!"])]}, b"", None, "a text in base64"),
    "no text": ({"inputs": [pixels([1], data=[1])]}, b"", None, "a text in base64"),
    "more texts": ({"inputs": [pixels([1], data=["", ""])]}, b"", None, "have 2 elements, the shape says 1"),
    "an object": ({"inputs": [pixels([1], data=[{"b64": ""}])]}, b"", None, "a text in base64"),
    "neither": ({"inputs": [pixels([1])]}, b"", None, "either data or"),
    "both": ({"inputs": [pixels([1], data=[""], parameters={"binary_data_size": 0})]}, b"", None, "either data or"),
    "bytes behind": ({"inputs": [pixels([1], data=[""])]}, b"photo", None, "5 bytes follow the JSON"),
    "size is a text": ({"inputs": [pixels([1], parameters={"binary_data_size": "4"})]}, bytes(4), None, "is a number"),
    "size is true": ({"inputs": [pixels([1], parameters={"binary_data_size": True})]}, bytes(1), None, "is a number"),
    "size too large": (
        {"inputs": [pixels([1], parameters={"binary_data_size": 9**30})]},
        bytes(4),
        None,
        "and 4 bytes",
    ),
    "size negative": ({"inputs": [pixels([1], parameters={"binary_data_size": -4})]}, b"", None, "is -4, and 0 bytes"),
    "length of 4 GB": (
        {"inputs": [pixels([1], parameters={"binary_data_size": 12})]},
        LENGTHS,
        None,
        "do not hold 1 elements",
    ),
    "two for one": (
        {"inputs": [pixels([1], parameters={"binary_data_size": 8})]},
        bytes(8),
        None,
        "do not hold 1 elements",
    ),
    "one for two": (
        {"inputs": [pixels([2], parameters={"binary_data_size": 4})]},
        bytes(4),
        None,
        "do not hold 2 elements",
    ),
    "short array": (
        {"inputs": [pixels(SHAPE, "FP32", parameters={"binary_data_size": 4})]},
        bytes(4),
        None,
        "has 602112 bytes",
    ),
    "JSON longer than the body": ({"inputs": []}, b"", "99999", "it is the size of the JSON"),
    "JSON of -1": ({"inputs": []}, b"", "-1", "it is the size of the JSON"),
    "JSON of 0": ({"inputs": []}, b"", "0", "cannot be read as JSON"),
    "JSON of x": ({"inputs": []}, b"", "0x10", "it is the size of the JSON"),
    "JSON of 5,000 digits": ({"inputs": []}, b"", "9" * 5000, "it is the size of the JSON"),
    "unknown output": ({"inputs": [pixels([1], data=[""])], "outputs": [{"name": "x"}]}, b"", None, "no output 'x'"),
    "1,000 outputs": ({"inputs": [], "outputs": [{"name": "unsure"}] * 1000}, b"", None, "outputs: List should have"),
    "binary is 1": (
        {"inputs": [pixels([1], data=[""])], "outputs": [{"name": "unsure", "parameters": {"binary_data": 1}}]},
        b"",
        None,
        "'binary_data' is true or false",
    ),
    "100,000 parameters": (
        {"inputs": [pixels([1], data=[""])], "parameters": dict.fromkeys(map(str, range(100_000)), 0)},
        b"",
        None,
        "the parameter '0' is not supported",
    ),
    "content type": (
        {"inputs": [pixels([1], data=[""], parameters={"content_type": "str"})]},
        b"",
        None,
        "the content_type of BYTES is base64, not 'str'",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_request(client, model, name):
    document, data, size, words = HOSTILE[name]
    sentence = error_of(send(client, model, document, data, size), 400)
    assert words in sentence and len(sentence) < 1000, sentence


def test_hostile_requests_leave_the_service_whole(server, client, model):
    "Runs after those above: nobody has seen an exception."
    assert outputs(send_binary(client, model, elements(PHOTOGRAPHS[0]), pixels([1])))
    assert "Traceback" not in server.said()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "pixels", "FP32", "BYTES", "AAAA"]),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "data", "shape"]), children, max_size=3)
    ),
    max_leaves=8,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["pixels", "image"]) | VALUES,
        "shape": st.sampled_from([[1], [2], SHAPE]) | VALUES,
        "datatype": st.sampled_from(["BYTES", "FP32", "INT8"]) | VALUES,
        "data": VALUES,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-2, 40) | VALUES}) | VALUES,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, min_size=1, max_size=2) | VALUES},
    optional={"id": VALUES, "parameters": VALUES, "outputs": st.lists(TENSORS, max_size=2) | VALUES},
)


@settings(max_examples=FUZZ, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS | VALUES, st.binary(max_size=40), st.none() | st.integers(-5, 200).map(str))
def test_random_requests(client, model, document, data, size):
    "Random documents, data and lengths: an answer, or an error in the protocol's form that is not the server's."
    answer = send(client, model, document, data, size)
    if answer.status_code != 200:
        error_of(answer, 400, 413, 415, 422)


@settings(max_examples=FUZZ // 4, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=3), st.floats(0, 1))
def test_mutated_requests(client, model, changes, end):
    "A good request of two small pictures with other bytes somewhere, or cut off."
    small = encode(draw_picture("glass", 0, (32, 32)), "JPEG")
    data = elements(small, small)
    text = json.dumps({"inputs": [pixels([2], parameters={"binary_data_size": len(data)})]}).encode()
    body = bytearray(text + data)
    for place, replacement in changes:
        start = int(place * (len(body) - len(replacement)))
        body[start : start + len(replacement)] = replacement
    headers = {"Inference-Header-Content-Length": str(len(text))}
    answer = client.post(
        f"{model}/infer", content=bytes(body[: int(end * len(body))] if end < 0.5 else body), headers=headers
    )
    if answer.status_code != 200:
        error_of(answer, 400, 413, 415, 422)
