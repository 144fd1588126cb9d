"""Prometheus on loopback, from Debian's package; tests skip, loudly, where it is missing."""

import shutil

import pytest


def program(name: str) -> str:
    "The path of `promtool` or `prometheus`."
    path = shutil.which(name)
    if not path:
        pytest.skip(f"!!! {name} is missing (apt-get install prometheus): the alerts were not tried")
    return path
