"""The `trashsorting` command within the process of the tests, where torch is imported once and not once a call."""

import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from subprocess import CompletedProcess
from unittest.mock import patch

import pytest

from trashsorting.cli.main import main


def call(*words, **environment: str) -> CompletedProcess:
    """What the command says, and its exit status. A fault that the command does not catch is the test's."""
    said, told = StringIO(), StringIO()
    typed = ["trashsorting", *map(str, words)]
    with patch.dict(os.environ, environment), patch("sys.argv", typed), redirect_stdout(said), redirect_stderr(told):
        with pytest.raises(SystemExit) as ended:
            main()
    return CompletedProcess(typed, int(ended.value.code or 0), said.getvalue(), told.getvalue())


HEAVY = {"torch", "torchvision", "fastai", "timm", "pandas", "matplotlib", "papermill"}


def run_light(*words) -> CompletedProcess:
    """What a Python program says in a process of its own, where it must not import torch."""
    python = [sys.executable, "-X", "importtime", *map(str, words)]
    done = subprocess.run(python, capture_output=True, text=True, timeout=600)
    imported = re.findall(r"^import time: .*\| +(\w+)$", done.stderr, re.MULTILINE)
    assert "trashsorting" in imported and not HEAVY & set(imported), HEAVY & set(imported)
    return CompletedProcess(python, done.returncode, done.stdout, re.sub(r"import time: .*\n", "", done.stderr))
