#!/bin/sh
# Rewrites the locks from settings.ini: versions and hashes for every platform, no addresses. Needs `uv` on the PATH.
# The pins in the files are kept where they still fit; `--upgrade` looks for newer ones.
set -eu
cd "$(dirname "$0")"
upgrade=${1-}
inputs=$(mktemp -d)
trap 'rm -rf "$inputs"' EXIT
python3 - "$inputs" <<'PY'
import configparser, pathlib, sys, tomllib
settings = configparser.ConfigParser(delimiters=["="])
settings.read("../settings.ini")
need = lambda *keys: "\n".join(word for key in keys for word in settings["DEFAULT"][key].split())
build = tomllib.loads(pathlib.Path("../pyproject.toml").read_text())["build-system"]["requires"]
folder = pathlib.Path(sys.argv[1])
(folder / "serve.in").write_text(need("requirements"))
(folder / "cloud.in").write_text(need("requirements", "cloud_requirements"))
(folder / "train.in").write_text(need("requirements", "train_requirements", "cloud_requirements", "score_requirements"))
(folder / "dev.in").write_text(
    need("requirements", "train_requirements", "cloud_requirements", "score_requirements", "dev_requirements")
)
(folder / "build.in").write_text("\n".join(build))  # what makes the wheel in the images
(folder / "uv.in").write_text("uv")  # what `make setup` installs the rest with
(folder / "docs.in").write_text("smalldocs>=0.5")  # no extra: it wants fastcore 2, nbdev 2 wants less, so it lives alone
PY
lock() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate ${upgrade:+"$upgrade"} "$@"; }
# The larger set follows the smaller, and train.txt follows dev.txt: what was tested is what the images hold.
lock "$inputs/serve.in" -o serve.txt
lock "$inputs/dev.in" -c serve.txt -o dev.txt
lock "$inputs/train.in" -c dev.txt -o train.txt
lock "$inputs/cloud.in" -c dev.txt -o cloud.txt
lock "$inputs/build.in" -c dev.txt -o build.txt
lock "$inputs/uv.in" -o uv.txt
lock "$inputs/docs.in" -o docs.txt
