"""A JSON document on the disk is whole at every moment."""

import json
import os
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


def test_a_pipe_and_a_link_are_written_to_and_stay(tmp_path):
    "Such as /dev/stdout, which is a link, and /dev/null."
    link, file, pipe = tmp_path / "link.json", tmp_path / "file.json", tmp_path / "pipe"
    file.touch()
    link.symlink_to(file)
    write_json(link, {"through": "the link"})
    assert link.is_symlink() and json.loads(file.read_bytes()) == {"through": "the link"}
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(pipe.read_text, "utf-8")
        write_json(pipe, {"through": "the pipe"})
        assert pipe.is_fifo() and json.loads(reading.result(20)) == {"through": "the pipe"}
