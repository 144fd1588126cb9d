"""Decoding: time for twelve megapixels, whole and reduced (`--photos DIR`), or memory (`--memory`)."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile

from pictures import COSTLY, costly_picture, large_pictures, small_pictures
from PIL import Image

from trashsorting.cloud.cloud_run import DECODE_BYTES, WORKER_BYTES
from trashsorting.core.card import read_card
from trashsorting.core.image import MAX_SIDE, min_side, open_rgb, to_input
from trashsorting.core.settings import MAX_PIXELS, read_settings


def milliseconds(function: Callable[[bytes], object], data: bytes) -> float:
    "Processor time of one call: on a busy machine it moves less than the clock."
    start = time.process_time()
    function(data)
    return 1000 * (time.process_time() - start)


# A worker: photographs of twelve megapixels, then three times the costly picture. Prints resident bytes.
WORKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pictures import large_pictures, small_pictures
from trashsorting.inference.predictor import Predictor

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024

predictor = Predictor()
data = Path(sys.argv[1]).read_bytes()
for picture in large_pictures(small_pictures(None, 3)):
    predictor.predict_one(picture)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
with ThreadPoolExecutor(1) as pool:  # as in the service
    for _ in range(3):
        pool.submit(predictor.predict_one, data).result()
print(before, memory("VmHWM"), memory("VmRSS"))
"""


def print_memory(megapixels: float) -> None:
    "What each costly picture takes, each in a process of its own, and whether the plan of a deployment holds."
    pixels = int(megapixels * 1e6)
    shapes = [(name, (int((pixels * 1.28) ** 0.5), int((pixels / 1.28) ** 0.5))) for name in COSTLY]
    for size in ((MAX_SIDE, pixels // MAX_SIDE), (pixels // MAX_SIDE, MAX_SIDE)):
        shapes += [(name, size) for name in ("PNG, 16 bits of grey", "PNG, alpha and a profile")]
    print("| picture | pixels | before, MB | at most, MB | bytes a pixel | after, MB |\n|---|---|---|---|---|---|")
    worst = 0
    for name, (width, height) in shapes:
        with NamedTemporaryFile() as file:
            file.write(costly_picture(name, (width, height)))
            file.flush()
            words = [sys.executable, "-c", WORKER, file.name]
            place = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=place)
        before, most, after = map(int, done.stdout.split())
        row = f"{before / 1e6:.0f} | {most / 1e6:.0f} | {(most - before) / width / height:.1f} | {after / 1e6:.0f}"
        print(f"| {name} | {width} x {height} | {row} |", flush=True)
        worst = max(worst, most)
    print(f"\nat most {worst / 1e6:.0f} MB; planned {(WORKER_BYTES + DECODE_BYTES * pixels) / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="JPEGs in sub-folders (TrashNet's images); default: drawn pictures")
    parser.add_argument("--count", type=int, default=12, help="pictures")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is decoded each way")
    parser.add_argument("--quick", action="store_true", help="2 pictures, 1 round")
    parser.add_argument("--memory", action="store_true", help="memory instead of time (Linux)")
    parser.add_argument("--megapixels", type=float, default=MAX_PIXELS / 1e6, help="of each costly picture")
    options = parser.parse_args()
    if options.memory:
        return print_memory(options.megapixels)
    if options.quick:
        options.count, options.rounds = 2, 1
    preprocessing = read_card(read_settings().model).preprocessing
    least = min_side(preprocessing)

    def pillow(data: bytes) -> Image.Image:
        return Image.open(BytesIO(data)).convert("RGB")

    ways = {
        "decode, whole": open_rgb,
        "decode, reduced": lambda data: open_rgb(data, min_side=least),
        "decode + to input, plain Pillow": lambda data: to_input(pillow(data), preprocessing),
        "decode + to input, whole": lambda data: to_input(open_rgb(data), preprocessing),
        "decode + to input, reduced": lambda data: to_input(open_rgb(data, min_side=least), preprocessing),
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
