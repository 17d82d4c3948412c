"""`make` installs what its target needs, once, and takes up again an installation that was cut short."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Stands for .venv's Python: it writes its arguments down, and pip fails while there is a file "offline".
PYTHON = """#!/bin/sh
case "$*" in
    -c*|*--version) exit 0 ;;
esac
echo "$*" >> started
case "$*" in
    *"pip install"*) test ! -e offline ;;
esac
"""
PROGRAM, TESTS = "-m pip install -e .", "-m pip install -e .[test,lint]"
CHAT = "app.py --preset pocket --open"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def make(folder: Path, target: str) -> tuple[list[str], str]:
    """Run make; returns what Python was started with, and what was printed."""
    log = folder / "started"
    log.write_text("")
    command = ["make", "-C", str(folder), "--no-print-directory", target]
    done = subprocess.run(command, capture_output=True, text=True)
    return log.read_text().splitlines(), done.stdout + done.stderr


def test_the_chat_installs_the_program_only_and_is_silent_from_then_on(folder):
    started, printed = make(folder, "chat")
    assert started == [PROGRAM, CHAT] and "6 GB" in printed and "200 MB" in printed
    assert make(folder, "chat") == ([CHAT], "")


def test_the_tests_install_what_they_need_besides(folder):
    make(folder, "chat")
    assert make(folder, "test")[0][0] == TESTS
    assert TESTS not in make(folder, "lint")[0]
    assert make(folder, "chat") == ([CHAT], "")


def test_the_chat_needs_nothing_once_the_tests_are_installed(folder):
    assert make(folder, "test-docs")[0][0] == TESTS
    assert make(folder, "chat")[0] == [CHAT]


def test_an_installation_that_was_cut_short_is_taken_up_again(folder):
    for target, words in (("chat", PROGRAM), ("test", TESTS)):
        (folder / "offline").touch()
        assert make(folder, target)[0] == [words]
        (folder / "offline").unlink()
        assert make(folder, target)[0][0] == words
        assert words not in make(folder, target)[0]


def test_a_change_of_the_requirements_is_installed(folder):
    make(folder, "test")
    # The requirements are newer by a second: a file system may give files that are written in turn one time.
    written = (folder / "pyproject.toml").stat().st_mtime
    for stamp in (folder / ".venv").glob("maskpick-*"):
        os.utime(stamp, (written - 1, written - 1))
    assert make(folder, "chat")[0] == [PROGRAM, CHAT]
    assert make(folder, "lint")[0][0] == TESTS
