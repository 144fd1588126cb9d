"""How looking for near-duplicates grows with the number of photographs: seconds and memory, each size in a process.

The photographs are drawn and perturbed in memory, so that this measures the search and not a disk; `--files` also
writes them and measures reading, hashes, embeddings and labels, which is what `trashsorting data check` does.
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
    "A manifest of n, hashes of drawings with some bits flipped, embeddings with some noise; 2 % are twins."
    labels = sorted(DRAW)
    real = [perceptual_hash(draw_picture(labels[number % len(labels)], number)) for number in range(SAMPLE_NAME)]
    hashes = np.stack([real[number % SAMPLE_NAME] for number in range(n)])
    hashes ^= rng.integers(0, 2**64, hashes.shape, np.uint64) & rng.integers(0, 2**64, hashes.shape, np.uint64)
    kinds, directions = np.arange(n) % len(labels), rng.standard_normal((len(labels), FEATURES), np.float32) / 2
    embeddings = rng.standard_normal((n, FEATURES), np.float32)
    for at in range(n):  # in place, so that making them does not take more memory than searching
        embeddings[at] += directions[kinds[at]]
    twins = rng.choice(n, (2, int(TWINS * n / 2)), replace=False)
    hashes[twins[0]], embeddings[twins[0]] = hashes[twins[1]], embeddings[twins[1]]
    entries = [Entry(f"{at:06}.png", labels[kinds[at]], "", str(at), 10, 10) for at in range(n)]
    return Manifest(Path(), tuple(entries)), hashes, embeddings


def search(n: int) -> None:
    "Search n simulated photographs, and print a row."
    manifest, hashes, embeddings = perturbed(n, np.random.default_rng(0))
    find_groups(*perturbed(100, np.random.default_rng(1)))  # imports do not count as memory of the search
    before, start = peak_mb(), time.perf_counter()
    groups = find_groups(manifest, hashes, embeddings)
    seconds = time.perf_counter() - start
    n_grouped, square = sum(len(group.files) for group in groups), n * n * 4 / 2**20
    print(f"{n:8}{seconds:10.1f}{peak_mb() - before:12.0f}{square:14.0f}{n_grouped:12}", flush=True)


def worst(n: int) -> None:
    "The same with n equal photographs."
    manifest, hashes, _ = perturbed(n, np.random.default_rng(0))
    before, start = peak_mb(), time.perf_counter()
    groups = find_groups(manifest, np.repeat(hashes[:1], n, axis=0))
    result = f"{len(groups)} group with {len(groups[0].links)} links" if groups else "no group"
    print(f"{n:8}{time.perf_counter() - start:10.1f}{peak_mb() - before:12.0f}   all are equal: {result}", flush=True)


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
        for name, work in [("hashes", compute_hashes), ("embeddings", embed)]:
            start = time.perf_counter()
            result = work(paths)
            times.append((name, time.perf_counter() - start))
        start = time.perf_counter()
        find_label_issues(out_of_fold(result, manifest), manifest)
        times.append(("labels", time.perf_counter() - start))
    for name, seconds in times:
        each, total = 1000 * seconds / n, 10_000 * seconds / n / 60
        print(f"{name:14}{seconds:8.1f} s{each:8.1f} ms a photograph, {total:6.1f} min for 10,000")
    print(f"peak memory   {peak_mb():8.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2500, 5000, 10_000], help="photographs")
    parser.add_argument("--files", type=int, help="write so many drawings and time the command's parts")
    parser.add_argument("--kind", choices=["search", "worst"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.files:
        return command(options.files)
    if options.kind:
        return {"search": search, "worst": worst}[options.kind](options.sizes[0])
    print(f"{'n':>8}{'seconds':>10}{'peak, +MB':>12}{'n x n, MB':>14}{'in groups':>12}", flush=True)
    for kind in ("search", "worst"):
        for n in options.sizes:
            subprocess.run([sys.executable, __file__, "--kind", kind, "--sizes", str(n)], check=True)


if __name__ == "__main__":
    main()
