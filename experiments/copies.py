"""How surely a copy of a photograph is known again by its fingerprint, and how near two different ones come.

Of every so many photographs a copy is made in each of the ways below; all photographs are compared with each other.
Without --photos the pictures are drawn, and drawings of one kind are alike.

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


def cut(share: float) -> Copy:
    "That share of each side cut off at both ends."

    def copy(picture: Image.Image) -> Image.Image:
        across, down = (round(share * side) for side in picture.size)
        return picture.crop((across, down, picture.width - across, picture.height - down))

    return copy


COPIES: dict[str, Copy] = {
    "JPEG, quality 40": encoded(40),
    "half the size": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "15 % lighter": lambda picture: picture.point(lambda value: min(255, int(1.15 * value))),
    "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90 degrees": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "2 % cut off": cut(0.02),
    "4 % cut off": cut(0.04),
    "7 % cut off": cut(0.07),
}


def known_again(pictures: list[Image.Image]) -> None:
    "A row for each way to copy."
    own = np.stack([perceptual_hash(picture)[0] for picture in pictures])
    print("| copy | known again | of | 95 % (Wilson) |\n|---|---|---|---|")
    for name, copy in COPIES.items():
        poses = np.stack([perceptual_hash(copy(picture)) for picture in pictures])
        known = int(is_duplicate(poses, own[:, None]).any(axis=1).sum())
        low, high = wilson(known, len(pictures))
        print(f"| {name} | {known / len(pictures):.1%} | {len(pictures)} | {low:.1%} to {high:.1%} |")


def nearest(prints: np.ndarray, names: list[str]) -> None:
    "Pairs that are taken for copies, and the nearest of those that are not."
    rows, taken = [], 0
    for first in range(len(prints) - 1):
        every, grey = hash_distance(prints[first, :, None], prints[None, first + 1 :, 0])
        copies = (every <= MOST_BITS) & (grey <= MOST_GREY_BITS)
        taken += int(copies.any(axis=0).sum())
        beyond = np.maximum(every / MOST_BITS, grey / MOST_GREY_BITS).min(axis=0)  # 1 or less: taken for a copy
        for other in np.argsort(beyond)[:NEAREST]:
            if beyond[other] > 1:
                pose = np.maximum(every[:, other] / MOST_BITS, grey[:, other] / MOST_GREY_BITS).argmin()
                pair = (names[first], names[first + 1 + other])
                rows.append((beyond[other], int(grey[pose, other]), int(every[pose, other]), *pair))
    pairs = len(prints) * (len(prints) - 1) // 2
    print(f"\n{pairs:,} pairs of {len(prints):,} pictures; {taken} taken for copies", end=" ")
    print(f"(at most {MOST_GREY_BITS} grey bits and {MOST_BITS} of all). The nearest of the others:\n")
    print("| grey bits | of all | one | the other |\n|---|---|---|---|")
    for _, grey, every, one, other in sorted(rows)[:NEAREST]:
        print(f"| {grey} | {every} | {one} | {other} |")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--photos", type=Path, help="JPEGs in sub-folders; default: drawn pictures")
    asked.add_argument("--count", type=int, default=120, help="photographs that are copied")
    asked.add_argument("--quick", action="store_true", help="12 drawn pictures")
    options = asked.parse_args()
    if options.photos:
        paths = sorted(options.photos.glob("*/*.jpg"))
        names, prints = [path.name for path in paths], compute_hashes(paths)
        pictures = [open_rgb(path) for path in paths[:: max(1, len(paths) // options.count)]]
    else:
        each = 2 if options.quick else options.count // len(DRAW)
        drawn = {
            f"{label} {number}": draw_picture(label, number, (512, 384)) for label in DRAW for number in range(each)
        }
        names, pictures = list(drawn), list(drawn.values())
        prints = np.stack([perceptual_hash(picture) for picture in pictures])
    known_again(pictures)
    nearest(prints, names)


if __name__ == "__main__":
    main()
