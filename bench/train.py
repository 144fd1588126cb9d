"""Where a training step's time goes: loading alone, the step alone, both: `python bench/train.py --data DIR`.

Images a second by the clock, and milliseconds of processor time an image, which on a busy machine moves less. On cores
that are all busy the loader's share of the processor time is what it costs a step.
"""

import argparse
import os
import platform
import resource
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner

from trashsorting.dataset import load_manifest
from trashsorting.learner import TrainConfig, create_learner

WARM = 1  # steps that are not counted


def processor_seconds() -> float:
    "Of this process and of its workers that have ended."
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


class Stop(Callback):
    "Note when each step ended; stop after some."

    order = 200

    def __init__(self, steps: int):
        self.steps, self.times = steps, []

    def before_batch(self):
        if not self.times:
            self.times.append((time.perf_counter(), processor_seconds()))

    def after_batch(self):
        self.times.append((time.perf_counter(), processor_seconds()))
        if len(self.times) > self.steps:
            raise CancelFitException


def rate(times: list[tuple[float, float]], batch_size: int) -> tuple[float, float]:
    "Images a second, and processor milliseconds an image, without the first steps."
    (begin, spent_before), (end, spent) = times[WARM], times[-1]
    images = batch_size * (len(times) - 1 - WARM)
    return images / (end - begin), 1000 * (spent - spent_before) / images


def repeat(loader: Iterable, steps: int) -> Iterable:
    "Batches of a loader, over and over."
    while steps > 0:
        for batch in loader:
            yield batch
            steps -= 1
            if not steps:
                return


def load(learn: Learner, steps: int) -> list[tuple[float, float]]:
    times = [(time.perf_counter(), processor_seconds())]
    for _ in repeat(learn.dls.train, steps):
        times.append((time.perf_counter(), processor_seconds()))
    return times


def train(learn: Learner, steps: int, batches: list | None = None) -> list[tuple[float, float]]:
    "Steps of a fit, whole network, on given batches or on the loader's."
    loaders, stop = list(learn.dls.loaders), Stop(steps)
    if batches:
        learn.dls.loaders = [batches * steps, loaders[1]]
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1000, 1e-5, cbs=[stop])
    learn.dls.loaders = loaders
    return stop.times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample", help="as for `trashsorting train`")
    parser.add_argument("--backbone", default=TrainConfig.backbone)
    parser.add_argument("--size", type=int, default=TrainConfig.image_size, help="pixels")
    parser.add_argument("--batch", type=int, default=TrainConfig.batch_size, help="photographs a step")
    parser.add_argument("--steps", type=int, default=8, help="counted steps of each measurement")
    parser.add_argument("--workers", type=int, default=TrainConfig.num_workers, help="processes that load")
    parser.add_argument("--quick", action="store_true", help="64 pixels, 2 steps")
    options = parser.parse_args()
    if options.quick:
        options.size, options.batch, options.steps, options.workers = 64, 8, 2, 0
    warnings.simplefilter("ignore")
    config = TrainConfig(
        backbone=options.backbone, image_size=options.size, batch_size=options.batch, num_workers=options.workers
    )
    steps = options.steps + WARM
    with TemporaryDirectory() as folder:
        manifest = load_manifest(options.data, Path(folder) / "data")
        make: Callable[[TrainConfig], Learner] = lambda config: create_learner(manifest, config, Path(folder))  # noqa: E731
        learn, here = make(config), make(replace(config, num_workers=0))
        batch = learn.dls.train.one_batch()
        found = {
            "loading alone": rate(load(learn, steps), options.batch),
            "loading alone, in this process": rate(load(here, steps), options.batch),
            "forward and backward alone, one batch again and again": rate(train(learn, steps, [batch]), options.batch),
            "both": rate(train(learn, steps), options.batch),
        }
    whole, step = found["both"][0], found["forward and backward alone, one batch again and again"]
    loading = found["loading alone, in this process"][1]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    print(f"{options.backbone}, {options.size} px, batch {options.batch}, {options.workers} workers, on {device}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}\n")
    print("| what | images/s | this : both | processor ms an image |\n|---|---|---|---|")
    for name, (images, spent) in found.items():
        print(f"| {name} | {images:.1f} | {images / whole:.2f} | {spent:.1f} |")
    print(f"\nloader's share of the processor time: {loading / (loading + step[1]):.1%}")
    print(f"what loading costs a step, by the clock: {1 - whole / step[0]:.1%}")


if __name__ == "__main__":
    main()
