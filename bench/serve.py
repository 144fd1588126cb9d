"""The service against the limit of its machine: `python bench/serve.py --photos DIR`, 12 minutes, a table of ratios.

The limit is what as many processes as there are cores reach when each loops over decode, preprocess and inference on
the same pictures, without HTTP. Everything runs on one machine, the load generator included, so only the ratios can be
compared with those of another machine. A shared machine changes its speed within a minute, so the two take turns: each
load stands between two measurements of the limit and is compared with their mean. A ratio is the median of the rounds,
with the lowest and the highest.

`--against` compares with other servers instead: a plain FastAPI app, LitServe and BentoML with the same model and the
same pictures, each installed once in an environment of its own (`--cache`). All run at once and are loaded in turns.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from itertools import chain, cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from others import OTHERS, predicted_class, prepare, serve_other
from pictures import large_pictures, small_pictures

from trashsorting.core.image import min_side, open_rgb
from trashsorting.core.settings import read_settings
from trashsorting.core.system import count_cores
from trashsorting.inference.predictor import Predictor
from trashsorting.serving.client import Client, ClientError
from trashsorting.serving.monitor import Window

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_name("load.lua")
CONNECTIONS = (1, 8, 64)
STEADY = 0.7  # Fraction of the highest throughput at which the tail is measured
STEADY_CONNECTIONS = 16


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    pictures: str
    measured: str
    ratio: float | None = None
    least: float | None = None  # What the ratio should reach
    most: float | None = None  # Or stay at or under

    def line(self) -> str:
        "As Markdown."
        target = "" if self.least is None else f"≥ {self.least:g}"
        target = target if self.most is None else f"≤ {self.most:g}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        met = (self.least is None or self.ratio >= self.least) and (self.most is None or self.ratio <= self.most)
        return f"| {self.what} | {self.pictures} | {self.measured} | {ratio} | {target} | {'' if met else 'missed'} |"


# The limit


@dataclass(frozen=True)
class Pace:
    """What processes without HTTP reached."""

    rate: float  # Predictions a second, of all of them
    median: float  # Milliseconds of one prediction
    spent: float  # Processor milliseconds of one


def loop(files: Sequence[Path], orders: Connection) -> None:
    "One process of the limit: receives seconds to loop for, and sends milliseconds, of the clock and of the processor."
    predictor, pictures = Predictor(read_settings().model, threads=1), [file.read_bytes() for file in files]
    for picture in pictures:
        predictor.predict_one(picture)
    orders.send(None)  # ready
    for seconds in iter(orders.recv, 0):
        milliseconds, end, spent = [], time.perf_counter() + seconds, time.process_time()
        while (start := time.perf_counter()) < end:
            predictor.predict_one(pictures[len(milliseconds) % len(pictures)])
            milliseconds.append(1000 * (time.perf_counter() - start))
        orders.send((milliseconds, 1000 * (time.process_time() - spent) / len(milliseconds)))


@contextmanager
def limit(files: Sequence[Path], processes: int) -> Iterator[Callable[[int, float], Pace]]:
    "Processes that loop together: call with how many of them, and for how many seconds."
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(processes)]
    workers = [context.Process(target=loop, args=(files, remote), daemon=True) for _, remote in pipes]
    connections = [local for local, _ in pipes]
    for process, (_, remote) in zip(workers, pipes, strict=True):
        process.start()
        remote.close()  # so that waiting for a dead process ends
    for connection in connections:
        connection.recv()

    def measure(number: int, seconds: float) -> Pace:
        for connection in connections[:number]:
            connection.send(seconds)
        milliseconds, spent = zip(*(connection.recv() for connection in connections[:number]), strict=True)
        rate = sum(1000 * len(times) / sum(times) for times in milliseconds)
        return Pace(rate, statistics.median(chain(*milliseconds)), statistics.mean(spent))

    yield measure
    for connection, process in zip(connections, workers, strict=True):
        connection.send(0)
        process.join()


# The service


def free_port() -> int:
    "A port that nobody listens on."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def predicts(port: int, picture: bytes) -> bool:
    "Whether the service classifies a picture."
    try:
        Client(f"http://127.0.0.1:{port}", retries=0).predict(picture)
    except ClientError:
        return False
    return True


@contextmanager
def service(workers: int, picture: bytes, modules: str = "", **variables: str) -> Iterator[tuple[int, int, float]]:
    "Run the service from this working tree: its port, its process, and seconds from start to first prediction."
    port, threads = free_port(), str(max(1, count_cores() // workers))
    path = os.pathsep.join(filter(None, [modules, str(ROOT)]))  # `modules` is a folder that is searched first
    environment = {**os.environ, "PYTHONPATH": path, "TRASHSORTING_THREADS": threads, **variables}
    command = [sys.executable, "-m", "trashsorting", "serve", "--port", str(port), "--workers", str(workers)]
    start = time.perf_counter()
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            while not predicts(port, picture):
                if process.poll() is not None or time.perf_counter() - start > 60:
                    raise SystemExit(f"the service did not start:\n{Path(log.name).read_text(encoding='utf-8')}")
                time.sleep(0.01)
            yield port, process.pid, time.perf_counter() - start
        finally:
            process.terminate()
            process.wait(timeout=60)


def worker_pids(pid: int) -> list[int]:
    "The processes that answer: the service's children that hold a model, or itself where it has none."
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    workers = [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return workers or [pid]


def memory(pid: int) -> float:
    "The largest resident memory of a process that answers, megabytes."
    pages = [int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1]) for process in worker_pids(pid)]
    return max(pages) * os.sysconf("SC_PAGESIZE") / 1e6


def processor_time(pid: int) -> float:
    "What the processes that answer have used so far, seconds."
    stats = [Path(f"/proc/{process}/stat").read_text(encoding="utf-8") for process in worker_pids(pid)]
    fields = [stat.rpartition(")")[2].split()[11:13] for stat in stats]
    return sum(int(user) + int(system) for user, system in fields) / os.sysconf("SC_CLK_TCK")


# Load


def start_wrk(url: str, connections: int, seconds: float, files: Sequence[Path] = (), delay: float = 0):
    "Begin to send; `finish` waits for the result."
    words = ["wrk", "-t", "1", "-c", connections, "-d", f"{max(1, round(seconds))}s", "--timeout", "60s"]
    command = [str(word) for word in (*words, "-s", SCRIPT, url, "--", f"{delay:.3f}", *files)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(wrk: subprocess.Popen) -> dict[str, float]:
    "The result of wrk: `rate` counts accepted requests only."
    result = json.loads(wrk.communicate()[0].splitlines()[-1])
    if not result["answers"]:
        raise SystemExit(f"bench: no answer in {result['seconds']:.0f} s: allow more with --seconds")
    accepted = result["answers"] - result["refused"]
    return {**result, "rate": accepted / result["seconds"]}


def describe(result: dict[str, float]) -> str:
    "The result of a load in words."
    errors = "".join(f", {result[name]:.0f} {name}" for name in ("refused", "failed") if result[name])
    return f"{result['rate']:.1f}/s, p50 {result['p50']:.1f} ms, p99 {result['p99']:.1f} ms{errors}"


@dataclass(frozen=True)
class Load:
    """What clients saw between two measurements of the limit."""

    result: dict[str, float]  # From `finish`
    limit: Pace  # The mean of before and after
    spent: float  # Processor milliseconds of the service for one request


def mean(paces: Sequence[Pace]) -> Pace:
    "The mean of each field."
    return Pace(*(statistics.mean(values) for values in zip(*(astuple(pace) for pace in paces), strict=True)))


def median_and_range(ratios: Sequence[float]) -> tuple[float, str]:
    "The median of the rounds, and their range in words."
    return statistics.median(ratios), f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""


def take_turns(
    top: Callable[[int, float], Pace],  # From `limit`
    service: tuple[int, int],  # Its port and its process
    files: Sequence[Path],
    connections: Sequence[int],
    seconds: float,
) -> dict[int, Load]:  # For each number of connections
    "One round: the limit, a load, the limit, the next load."
    port, pid = service
    loads = {}
    for number in connections:
        processes = 1 if number == 1 else count_cores()
        before, at_start = top(processes, seconds), processor_time(pid)
        result = finish(start_wrk(f"http://127.0.0.1:{port}/api/predict", number, seconds, files))
        spent = 1000 * (processor_time(pid) - at_start) / result["answers"]
        loads[number] = Load(result, mean([before, top(processes, seconds)]), spent)
    return loads


def measure(name: str, files: Sequence[Path], options: argparse.Namespace, connections: Sequence[int]) -> list[Row]:
    "All rows for one size of pictures."
    cores, workers, seconds = count_cores(), options.workers, options.seconds
    with limit(files, cores) as top, service(workers, files[0].read_bytes()) as (port, pid, _):
        url, health = f"http://127.0.0.1:{port}/api/predict", f"http://127.0.0.1:{port}/api/health"
        finish(start_wrk(url, 2 * workers, 1, files))  # every worker has seen a picture
        at_first = memory(pid)
        rounds = [take_turns(top, (port, pid), files, connections, seconds) for _ in range(options.rounds)]
        full = start_wrk(url, max(connections), seconds, files)
        healthy, full = finish(start_wrk(health, 2 * workers, seconds, delay=100)), finish(full)
        best = statistics.median(max(load.result["rate"] for load in loads.values()) for loads in rounds)
        alone = rounds[-1][connections[0]].limit.median
        pause = 1000 * STEADY_CONNECTIONS / (STEADY * best) - 1.5 * alone
        steady = finish(start_wrk(url, STEADY_CONNECTIONS, 2 * seconds, files, max(pause, 1)))
        at_last = memory(pid)
    rows = []
    for number in connections:
        loads = [round_loads[number] for round_loads in rounds]
        last = loads[-1]
        if number == 1:
            ratio, words = median_and_range([load.result["p50"] / load.limit.median for load in loads])
            words = f"{last.result['p50']:.1f} ms : {last.limit.median:.1f} ms{words}"
            rows.append(Row("one client's median : in-process time", name, words, ratio, most=1.3))
            continue
        least = 0.85 if number >= 4 * workers else None  # fewer do not fill the workers
        ratio, words = median_and_range([load.result["rate"] / load.limit.rate for load in loads])
        words = f"{describe(last.result)} : {last.limit.rate:.1f}/s{words}"
        rows.append(Row(f"HTTP throughput, {number} connections : {cores} processes", name, words, ratio, least))
        ratio, words = median_and_range([load.limit.spent / load.spent for load in loads])
        words = f"{last.limit.spent:.1f} ms : {last.spent:.1f} ms{words}"
        rows.append(Row(f"processor time, in-process : service, {number} connections", name, words, ratio))
    words = f"p50 {healthy['p50']:.1f} ms, p99 {healthy['p99']:.1f} ms : {full['p50']:.1f} ms"
    rows.append(Row("`/api/health` p99 under saturation : median", name, words, healthy["p99"] / full["p50"], most=1))
    words = f"{describe(steady)}, {steady['rate'] / best:.0%} load"
    rows.append(Row("p99 : median at 70 % load", name, words, steady["p99"] / steady["p50"], most=4))
    words = f"{at_first:.0f} MB at first, {at_last:.0f} MB at last"
    rows.append(Row("memory of a worker : 250 MB", name, words, at_last / 250, most=1))
    return rows


def compare_servers(files: Sequence[Path], options: argparse.Namespace, connections: Sequence[int]) -> list[str]:
    "A table of our service and others, loaded in turns: lines of Markdown."
    pictures, model = [file.read_bytes() for file in files], Path(read_settings().model)
    pythons = {name: prepare(name, options.cache) for name in OTHERS}
    rates = {(name, number): [] for number in connections for name in ("ours", *OTHERS)}
    last = {}
    with ExitStack() as running:
        ports = {"ours": running.enter_context(service(options.workers, pictures[0]))[0]}
        for name, python in pythons.items():
            ports[name] = free_port()
            running.enter_context(serve_other(name, python, ports[name], options.workers, model, pictures))
        classes = {name: [predicted_class(port, picture) for picture in pictures] for name, port in ports.items()}
        for turn in range(options.rounds + 1):  # the first warms up
            for name, number in rates:
                url = f"http://127.0.0.1:{ports[name]}/api/predict"
                last[name, number] = finish(start_wrk(url, number, options.seconds if turn else 1, files))
                rates[name, number] += [last[name, number]["rate"]] if turn else []
    lines = ["| server | connections | last round | ours : this | the same classes |", "|---|---|---|---|---|"]
    for name, number in rates:
        ratios = [ours / other for ours, other in zip(rates["ours", number], rates[name, number], strict=True)]
        ratio, words = median_and_range(ratios)
        same = sum(label == ours for label, ours in zip(classes[name], classes["ours"], strict=True))
        lines.append(
            f"| {name} | {number} | {describe(last[name, number])} | {ratio:.2f}{words} | {same} of {len(files)} |"
        )
    return lines


def measure_start(picture: bytes, times: int) -> Row:
    "Start to first prediction with one worker, against the imports that cannot be avoided."
    imports, starts = [], []
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import fastapi, onnxruntime, PIL"], check=True)
        imports.append(time.perf_counter() - begin)
        with service(1, picture) as (_, _, seconds):
            starts.append(seconds)
    start, imported = statistics.median(starts), statistics.median(imports)
    return Row("start to first prediction : imports", "", f"{start:.2f} s : {imported:.2f} s", start / imported, most=2)


def spent(function: Callable[[bytes], object], picture: bytes) -> float:
    "Processor milliseconds of a call."
    start = time.process_time()
    function(picture)
    return 1000 * (time.process_time() - start)


def measure_drift(pictures: Sequence[bytes], times: int) -> Row:
    "What the service computes and keeps of a photograph to notice drift, in turns with a prediction without it."
    predictor, window = Predictor(read_settings().model, threads=1), Window()
    card, side = predictor.card, min_side(predictor.card.preprocessing)

    def observe(picture: bytes) -> None:
        prediction, features = predictor.observe(open_rgb(picture, min_side=side))
        window.add(card, prediction.predicted_class, features)

    pairs = [
        (spent(predictor.predict_one, picture), spent(observe, picture)) for picture in islice(cycle(pictures), times)
    ]
    prediction = statistics.median(first for first, _ in pairs)
    drift = statistics.median(second - first for first, second in pairs)
    words = f"{drift:.2f} ms : {prediction:.1f} ms"
    return Row("processor time of drift : prediction", "small", words, drift / prediction, most=0.02)


def measure_shadow(picture: bytes, options: argparse.Namespace) -> Row:
    "The tail of one client with a candidate in the shadow of every photograph, against the tail without it, in turns."
    candidate = {"TRASHSORTING_SHADOW_MODEL": str(read_settings().model), "TRASHSORTING_SHADOW_FRACTION": "1"}
    single = {"TRASHSORTING_THREADS": "1"}  # so that a core is free for the candidate
    with TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "photo.jpg"
        file.write_bytes(picture)
        ports = [stack.enter_context(service(1, picture, **single, **more))[0] for more in ({}, candidate)]
        urls, tails = [f"http://127.0.0.1:{port}/api/predict" for port in ports], []
        for _ in range(options.rounds):
            tails.append([finish(start_wrk(url, 1, options.seconds, [file]))["p95"] for url in urls])
    ratio, words = median_and_range([shadowed / plain for plain, shadowed in tails])
    words = f"{tails[-1][1]:.1f} ms : {tails[-1][0]:.1f} ms{words}"
    return Row("one client's p95, with a shadow : without", "small", words, ratio, most=1.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="JPEGs in sub-folders (TrashNet's images); default: drawn pictures")
    parser.add_argument("--workers", type=int, default=count_cores(), help="of the service; default: one for each core")
    parser.add_argument("--connections", type=int, nargs="+", help="clients at a time; default: 1 8 64, quick: 1 8")
    parser.add_argument("--rounds", type=int, default=3, help="in which limit and service take turns")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    sizes = ["small", "large"]
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=sizes, help="of the pictures; default: both")
    parser.add_argument("--count", type=int, default=12, help="pictures of each size")
    parser.add_argument("--against", action="store_true", help="other servers, instead of the limit of this machine")
    cache = Path.home() / ".cache" / "trashsorting" / "bench"
    parser.add_argument("--cache", type=Path, default=cache, help="where --against keeps the others' environments")
    parser.add_argument("--quick", action="store_true", help="under a minute, to see that it works")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("bench: wrk is missing: apt-get install wrk")
    if options.quick:
        options.seconds, options.count, options.rounds = 1, 3, 1
    connections = options.connections or ((1, 8) if options.quick else CONNECTIONS)
    small = small_pictures(options.photos, options.count)
    print(f"{options.workers} workers on {count_cores()} cores, model {read_settings().model.name}")
    rows = []
    if not options.against:
        rows = [measure_start(small[0], 1 if options.quick else 5), measure_drift(small, 60 if options.quick else 600)]
        rows.append(measure_shadow(small[0], options))
    with TemporaryDirectory() as folder:
        for size in options.sizes:
            pictures = small if size == "small" else large_pictures(small)
            files = [Path(folder) / f"{size}{number}.jpg" for number in range(len(pictures))]
            for file, picture in zip(files, pictures, strict=True):
                file.write_bytes(picture)
            name = f"{size}, {statistics.mean(map(len, pictures)) / 1e6:.2g} MB"
            if options.against:
                print("\n".join(["", f"{name}:", "", *compare_servers(files, options, connections)]), flush=True)
                continue
            rows += measure(name, files, options, connections)
    if rows:
        print("\n| what | pictures | measured | ratio | target | |\n|---|---|---|---|---|---|")
        print("\n".join(row.line() for row in rows))


if __name__ == "__main__":
    main()
