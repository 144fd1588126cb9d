"""Two machines train one network: two network namespaces with addresses of their own, joined by a cable."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_checkpoint import (
    COMMAND,
    ONE_THREAD,
    SECONDS,
    TOLERANCE,
    history,
    kernel_of,
    train_command,
    train_here,
    weights,
)

from trashsorting.training.callbacks import FreezeNorm
from trashsorting.training.checkpoint import FILE

pytestmark = pytest.mark.skipif("CHECK_NODES" not in os.environ, reason="takes a minute: `make check-long` runs it")
PORT = 29500
MACHINES_TOLERANCE = 2e-3  # Of losses and weights, to one process: sums are taken in another order


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def cabled() -> Iterator[list[list[str]]]:
    """What a command begins with to run on the first and on the second machine, 10.77.0.1 and 10.77.0.2."""
    names = [f"nodes{os.getpid()}-{number}" for number in range(2)]
    if not shutil.which("ip") or not all(ip("netns", "add", name) for name in names):
        pytest.skip("!!! two machines were not tried: making network namespaces needs root")
    ends = [f"veth{os.getpid()}-{number}" for number in range(2)]
    try:
        assert ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            assert ip("link", "set", end, "netns", name)
            assert ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            assert all(ip("-n", name, "link", "set", device, "up") for device in ("lo", end))
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            ip("netns", "del", name)


def start(cabled: list[list[str]], outs: list[Path], *options: str) -> list[subprocess.Popen]:
    """The same command on both machines; each has its own folder for the run, as without a shared disk."""
    several = ["--nnodes", "2", "--rdzv-endpoint", f"10.77.0.1:{PORT}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    commands = [[COMMAND, *train_command(out, *several, *options, "--node-rank", str(n))] for n, out in enumerate(outs)]
    return [
        subprocess.Popen([*prefix, *command], env=ONE_THREAD, **pipes)
        for prefix, command in zip(cabled, commands, strict=True)
    ]


def finish(machines: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Of each machine: exit status, standard output, standard error."""
    try:
        ended = [machine.communicate(timeout=SECONDS) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    return [(machine.returncode, *texts) for machine, texts in zip(machines, ended, strict=True)]


@pytest.fixture(scope="module")
def unbroken(cabled, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    first, second = finish(start(cabled, [folder / "run", folder / "second"]))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert first[1].count("epoch 2/2  done") == 1 and not second[1], "only the first machine prints"
    assert not (folder / "second").exists(), "only the first machine writes"
    return folder / "run"


def test_two_machines_train_like_one_process(unbroken, tmp_path):
    single = train_here(tmp_path / "one", FreezeNorm())
    for row, expected in zip(history(unbroken), single, strict=True):
        assert row == pytest.approx(expected, abs=MACHINES_TOLERANCE)
    assert (weights(unbroken) - weights(tmp_path / "one")).abs().max() < MACHINES_TOLERANCE
    assert (unbroken / "model.onnx").exists() and not (unbroken / FILE).exists()


def worker_of(pid: int) -> int:
    """The process that torch's agent has started."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()[0])


@pytest.mark.parametrize("killed", [0, 1])
def test_a_machine_that_dies_ends_the_run_which_resumes_to_the_same_result(killed, cabled, unbroken, tmp_path):
    outs = [tmp_path / "run", tmp_path / "second"]
    machines = start(cabled, outs)
    deadline = time.monotonic() + SECONDS
    while not (outs[0] / FILE).exists() and machines[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(kernel_of(worker_of(machines[killed].pid)), signal.SIGKILL)
    ended = finish(machines)
    for status, _, stderr in ended:
        assert status == 1 and "Traceback" not in stderr and "--resume" in stderr, stderr
        assert all(
            line.startswith(("trashsorting: ", "The notebook ", "Kernel died")) for line in stderr.splitlines()
        ), stderr
    assert "the notebook's process died (killed" in ended[killed][2]
    assert "another process of this run has ended or does not answer" in ended[1 - killed][2]
    assert len(history(outs[0])) == 1 and not (outs[0] / "run.json").exists()

    first, second = finish(start(cabled, outs, "--resume"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "epoch 1/2  done" not in first[1] and "epoch 2/2  done" in first[1]
    for row, expected in zip(history(outs[0]), history(unbroken), strict=True):
        assert row == pytest.approx(expected, abs=TOLERANCE)
    assert (weights(outs[0]) - weights(unbroken)).abs().max() < TOLERANCE


def test_two_processes_of_the_command_train_like_one(tmp_path):
    single, two = train_here(tmp_path / "one", FreezeNorm()), tmp_path / "two"
    command = [COMMAND, *train_command(two, "--nproc-per-node", "2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    for row, expected in zip(history(two), single, strict=True):
        assert row == pytest.approx(expected, abs=MACHINES_TOLERANCE)
    assert done.stdout.count("epoch 2/2  done") == 1, "only the first process prints"
    assert (two / "model.onnx").exists() and not list(two.glob("space-*"))
