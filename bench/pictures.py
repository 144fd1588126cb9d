"""Pictures to measure with: as TrashNet has them, and as a phone takes them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from trashsorting.dataset import DRAW, draw_picture

SMALL = (512, 384)
LARGE = (4032, 3024)  # twelve megapixels


def add_noise(
    picture: Image.Image,
    sigma: float,  # Of each channel, grey levels
    seed: int,
) -> Image.Image:
    "What a sensor adds. One tile is drawn and repeated: drawing 36 million numbers takes a second."
    tile = np.random.default_rng(seed).normal(0, sigma, (504, 504, 3)).round().astype(np.int16)
    repeats = (-(-picture.height // 504), -(-picture.width // 504), 1)
    noise = np.tile(tile, repeats)[: picture.height, : picture.width]
    return Image.fromarray((np.asarray(picture, dtype=np.int16) + noise).clip(0, 255).astype(np.uint8))


def to_jpeg(picture: Image.Image) -> bytes:
    "As a camera stores it."
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def enlarge(
    picture: Image.Image,  # RGB, any size
    seed: int = 0,  # Of the noise
) -> bytes:  # A JPEG of twelve megapixels and about three megabytes
    "A photograph as a phone would have taken it: without noise the file would be a quarter as large."
    return to_jpeg(add_noise(picture.resize(LARGE, Image.Resampling.BICUBIC), 8, seed))


def small_pictures(
    folder: Path | None,  # Photographs in sub-folders; None draws
    count: int,
) -> list[bytes]:  # JPEGs
    "Small pictures, spread over a folder."
    if folder is None:
        labels = list(DRAW)
        drawn = [draw_picture(labels[seed % len(labels)], seed, SMALL) for seed in range(count)]
        return [to_jpeg(add_noise(picture, 4, seed)) for seed, picture in enumerate(drawn)]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"{folder}: no JPEG in this folder")
    return [files[place].read_bytes() for place in np.linspace(0, len(files) - 1, count).astype(int)]


def large_pictures(
    small: Sequence[bytes],  # JPEGs
) -> list[bytes]:  # JPEGs of twelve megapixels
    "The same pictures, enlarged."
    return [enlarge(Image.open(BytesIO(data)).convert("RGB"), seed) for seed, data in enumerate(small)]
