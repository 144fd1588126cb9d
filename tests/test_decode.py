"""Decoding: what reaches a decoder, and that a reduced decode gives the same answers as a whole one."""

import csv
import os
import subprocess
import sys
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import encode
from pictures import enlarge
from PIL import Image, ImageOps

from trashsorting.core import SHIPPED_MODEL, read_card
from trashsorting.dataset import draw_picture
from trashsorting.deploy import DECODE_BYTES
from trashsorting.image import (
    FORMATS,
    DamagedImage,
    NotAnImage,
    TooManyBytes,
    accepted,
    decode,
    least_side,
    load_plugin,
    open_rgb,
    recognise,
    to_input,
    to_rgb,
)

PREPROCESSING = read_card(SHIPPED_MODEL).preprocessing
LEAST = least_side(PREPROCESSING)
PHOTOGRAPHS = int(
    os.environ.get("CHECK_PHOTOGRAPHS", "12")
)  # Enlarged to twelve megapixels; `make check-long` takes all
TOLERANCE = 0.1  # Of a probability, between a whole and a reduced decode
SAME_CLASS = 0.995  # Share of the photographs


def difference(one: Image.Image, other: Image.Image) -> float:
    "Mean absolute difference, grey levels; the other is brought to the size of the one."
    other = other.convert("RGB").resize(one.size)
    return float(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).mean())


# What reaches a decoder


