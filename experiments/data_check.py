"""How looking for near-duplicates grows with the number of photographs: seconds and memory, each size in a process.

The photographs are drawn and perturbed in memory, so that this measures the search and not a disk; `--files` also
writes them and measures reading, fingerprints, embeddings and labels, which is what `trashsorting data check` does.
Memory is the growth of the process's peak over what it held before the search.

    python experiments/data_check.py                      # 1,000 to 10,000, a minute or two
    python experiments/data_check.py --files 500          # the command's parts, per photograph
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from trashsorting.data.duplicates import compute_hashes, find_groups, find_label_issues, out_of_fold, perceptual_hash
from trashsorting.data.manifest import Entry, Manifest, read_folder
from trashsorting.data.sample import DRAW, draw_picture

SAMPLE_NAME, FEATURES, TWINS = 300, 1280, 0.02


def peak_mb() -> float:
    "Largest resident memory of this process so far."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def perturbed(n: int, rng: np.random.Generator) -> tuple[Manifest, np.ndarray, np.ndarray]:
    "A manifest of n, fingerprints of drawings with some bits turned over, embeddings with some noise; 2 % are twins."
    labels = sorted(DRAW)
    real = [perceptual_hash(draw_picture(labels[number % len(labels)], number)) for number in range(SAMPLE_NAME)]
    prints = np.stack([real[number % SAMPLE_NAME] for number in range(n)])
    prints ^= rng.integers(0, 2**64, prints.shape, np.uint64) & rng.integers(0, 2**64, prints.shape, np.uint64)
    kinds, directions = np.arange(n) % len(labels), rng.standard_normal((len(labels), FEATURES), np.float32) / 2
    embeddings = rng.standard_normal((n, FEATURES), np.float32)
    for at in range(n):  # in place, so that making them does not take more memory than searching
        embeddings[at] += directions[kinds[at]]
    twins = rng.choice(n, (2, int(TWINS * n / 2)), replace=False)
    prints[twins[0]], embeddings[twins[0]] = prints[twins[1]], embeddings[twins[1]]
    entries = [Entry(f"{at:06}.png", labels[kinds[at]], "", str(at), 10, 10) for at in range(n)]
    return Manifest(Path(), tuple(entries)), prints, embeddings


def search(n: int) -> None:
    "Search n made-up photographs, and print a row."
    manifest, prints, embeddings = perturbed(n, np.random.default_rng(0))
    find_groups(*perturbed(100, np.random.default_rng(1)))  # what is imported on the way is not memory of the search
    before, start = peak_mb(), time.perf_counter()
    groups = find_groups(manifest, prints, embeddings)
    seconds = time.perf_counter() - start
    found, square = sum(len(group.files) for group in groups), n * n * 4 / 2**20
    print(f"{n:8}{seconds:10.1f}{peak_mb() - before:12.0f}{square:14.0f}{found:12}", flush=True)


def worst(n: int) -> None:
    "The same with n photographs that are all one."
    manifest, prints, _ = perturbed(n, np.random.default_rng(0))
    before, start = peak_mb(), time.perf_counter()
    groups = find_groups(manifest, np.repeat(prints[:1], n, axis=0))
    what = f"{len(groups)} group with {len(groups[0].links)} links" if groups else "nothing found"
    print(
        f"{n:8}{time.perf_counter() - start:10.1f}{peak_mb() - before:12.0f}   all are one picture: {what}", flush=True
    )


def command(n: int) -> None:
    "What `data check` does with n photographs of TrashNet's size, part by part."
    from trashsorting.training.backbone import embed

    with TemporaryDirectory() as folder:
        labels = sorted(DRAW)
        for number in range(n):
            path = Path(folder) / labels[number % len(labels)] / f"{number:06}.jpg"
            path.parent.mkdir(exist_ok=True)
            draw_picture(path.parent.name, number, (512, 384)).save(path, quality=85)
        start = time.perf_counter()
        manifest = read_folder(Path(folder))
        paths = [manifest.root / entry.file for entry in manifest.entries]
        times = [("read", time.perf_counter() - start)]
        for name, work in [("fingerprints", compute_hashes), ("embeddings", embed)]:
            start = time.perf_counter()
            found = work(paths)
            times.append((name, time.perf_counter() - start))
        start = time.perf_counter()
        find_label_issues(out_of_fold(found, manifest), manifest)
        times.append(("labels", time.perf_counter() - start))
    for name, seconds in times:
        each, whole = 1000 * seconds / n, 10_000 * seconds / n / 60
        print(f"{name:14}{seconds:8.1f} s{each:8.1f} ms a photograph, {whole:6.1f} min for 10,000")
    print(f"peak memory   {peak_mb():8.0f} MB")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--sizes", type=int, nargs="+", default=[1000, 2500, 5000, 10_000], help="photographs")
    asked.add_argument("--files", type=int, help="write so many drawings and time the command's parts")
    asked.add_argument("--one", choices=["search", "worst"], help=argparse.SUPPRESS)
    words = asked.parse_args()
    if words.files:
        return command(words.files)
    if words.one:
        return {"search": search, "worst": worst}[words.one](words.sizes[0])
    print(f"{'n':>8}{'seconds':>10}{'peak, +MB':>12}{'n x n, MB':>14}{'in groups':>12}", flush=True)
    for kind in ("search", "worst"):
        for n in words.sizes:
            subprocess.run([sys.executable, __file__, "--one", kind, "--sizes", str(n)], check=True)


if __name__ == "__main__":
    main()
