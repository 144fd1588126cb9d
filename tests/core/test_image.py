"""Decoding: what reaches a decoder, and that a reduced decode gives the same answers as a whole one."""

import csv
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import encode
from pictures import COSTLY, costly_picture, enlarge, raw_png
from PIL import Image, ImageCms, ImageOps

from trashsorting.cloud.cloud_run import DECODE_BYTES
from trashsorting.core.card import read_card
from trashsorting.core.image import (
    FORMATS,
    SRGB_PRIMARIES,
    DamagedImage,
    EmptyImage,
    NotAnImage,
    TooManyBytes,
    TooManyPixels,
    accepted_formats,
    decode,
    detect_format,
    load_plugin,
    min_side,
    open_header,
    open_rgb,
    png_profile,
    srgb_transform,
    to_input,
    to_rgb,
)
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.sample import draw_picture

PREPROCESSING = read_card(SHIPPED_MODEL).preprocessing
LEAST = min_side(PREPROCESSING)
PHOTOGRAPHS = int(
    os.environ.get("CHECK_PHOTOGRAPHS", "6")
)  # Enlarged to twelve megapixels; `make check-long` takes all
TOLERANCE = 0.1  # Of a probability, between a whole and a reduced decode
SAME_CLASS = 0.995  # Fraction of the photographs


def difference(one: Image.Image, other: Image.Image) -> float:
    "Mean absolute difference in grey levels, at the size of the first picture."
    other = other.convert("RGB").resize(one.size)
    return float(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).mean())


# Formats


