"""The plain engine: one process, as many photos at a time as the writer can use, results in the photos' order.

    for photo, made in plain(photos, options, known, Kept(file)): ...

What was made of a photo is kept: the next run begins where this one was killed.
"""

import argparse
import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

from datagen.engines.worker import Made, Worker
from datagen.result_cache import Kept
from datagen.sources.leaks import Known
from datagen.sources.photos import Photo

AHEAD = (
    16  # photos begun or done, for each one worked on, before the oldest of them is done: bounds the memory
)


async def in_order(items: Iterable, work: Callable[..., Awaitable], at_once: int) -> AsyncIterator[tuple]:
    """(item, await work(item)) in the items' order, `at_once` of them at a time. The first error ends it."""
    gate, waiting = asyncio.Semaphore(at_once), deque()

    async def one(item):
        async with gate:
            return await work(item)

    try:
        for item in items:
            waiting.append((item, asyncio.create_task(one(item))))
            await asyncio.sleep(0)  # lets it begin
            while waiting and (waiting[0][1].done() or len(waiting) >= AHEAD * at_once):
                item, task = waiting.popleft()
                yield item, await task
        while waiting:
            item, task = waiting.popleft()
            yield item, await task
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)


def plain(
    photos: Iterable[Photo], options: argparse.Namespace, known: Known | None, kept: Kept
) -> Iterator[tuple[Photo, Made]]:
    """(photo, what was made of it), in the photos' order."""

    async def results() -> AsyncIterator[tuple[Photo, Made]]:
        async with Worker(options, known, kept) as worker:
            # Twice as many photos as requests: while one is being checked, another has a request to send.
            at_once = 1 if options.writer == "phrasebank" else 2 * options.concurrency
            stream = in_order(photos, worker.once, at_once)
            try:
                async for photo, made in stream:
                    yield photo, made
            finally:
                await stream.aclose()

    async def following():
        return await anext(stream, None)

    with asyncio.Runner() as runner:
        stream = results()
        try:
            while (found := runner.run(following())) is not None:
                yield found
        finally:
            runner.run(stream.aclose())
