"""Tables with odd names and with nothing in them."""

import pytest

from trashsorting.core.errors import DataError
from trashsorting.core.system import csv_text, read_csv


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\r\nb", "\r", "a,b", 'a"b', " a ", "a;b", "a\tb"])
def test_what_is_written_is_read_again(name, tmp_path):
    rows = [["file", "label"], [f"{name}.jpg", "glass"], ["1.jpg", f"x{name}"]]
    (tmp_path / "list.csv").write_text(csv_text(rows), encoding="utf-8", newline="")
    read = [list(cells.values()) for _, cells in read_csv(tmp_path / "list.csv", ("file", "label"))]
    assert read == rows[1:]


@pytest.mark.parametrize("text", ["\x0b\x0c", "\xa0", "\u3000,\u3000\n", "\x1c\n\x85", ' ,;"" \r\n\t'])
def test_a_table_of_blanks_is_empty(text, tmp_path):
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(DataError, match="is empty; a CSV is needed"):
        read_csv(tmp_path / "list.csv", ("file", "label"))
