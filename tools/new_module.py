"""Writes the first cells of a new module's notebook: `tools/new_module.py PACKAGE.MODULE [TITLE]`.

`make new-module NAME=data.foo TITLE="Foo"` calls it. The notebook gets the next free number of its folder. `make
export` then writes the module and names the page in the sidebar.
"""

import json
import keyword
import re
import sys
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[1]
QUOTE = "> What this module does, in one sentence."
END = "#| hide\nimport nbdev; nbdev.nbdev_export()"


def number_of(notebook: Path) -> int:
    "The number in front of a notebook's name; -1 without one."
    match = re.match(r"(\d+)_", notebook.name)
    return int(match[1]) if match else -1


def notebook_path(
    name: str,  # Package and module, such as `data.foo`
    root: Path = ROOT,  # The checkout
) -> Path:  # Where its notebook will stand
    "Raises a `ValueError` with a sentence for a name that cannot become a module."
    packages = sorted(path.parent.name for path in (root / "trashsorting").glob("*/__init__.py"))
    package, _, module = name.partition(".")
    if package not in packages or not module:
        raise ValueError(f"NAME is package.module, such as data.foo; the packages are {', '.join(packages)}: {name!r}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise ValueError(f"a module's name is a word in lower case that Python does not use itself: {module!r}")
    folder = root / "nbs" / package
    notebooks = sorted(folder.glob("*.ipynb"))
    for notebook in notebooks:
        if re.sub(r"^\d+_", "", notebook.stem) == module:
            raise ValueError(f"{name} is there already: {notebook.relative_to(root).as_posix()}")
    if (root / "trashsorting" / package / f"{module}.py").exists():
        raise ValueError(f"{name} is there already: trashsorting/{package}/{module}.py")
    number = max(map(number_of, notebooks), default=-1) + 1
    return folder / f"{number:02}_{module}.ipynb"


def cell(kind: str, source: str) -> dict:
    "A cell as nbdev writes it."
    written = {"cell_type": kind, "id": uuid4().hex[:8], "metadata": {}, "source": source.splitlines(keepends=True)}
    return written | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def notebook_text(name: str, title: str) -> str:
    "Title and sentence, where the module goes, its imports; and the last cell that every notebook has."
    cells = [
        cell("markdown", f"# {title}\n\n{QUOTE}"),
        cell("code", f"#| default_exp {name}"),
        cell("code", "#| export"),
        cell("code", END),
    ]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def main(words: list[str]) -> int:
    name, title = [*words, "", ""][:2]
    try:
        path = notebook_path(name)
        if "\n" in title:
            raise ValueError("TITLE is one line")
    except ValueError as error:
        print(f"new-module: {error}", file=sys.stderr)
        return 2
    path.write_text(notebook_text(name, title.strip() or name.partition(".")[2]), encoding="utf-8")
    print(f"{path.relative_to(ROOT).as_posix()} is written: say below its title what it does, then `make export`")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
