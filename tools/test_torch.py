#!/usr/bin/env python3
"""Training and export on the oldest or the newest torch that settings.ini allows: `python tools/test_torch.py oldest`

Everything else is as in the lock. The environment is .venv-torch-oldest or .venv-torch-newest.
"""

import re
import subprocess
import sys
import venv
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ("training/02_dataloaders", "training/05_learner", "export/00_onnx")


def wanted(which: str, requirements: str) -> list[str]:
    "What pip is asked for: `oldest` pins the lower bounds, `newest` leaves the bounds as they are."
    words = [word for word in requirements.split() if re.match(r"torch(vision)?[<>=]", word)]
    if which == "newest":
        return words
    return [re.sub(r">=([\d.]+).*", r"==\1.*", word) for word in words]


def main(which: str) -> None:
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    words = wanted(which, parser["DEFAULT"]["train_requirements"])
    folder = ROOT / f".venv-torch-{which}"
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [
        [*pip, "--require-hashes", "-r", "requirements/dev.txt"],
        [*pip, "--upgrade", *words],
        [*pip, "--no-deps", "--no-build-isolation", "--editable", "."],
        [python, "-c", "import torch; print('torch', torch.__version__)"],
        *([folder / "bin" / "nbdev_test", "--path", f"nbs/{name}.ipynb"] for name in NOTEBOOKS),
        [python, "-m", "pytest", "tests/training/test_train.py"],
    ]
    for step in steps:
        subprocess.run(list(map(str, step)), cwd=ROOT, check=True)


if __name__ == "__main__":
    if sys.argv[1:] not in (["oldest"], ["newest"]):
        sys.exit("which torch? python tools/test_torch.py oldest|newest")
    main(sys.argv[1])
