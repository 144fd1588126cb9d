"""The same model behind other servers, each in an environment of its own: for `python bench/serve.py --against`.

Each is what its documentation shows: a photograph is opened by Pillow, scaled, and given to ONNX Runtime with one
thread. A worker for each process of ours, the same address and form field, so that the same load fits all.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

ONNX = ("numpy==2.4.6", "onnxruntime==1.32.0", "pillow==13.0.0")

MODEL = """
import json, os
from pathlib import Path
import numpy as np
import onnxruntime as ort
from PIL import Image

FILE, PORT, WORKERS = os.environ["MODEL"], int(os.environ["SERVER_PORT"]), int(os.environ["WORKERS"])
CARD = json.loads(Path(FILE).with_suffix(".json").read_text(encoding="utf-8"))
HOW = CARD["preprocessing"]


class Model:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(FILE, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, picture):
        side = HOW["input_size"], HOW["input_size"]
        pixels = np.asarray(picture.convert("RGB").resize(side, Image.Resampling[HOW["interpolation"].upper()]))
        scaled = (pixels.astype(np.float32) / 255 - np.float32(HOW["mean"])) / np.float32(HOW["std"])
        logits = self.session.run(["logits"], {self.name: scaled.transpose(2, 0, 1)[None]})[0][0] / CARD["temperature"]
        chances = np.exp(logits - logits.max())
        best = int(chances.argmax())
        return {"predicted_class": CARD["classes"][best], "confidence": float(chances[best] / chances.sum())}
"""

FASTAPI = """
from fastapi import FastAPI, UploadFile
from PIL import Image
from model import Model

app, model = FastAPI(), Model()


@app.post("/api/predict")
def predict(file: UploadFile):
    return model(Image.open(file.file))
"""

LITSERVE = """
import litserve
from PIL import Image
from model import PORT, WORKERS, Model


class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = Model()

    def decode_request(self, request):
        return Image.open(request["file"].file)

    def predict(self, picture):
        return self.model(picture)

    def encode_response(self, answer):
        return answer


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/api/predict"), accelerator="cpu", workers_per_device=WORKERS)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
"""

BENTOML = """
import bentoml
from PIL.Image import Image
from model import WORKERS, Model


@bentoml.service(workers=WORKERS)
class Api:
    def __init__(self):
        self.model = Model()

    @bentoml.api(route="/api/predict")
    def predict(self, file: Image) -> dict:
        return self.model(file)
"""


@dataclass(frozen=True)
class Other:
    """A server that is compared with ours."""

    requirements: tuple[str, ...]  # Beside those of ONNX Runtime, pinned
    app: str  # Python
    command: tuple[str, ...]  # In a folder with `app.py` and `model.py`; {port} and {workers} are filled in


UVICORN = ("-m", "uvicorn", "app:app", "--port", "{port}", "--workers", "{workers}", "--no-access-log")
OTHERS = {
    "plain FastAPI": Other(
        ("fastapi==0.165.0", "python-multipart==0.0.34", "uvicorn[standard]==0.54.0"), FASTAPI, UVICORN
    ),
    "LitServe": Other(("litserve==0.2.19", "python-multipart==0.0.34"), LITSERVE, ("app.py",)),
    "BentoML": Other(("bentoml==1.4.40",), BENTOML, ("-m", "bentoml", "serve", "app:Api", "--port", "{port}")),
}


def prepare(
    name: str,  # A key of `OTHERS`
    cache: Path,  # Folder of the environments; what is there is used again
) -> Path:  # Its Python
    "Make the environment of a server. Raises `SystemExit` if pip cannot install it."
    wanted = (*OTHERS[name].requirements, *ONNX)
    digest = sha256(" ".join((*wanted, sys.version)).encode()).hexdigest()[:8]
    folder = cache / f"{name.lower().replace(' ', '-')}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {name} in {folder}", file=sys.stderr)
        venv.create(folder, clear=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
        command = [*pip, "install", "-q", "--no-compile", *wanted]
        if subprocess.run(command).returncode:
            raise SystemExit(f"bench: {name} could not be installed: see above")
        (folder / "installed").touch()
    return python


HEAD = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'


def predicted_class(port: int, picture: bytes) -> str | None:  # None: no answer, or a refusal
    "One prediction of any of the servers."
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        form = {"Content-Type": "multipart/form-data; boundary=edge"}
        connection.request("POST", "/api/predict", HEAD + picture + b"\r\n--edge--\r\n", form)
        response = connection.getresponse()
        return json.loads(response.read())["predicted_class"] if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@contextmanager
def serve_other(
    name: str,  # A key of `OTHERS`
    python: Path,  # From `prepare`
    port: int,
    workers: int,
    model: Path,
    pictures: Sequence[bytes],  # The first says when it is ready
) -> Iterator[None]:
    "Run another server until it answers, and end it with all its processes."
    other, start = OTHERS[name], time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"MODEL": str(model.resolve()), "SERVER_PORT": str(port), "WORKERS": str(workers)}
    environment |= {"BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"}
    words = [word.format(port=port, workers=workers) for word in other.command]
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+", encoding="utf-8") as log:
        (Path(folder) / "app.py").write_text(other.app, encoding="utf-8")
        (Path(folder) / "model.py").write_text(MODEL, encoding="utf-8")
        command = [str(python), *words]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            while predicted_class(port, pictures[0]) is None:
                if process.poll() is not None or time.perf_counter() - start > 180:
                    raise SystemExit(f"{name} did not start:\n{Path(log.name).read_text(encoding='utf-8')[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                pass
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
