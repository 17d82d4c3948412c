"""The thread in which all models compute, one request at a time.

    for event in worker.run(lambda report: assistant.open(image, progress=report), stop):
        ...                       # a Report for each call of `report`, then Done(result)

A request reports while it runs, and ends at its next report once it is told to stop.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from assistant.errors import BadInput

MAX_ERROR_LENGTH = 600  # characters of the line that a visitor reads about an error

Result = TypeVar("Result")
ReportFunction = Callable[..., None]


class Stopped(Exception):
    """The visitor stopped this request, or left the page."""


@dataclass(frozen=True)
class Report:
    """What a request said of its progress.

    Attributes:
        values: The arguments of one call of its `report`.
    """

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Done:
    """The end of a request.

    Attributes:
        result: What it returned.
    """

    result: Any


class Worker:
    """Runs requests in one thread, in the order in which they come."""

    def __init__(self) -> None:
        # One thread for the life of the process: libraries hold memory for each thread that used them.
        self._thread = ThreadPoolExecutor(1, "assistant")

    def run(self, work: Callable[[ReportFunction], object], stop: threading.Event) -> Iterator[Report | Done]:
        """Run a request and follow it; closing the iterator stops the request.

        Args:
            work: The request. It is called with a function `report`, which passes its arguments on and raises
                Stopped once `stop` is set; without arguments it only does the latter.
            stop: Ends the request when set.

        Yields:
            A Report for each call of `report` with arguments, then Done.

        Raises:
            Stopped: `stop` was set before the request ended.
            Exception: What the request raised.
        """
        reports: queue.Queue[Report | None] = queue.Queue()

        def report(*values: Any) -> None:
            if stop.is_set():
                raise Stopped
            if values:
                reports.put(Report(values))

        def run_in_thread() -> object:
            try:
                report()
                return work(report)
            finally:
                reports.put(None)

        ended = False
        future = self._thread.submit(run_in_thread)
        try:
            while (event := reports.get()) is not None:
                yield event
            ended = True
        finally:
            if not ended:
                stop.set()
        yield Done(future.result())

    def run_to_end(self, work: Callable[[ReportFunction], object], stop: threading.Event) -> Any:
        """Run a request as `run` does, without following its reports; returns its result."""
        *_, done = self.run(work, stop)
        assert isinstance(done, Done)
        return done.result

    def call(self, work: Callable[[], Result]) -> Result:
        """Run a request that reports nothing; returns its result and raises what it raises."""
        return self._thread.submit(work).result()


def error_line(error: BaseException, file: Path | None = None) -> str:
    """The line that a visitor reads about an error.

    Args:
        error: The error. One that is not due to the visitor's input is printed with its traceback, and the
            line says nothing about it.
        file: The uploaded file that the request was about. The line calls it by its name, without its folder.

    Returns:
        One line without a full stop.
    """
    if isinstance(error, Stopped):
        return "stopped"
    if isinstance(error, BadInput):
        message = str(error).replace(str(file), file.name) if file else str(error)
        return message[:MAX_ERROR_LENGTH]
    traceback.print_exception(error)
    return "something went wrong here, and it was not your doing; please try again"
