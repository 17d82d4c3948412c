"""Ctrl-C: ends a command within a second or two, whatever it is doing, without noise.

with ends_on_interrupt() as interruption:
    run()
interruption.happened            # whether Ctrl-C was pressed: what `run` raises then is of no interest
if __name__ == "__main__":       # above the imports of a command
    signal.signal(signal.SIGINT, end_at_once)

A command writes its files whole and its finished work at once, so that it may end anywhere.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 0.5  # for a command to clean up; then it is ended within long computations, too
INTERRUPTED_CODE = 130  # a signal's number is added to 128, as shells do
STOPPED_LINE = "stopped; the same command resumes from here"


class Interruption:
    """What is known of Ctrl-C in this command.

    Attributes:
        happened: Whether it was pressed.
    """

    def __init__(self) -> None:
        self.happened = False
        self._said = threading.Lock()  # taken by whoever says the line, and never given back

    def say(self) -> None:
        """Print the line about it, the first time this is called."""
        if self._said.acquire(blocking=False):
            with contextlib.suppress(OSError, ValueError):  # stderr may be closed or full
                print(STOPPED_LINE, file=sys.stderr, flush=True)

    def end_process(self) -> NoReturn:
        """End the process with what was registered for its end, but without taking down the interpreter.

        That takes seconds where models are loaded, and no thread can cut it short.
        """
        self.say()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        atexit._run_exitfuncs()
        os._exit(INTERRUPTED_CODE)

    def handle(self, number: int, frame: FrameType | None) -> NoReturn:
        """Handle the signal: raise KeyboardInterrupt, and silence what ends untidily because of it."""
        self.happened = True
        sys.unraisablehook = _ignore
        threading.excepthook = _ignore
        if "logging" in sys.modules:  # an import here might wait for one that was interrupted
            sys.modules["logging"].disable()
        raise KeyboardInterrupt


def _ignore(about: object) -> None:
    """Do nothing, as a hook of Python for errors that nobody handles."""


def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGINT while a command's modules are imported: end the process with the line about it."""
    with contextlib.suppress(OSError):
        os.write(2, f"{STOPPED_LINE}\n".encode())
    os._exit(INTERRUPTED_CODE)


@contextlib.contextmanager
def ends_on_interrupt() -> Iterator[Interruption]:
    """Let Ctrl-C end this process `GRACE_SECONDS` after it was pressed, if it has not ended by then.

    Python's own handler waits until the main thread is between two instructions, and then for all threads: a
    model that computes holds up both.

    Yields:
        What is known of it. In a thread, or where another program handles the signal, nothing is.
    """
    interruption = Interruption()
    earlier_handler = signal.getsignal(signal.SIGINT)
    is_ours = earlier_handler in (signal.default_int_handler, end_at_once)
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    signals, notify = os.pipe()  # the system's part of the handler writes each signal's number into it
    os.set_blocking(notify, False)
    earlier = signal.set_wakeup_fd(notify, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(signals, interruption), daemon=True).start()
    signal.signal(signal.SIGINT, interruption.handle)
    try:
        yield interruption
    finally:
        if not interruption.happened:
            signal.signal(signal.SIGINT, earlier_handler)
            signal.set_wakeup_fd(earlier)
            os.close(notify)


def _watch(signals: int, interruption: Interruption) -> None:
    """End the process some time after a SIGINT; signals: a pipe of their numbers, closed at the end."""
    while numbers := os.read(signals, 64):
        if signal.SIGINT in numbers:
            time.sleep(GRACE_SECONDS)
            interruption.say()
            os._exit(INTERRUPTED_CODE)
    os.close(signals)
