"""How a command ends."""

import errno
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest

from assistant.errors import BadInput, Note, NotWritten, error_line, exit_code


def run(code: str, redirection: str = "") -> subprocess.CompletedProcess[str]:
    """`exit_code` of a function `work` in an interpreter of its own, by a shell."""
    program = f"import sys\nfrom assistant.errors import *\n{code}\nsys.exit(exit_code(work))"
    return subprocess.run(
        f'"$PYTHON" -c "$CODE" {redirection}',
        shell=True,
        text=True,
        capture_output=True,
        executable="/bin/bash",
        env=os.environ | {"PYTHON": sys.executable, "CODE": program},
        timeout=60,
    )


PRINTS = "def work():\n    for k in range(100_000): print('line', k)"


def test_a_reader_that_has_had_enough_ends_a_command_quietly():
    done = run(PRINTS, "| head -n 2; echo ${PIPESTATUS[0]}")
    assert done.stdout.split("\n")[:3] == ["line 0", "line 1", "141"] and done.stderr == ""


@pytest.mark.parametrize("code", [PRINTS, "def work():\n    print('short')"])
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_output_that_cannot_be_printed_is_one_line(code, redirection):
    done = run(code, redirection)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "standard output" in done.stderr


def test_no_stderr_is_no_fault():
    done = run("def work():\n    print('whole')\n    raise BadInput('x')", "2>&-")
    assert done.returncode == 2 and done.stdout == "whole\n"


@pytest.mark.parametrize(
    "error, line",
    [
        (BadInput("no image"), "no image"),
        (
            NotWritten(errno.EACCES, "Permission denied", "a/b"),
            "cannot write a/b (Permission denied): choose",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "is kept"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "cannot use a/b (Permission denied)"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed\nwriting file data/0"), "is kept"),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "is kept"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, line, capsys):
    def work():
        raise error

    assert exit_code(work) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and line in said and said.count("\n") == 1 and "delete" not in said


def test_a_fault_of_the_program_is_not_hidden():
    assert error_line(KeyError("x")) is None
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 / 0)


def test_notes_are_lines_that_are_said_once(capsys):
    def work():
        for k in [0, *range(8)]:
            warnings.warn(f"image {k} was stretched", Note, stacklevel=1)

    assert exit_code(work) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"note: image {k} was stretched" for k in range(5)] + ["note: and 3 more like these"]


BUSY = {  # what a command may be doing when Ctrl-C is pressed
    "waiting": "time.sleep(60)",
    "computing": "import numpy; a = numpy.ones((4000, 4000))\n        while True: a @ a",
    "with a busy thread": (
        "import threading; threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)"
    ),
    "swallowing": """
        while True:
            try: time.sleep(60)
            except BaseException: pass""",
    "turning it into another error": """
        try: time.sleep(60)
        except BaseException: raise ImportError""",
}


def listen_to_ctrl_c():
    """Undo what shells do for commands in the background: the child would ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("name", BUSY)
def test_ctrl_c_ends_a_command_in_one_line(name):
    program = f"""
import sys, time
from assistant.errors import exit_code
def work():
        print("begun", flush=True)
        {BUSY[name]}
sys.exit(exit_code(work))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    )
    try:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.count("\n") == 1 and said.startswith("stopped")


def test_a_locale_without_a_character_ends_no_command():
    program = (
        "import sys; from assistant.errors import exit_code; sys.exit(exit_code(lambda: print('\\xe0')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout == "\\xe0\n" and not done.stderr