@pytest.mark.parametrize("format", ["GIF", "TIFF", "BMP", "ICO", "PPM", "PDF", "EPS", "TGA", "ICNS", "JPEG2000"])
def test_no_other_format_reaches_a_decoder(format, monkeypatch):
    data = encode(draw_picture("glass", 0, (64, 64)), format)

    def refuse(*_, **__):
        raise AssertionError("a decoder was asked")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(NotAnImage, match=accepted()):
        decode(data)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_recognised_and_its_damage_is_found(format):
    load_plugin(format)
    whole = encode(draw_picture("glass", 0, (256, 192)), format)
    assert recognise(whole) == recognise(whole[:64]) == format
    assert open_rgb(whole).size == (256, 192)
    for part in (20, 100, len(whole) // 2):
        with pytest.raises(DamagedImage):
            decode(whole[:part])


def test_a_format_is_loaded_when_its_first_picture_comes():
    "HEIC's libraries are 27 MB; a service that sees only JPEG does not load them."
    code = """
import sys
from trashsorting.predictor import Predictor
predictor = Predictor()
predictor.warm_up()
assert "PIL.JpegImagePlugin" in sys.modules and "pillow_heif" not in sys.modules, "loaded too soon"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Memory


def test_of_a_file_over_the_limit_no_more_than_the_limit_is_read(tmp_path):
    with (tmp_path / "large.jpg").open("wb") as stream:
        stream.truncate(200_000_000)  # sparse: it takes no room
    tracemalloc.start()
    with pytest.raises(TooManyBytes):
        open_rgb(tmp_path / "large.jpg", max_bytes=1_000_000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3_000_000


TURN = Image.Exif()
TURN[0x0112] = 6
SIZE = (2000, 1500)
NOT_PIXELS = 4_000_000  # Bytes that no picture is too small to take
COSTLY = {  # A blank picture: its mode, its format, how it is written, the bytes that a pixel takes at the most
    "16 bits of grey": ("I;16", "PNG", {"exif": TURN.tobytes()}, 9),
    "transparent": ("RGBA", "PNG", {"exif": TURN.tobytes()}, 9),
    "grey, transparent": ("LA", "PNG", {"exif": TURN.tobytes()}, 9),
    "a transparent colour": ("RGB", "PNG", {"exif": TURN.tobytes(), "transparency": (1, 2, 3)}, 9),
    "CMYK in passes": ("CMYK", "JPEG", {"exif": TURN.tobytes(), "progressive": True}, 13),
    "WebP": ("RGBA", "WEBP", {"exif": TURN.tobytes()}, 17),
    "WebP without loss": ("RGBA", "WEBP", {"exif": TURN.tobytes(), "lossless": True}, 17),
    "AVIF": ("RGBA", "AVIF", {"exif": TURN.tobytes(), "subsampling": "4:4:4", "speed": 10}, 15),
    "HEIC": ("RGBA", "HEIF", {"exif": TURN.tobytes()}, 9),
    "10 bits in HEIC": ("RGBA;16", "HEIF", {"chroma": 444}, DECODE_BYTES),
}
MEASURE = """
import sys
from pathlib import Path
from trashsorting.image import load_plugin, open_rgb, recognise

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024

data = Path(sys.argv[1]).read_bytes()
load_plugin(recognise(data))
before = memory("VmRSS")
width, height = open_rgb(data).size
print((memory("VmHWM") - before - int(sys.argv[2])) / (width * height))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("name", COSTLY)
def test_no_picture_takes_more_memory_than_a_deployment_asks_for(name, tmp_path):
    mode, format, options, most = COSTLY[name]
    load_plugin(format)
    if mode == "RGBA;16":
        import pillow_heif

        blank = pillow_heif.from_bytes(mode, SIZE, bytes(8 * SIZE[0] * SIZE[1]))
    else:
        blank = Image.new(mode, SIZE)
    blank.save(tmp_path / "picture", format=format, **options)
    words = [sys.executable, "-c", MEASURE, tmp_path / "picture", str(NOT_PIXELS)]
    taken = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert taken < most <= DECODE_BYTES


def test_sixteen_bits_are_rounded_to_eight():
    levels = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    seen = np.asarray(to_rgb(Image.fromarray(levels)))
    assert np.array_equal(seen[..., 0], np.round(levels / 257)) and seen.shape == (256, 256, 3)


# Reduced decoding


@pytest.mark.parametrize("format, size", [("JPEG", (2048, 1536)), ("AVIF", (128, 96)), ("HEIF", (128, 96))])
@pytest.mark.parametrize("turn", range(1, 9))
def test_upright_from_every_orientation_reduced_or_not(format, size, turn):
    "Pillow's own `exif_transpose`, turning the other way, makes what a camera held like this stores."
    load_plugin(format)
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = draw_picture("glass", 0, size)
    inverse = {5: 5, 6: 8, 7: 7, 8: 6}.get(turn, turn)
    written = upright.copy()
    written.getexif()[0x0112] = inverse
    stored = ImageOps.exif_transpose(written)
    data = encode(stored, format, quality=90, exif=exif.tobytes())
    for least in (None, LEAST):
        seen = open_rgb(data, least_side=least)
        reduced = least and format == "JPEG"
        assert seen.width / seen.height == pytest.approx(4 / 3, abs=0.01)
        assert (seen.width < upright.width) == bool(reduced)
        assert difference(seen, upright) < 6


def test_progressive_grey_and_cmyk_are_reduced_alike():
    picture = draw_picture("metal", 1, (2048, 1536))
    for mode, options in [("RGB", {"progressive": True}), ("L", {}), ("CMYK", {}), ("RGB", {"subsampling": 0})]:
        data = encode(picture.convert(mode), "JPEG", quality=95, **options)
        whole, reduced = open_rgb(data), open_rgb(data, least_side=LEAST)
        assert min(reduced.size) >= LEAST and reduced.width < 2048
        assert difference(reduced, whole) < 6, mode


def test_a_cut_off_jpeg_is_found_when_reduced():
    data = encode(draw_picture("metal", 1, (2048, 1536)), "JPEG")
    with pytest.raises(DamagedImage):
        open_rgb(data[: len(data) // 2], least_side=LEAST)


@pytest.mark.parametrize("size", [(512, 384), (384, 512), (640, 480), (511, 4000)])
def test_small_photographs_are_never_reduced(size):
    data = encode(draw_picture("paper", 2, size), "JPEG")
    assert open_rgb(data, least_side=LEAST).tobytes() == open_rgb(data).tobytes()


# Real photographs


def photographs() -> list[Path]:
    "Validation photographs, spread over all of them."
    if "TRASHNET" not in os.environ:
        pytest.skip("!!! TRASHNET is unset: reduced decoding was not compared on photographs")
    folder = Path(os.environ["TRASHNET"])
    with (folder / "split.csv").open(encoding="utf-8") as stream:
        files = [folder / "images" / row["file"] for row in csv.DictReader(stream) if row["split"] == "val"]
    return files[:: max(1, len(files) // PHOTOGRAPHS)]


def test_trashnet_is_read_as_before():
    for file in photographs():
        with Image.open(file) as opened:
            before = opened.convert("RGB")
        assert open_rgb(file, least_side=LEAST).tobytes() == before.tobytes()


def test_twelve_megapixels_get_the_same_answer_reduced_as_whole(predictor, capsys):
    "`make check-long` asks this of all 328 validation photographs, `make test` of a dozen."
    changed, differences = 0, []
    files = photographs()
    for seed, file in enumerate(files):
        data = enlarge(Image.open(BytesIO(file.read_bytes())).convert("RGB"), seed)
        whole, reduced = predictor.predict_image(open_rgb(data)), predictor.predict_one(data)
        changed += whole.predicted_class != reduced.predicted_class
        differences += [
            abs(share - reduced.all_probabilities[label]) for label, share in whole.all_probabilities.items()
        ]
    with capsys.disabled():
        print(f" [{len(files)} photographs, {changed} changed, largest difference {max(differences):.3f}]", end="")
    assert max(differences) < TOLERANCE
    assert changed <= max(1, (1 - SAME_CLASS) * len(files))


def test_the_input_array_is_what_it_was():
    "Bit by bit what the first release computed, channels last."
    picture = draw_picture("trash", 3, (512, 384))
    side = PREPROCESSING.input_size
    pixels = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = (pixels - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))
    changes = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_mode": "squash", "crop_pct": 1.0}
    ours = to_input(picture, PREPROCESSING.model_copy(update={**changes, "interpolation": "bicubic"}))
    assert np.array_equal(ours, expected.transpose(2, 0, 1))
