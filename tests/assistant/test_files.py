"""Files that are whole or not there, and the cache."""

import errno
import os
import subprocess
import sys

import pytest

from assistant import files
from assistant.errors import BadInput, NotWritten
from tests.helpers.refusals import refusal


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "folder" / "result.json"
    with files.replace_whole(file) as path:
        path.write_text("first")
        assert not file.exists()
    assert file.read_text() == "first"
    with pytest.raises(RuntimeError):
        with files.replace_whole(file) as path:
            path.write_text("half")
            raise RuntimeError
    assert file.read_text() == "first" and list(file.parent.iterdir()) == [file]


def test_text_is_read_as_utf_8_with_or_without_a_mark(tmp_path):
    file = tmp_path / "names.json"
    for encoding in ("utf-8", "utf-8-sig"):
        file.write_bytes('["tasse à café"]'.encode(encoding))
        assert files.read_json(file) == ["tasse à café"] and files.read_text(file) == '["tasse à café"]'
    program = "import sys; from assistant.files import read_json; print(ascii(read_json(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", program, file],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == ascii(["tasse à café"])


def test_what_is_no_text_or_no_json_is_one_line(tmp_path):
    file = tmp_path / "x.json"
    for content, reason in [
        ('["杯子"]'.encode("gbk"), "not text in UTF-8"),
        ('["cup"]'.encode("utf-16"), "not text in UTF-8"),
        (b'{"shapes": [', "is not JSON"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ]:
        file.write_bytes(content)
        message = refusal(lambda: files.read_json(file))
        assert reason in message and "x.json" in message
    assert "cannot read" in refusal(lambda: files.read_json(tmp_path / "nowhere.json"))
    file.write_bytes("café".encode("cp1252"))
    assert files.read_text(file, fallback="cp1252") == "café"


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    files.make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInput, match="choose another folder") as caught:
        files.make_folder(tmp_path / "file" / "b")
    assert "\n" not in str(caught.value)


def test_a_damaged_file_in_the_cache_is_built_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKPICK_CACHE", str(tmp_path / "cache"))
    built = []

    def build(work):
        built.append(work)
        (work / "anything").write_text("whole")
        return work / "anything"

    def is_intact(path):
        return path.exists() and path.read_text() == "whole"

    path = files.build_once("name", build, is_intact)
    assert path == tmp_path / "cache" / "name"
    assert files.build_once("name", build, is_intact) == path and len(built) == 1
    path.write_text("half")
    assert files.build_once("name", build, is_intact).read_text() == "whole" and len(built) == 2


def test_two_processes_at_once_build_a_file_once(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("MASKPICK_CACHE", str(cache))
    program = """
import time
from assistant import files
def build(work):
    print("built", flush=True)
    with open(work / "file", "wb") as file:
        for _ in range(20):
            file.write(b"x" * 100)
            file.flush()
            time.sleep(0.02)
    return work / "file"
path = files.build_once("file", build, lambda path: path.exists())
assert path.stat().st_size == 2000
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(outputs) == ["", "built\n"]
    assert sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock")) == ["file"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotWritten) as caught:
        with files.replace_whole(tmp_path / "file" / "result.json"):
            pass
    assert caught.value.filename == str(tmp_path / "file" / "result.json")
    with pytest.raises(NotWritten) as caught:
        with files.replace_whole(tmp_path / "result.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "result.json")
    with pytest.raises(FileNotFoundError):  # of another file
        with files.replace_whole(tmp_path / "result.json"):
            (tmp_path / "none").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


HOLDS_A_FOLDER = """
import sys, time
from pathlib import Path
from assistant.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_one_run_at_a_time_writes_to_a_folder(tmp_path, monkeypatch):
    def lock():
        with files.lock_folder(tmp_path / "out"):
            pass

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_FOLDER, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        assert "another run writes to" in refusal(lock)
        monkeypatch.setenv("RANK", "1")  # a process of the same run
        lock()
        monkeypatch.delenv("RANK")
    finally:
        holder.kill()
        holder.communicate()
    lock()  # a killed run leaves nothing behind
    lock()
