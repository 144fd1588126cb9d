"""`trashsorting score` against the limit of its machine: `python bench/score.py --photos DIR`, a table of ratios.

The limit is that of bench/serve.py: processes that loop over decode, preprocess and inference on pictures in memory.
Limit and run take turns, since a shared machine changes its speed. The rate of a run is that of its middle, from a
tenth of the answers to nine tenths, when every process has work; its processor time is the difference between a long
run and a short one. So the start and the end of the processes are in neither. Ray is measured where the extra `ray` is
installed, on one machine.
"""

import argparse
import importlib.util
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pictures import small_pictures
from serve import Pace, Row, limit, mean, median_and_range

from trashsorting.core.settings import read_settings
from trashsorting.core.system import count_cores
from trashsorting.data.entries import EntryList, read_entry
from trashsorting.data.storage import ResultFolder
from trashsorting.inference.score import Progress, ScoringTask, score_all, score_on_processes, score_on_ray, start_ray


class Clock(Progress):
    """Notes when answers came."""

    def __init__(self):
        super().__init__(lambda line: None)
        self.times: list[tuple[float, int]] = []

    def advance(self, n: int) -> None:
        "Note the time, and how many answers have come by then."
        self.done += n
        self.times.append((time.perf_counter(), self.done))

    def rate(self) -> float:
        "Photographs a second, from a tenth of the answers to nine tenths."
        middle = [(moment, done) for moment, done in self.times if 0.1 < done / self.done < 0.9]
        (start, first), (end, last) = middle[0], middle[-1]
        return (last - first) / (end - start)


def processor_seconds() -> float:
    "Of this process and of those that it has waited for."
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_once(files: Sequence[Path], count: int, engine: Callable, processes: int) -> tuple[float, float]:
    "Photographs a second, and processor seconds, of a run over `count` photographs."
    with TemporaryDirectory() as folder:
        names = [str(files[number % len(files)]) for number in range(count)]
        (Path(folder) / "list.txt").write_text("\n".join(names), encoding="utf-8")
        task, clock = ScoringTask(read_entry, read_settings().model), Clock()
        photographs, results = EntryList([f"{folder}/list.txt"]), ResultFolder(f"{folder}/out")
        before = processor_seconds()
        summary = score_all(task, photographs, results, engine=engine, processes=processes, progress=clock)
        if summary.left_out:
            raise SystemExit(f"bench: {summary.lines()}")
        return clock.rate(), processor_seconds() - before


def measure(
    name: str, files: Sequence[Path], engine: Callable, processes: int, options: argparse.Namespace
) -> list[Row]:
    "The rows of one engine."
    ratios, spent, short, count = [], [], 16 * processes * 4, options.count * processes
    rate, pace = 0.0, Pace(0, 0, 0)
    with limit(files, processes) as top:
        for _ in range(options.rounds):
            before = top(processes, options.seconds)
            rate, seconds = run_once(files, count, engine, processes)
            pace = mean([before, top(processes, options.seconds)])
            ratios.append(rate / pace.rate)
            if engine is score_on_processes:
                start = run_once(files, short, engine, processes)[1]
                spent.append(pace.spent / (1000 * (seconds - start) / (count - short)))
    least = 0.85 if engine is score_on_ray else 0.95
    ratio, words = median_and_range(ratios)
    rows = [Row(f"{name}, {processes} : limit", "small", f"{rate:.1f}/s : {pace.rate:.1f}/s{words}", ratio, least)]
    if spent:
        ratio, words = median_and_range(spent)
        words = f"{pace.spent:.1f} ms{words}"
        rows.append(Row(f"processor time, limit : {name}, {processes}", "small", words, ratio, least))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="JPEGs in sub-folders (TrashNet's images); default: drawn pictures")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of each run; default: 1 2")
    parser.add_argument("--count", type=int, default=2000, help="photographs of a run, for each process")
    parser.add_argument("--rounds", type=int, default=3, help="in which limit and run take turns")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement of the limit")
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it works; without Ray")
    options = parser.parse_args()
    if options.quick:
        options.count, options.rounds, options.seconds, options.processes = 200, 1, 1, [1]
    with_ray = not options.quick and importlib.util.find_spec("ray") is not None
    rows = []
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(24)]
        for file, picture in zip(files, small_pictures(options.photos, len(files)), strict=True):
            file.write_bytes(picture)
        for processes in options.processes:
            rows += measure("processes", files, score_on_processes, processes, options)
        if with_ray:
            start_ray(None)
            for processes in options.processes:
                rows += measure("Ray", files, score_on_ray, processes, options)
    print(f"{count_cores()} cores, model {read_settings().model.name}, {options.count} photographs for each process\n")
    print("| what | pictures | measured | ratio | target | |\n|---|---|---|---|---|---|")
    print("\n".join(row.line() for row in rows))
    if not with_ray:
        print("\nRay was not measured: install the extra `ray`, and leave out --quick.")


if __name__ == "__main__":
    main()
