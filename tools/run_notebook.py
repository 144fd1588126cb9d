"""Runs a notebook so that coverage.py counts its exported cells as lines of the module that nbdev writes from them.

`coverage run tools/run_notebook.py NOTEBOOK`. nbdev marks where each exported cell stands in its module by a line such
as `# %% ../nbs/core/01_card.ipynb #1a2b3c4d`, with the cell's id. Here such a cell is compiled under the module's file name
and with its line numbers; all other cells run as IPython runs them. Thus a line counts if a notebook or a test executed
it, and coverage.py adds up both without knowing of notebooks.
"""

import ast
import os
import re
import sys
from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell

MARKER = re.compile(r"^# %% \S*?([\w.-]+\.ipynb) #([\w-]+)$")
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)
PACKAGE = Path(__file__).resolve().parents[1] / "trashsorting"


class Shell(InteractiveShell):
    "IPython without a screen."

    def enable_gui(self, gui: str | None = None) -> None:
        "Pictures go nowhere."


def hash_positions(notebook: Path) -> dict[str, tuple[Path, int]]:
    "By cell id: the module, and how many lines of it stand above the cell's first."
    found = {}
    for module in PACKAGE.rglob("*.py"):
        for number, line in enumerate(module.read_text(encoding="utf-8").splitlines(), 1):
            marker = MARKER.match(line)
            if marker and marker[1] == notebook.name:
                found[marker[2]] = (module, number)
    return found


def run(notebook: Path) -> int:
    "Run every cell that nbdev_test would run; the answer is how many were counted."
    cells = nbformat.read(notebook, 4).cells
    if any("skip_exec: true" in cell.source for cell in cells[:1]):
        return 0
    where, counted = hash_positions(notebook), 0
    shell = Shell.instance()
    os.chdir(notebook.parent)
    for cell in cells:
        if cell.cell_type != "code" or re.search(r"^#\|\s*eval:\s*false", cell.source, re.MULTILINE):
            continue
        if "nbdev_export()" in cell.source:
            continue
        if cell.id in where:
            module, above = where[cell.id]
            tree = ast.increment_lineno(ast.parse(DIRECTIVE.sub("", cell.source)), above)
            exec(compile(tree, str(module), "exec"), shell.user_ns)  # noqa: S102
            counted += 1
        else:
            shell.run_cell(cell.source, silent=True).raise_error()
    return counted


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {run(Path(name).resolve())} exported cells", file=sys.stderr)
