"""Which worker accepts a connection: `python bench/server_parts.py`, 5 minutes, a table with a row for each method.

Each variant is the service of this working tree with a few lines of Python run first in all its processes. The variants
take turns, and each figure is the median of the rounds. Processor time is what a busy machine disturbs least.
"""

import argparse
import re
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from pictures import small_pictures
from serve import finish, processor_time, service, start_wrk, worker_pids

UVICORN_SERVER = """
import trashsorting.serving.server as server
del server.WorkerEventLoop.create_server
"""
SOCKET_EACH = """
import socket
import trashsorting.serving.server as server

def bind(host, port):
    created = socket.socket()
    created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    created.bind((host, port))
    return created

async def create_server(self, make, *, sock, **uvicorn):
    return await super(server.WorkerEventLoop, self).create_server(make, sock=bind(*sock.getsockname()), backlog=2048)

server._listen, server.WorkerEventLoop.create_server = bind, create_server
"""
METHODS = {"backoff": "", "uvicorn's own": UVICORN_SERVER, "a socket for each worker": SOCKET_EACH}


def new_connections(port: int, pid: int, clients: int, seconds: float) -> dict[str, float]:
    "Requests that each open a connection, a second, and the processor's milliseconds for one."
    before = processor_time(pid)
    words = ["wrk", "-t", "1", "-c", clients, "-d", f"{max(1, round(seconds))}s", "-H", "Connection: close"]
    command = [str(word) for word in (*words, f"http://127.0.0.1:{port}/api/health")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    number = int(re.search(r"(\d+) requests in", output)[1])
    rate = float(re.search(r"Requests/sec: *([\d.]+)", output)[1])
    return {f"new/s, {clients}": rate, f"ms each, {clients}": 1000 * (processor_time(pid) - before) / max(number, 1)}


def predictions(port: int, pid: int, clients: int, seconds: float, files: Sequence[Path]) -> dict[str, float]:
    "Predictions a second, their tail, and the processor's milliseconds for one."
    before = processor_time(pid)
    result = finish(start_wrk(f"http://127.0.0.1:{port}/api/predict", clients, seconds, files))
    spent = 1000 * (processor_time(pid) - before) / result["answers"]
    return {
        f"predictions/s, {clients}": result["rate"],
        f"p99 : p50, {clients}": result["p99"] / result["p50"],
        f"ms each, {clients} ": spent,
    }


def fewest(port: int, pid: int, number: int, pause: float, times: int = 15) -> dict[str, float]:
    "How many of so many connections the worker with the fewest has: the mean and the worst of some times."
    counts = []
    time.sleep(1)  # the connections of the measurement before are closed
    for _ in range(times):
        before = {worker: sockets(worker) for worker in worker_pids(pid)}
        with ExitStack() as opened:
            for _ in range(number):
                opened.enter_context(socket.create_connection(("127.0.0.1", port)))
                time.sleep(pause)
            time.sleep(0.2)
            counts.append(min(sockets(worker) - had for worker, had in before.items()))
        time.sleep(0.1)
    kind = f"{number} in turn" if pause else f"{number} at once"
    return {f"fewest of {kind}": statistics.mean(counts), f"worst of {kind}": min(counts)}


def sockets(pid: int) -> int:
    "How many a process has open."
    links = list(Path(f"/proc/{pid}/fd").iterdir())
    return sum("socket:" in str(link.readlink()) for link in links if link.is_symlink())


def accepting(port: int, pid: int, seconds: float, files: Sequence[Path]) -> dict[str, float]:
    "What depends on which worker accepts a connection."
    result = new_connections(port, pid, 8, seconds)
    with ExitStack() as held:
        for _ in range(30):
            held.enter_context(socket.create_connection(("127.0.0.1", port)))
        result |= {f"{what}, 30 held": value for what, value in new_connections(port, pid, 8, seconds).items()}
    result |= predictions(port, pid, 8, seconds, files)
    return result | fewest(port, pid, 8, 0) | fewest(port, pid, 24, 0) | fewest(port, pid, 8, 0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="JPEGs in sub-folders (TrashNet's images); default: drawn pictures")
    parser.add_argument("--workers", type=int, default=2, help="of the service")
    parser.add_argument("--rounds", type=int, default=2, help="in which the variants take turns")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("bench: wrk is missing: apt-get install wrk")
    results = {name: [] for name in METHODS}
    with TemporaryDirectory() as folder:
        file, hook = Path(folder) / "photo.jpg", Path(folder) / "sitecustomize.py"
        file.write_bytes(small_pictures(options.photos, 1)[0])
        for name, lines in [*METHODS.items()] * options.rounds:
            hook.write_text(lines, encoding="utf-8")
            with service(options.workers, file.read_bytes(), folder) as (port, pid, _):
                finish(start_wrk(f"http://127.0.0.1:{port}/api/predict", 8, options.seconds, [file]))
                results[name].append(accepting(port, pid, options.seconds, [file]))
    names = list(results["backoff"][0])
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for name, rounds in results.items():
        medians = [statistics.median(values[what] for values in rounds) for what in names]
        print(f"| {name} | " + " | ".join(f"{median:.3g}" for median in medians) + " |")


if __name__ == "__main__":
    main()
