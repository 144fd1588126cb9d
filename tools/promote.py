#!/usr/bin/env python3
"""A candidate against the model that ships: `python tools/promote.py FOLDER --data DIR [--split CSV] [--report FILE]`

FOLDER holds model.onnx and model.json. Both models are scored on the same photographs. The candidate takes the place of
the one that ships only if it is at least as accurate, no class has become much harder to find, and it was trained on no
more of these photographs; exit status 0 then, 3 if it is not, or is nothing to ship (`trashsorting.export.ship`). No
figure that the candidate brought along decides; its card is believed when it says what the model was trained on.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from trashsorting.core.card import Evaluation, file_sha256, read_card
from trashsorting.core.errors import ModelError
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.export.onnx import install_model

WORSE_RECALL = 0.10  # A class may lose this much at the most, or as much as one photograph if that is more


def faults(current: Evaluation, candidate: Evaluation) -> list[str]:
    "Why the candidate should not ship; empty if it should."
    if (current.n, current.classes) != (candidate.n, candidate.classes):
        return ["they were not scored on the same photographs and classes"]
    found = []
    if current.n_seen is not None and (candidate.n_seen is None or candidate.n_seen > current.n_seen):
        many = "nobody knows how many" if candidate.n_seen is None else candidate.n_seen
        found.append(f"it was trained on {many} of the {candidate.n} photographs, now {current.n_seen}")
    if candidate.accuracy < current.accuracy:
        found.append(f"accuracy {candidate.accuracy:.4f}, now {current.accuracy:.4f}")
    for label, figures in current.per_class.items():
        allowed = max(WORSE_RECALL, 1 / figures.support) if figures.support else 1
        if candidate.per_class[label].recall < figures.recall - allowed - 1e-9:
            found.append(f"recall of {label} {candidate.per_class[label].recall:.4f}, now {figures.recall:.4f}")
    return found


def report(current: Evaluation, candidate: Evaluation, found: list[str]) -> str:
    "The comparison as Markdown."
    lines = [f"On {current.n} photographs:", "", "| | now | candidate |", "|---|---|---|"]
    for name, one in (("accuracy", "accuracy"), ("macro F1", "macro_f1")):
        lines.append(f"| {name} | {getattr(current, one):.4f} | {getattr(candidate, one):.4f} |")
    for label, figures in current.per_class.items():
        there = candidate.per_class.get(label)
        lines.append(f"| recall of {label} | {figures.recall:.4f} | {f'{there.recall:.4f}' if there else '-'} |")
    low, high = current.accuracy_interval
    lines += ["", f"The 95 % interval of the accuracy now is {low:.4f} to {high:.4f}; inside it, better may be luck."]
    return "\n".join([*lines, "", *(f"- not promoted: {one}" for one in found)]).rstrip() + "\n"


def score(model: Path, data: str, split: Path | None, folder: Path) -> Evaluation:
    "What `trashsorting evaluate` says of a model. Raises `CalledProcessError`."
    out = folder / "figures.json"
    words = [sys.executable, "-m", "trashsorting", "evaluate", data, "--model", str(model), "--json", str(out)]
    subprocess.run(words + (["--split", str(split)] if split else []), check=True, stdout=sys.stderr)
    return Evaluation.model_validate_json(out.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--installped", type=Path, default=SHIPPED_MODEL, help="the model that ships now")
    asked = parser.parse_args()
    model = asked.folder / "model.onnx"
    read_card(model)  # a model that is not its card's is refused before it runs
    if file_sha256(model) == file_sha256(asked.shipped):
        print("promote: this is the model that ships already", file=sys.stderr)
        return 3
    with TemporaryDirectory() as folder:
        current, candidate = [score(one, asked.data, asked.split, Path(folder)) for one in (asked.shipped, model)]
    found = faults(current, candidate)
    if not found:
        try:
            install_model(model, asked.shipped)
        except ModelError as error:
            found = [str(error)]
    said = report(current, candidate, found)
    print(said, end="")
    if asked.report:
        asked.report.write_text(said, encoding="utf-8")
    return 3 if found else 0


if __name__ == "__main__":
    sys.exit(main())