@pytest.mark.parametrize("format", ["GIF", "TIFF", "BMP", "ICO", "PPM", "PDF", "EPS", "TGA", "ICNS", "JPEG2000"])
def test_other_formats_reach_no_decoder(format, monkeypatch):
    data = encode(draw_picture("glass", 0, (64, 64)), format)

    def refuse(*_, **__):
        raise AssertionError("a decoder was asked")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(NotAnImage, match=accepted_formats()):
        decode(data)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_detected_and_damage_is_reported(format):
    load_plugin(format)
    whole = encode(draw_picture("glass", 0, (256, 192)), format)
    assert detect_format(whole) == detect_format(whole[:64]) == format
    assert open_rgb(whole).size == (256, 192)
    for part in (20, 100, len(whole) // 2):
        with pytest.raises(DamagedImage):
            decode(whole[:part])


def test_plugins_are_loaded_at_their_first_picture():
    "HEIC's libraries are 27 MB; a service that sees only JPEG does not load them."
    code = """
import sys
from trashsorting.inference.predictor import Predictor
predictor = Predictor()
predictor.warm_up()
assert "PIL.JpegImagePlugin" in sys.modules and "pillow_heif" not in sys.modules, "loaded too soon"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Files that stall a decoder

REFUSED_SECONDS = 2  # Processor time; without the checks up to 20


def segment(code: int, body: bytes = b"") -> bytes:
    "A segment of a JPEG."
    return b"\xff" + bytes([code]) + struct.pack(">H", len(body) + 2) + body


def scan(*components: int, spectrum: tuple[int, int, int] = (0, 63, 0), data: bytes = b"") -> bytes:
    "A scan of a JPEG, empty unless there is data."
    chosen = b"".join(bytes([component, 0]) for component in components)
    return segment(0xDA, bytes([len(components)]) + chosen + bytes(spectrum)) + data


def jpeg(kind: int, size: tuple[int, int], *scans: bytes, before: bytes = b"") -> bytes:
    "A JPEG with three components whose frame is of the given kind (the number behind SOF)."
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    frame = segment(0xC0 + kind, struct.pack(">BHHB", 8, size[1], size[0], 3) + components)
    tables = segment(0xDB, b"\0" + 64 * b"\1")
    for table in (0x00, 0x10):
        tables += segment(0xC4, bytes([table, 1]) + bytes(15) + b"\0")
    return b"\xff\xd8" + before + tables + frame + b"".join(scans) + b"\xff\xd9"


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    "A chunk of a PNG."
    checksum = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def with_chunks(*chunks: bytes, data: bytes = encode(draw_picture("glass", 0, (64, 48)))) -> bytes:
    "A PNG with more chunks, before its pixels."
    return data[:33] + b"".join(chunks) + data[33:]


LARGE_SIZE = (7071, 7071)
DC, AC, REFINED = (0, 0, 0), (1, 63, 1), (1, 63, 0x10)
BASELINE = encode(draw_picture("glass", 0, (64, 48)), "JPEG")
STALLING = {  # By name: the file, the error message
    "sequential, 400 scans": (lambda: jpeg(0, LARGE_SIZE, *400 * [scan(1)]), "more than 8 scans"),
    "extended, 9 scans": (lambda: jpeg(1, LARGE_SIZE, *9 * [scan(1)]), "more than 8 scans"),
    "arithmetic, 9 scans": (lambda: jpeg(9, LARGE_SIZE, *9 * [scan(1)]), "more than 8 scans"),
    "lossless, 9 scans": (lambda: jpeg(3, LARGE_SIZE, *9 * [scan(1, spectrum=(1, 0, 0))]), "more than 8 scans"),
    "an end of picture in the head of a scan": (
        lambda: jpeg(9, LARGE_SIZE, segment(0xDA, b"\1\xff\xd9\0\x3f\0"), *9 * [scan(1)]),
        "more than 8 scans",
    ),
    "progressive, 41 scans": (lambda: jpeg(2, (640, 480), *41 * [scan(1, spectrum=AC)]), "more than 40 scans"),
    "progressive, 21 large scans": (lambda: jpeg(2, LARGE_SIZE, *21 * [scan(1, spectrum=AC)]), "more than 20 scans"),
    "arithmetic, progressive": (
        lambda: jpeg(10, LARGE_SIZE, scan(1, 2, 3, spectrum=DC), *40 * [scan(1, spectrum=REFINED)]),
        "more than 20 scans",
    ),
    "scans apart": (
        lambda: jpeg(0, LARGE_SIZE, *9 * [scan(1) + b"\xff\0\xff\xd0" * 270_000 + b"\xff\xff"]),
        "more than 8 scans",
    ),
    "2 million empty segments": (lambda: jpeg(0, (64, 48), before=2_000_000 * segment(0xE5)), "more than 5,000 segm"),
    "2 million comments": (lambda: jpeg(0, (64, 48), before=2_000_000 * segment(0xFE)), "more than 5,000 segm"),
    "segments between scans": (
        lambda: jpeg(2, (64, 48), scan(1, spectrum=DC), 2_000_000 * segment(0xE5), scan(1, spectrum=DC)),
        "more than 5,000 segm",
    ),
    "codes without a length": (lambda: jpeg(0, (64, 48), before=4_000_000 * b"\xff\xd0"), "more than 5,000 segm"),
    "segments behind an early end": (
        lambda: b"\xff\xd8\xff\xd9" + 2_000_000 * segment(0xE5),
        "header makes no sense",
    ),
    "no segment for long": (lambda: b"\xff\xd8\xff\xfe\0\2" + bytes(9_000_000) + BASELINE[2:], "header makes no sense"),
    "filled up": (lambda: b"\xff\xd8" + 9_000_000 * b"\xff" + BASELINE[3:], "header makes no sense"),
    "800,000 chunks": (lambda: with_chunks(800_000 * chunk(b"tIME", b"")), "more than 20,000 chunks"),
    "800,000 empty IDAT chunks": (lambda: with_chunks(800_000 * chunk(b"IDAT", b"")), "more than 20,000 chunks"),
}


@pytest.mark.parametrize("name", STALLING)
def test_files_that_would_stall_a_decoder_are_refused_before_decoding(name, monkeypatch):
    make, reason = STALLING[name]
    data = make()
    monkeypatch.setattr(Image.Image, "load", None)
    start = time.process_time()
    with pytest.raises(DamagedImage, match=reason):
        open_rgb(data, min_side=LEAST)
    assert time.process_time() - start < REFUSED_SECONDS


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1), (2, 25_000_000), (50_000_000, 1)])
def test_too_long_sides_are_refused(size, monkeypatch):
    data = raw_png((2, 2), grey=True, interlaced=0)
    header = struct.pack(">II", *size) + data[24:29]
    data = data[:8] + chunk(b"IHDR", header) + data[33:]
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(TooManyPixels, match=f"{size[0]} x {size[1]} pixels; the limit of a side is 65,535"):
        open_rgb(data)


def test_the_longest_accepted_sides_are_read():
    for size in [(1, 65_535), (65_535, 1)]:
        assert open_rgb(encode(Image.new("L", size))).size == size


def multi_picture() -> bytes:
    picture = draw_picture("glass", 0, (640, 480))
    return encode(picture, "MPO", save_all=True, append_images=60 * [picture.resize((160, 120))])


PROGRESSIVE = encode(draw_picture("glass", 0, (640, 480)), "JPEG", progressive=True)
EXIF_THUMBNAIL = Image.Exif()
EXIF_THUMBNAIL[0x010E] = 20 * PROGRESSIVE[PROGRESSIVE.index(b"\xff\xda") :][:2000].decode("latin-1")
UNUSUAL = {  # Valid files that look damaged
    "several pictures": multi_picture,
    "a brighter twin behind the end": lambda: PROGRESSIVE + 10 * PROGRESSIVE,
    "a video behind the end": lambda: PROGRESSIVE + bytes(24) + 5000 * b"\xff\xda\xff\xe5\0\2",
    "a profile in 60 segments": lambda: with_segments(
        *[segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 60]) + bytes(60_000)) for number in range(1, 61)]
    ),
    "scans in segments": lambda: with_segments(*[segment(0xE0 + number, 9999 * b"\xff\xda") for number in range(16)]),
    "a thumbnail in EXIF": lambda: with_segments(segment(0xE1, b"Exif\0\0" + 99 * PROGRESSIVE[:600])),
    "fill bytes": lambda: PROGRESSIVE[:2] + 500 * b"\xff" + PROGRESSIVE[2:].replace(b"\xff\xda", b"\xff\xff\xff\xda"),
    "restarts": lambda: encode(draw_picture("glass", 0, (640, 480)), "JPEG", progressive=True, restart_marker_blocks=1),
    "a baseline picture in three scans": lambda: jpeg(0, (640, 480), scan(1), scan(2), scan(3)),
    "18 scans of CMYK": lambda: encode(draw_picture("glass", 0, (640, 480)).convert("CMYK"), "JPEG", progressive=True),
}


def with_segments(*segments: bytes) -> bytes:
    return PROGRESSIVE[:2] + b"".join(segments) + PROGRESSIVE[2:]


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_valid_files_are_read(name):
    assert open_rgb(UNUSUAL[name]()).size == (640, 480)


def test_a_large_progressive_photograph_is_within_the_scan_limit():
    "Ten scans in colour or eighteen in CMYK, at fifty megapixels."
    picture = jpeg(2, LARGE_SIZE, scan(1, 2, 3, spectrum=DC), *17 * [scan(1, spectrum=AC)])
    assert open_header(picture).size == LARGE_SIZE


def test_a_picture_without_pixels_has_a_readable_error():
    for size in [(0, 0), (0, 5), (5, 0)]:
        with pytest.raises(EmptyImage, match=f"{size[0]} x {size[1]} pixels"):
            to_rgb(Image.new("RGB", size))
    with pytest.raises(DamagedImage):
        open_rgb(jpeg(0, (64, 0), scan(1, 2, 3)))


def test_broken_exif_writes_no_warning(tmp_path):
    entries = b"".join(struct.pack("<HHII", number, 7, 100, 2**31) for number in range(60_000))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + entries + bytes(4)
    (tmp_path / "broken.png").write_bytes(with_chunks(chunk(b"eXIf", exif)))
    code = "import sys; from trashsorting.core.image import open_rgb; open_rgb(sys.argv[1])"
    words = [sys.executable, "-c", code, tmp_path / "broken.png"]
    assert subprocess.run(words, check=True, capture_output=True).stderr == b""


# Metadata of a PNG

MEGABYTES = zlib.compress(bytes(2_000_000))
NOTES = {
    "a wrong checksum": [chunk(b"tEXt", b"a\0b", 0)],
    "2 MB of text": [chunk(b"zTXt", b"a\0\0" + MEGABYTES)],
    "2 MB of international text": [chunk(b"iTXt", b"a\0\1\0\0\0" + MEGABYTES)],
    "2 MB of XMP": [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + MEGABYTES)],
    "90 MB of text": 100 * [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))],
    "2 MB of text without a name": 9000 * [chunk(b"zTXt", b"\0\0" + zlib.compress(bytes(1_000_000)))],
    "an unknown compression": [chunk(b"zTXt", b"a\0\7" + MEGABYTES)],
    "a profile of 2 MB": [chunk(b"iCCP", b"a\0\0" + MEGABYTES)],
    "9,000 profiles": 9000 * [chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000)))],
    "a time with a wrong checksum": [chunk(b"tIME", bytes(7), 0)],
    "a gamma that is cut off": [chunk(b"gAMA", b"\0")],
    "something private": [chunk(b"prVt", b"abc", 0)],
    "an animation without frames": [chunk(b"acTL", bytes(8))],
}


@pytest.mark.parametrize("name", NOTES)
def test_a_png_with_damaged_metadata_is_read(name):
    data = with_chunks(*NOTES[name])
    start = time.process_time()
    assert open_rgb(data).tobytes() == open_rgb(with_chunks()).tobytes()
    behind = with_chunks()
    behind = behind[:-12] + b"".join(NOTES[name]) + behind[-12:]
    assert open_rgb(behind).tobytes() == open_rgb(with_chunks()).tobytes()
    assert time.process_time() - start < REFUSED_SECONDS


@pytest.mark.parametrize("where", ["eXIf", "XMP", "raw profile"])
def test_a_png_is_rotated_by_every_kind_of_orientation_metadata(where):
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}".encode()
    note = {
        "eXIf": chunk(b"eXIf", exif.tobytes()[6:]),
        "XMP": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        "raw profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
    }[where]
    assert open_rgb(with_chunks(note, chunk(b"tEXt", b"a\0b", 0))).size == (48, 64)


# Colours

P3_PRIMARIES = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
P3 = png_profile(1 / 2.2, P3_PRIMARIES)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILE_COLOURS = {  # A profile, values in it, and the same colour in sRGB by the formulas
    "Display P3": (P3, (100, 200, 80), (43, 204, 54)),
    "linear light": (png_profile(1), (100, 200, 80), (168, 229, 152)),
    "sRGB": (SRGB, (100, 200, 80), (100, 200, 80)),
}


def of_primaries(values: tuple[int, ...], gamma: float, primaries: tuple[float, ...]) -> np.ndarray:
    "Values of sRGB, by the formulas of the standards; the white is sRGB's."

    def matrix(chromaticity):
        x, y = np.reshape(chromaticity, (4, 2)).T
        xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
        return xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0])

    light = np.linalg.solve(matrix(SRGB_PRIMARIES), matrix(primaries) @ (np.array(values) / 255) ** (1 / gamma))
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def colour(data: bytes) -> np.ndarray:
    return np.asarray(open_rgb(data)).mean((0, 1))


def test_expected_colours_follow_from_the_formulas():
    assert of_primaries((100, 200, 80), 1 / 2.2, P3_PRIMARIES).round().tolist() == [43, 204, 54]
    assert of_primaries((100, 200, 80), 1, SRGB_PRIMARIES).round().tolist() == [168, 229, 152]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", PROFILE_COLOURS)
def test_every_format_is_converted_to_srgb(name, format):
    profile, values, expected = PROFILE_COLOURS[name]
    load_plugin(format)
    options = {"WEBP": {"lossless": True}, "PNG": {}}.get(format, {"quality": 98})
    data = encode(Image.new("RGB", (64, 48), values), format, icc_profile=profile, **options)
    most = 0 if format in ("PNG", "WEBP") else 10  # AVIF stores 98 for 100, which is 9 less in sRGB
    assert np.abs(colour(data) - expected).max() <= most


@pytest.mark.parametrize("gamma, primaries", [(1, None), (1 / 1.8, None), (1 / 2.2, P3_PRIMARIES), (0.5, P3_PRIMARIES)])
def test_png_gamma_and_primaries_are_applied(gamma, primaries):
    notes = [chunk(b"gAMA", struct.pack(">I", round(100_000 * gamma)))]
    if primaries:
        notes.append(chunk(b"cHRM", struct.pack(">8I", *(round(100_000 * value) for value in primaries))))
    for values in [(100, 200, 80), (200, 100, 150)]:
        flat = encode(Image.new("RGB", (4, 4), values))
        expected = of_primaries(values, gamma, primaries or SRGB_PRIMARIES)
        assert np.abs(colour(with_chunks(*notes, data=flat)) - expected).max() <= 2
        overruled = [chunk(b"sRGB", b"\0"), *notes]
        assert colour(with_chunks(*overruled, data=flat)).tolist() == list(values)
    grey = encode(Image.new("L", (4, 4), 100))
    expected = of_primaries((100, 100, 100), gamma, SRGB_PRIMARIES)
    assert np.abs(colour(with_chunks(*notes, data=grey)) - expected).max() <= 2


def test_grey_and_transparent_pictures_are_converted_to_srgb():
    grey = P3[:16] + b"GRAY" + P3[20:]  # a grey profile without its tone curve is unusable
    assert colour(encode(Image.new("L", (9, 9), 100), icc_profile=grey)).tolist() == [100, 100, 100]
    clear = Image.new("RGBA", (9, 9), (100, 200, 80, 255))
    assert colour(encode(clear, icc_profile=P3)).tolist() == [43, 204, 54]
    assert colour(encode(Image.new("RGBA", (9, 9), (100, 200, 80, 0)), icc_profile=P3)).tolist() == [255, 255, 255]


def test_missing_srgb_and_invalid_profiles_change_nothing():
    plain = draw_picture("glass", 0, (64, 48))
    hostile = [b"", b"x", bytes(5_000_000), bytes(200), P3[:150], P3[:16] + b"CMYK" + P3[20:], P3[:132] + b"\xff" * 148]
    for profile in [None, SRGB, *hostile]:
        assert open_rgb(encode(plain, icc_profile=profile)).tobytes() == plain.tobytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(P3)
        for index in rng.integers(0, len(P3), 4):
            damaged[index] = rng.integers(256)
        assert open_rgb(encode(plain, icc_profile=bytes(damaged))).size == plain.size
    assert srgb_transform.cache_info().currsize <= srgb_transform.cache_info().maxsize == 8


def with_aperture(data: bytes, size: tuple[int, int], right: int, down: int) -> bytes:
    "An AVIF with a clean aperture, whose centre is moved by an offset."
    clap = struct.pack(">I4sIIIIiIiI", 40, b"clap", size[0], 1, size[1], 1, 2 * right, 2, 2 * down, 2)
    ipco, ipma = data.index(b"ipco") - 4, data.index(b"ipma") - 4
    properties = bytearray(data[ipco:ipma] + clap)
    owners = bytearray(data[ipma : ipma + struct.unpack_from(">I", data, ipma)[0]])
    rest = data[ipma + len(owners) :]
    number, place = properties.count(b"clap") + len(child_names(data[ipco + 8 : ipma])), 18
    owners[place] += 1
    owners += bytes([0x80 | number])
    owners[:4] = struct.pack(">I", len(owners))
    properties[:4] = struct.pack(">I", len(properties))
    made = bytearray(data[:ipco] + properties + owners + rest)
    for name in (b"meta", b"iprp"):
        at = made.index(name) - 4
        made[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", made, at)[0] + 41)
    at = made.index(b"iloc") + 18  # the only picture's offset
    made[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", made, at)[0] + 41)
    return bytes(made)


def child_names(content: bytes) -> list[bytes]:
    names, position = [], 0
    while position + 8 <= len(content):
        names.append(content[position + 4 : position + 8])
        position += struct.unpack_from(">I", content, position)[0]
    return names


def test_an_avif_is_cropped_to_its_clean_aperture():
    load_plugin("AVIF")
    picture = Image.new("RGB", (64, 48), "red")
    picture.paste("blue", (32, 0, 64, 48))
    data = encode(picture, "AVIF", quality=95)
    assert open_rgb(with_aperture(data, (64, 48), 0, 0)).size == (64, 48)
    right = open_rgb(with_aperture(data, (32, 20), 16, -14))
    assert right.size == (32, 20) and np.abs(np.asarray(right).mean((0, 1)) - (0, 0, 255)).max() < 8
    assert open_rgb(with_aperture(data, (32, 20), 99, 0)).size == (64, 48)  # outside the picture: ignored


# Memory


def test_reading_stops_at_the_size_limit(tmp_path):
    with (tmp_path / "large.jpg").open("wb") as stream:
        stream.truncate(200_000_000)  # sparse: it uses no disk space
    tracemalloc.start()
    with pytest.raises(TooManyBytes):
        open_rgb(tmp_path / "large.jpg", max_bytes=1_000_000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3_000_000


SIZE = (2000, 1500)
NOT_PIXELS = 4_000_000  # Bytes that even a small picture needs
MEASURE = """
import sys
from pathlib import Path
from trashsorting.core.image import detect_format, load_plugin, open_rgb

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024

data = Path(sys.argv[1]).read_bytes()
load_plugin(detect_format(data))
before = memory("VmRSS")
width, height = open_rgb(data).size
print((memory("VmHWM") - before - int(sys.argv[2])) / (width * height))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("name", COSTLY)
def test_decoding_stays_within_the_planned_memory(name, tmp_path):
    "`python bench/decode.py --memory` measures the same at fifty megapixels."
    (tmp_path / "picture").write_bytes(costly_picture(name, SIZE))
    words = [sys.executable, "-c", MEASURE, tmp_path / "picture", str(NOT_PIXELS)]
    taken = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert taken < DECODE_BYTES


def test_sixteen_bit_values_are_rounded_to_eight():
    levels = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    seen = np.asarray(to_rgb(Image.fromarray(levels)))
    assert np.array_equal(seen[..., 0], np.round(levels / 257)) and seen.shape == (256, 256, 3)


# Reduced decoding


@pytest.mark.parametrize("format, size", [("JPEG", (2048, 1536)), ("AVIF", (128, 96)), ("HEIF", (128, 96))])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_becomes_upright_reduced_or_not(format, size, turn):
    "The stored picture is made by the inverse of Pillow's `exif_transpose`."
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
        seen = open_rgb(data, min_side=least)
        reduced = least and format == "JPEG"
        assert seen.width / seen.height == pytest.approx(4 / 3, abs=0.01)
        assert (seen.width < upright.width) == bool(reduced)
        assert difference(seen, upright) < 6


def test_progressive_grey_and_cmyk_are_reduced_too():
    picture = draw_picture("metal", 1, (2048, 1536))
    for mode, options in [("RGB", {"progressive": True}), ("L", {}), ("CMYK", {}), ("RGB", {"subsampling": 0})]:
        data = encode(picture.convert(mode), "JPEG", quality=95, **options)
        whole, reduced = open_rgb(data), open_rgb(data, min_side=LEAST)
        assert min(reduced.size) >= LEAST and reduced.width < 2048
        assert difference(reduced, whole) < 6, mode


def test_a_truncated_jpeg_is_reported_when_reduced():
    data = encode(draw_picture("metal", 1, (2048, 1536)), "JPEG")
    with pytest.raises(DamagedImage):
        open_rgb(data[: len(data) // 2], min_side=LEAST)


def test_a_fast_model_decodes_small_photographs_at_half_their_size_too():
    fast = PREPROCESSING.model_copy(update={"input_size": 192, "decode_factor": 1.0})
    picture = draw_picture("metal", 1, (512, 384))
    data = encode(picture, "JPEG", quality=95)
    reduced = open_rgb(data, min_side=min_side(fast))
    assert reduced.size == (256, 192)
    assert np.abs(to_input(reduced, fast) - to_input(picture, fast)).mean() < 0.05
    of_an_old_card = {name: value for name, value in PREPROCESSING.model_dump().items() if name != "decode_factor"}
    assert min_side(type(PREPROCESSING)(**of_an_old_card)) == LEAST == 448


@pytest.mark.parametrize("size", [(512, 384), (384, 512), (640, 480), (511, 4000)])
def test_small_photographs_are_not_reduced(size):
    data = encode(draw_picture("paper", 2, size), "JPEG")
    assert open_rgb(data, min_side=LEAST).tobytes() == open_rgb(data).tobytes()


# Real photographs


def photographs() -> list[Path]:
    "Validation photographs, spread over all of them."
    if "TRASHNET" not in os.environ:
        pytest.skip("!!! TRASHNET is unset: reduced decoding was not compared on photographs")
    folder = Path(os.environ["TRASHNET"])
    with (folder / "split.csv").open(encoding="utf-8") as stream:
        files = [folder / "images" / row["file"] for row in csv.DictReader(stream) if row["split"] == "val"]
    return files[:: max(1, len(files) // PHOTOGRAPHS)]


def test_trashnet_photographs_are_not_reduced():
    for file in photographs():
        with Image.open(file) as opened:
            before = opened.convert("RGB")
        assert open_rgb(file, min_side=LEAST).tobytes() == before.tobytes()


def test_reduced_decoding_keeps_the_prediction_at_twelve_megapixels(predictor, capsys):
    "`make check-long` takes all 328 validation photographs, `make test` six."
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


def test_the_input_array_is_bitwise_stable():
    "Equal to the last bit to the same computation with channels last."
    picture = draw_picture("trash", 3, (512, 384))
    side = PREPROCESSING.input_size
    pixels = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = (pixels - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))
    changes = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_mode": "squash", "crop_pct": 1.0}
    ours = to_input(picture, PREPROCESSING.model_copy(update={**changes, "interpolation": "bicubic"}))
    assert np.array_equal(ours, expected.transpose(2, 0, 1))
