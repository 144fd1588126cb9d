"""`Predictor.predict` at length: memory, order, and that it stays only a little ahead of whom it serves."""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from conftest import encode
from pictures import SMALL, enlarge

from trashsorting.core.image import ImageError
from trashsorting.core.prediction import Prediction
from trashsorting.data.sample import draw_picture
from trashsorting.inference.predictor import Predictor

PREDICTIONS = int(os.environ.get("CHECK_PREDICTIONS", "300"))  # 20,000 in `make check-long`
GROWTH = 16  # Megabytes


def resident() -> float:
    "Resident memory of this process, megabytes, without what the allocator keeps for later."
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def things() -> Iterator[bytes | np.ndarray | Path]:
    "Every type of source, repeated; every fiftieth photograph has twelve megapixels."
    picture = draw_picture("glass", 0, SMALL)
    small = [
        encode(picture, "JPEG"),
        np.asarray(picture),
        picture,
        b"GIF89a",
        Path("nowhere.jpg"),
        encode(picture)[:500],
    ]
    return cycle([*small * 8, enlarge(picture)])


def measure_memory(n: int) -> None:
    "Print as JSON the megabytes before and after n predictions, and the number of errors among them."
    predictor = Predictor()
    for _ in predictor.predict(islice(things(), max(1500, n // 10))):
        pass
    before, refused = resident(), 0
    for outcome in predictor.predict(islice(things(), n)):
        refused += not isinstance(outcome, Prediction)
    print(json.dumps([before, resident(), refused]))


def test_memory_does_not_grow(capsys):
    "Measured in a separate process after 1,500 predictions, when the allocators' pools no longer grow."
    call = [sys.executable, "-c", f"import test_batch; test_batch.measure_memory({PREDICTIONS})"]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(call, env=paths, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    before, after, refused = json.loads(done.stdout)
    with capsys.disabled():
        print(f" [{PREDICTIONS} predictions, {before:.0f} MB before, {after:.0f} MB after]", end="")
    assert 0 < refused < PREDICTIONS / 2
    assert after - before < GROWTH


def test_predictions_keep_their_order_for_every_batch_size(predictor):
    pictures = [draw_picture(label, seed, SMALL) for seed in range(3) for label in ("glass", "paper", "trash")]
    sources = [encode(picture) for picture in pictures]
    sources.insert(4, b"no picture")
    alone = [one if isinstance(one, ImageError) else one.predicted_class for one in predictor.predict(sources, 1)]
    for size in (2, 3, 100):
        together = list(predictor.predict(iter(sources), size))
        assert isinstance(together.pop(4), ImageError)
        assert [one.predicted_class for one in together] == [*alone[:4], *alone[5:]]


def test_an_endless_source_is_read_lazily(predictor):
    taken = []
    picture = draw_picture("glass", 0, SMALL)
    answers = predictor.predict(taken.append(None) or picture for _ in iter(int, 1))
    assert len(list(islice(answers, 10))) == 10
    answers.close()
    assert len(taken) < 50


def test_no_progress_bar_without_a_terminal(predictor, capsys):
    assert len(list(predictor.predict([draw_picture("glass", 0, SMALL)], progress=True))) == 1
    assert capsys.readouterr() == ("", "")
