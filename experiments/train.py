"""Where a training step's time goes: loading alone, the step alone, both: `python experiments/train.py --data DIR`.

Images a second by the clock, and milliseconds of processor time an image, which on a busy machine moves less. On cores
that are all busy the loader's share of the processor time is what it costs a step; it is to be 10 % at most.
Everything is as `trashsorting train` does it by default, the frozen stages and the smaller training pictures included.
The measurements take turns, and the middle one of each counts.
"""

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that waits for another does not count as work

import platform
import resource
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.learner import Learner

from trashsorting.core.config import TrainConfig
from trashsorting.data.sources import load_manifest
from trashsorting.training.learner import create_learner

WARM = 1  # steps that are not counted


def processor_seconds() -> float:
    "Processor seconds of this process and of its finished workers."
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


class Stop(Callback):
    "Note when each step ended; stop after some; validate never."

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

    def before_validate(self):
        raise CancelValidException


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


def load(loader: Iterable, steps: int) -> list[tuple[float, float]]:
    "Load batches without a training step."
    times = [(time.perf_counter(), processor_seconds())]
    for _ in repeat(loader, steps):
        times.append((time.perf_counter(), processor_seconds()))
    return times


def train(learn: Learner, steps: int, batches: list | None = None) -> list[tuple[float, float]]:
    "Steps of a fit with all parameters trainable that training unfreezes, on these batches or the loader's."
    loaders, stop = list(learn.dls.loaders), Stop(steps)
    if batches:
        learn.dls.loaders = [batches * steps, loaders[1]]
    learn.create_opt()
    learn.freeze_to(len(learn.opt.param_lists) - 2)  # as `learner.fit` does
    with learn.no_bar(), learn.no_logging():
        learn.fit(1000, 1e-5, cbs=[stop])
    learn.dls.loaders = loaders
    return stop.times


LOAD, HERE = "loading alone", "loading alone, in this process"
STEP, BOTH = "forward and backward alone, one batch again and again", "both"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample", help="as for `trashsorting train`")
    parser.add_argument("--split", type=Path, help="as for `trashsorting train`")
    parser.add_argument("--synthetic", type=Path, help="of `trashsorting data synthesize`; none: photographs only")
    parser.add_argument("--backbone", default=TrainConfig.backbone, help="as for `trashsorting train`")
    parser.add_argument("--size", type=int, default=TrainConfig.image_size, help="pixels")
    parser.add_argument("--train-size", type=int, default=TrainConfig.train_size, help="pixels of a training picture")
    parser.add_argument("--batch", type=int, default=TrainConfig.batch_size, help="photographs a step")
    parser.add_argument("--steps", type=int, default=8, help="counted steps of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--workers", type=int, default=TrainConfig.num_workers, help="processes that load")
    parser.add_argument("--cache-gb", type=float, default=TrainConfig.cache_gb, help="0: every look decodes")
    parser.add_argument("--quick", action="store_true", help="64 pixels, 2 steps")
    options = parser.parse_args()
    if options.quick:
        options.size, options.batch, options.steps, options.workers, options.rounds = 64, 8, 2, 0, 1
    warnings.simplefilter("ignore")
    config = TrainConfig(
        backbone=options.backbone,
        image_size=options.size,
        train_size=options.train_size,
        batch_size=options.batch,
        num_workers=options.workers,
        cache_gb=options.cache_gb,
    )
    steps, rates = options.steps + WARM, {name: [] for name in (LOAD, HERE, STEP, BOTH)}
    with TemporaryDirectory() as folder:
        manifest = load_manifest(options.data, Path(folder) / "data", options.split)
        learn = create_learner(manifest, config, Path(folder), options.synthetic)
        here, batch = learn.dls.train.new(num_workers=0), learn.dls.train.one_batch()
        for _ in range(options.rounds):
            rates[LOAD].append(rate(load(learn.dls.train, steps), options.batch))
            rates[HERE].append(rate(load(here, steps), options.batch))
            rates[STEP].append(rate(train(learn, steps, [batch]), options.batch))
            rates[BOTH].append(rate(train(learn, steps), options.batch))
    middle = {name: [median(column) for column in zip(*rows, strict=True)] for name, rows in rates.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    side = min(options.size, options.train_size)
    print(f"{options.backbone}, {side} px, batch {options.batch}, {options.workers} workers, on {device}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}")
    print(f"{learn.dls.photographs}; synthetic images: {learn.synthetic or 'none'}")
    print(f"load of the machine {os.getloadavg()[0]:.1f}; middle of {options.rounds} rounds of {options.steps} steps\n")
    print("| what | images/s | this : both | processor ms an image |\n|---|---|---|---|")
    for name, (images, spent) in middle.items():
        print(f"| {name} | {images:.1f} | {images / middle[BOTH][0]:.2f} | {spent:.1f} |")
    fractions = [100 * here[1] / (here[1] + step[1]) for here, step in zip(rates[HERE], rates[STEP], strict=True)]
    spread = f"{min(fractions):.1f} to {max(fractions):.1f} % in the rounds"
    print(f"\nloader's share of a step: {median(fractions):.1f} % of the processor time ({spread})")
    print(f"what loading costs a step, by the clock: {1 - middle[BOTH][0] / middle[STEP][0]:.1%}")


if __name__ == "__main__":
    main()
