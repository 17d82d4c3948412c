"""Results come back from the cache, in this process and from a worker's."""

from pathlib import Path

from datagen.__main__ import main
from datagen.result_cache import ResultCache, WorkerCache
from tests.helpers.datagen_images import command


def test_values_come_back(tmp_path):
    cache = ResultCache(tmp_path / "a/kept.sqlite")
    cache.put("x", {"a": [1, None, "é"]})
    cache.close()
    again = ResultCache(tmp_path / "a/kept.sqlite")
    assert again.get("x") == {"a": [1, None, "é"]} and again.get("y") is None


def test_a_file_that_is_no_cache_is_one_line(many_images, capsys):
    (many_images / "out").mkdir()
    text = "no database, but text that is long enough to be taken for one" * 20
    (many_images / "out/kept.sqlite").write_text(text)
    assert main(command(many_images, "out")) == 2
    assert "is not a result cache" in capsys.readouterr().err


def test_a_worker_reads_what_was_done_and_gives_what_is_new(tmp_path):
    cache = ResultCache(tmp_path / "kept.sqlite")
    cache.put("old", [1])
    copy = tmp_path / "a b" / "copy?.sqlite"
    copy.parent.mkdir()
    for _ in range(2):  # an earlier copy is replaced
        cache.copy_to(copy)
    worker = WorkerCache(copy)
    assert worker.get("old") == [1] and worker.get("new") is None
    worker.put("new", {"b": 2})
    assert worker.get("new") == {"b": 2}
    assert worker.take_new() == {"new": {"b": 2}} and worker.take_new() == {}
    assert {file.name for file in copy.parent.iterdir()} == {copy.name}  # no lock, no log
    assert WorkerCache().get("old") is None


def test_a_copy_is_whole_while_the_cache_is_written(tmp_path: Path):
    cache = ResultCache(tmp_path / "kept.sqlite")
    for number in range(500):
        cache.put(str(number), "x" * 500)
    cache.copy_to(tmp_path / "copy.sqlite")
    worker = WorkerCache(tmp_path / "copy.sqlite")
    cache.put("499", "changed")
    assert all(worker.get(str(number)) == "x" * 500 for number in range(500))
