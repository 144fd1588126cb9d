"""How often a copy of a photograph is recognised by its perceptual hash, and how similar the hashes of others are.

Some photographs are copied in each of the ways below; all photographs are compared with each other. Without --photos
the pictures are drawn, and drawings of one class are similar.

    python experiments/copies.py --photos DIR             # JPEGs in sub-folders, such as TrashNet's images
"""

import argparse
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from trashsorting.core.image import open_rgb
from trashsorting.data.duplicates import (
    MOST_BITS,
    MOST_GREY_BITS,
    compute_hashes,
    hash_distance,
    is_duplicate,
    perceptual_hash,
)
from trashsorting.data.sample import DRAW, draw_picture
from trashsorting.evaluation.metrics import wilson

NEAREST = 5  # Pairs of different photographs that are shown
Copy = Callable[[Image.Image], Image.Image]


def encoded(quality: int) -> Copy:
    "A JPEG of that quality, decoded again."

    def copy(picture: Image.Image) -> Image.Image:
        stream = BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return open_rgb(stream.getvalue())

    return copy


def cropped(fraction: float) -> Copy:
    "That fraction of each side cropped at both ends."

    def copy(picture: Image.Image) -> Image.Image:
        across, down = (round(fraction * side) for side in picture.size)
        return picture.crop((across, down, picture.width - across, picture.height - down))

    return copy


COPIES: dict[str, Copy] = {
    "JPEG, quality 40": encoded(40),
    "half the size": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "15 % lighter": lambda picture: picture.point(lambda value: min(255, int(1.15 * value))),
    "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90 degrees": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "2 % cropped": cropped(0.02),
    "4 % cropped": cropped(0.04),
    "7 % cropped": cropped(0.07),
}


def recognised(pictures: list[Image.Image]) -> None:
    "A row for each way to copy."
    own = np.stack([perceptual_hash(picture)[0] for picture in pictures])
    print("| copy | recognised | of | 95 % (Wilson) |\n|---|---|---|---|")
    for name, copy in COPIES.items():
        orientations = np.stack([perceptual_hash(copy(picture)) for picture in pictures])
        n = int(is_duplicate(orientations, own[:, None]).any(axis=1).sum())
        low, high = wilson(n, len(pictures))
        print(f"| {name} | {n / len(pictures):.1%} | {len(pictures)} | {low:.1%} to {high:.1%} |")


def nearest(hashes: np.ndarray, names: list[str]) -> None:
    "The number of pairs that count as copies, and the nearest of the other pairs."
    rows, n_copies = [], 0
    for first in range(len(hashes) - 1):
        every, grey = hash_distance(hashes[first, :, None], hashes[None, first + 1 :, 0])
        copies = (every <= MOST_BITS) & (grey <= MOST_GREY_BITS)
        n_copies += int(copies.any(axis=0).sum())
        beyond = np.maximum(every / MOST_BITS, grey / MOST_GREY_BITS).min(axis=0)  # 1 or less: a copy
        for other in np.argsort(beyond)[:NEAREST]:
            if beyond[other] > 1:
                orientation = np.maximum(every[:, other] / MOST_BITS, grey[:, other] / MOST_GREY_BITS).argmin()
                pair = (names[first], names[first + 1 + other])
                rows.append((beyond[other], int(grey[orientation, other]), int(every[orientation, other]), *pair))
    pairs = len(hashes) * (len(hashes) - 1) // 2
    print(f"\n{pairs:,} pairs of {len(hashes):,} pictures; {n_copies} count as copies", end=" ")
    print(f"(at most {MOST_GREY_BITS} grey bits and {MOST_BITS} of all). The nearest of the others:\n")
    print("| grey bits | of all | first | second |\n|---|---|---|---|")
    for _, grey, every, first, second in sorted(rows)[:NEAREST]:
        print(f"| {grey} | {every} | {first} | {second} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="JPEGs in sub-folders; default: drawn pictures")
    parser.add_argument("--count", type=int, default=120, help="photographs that are copied")
    parser.add_argument("--quick", action="store_true", help="12 drawn pictures")
    options = parser.parse_args()
    if options.photos:
        paths = sorted(options.photos.glob("*/*.jpg"))
        names, hashes = [path.name for path in paths], compute_hashes(paths)
        pictures = [open_rgb(path) for path in paths[:: max(1, len(paths) // options.count)]]
    else:
        each = 2 if options.quick else options.count // len(DRAW)
        drawn = {
            f"{label} {number}": draw_picture(label, number, (512, 384)) for label in DRAW for number in range(each)
        }
        names, pictures = list(drawn), list(drawn.values())
        hashes = np.stack([perceptual_hash(picture) for picture in pictures])
    recognised(pictures)
    nearest(hashes, names)


if __name__ == "__main__":
    main()
