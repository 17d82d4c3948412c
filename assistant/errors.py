"""The one error that a user's input raises, and how a command ends on it and on what the system refuses.

raise BadInput("no image at photo.jpg")
warnings.warn("photo.tif is stretched", Note)
sys.exit(exit_code(run))                     # 2 after a BadInput, which is printed as one line
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator

from assistant.interruption import INTERRUPTED_CODE, ends_on_interrupt

# Exit codes: 2 is argparse's own for bad input; a signal's number is added to 128, as shells do.
BAD_INPUT_CODE = 2
BROKEN_PIPE_CODE = 141

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What SQLite, safetensors, torch and Pillow, which hide the system's error, say where they could not write.
WRITE_FAILURES = (
    "database or disk is full",
    "disk I/O error",
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
    "encoder error",
)
MAX_REASON_LENGTH = 300  # characters of a library's message in a line
MAX_NOTES = 5  # that a command prints; the others are counted
# What torch's allocator for the CPU says, which has no class of its own for it.
CPU_ALLOCATION_FAILURE = "allocate memory"

ROOM_ADVICE = "make room and run the same command again; what is finished is kept"


class BadInput(ValueError):
    """What the user gave cannot be used. The message is one line that says what is wrong and what to do."""


class NotWritten(OSError):
    """A file could not be written. `filename` is the file, `strerror` the reason."""


class Note(UserWarning):
    """One line that the user should know, though nothing is wrong."""


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """While active, memory that does not suffice is a BadInput.

    Args:
        advice: Follows "not enough memory": what it was needed for, and what to do.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BadInput(f"not enough memory {advice}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's or the machine's memory is exhausted."""
    is_torchs = type(error).__name__ == "OutOfMemoryError"  # torch is not imported for its name alone
    return is_torchs or isinstance(error, MemoryError) or CPU_ALLOCATION_FAILURE in str(error)


def exit_code(run: Callable[[], object]) -> int:
    """Run a command.

    Args:
        run: The command.

    Returns:
        0; 2 after a BadInput, and where the system refuses to read or write something, each printed as one
        line on stderr; 130 after an interruption (Ctrl-C); 141 after the reader of its output closed the
        pipe, as `| head` does.
    """
    if sys.stderr is None:  # closed: what is opened next would take its place, and get all messages
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        return _fail("standard output is closed: send it to a file, or to /dev/null")
    _print_any_character()
    with ends_on_interrupt() as interruption, _notes_on_stderr():
        try:
            run()
            sys.stdout.flush()
        except BaseException as error:
            if interruption.happened:
                interruption.end_process()
            if isinstance(error, KeyboardInterrupt):
                interruption.say()
                return INTERRUPTED_CODE
            if isinstance(error, BrokenPipeError):
                _drop_output()
                return BROKEN_PIPE_CODE
            line = error_line(error)
            if line is None:
                raise
            return _fail(line)
    return 0


def error_line(error: BaseException) -> str | None:
    """What a user is told of an error, in one line; None where it is a fault of the program."""
    if isinstance(error, BadInput):
        return str(error)
    reason = _reason(error)
    if isinstance(error, OSError):
        if not error.filename and not _can_print():
            _drop_output()
            return f"cannot write to standard output ({reason}); what is finished is kept"
        place = f" {error.filename}" if error.filename else ""
        if error.errno in DISK_FULL:
            return f"cannot write{place} ({reason}): {ROOM_ADVICE}"
        if isinstance(error, NotWritten):
            return f"cannot write{place} ({reason}): choose another place; what is finished is kept"
        return f"cannot use{place} ({reason})" if place else reason
    if any(words in str(error) for words in WRITE_FAILURES):
        return f"cannot write ({reason}): {ROOM_ADVICE}"
    return None


def _reason(error: BaseException) -> str:
    """The system's or the library's words about an error, in one line."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(words).split())[:MAX_REASON_LENGTH] or type(error).__name__


def _print_any_character() -> None:
    """Write what the locale's encoding lacks as \\xe0, so that no name in another language ends a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(line: str) -> int:
    """Print one line about an error, where that is possible; returns the exit code."""
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {line}", file=sys.stderr)
    return BAD_INPUT_CODE


def _can_print() -> bool:
    """Whether standard output takes another line. What it refused before may have been dropped."""
    try:
        print(flush=True)
    except (OSError, ValueError):
        return False
    return True


def _drop_output() -> None:
    """Drop what was printed and not yet written: Python flushes once more as it ends, which must not fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _notes_on_stderr() -> Iterator[None]:
    """Print each Note as a line on stderr, up to a number, and count the others."""
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        show_others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
            if not issubclass(category, Note):
                show_others(message, category, *place, **more)  # type: ignore[arg-type]
            elif str(message) not in said:
                said.add(str(message))
                if len(said) <= MAX_NOTES:
                    print(f"note: {message}", file=sys.stderr)

        warnings.showwarning = show
        yield
    if len(said) > MAX_NOTES:
        print(f"note: and {len(said) - MAX_NOTES} more like these", file=sys.stderr)
