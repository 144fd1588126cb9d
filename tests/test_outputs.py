"""What notebooks show is what their code shows: two quick ones in a Jupyter kernel; `make check-long` runs all."""

import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]


def check_outputs(*paths: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, ROOT / "tools" / "check_outputs.py", *paths]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_what_is_committed_is_what_a_kernel_shows():
    index = ROOT / "trashsorting" / "_modidx.py"
    written = index.stat().st_mtime_ns
    done = check_outputs(ROOT / "nbs" / "core" / "01_card.ipynb", ROOT / "nbs" / "explanations" / "data.ipynb")
    assert done.returncode == 0 and "2 notebook(s) run; 0 differ" in done.stdout, done.stderr
    assert index.stat().st_mtime_ns == written, "it exports the modules, which other tests read meanwhile"


def test_another_output_and_a_broken_cell_are_found(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in ("print('a bottle, 0.93')", "print('a can')")]
    for cell, text in zip(cells, ("a bottle, 0.87\n", "a jar\n"), strict=True):
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
    path, broken = tmp_path / "shown.ipynb", tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), broken)
    done = check_outputs(path, broken)
    assert done.returncode == 1 and "2 notebook(s) run; 2 differ" in done.stdout
    assert "shown.ipynb, cell 1 (print('a can')) shows something else" in done.stderr
    assert "- a jar" in done.stderr and "+ a can" in done.stderr  # another number is no difference, another word is
    assert "broken.ipynb does not run: ZeroDivisionError" in done.stderr
