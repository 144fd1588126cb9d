#!/usr/bin/env python3
"""Compare a candidate with the model that ships, or with the newest version at a place that a service reads.

`python tools/promote.py FOLDER --data DIR [--split CSV] [--report FILE] [--versions PLACE]`

FOLDER holds model.onnx and model.json. Both models are scored on the same photographs. The candidate is installed only
if its accuracy is not lower, no recall is much lower, it was trained on no more of these photographs, and
`trashsorting.export.install.install_model` accepts it. Exit status 0 then, otherwise 3. Metrics in the candidate's card
are not used; its card is trusted about what it was trained on.

With `--versions` the candidate becomes the next version in that folder; the first one is compared with the model that
ships. A service whose TRASHSORTING_MODEL is the folder then changes to it. For a bucket, copy such a folder:
`gcloud storage rsync --recursive FOLDER gs://...`.
"""

import argparse
import re
import subprocess
import sys
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from trashsorting.core.card import Evaluation, file_sha256, read_card
from trashsorting.core.errors import ModelError, TrashsortingError
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.core.system import is_remote
from trashsorting.export.install import install_model
from trashsorting.inference.versions import list_versions, write_parity

MAX_RECALL_LOSS = 0.10  # Of a class; or one photograph, if that is more


def faults(current: Evaluation, candidate: Evaluation) -> list[str]:
    "Why the candidate should not ship; empty if it should."
    if (current.n, current.classes) != (candidate.n, candidate.classes):
        return ["they were not scored on the same photographs and classes"]
    reasons = []
    if current.n_seen is not None and (candidate.n_seen is None or candidate.n_seen > current.n_seen):
        n_seen = "nobody knows how many" if candidate.n_seen is None else candidate.n_seen
        reasons.append(f"it was trained on {n_seen} of the {candidate.n} photographs, now {current.n_seen}")
    if candidate.accuracy < current.accuracy:
        reasons.append(f"accuracy {candidate.accuracy:.4f}, now {current.accuracy:.4f}")
    for label, metrics in current.per_class.items():
        allowed = max(MAX_RECALL_LOSS, 1 / metrics.support) if metrics.support else 1
        if candidate.per_class[label].recall < metrics.recall - allowed - 1e-9:
            reasons.append(f"recall of {label} {candidate.per_class[label].recall:.4f}, now {metrics.recall:.4f}")
    return reasons


def report(current: Evaluation, candidate: Evaluation, reasons: list[str]) -> str:
    "The comparison as Markdown."
    lines = [f"On {current.n} photographs:", "", "| | now | candidate |", "|---|---|---|"]
    for title, name in (("accuracy", "accuracy"), ("macro F1", "macro_f1")):
        lines.append(f"| {title} | {getattr(current, name):.4f} | {getattr(candidate, name):.4f} |")
    for label, metrics in current.per_class.items():
        other = candidate.per_class.get(label)
        lines.append(f"| recall of {label} | {metrics.recall:.4f} | {f'{other.recall:.4f}' if other else '-'} |")
    low, high = current.accuracy_interval
    lines += [
        "",
        f"The 95 % interval of the accuracy now is {low:.4f} to {high:.4f}; inside it, better may be chance.",
    ]
    return "\n".join([*lines, "", *(f"- not promoted: {reason}" for reason in reasons)]).rstrip() + "\n"


def next_name(place: Path) -> str:
    "A name that sorts after every version in a folder, and that nothing there has. Raises `ModelError`."
    newest = (list_versions(place) or ["v0"])[0]
    head, digits = re.fullmatch(r"(.*?)(\d*)\D*", newest).groups() if re.search(r"\d", newest) else (f"{newest}-", "0")
    numbers = count(int(digits) + 1)
    return next(name for n in numbers if not (place / (name := f"{head}{n:0{len(digits)}}")).exists())


def add_version(model: Path, place: Path) -> None:
    "Make a model the newest version in a folder. Raises `ModelError`."
    with TemporaryDirectory(dir=place, prefix=".") as temporary:
        version = Path(temporary) / next_name(place)
        install_model(model, version / "model.onnx")
        write_parity(version / "model.onnx")
        version.rename(place / version.name)


def score(model: Path, data: str, split: Path | None, folder: Path) -> Evaluation:
    "The result of `trashsorting evaluate` for a model. Raises `CalledProcessError`."
    out = folder / "metrics.json"
    command = [sys.executable, "-m", "trashsorting", "evaluate", data, "--model", str(model), "--json", str(out)]
    subprocess.run(command + (["--split", str(split)] if split else []), check=True, stdout=sys.stderr)
    return Evaluation.model_validate_json(out.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--installed", type=Path, default=SHIPPED_MODEL, help="the model that ships now")
    parser.add_argument("--versions", help="a folder of versions: compare with the newest, and add one")
    options = parser.parse_args()
    model = options.folder / "model.onnx"
    if options.versions and is_remote(options.versions):
        parser.error("--versions is a folder on this machine: copy it to the bucket with gcloud storage rsync")
    if options.versions:
        options.versions = Path(options.versions)
        options.versions.mkdir(parents=True, exist_ok=True)
        newest = list_versions(options.versions)[:1]
        options.installed = options.versions / newest[0] / "model.onnx" if newest else options.installed
    read_card(model)  # a model that does not match its card is refused before it runs
    first = options.versions and not list_versions(options.versions)
    if not first and file_sha256(model) == file_sha256(options.installed):
        print("promote: this is the model that ships already", file=sys.stderr)
        return 3
    with TemporaryDirectory() as folder:
        current, candidate = [
            score(path, options.data, options.split, Path(folder)) for path in (options.installed, model)
        ]
    reasons = faults(current, candidate)
    if not reasons:
        try:
            if options.versions:
                add_version(model, options.versions)
            else:
                install_model(model, options.installed)
        except ModelError as error:
            reasons = [str(error)]
    text = report(current, candidate, reasons)
    print(text, end="")
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    return 3 if reasons else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (TrashsortingError, subprocess.CalledProcessError) as error:
        sys.exit(f"promote: {error}")
