"""Decoding photographs of twelve megapixels, whole and reduced: `python bench/decode.py --photos DIR`."""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from pictures import large_pictures, small_pictures
from PIL import Image

from trashsorting.core import read_card, read_settings
from trashsorting.image import least_side, open_rgb, to_input


def milliseconds(function: Callable[[bytes], object], data: bytes) -> float:
    "Processor time of one call: on a busy machine it moves less than the clock."
    start = time.process_time()
    function(data)
    return 1000 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="JPEGs in sub-folders (TrashNet's images); default: drawn pictures")
    parser.add_argument("--count", type=int, default=12, help="pictures")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is decoded each way")
    parser.add_argument("--quick", action="store_true", help="2 pictures, 1 round")
    options = parser.parse_args()
    if options.quick:
        options.count, options.rounds = 2, 1
    preprocessing = read_card(read_settings().model).preprocessing
    least = least_side(preprocessing)

    def pillow(data: bytes) -> Image.Image:
        return Image.open(BytesIO(data)).convert("RGB")

    ways = {
        "decode, whole": open_rgb,
        "decode, reduced": lambda data: open_rgb(data, least_side=least),
        "decode + to input, plain Pillow": lambda data: to_input(pillow(data), preprocessing),
        "decode + to input, whole": lambda data: to_input(open_rgb(data), preprocessing),
        "decode + to input, reduced": lambda data: to_input(open_rgb(data, least_side=least), preprocessing),
    }
    pictures = large_pictures(small_pictures(options.photos, options.count))
    found = {name: [] for name in ways}
    for _ in range(options.rounds):
        for picture in pictures:
            for name, way in ways.items():
                found[name].append(milliseconds(way, picture))
    sizes = [len(picture) / 1e6 for picture in pictures]
    print(f"{len(pictures)} JPEGs of 4032 x 3024, {min(sizes):.1f} to {max(sizes):.1f} MB, least side {least}")
    print(f"Pillow {Image.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores\n")
    print("| what | median, processor ms | whole : this |\n|---|---|---|")
    for name, taken in found.items():
        whole = "decode, whole" if name in list(ways)[:2] else "decode + to input, whole"
        median = statistics.median(taken)
        print(f"| {name} | {median:.1f} | {statistics.median(found[whole]) / median:.2f} |")


if __name__ == "__main__":
    main()
