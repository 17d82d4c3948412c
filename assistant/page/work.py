"""The one worker. Models compute in its thread only: one thing at a time, reported while it runs, stopped when told.

for kind, news in worker.run(lambda tell: assistant.open(image, progress=tell), stop):
    ...                                 # ("told", arguments) as it comes; the last one is ("done", result)
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from assistant.errors import BadInput


class Stopped(Exception):
    """The visitor has stopped this, or has gone."""


class Worker:
    def __init__(self):
        # One thread for good: memory that its libraries keep stays one share.
        self.thread = ThreadPoolExecutor(1, "assistant")

    def run(self, work: Callable, stop: threading.Event) -> Iterator[tuple]:
        """Yields ("told", arguments) for every call of `tell`, then ("done", result). work: called with `tell`, which
        raises Stopped once `stop` is set. Errors of the work are raised here. Closing the iterator stops the work."""
        told: queue.Queue = queue.Queue()

        def tell(*news):
            if stop.is_set():
                raise Stopped
            told.put(("told", news))

        def whole():
            try:
                tell()
                return work(tell)
            finally:
                told.put(None)

        ended = False
        future = self.thread.submit(whole)
        try:
            while (news := told.get()) is not None:
                if news[1]:
                    yield news
            ended = True
        finally:
            if not ended:
                stop.set()
        yield "done", future.result()

    def call(self, work: Callable):
        """The result of work(), computed by the worker."""
        return self.thread.submit(work).result()


def polite(error: BaseException, file=None) -> str:
    """What a visitor reads about an error, `file` (a Path) by its bare name; one that is not theirs goes to the log."""
    import traceback

    if isinstance(error, Stopped):
        return "stopped"
    if isinstance(error, BadInput):
        said = str(error).replace(str(file), file.name) if file else str(error)
        return said[:600]
    traceback.print_exception(error)
    return "something went wrong here, and it was not your doing; please try again"
