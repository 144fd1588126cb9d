"""Runs notebooks in a Jupyter kernel and compares what they show with what is committed, in what matters.

`tools/check_outputs.py [NOTEBOOK...]`, all but the training run by default. Compared are, cell by cell, which kinds
of output there are (text, table, picture, error) and the words of each text. Numbers, times, places and the points of
a picture are not: they differ between machines.
"""

import difflib
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NBS = Path(__file__).resolve().parents[1] / "nbs"
SECONDS = 600  # for one cell, on a busy machine


def words(text: str) -> list[str]:
    "The lines of an output without what differs between runs: numbers, addresses, colours, progress, widths."
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    text = "\n".join(line.split("\r")[-1] for line in text.replace("\r\n", "\n").split("\n"))
    text = re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{12,}\b", "HEX", text)
    text = re.sub(r"(?:/[\w.-]+){2,}", "PLACE", text)
    text = re.sub(r"[+-]?\b\d[\d,_]*\.?\d*(?:e[+-]?\d+)?|\bnan\b|\binf\b", "N", text)
    return [line for line in (" ".join(re.sub(r"[-#]{3,}", "", one).split()) for one in text.split("\n")) if line]


def shown(cell: nbformat.NotebookNode) -> list[str]:
    "What a cell shows: its texts as lines, everything else by its kind."
    lines: list[str] = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            lines += words(output.text) if output.name == "stdout" else []
        elif output.output_type == "error":
            lines.append(f"error {output.ename}")
        else:
            kinds = sorted(kind for kind in output.data if kind != "text/plain")
            lines += [f"a picture or table: {', '.join(kinds)}"] if kinds else words(output.data.get("text/plain", ""))
    return lines


def execute(path: Path) -> nbformat.NotebookNode:
    "A run from top to bottom in a fresh kernel, as JupyterLab does it."
    notebook = nbformat.read(path, 4)
    os.environ["IN_TEST"] = "1"  # So the last cell, `nbdev_export()`, writes nothing
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    return client.execute()


def differences(path: Path) -> list[str]:
    "Where a run shows something else than the committed notebook."
    kept = nbformat.read(path, 4)
    try:
        run = execute(path)
    except CellExecutionError as error:
        return [f"{path.name} does not run: {error.ename}: {error.evalue}"]
    found = []
    for number, (old, new) in enumerate(zip(kept.cells, run.cells, strict=True)):
        if old.cell_type != "code" or shown(old) == shown(new):
            continue
        head = next((line for line in old.source.splitlines() if line.strip()), "")
        lines = [line for line in difflib.ndiff(shown(old), shown(new)) if line[0] in "+-"]
        found.append("\n    ".join([f"{path.name}, cell {number} ({head[:60]}) shows something else:", *lines[:8]]))
    return found


def main(names: list[str]) -> int:
    paths = [Path(name) for name in names] or [
        path for path in sorted(NBS.rglob("*.ipynb")) if path.name != "train.ipynb"
    ]
    faults = [fault for path in paths for fault in differences(path)]
    print(*(f"check_outputs: {fault}" for fault in faults), sep="\n", end="\n" if faults else "", file=sys.stderr)
    print(f"check_outputs: {len(paths)} notebook(s) run; {len(faults)} differ (`make outputs` keeps the new ones)")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
