"""Pictures to measure with: as TrashNet has them, as a phone takes them, and such as take the most memory."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from trashsorting.core.image import load_plugin, png_profile
from trashsorting.data.sample import DRAW, draw_picture

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


TURNED = Image.Exif()
TURNED[0x0112] = 6
PROFILE = png_profile(0.55)  # ICC, with colours that have to be converted
COSTLY = {  # What it is called: its mode, its format, how it is written
    "JPEG": ("RGB", "JPEG", {"subsampling": 0}),
    "JPEG, progressive": ("RGB", "JPEG", {"subsampling": 0, "progressive": True}),
    "JPEG, progressive, CMYK": ("CMYK", "JPEG", {"subsampling": 0, "progressive": True}),
    "PNG": ("RGB", "PNG", {}),
    "PNG, a profile": ("RGB", "PNG", {"icc_profile": PROFILE}),
    "PNG, 16 bits of grey": ("I;16", "PNG", {}),
    "PNG, grey and alpha": ("LA", "PNG", {}),
    "PNG, alpha and a profile": ("RGBA", "PNG", {"icc_profile": PROFILE}),
    "PNG, a transparent colour": ("RGB", "PNG", {"transparency": (1, 2, 3)}),
    "PNG, palette with alpha": ("P", "PNG", {"transparency": bytes(range(256))}),
    "WebP": ("RGBA", "WEBP", {}),
    "WebP, lossless, a profile": ("RGBA", "WEBP", {"lossless": True, "icc_profile": PROFILE}),
    "AVIF": ("RGBA", "AVIF", {"subsampling": "4:4:4", "speed": 10}),
    "HEIC": ("RGBA", "HEIF", {}),
    "HEIC, 10 bits": ("RGBA;16", "HEIF", {"chroma": 444}),
    "PNG, 16 bits and alpha": ("RGBA;16", "PNG", {"interlaced": 0}),
    "PNG, 16 bits and alpha, interlaced": ("RGBA;16", "PNG", {"interlaced": 1}),
    "PNG, 16 bits of grey, interlaced": ("I;16", "PNG", {"interlaced": 1}),
}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7


def raw_png(
    size: tuple[int, int],  # Pixels
    grey: bool,  # 16 bits of grey; else of red, green, blue and alpha
    interlaced: int,  # 1 or 0
) -> bytes:
    "A black PNG of a kind that Pillow reads and does not write."
    packer, data = zlib.compressobj(1), b""
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        row = bytes(1 + (2 if grey else 8) * len(range(left, size[0], across)))
        data += b"".join(packer.compress(row) for _ in range(top, size[1], down))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *size, 16, 0 if grey else 6, 0, 0, interlaced))]
    chunks += [(b"eXIf", TURNED.tobytes()[6:]), (b"IDAT", data + packer.flush()), (b"IEND", b"")]
    written = [struct.pack(">I", len(body)) + name + body for name, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk + struct.pack(">I", zlib.crc32(chunk[4:])) for chunk in written)


def costly_picture(
    name: str,  # A key of `COSTLY`
    size: tuple[int, int],  # Pixels
) -> bytes:
    "A black picture that takes much memory, lying on its side."
    mode, format, options = COSTLY[name]
    if "interlaced" in options:
        return raw_png(size, mode == "I;16", options["interlaced"])
    load_plugin(format)
    if mode == "RGBA;16":
        import pillow_heif

        blank = pillow_heif.from_bytes(mode, size, bytes(8 * size[0] * size[1]))
    else:
        blank, options = Image.new(mode, size), {"exif": TURNED.tobytes(), **options}
    stream = BytesIO()
    blank.save(stream, format=format, **options)
    return stream.getvalue()
