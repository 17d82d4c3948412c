"""The plain engine: one process, and as many images at a time as the writer can use.

    for image, result in run_plain(images, settings, excluded, cache): ...

What was made of an image is cached: the next run begins where this one was killed.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from datagen.engines.worker import Worker
from datagen.image_result import ImageResult
from datagen.result_cache import ResultCache
from datagen.settings import Settings
from datagen.sources.annotated_images import AnnotatedImage
from datagen.sources.leaks import ExcludedImages

# Images begun or done, for each one worked on, before the oldest of them is done: bounds the memory.
MAX_BEGUN_PER_SLOT = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_order(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], at_once: int
) -> AsyncIterator[tuple[Item, Result]]:
    """Work on several items at a time; the first error ends it.

    Args:
        items: Read as they are needed; there may be any number of them.
        work: What to do with an item.
        at_once: How many to work on at a time.

    Yields:
        (item, what `work` made of it), in the items' order.
    """
    gate = asyncio.Semaphore(at_once)
    begun: deque[tuple[Item, asyncio.Task[Result]]] = deque()

    async def gated(item: Item) -> Result:
        async with gate:
            return await work(item)

    try:
        for item in items:
            begun.append((item, asyncio.create_task(gated(item))))
            await asyncio.sleep(0)  # lets it begin
            while begun and (begun[0][1].done() or len(begun) >= MAX_BEGUN_PER_SLOT * at_once):
                oldest, task = begun.popleft()
                yield oldest, await task
        while begun:
            oldest, task = begun.popleft()
            yield oldest, await task
    finally:
        for _, task in begun:
            task.cancel()
        await asyncio.gather(*(task for _, task in begun), return_exceptions=True)


async def _results(
    images: Iterable[AnnotatedImage],
    settings: Settings,
    excluded: ExcludedImages | None,
    cache: ResultCache,
) -> AsyncIterator[tuple[AnnotatedImage, ImageResult]]:
    """(image, its result), from a worker of its own."""
    async with Worker(settings, excluded, cache) as worker:
        stream = in_order(images, worker.result, settings.images_at_once)
        try:
            async for image, result in stream:
                yield image, result
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # an async generator, whose type has no name of its own


def run_plain(
    images: Iterable[AnnotatedImage],
    settings: Settings,
    excluded: ExcludedImages | None,
    cache: ResultCache,
) -> Iterator[tuple[AnnotatedImage, ImageResult]]:
    """Make the questions of all images in this process.

    Args:
        images: Read as they are needed.
        settings: Of the run.
        excluded: Images that no question may be made about.
        cache: Finished work.

    Yields:
        (image, its result), in the images' order.

    Raises:
        BadInput: A model cannot be used, or the budget is spent.
    """
    with asyncio.Runner() as runner:
        stream = _results(images, settings, excluded, cache)

        async def following() -> tuple[AnnotatedImage, ImageResult] | None:
            return await anext(stream, None)

        try:
            while (found := runner.run(following())) is not None:
                yield found
        finally:
            runner.run(stream.aclose())  # type: ignore[attr-defined]  # as above
