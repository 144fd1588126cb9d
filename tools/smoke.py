#!/usr/bin/env python3
"""What a first user does, on any system: install the light set, predict, serve, ask. `python tools/smoke.py`

Only the standard library is needed to start it. The environment is made in a temporary folder, from the lock.
"""

import json
import os
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
ASK = """
import sys; from pathlib import Path; from trashsorting.serving.client import Client
print(Client(sys.argv[1]).predict(Path(sys.argv[2])).predicted_class)
"""
START_SECONDS = 120


def call(*words: object, **options: object) -> str:
    "Run a program to its end; what it printed."
    return subprocess.run(
        list(map(str, words)), cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE, **options
    ).stdout


def wait_until_open(port: int, server: subprocess.Popen) -> None:
    "Return when somebody listens. Raises `SystemExit` if the server ends, or takes too long."
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as client:
            if not client.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.2)
    sys.exit(f"smoke: the service does not start (exit status {server.poll()})")


def main() -> None:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        venv.create(f"{folder}/venv", with_pip=True)
        python = Path(folder, "venv", "Scripts/python.exe" if os.name == "nt" else "bin/python")
        call(python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", "requirements/serve.txt")
        trashsorting = [python, "-m", "trashsorting"]
        call(*trashsorting, "data", "sample", f"{folder}/sample", "--per-class", 1)
        said = json.loads(call(*trashsorting, "predict", "--json", f"{folder}/sample"))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        server = subprocess.Popen([*map(str, trashsorting), "serve", "--port", str(port), "--workers", "1"], cwd=ROOT)
        try:
            wait_until_open(port, server)
            answer = call(python, "-c", ASK, f"http://127.0.0.1:{port}", said[0]["file"]).strip()
        finally:
            server.terminate()
            server.wait(60)
    if answer != said[0]["predicted_class"]:
        sys.exit(f"smoke: the service says {answer}, the command {said[0]['predicted_class']}")
    print(
        f"smoke: {len(said)} pictures classified, the service agrees, Python {sys.version.split()[0]} on {sys.platform}"
    )


if __name__ == "__main__":
    main()
