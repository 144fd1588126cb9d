"""A JSON document on the disk is whole at every moment."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from trashsorting.core.system import write_json


def test_who_reads_while_it_is_written_finds_a_whole_document(tmp_path):
    path = tmp_path / "note.json"
    write_json(path, [0])
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [write_json(path, [number] * 5_000) for number in range(20)])
        while not writing.done():
            assert len(json.loads(path.read_bytes())) in (1, 5_000)
    writing.result()


def test_a_failed_write_leaves_the_old_document(tmp_path):
    path = tmp_path / "note.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_bytes()) == {"old": 1} and list(tmp_path.iterdir()) == [path]
