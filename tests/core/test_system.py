"""A JSON document on the disk is whole at every moment."""

import json
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from shutil import copyfile

import pytest

from trashsorting.core.card import card_path, read_card, write_card
from trashsorting.core.errors import DataError
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.core.system import write_files, write_json, write_text
from trashsorting.data.storage import ResultFolder


@contextmanager
def a_full_disk(n_bytes=1_000):
    "Writing more into one file fails."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def test_on_a_full_disk_the_old_file_stays_and_the_message_names_it(tmp_path):
    path = tmp_path / "predictions.csv"
    write_text(path, "old")
    with a_full_disk(), pytest.raises(DataError, match=f"^{path}: cannot be written: File too large; choose a place"):
        write_text(path, "new" * 1_000)
    assert path.read_text("utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_a_card_that_cannot_be_written_stays_as_it_was(tmp_path):
    model = tmp_path / "model.onnx"
    copyfile(SHIPPED_MODEL, model)
    copyfile(card_path(SHIPPED_MODEL), card_path(model))
    with a_full_disk(), pytest.raises(DataError, match=r"model\.json: cannot be written"):
        write_card(model, read_card(model))
    assert read_card(model) == read_card(SHIPPED_MODEL)


def test_of_two_files_that_belong_together_both_are_written_or_none(tmp_path):
    first, second = tmp_path / "model.onnx", tmp_path / "model.json"
    write_text(first, "old")
    second.mkdir()
    with pytest.raises(DataError, match=r"model\.json: cannot be written: Is a directory"):
        write_files({first: b"new", second: b"new"})
    assert first.read_text("utf-8") == "old" and len(list(tmp_path.iterdir())) == 2


def test_a_name_as_long_as_a_file_system_takes_can_be_written(tmp_path):
    write_text(tmp_path / ("x" * 250 + ".json"), "{}")
    write_text(tmp_path / ("ü" * 125 + ".json"), "{}")
    assert len(list(tmp_path.iterdir())) == 2


def test_two_runs_that_write_one_file_at_a_time_do_not_meet(tmp_path):
    results, parts = ResultFolder(str(tmp_path)), [bytes([value]) * 2_000_000 for value in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: results.write("part-000000.parquet", part), 2 * parts))
    assert results.read("part-000000.parquet") in parts and results.names() == {"part-000000.parquet"}
