"""The same steps on Ray Data, over as many processes and machines as the cluster has.

    python -m datagen ... --engine ray --workers 8                           # on this machine
    RAY_ADDRESS=head:6379 python -m datagen ... --engine ray --workers 64    # on a cluster

On a cluster, the photos and DIR are on a disk that all machines share.

Each worker reads its images from the index in DIR, and has its own share of the requests, its own SAM, its
own local model. What comes back is cached here, in one file and in the images' order: rows and their order
are the plain engine's. Answers of language models come back too, so that none is asked for twice; workers
read earlier ones from a copy of the cache.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from assistant.errors import BadInput
from assistant.label.cluster import connected_ray
from datagen.engines.plain import in_order
from datagen.engines.worker import Worker
from datagen.image_result import ImageResult
from datagen.inputs import open_images
from datagen.result_cache import ResultCache, WorkerCache
from datagen.settings import Settings
from datagen.sources.annotated_images import AnnotatedImage, AnnotatedImages
from datagen.sources.leaks import ExcludedImages

IMAGES_PER_BATCH = 8  # that a worker takes at a time
COPY_FILE = ".kept.copy.sqlite"  # in the output folder, while the workers run
SPARE_CPUS = 1  # beside the workers': to read what they are given


class RayWorker:
    """One worker of the cluster: a batch of images' numbers in, what was made of them out.

    Args:
        settings: Of the run.
        excluded: Images that no question may be made about.
    """

    def __init__(self, settings: Settings, excluded: ExcludedImages | None):
        self.settings = replace(
            settings,
            concurrency=max(1, settings.concurrency // settings.workers),
            budget=None if settings.budget is None else settings.budget / settings.workers,
        )
        self.images = open_images(settings)
        self.runner = asyncio.Runner()
        self.cache = WorkerCache(settings.out / COPY_FILE)
        self.worker = Worker(self.settings, excluded, self.cache)
        self.runner.run(self.worker.__aenter__())

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Make the questions of a batch of images.

        Args:
            batch: {"number": the images' numbers, as JSON}.

        Returns:
            A row for each image: "result", as JSON; "cached", {name: value} to be stored with it, as JSON;
                and
            "error", the message of the BadInput that ended the batch, or "".
        """
        numbers = [json.loads(number) for number in batch["number"]]
        results, errors = [ImageResult()] * len(numbers), [""] * len(numbers)
        try:
            results = self.runner.run(self._results(numbers))
        except BadInput as error:
            errors = [str(error)] * len(numbers)
        cached = [self.cache.take_new(), *({} for _ in numbers[1:])]
        return {
            "result": [json.dumps(result.to_json()) for result in results],
            "cached": [json.dumps(values) for values in cached],
            "error": errors,
        }

    async def _results(self, numbers: Iterable[int]) -> list[ImageResult]:
        images = map(self.images.by_number, numbers)
        stream = in_order(images, self.worker.make, self.settings.images_at_once)
        return [result async for _, result in stream]


def run_ray(
    images: AnnotatedImages,
    drops: Counter[str],
    settings: Settings,
    excluded: ExcludedImages | None,
    cache: ResultCache,
) -> Iterator[tuple[AnnotatedImage, ImageResult]]:
    """Make the questions of all images on a cluster.

    Args:
        images: The data set.
        drops: Counts the images and annotations that cannot be used, by reason.
        settings: Of the run.
        excluded: Images that no question may be made about.
        cache: Finished work.

    Yields:
        (image, its result), in the images' order.

    Raises:
        BadInput: Ray or a model cannot be used, or the budget is spent.
    """
    namer = Worker(settings, excluded, cache)
    waiting = [json.dumps(image.id) for image in images if cache.get(namer.result_name(image)) is None]
    if waiting:
        cache.copy_to(settings.out / COPY_FILE)
    try:
        with connected_ray(settings.workers + SPARE_CPUS, keeps_order=True) as ray:
            rows = _worker_rows(ray, waiting, settings, excluded)
            for image in images.read(drops):
                name = namer.result_name(image)
                if (found := cache.get(name)) is None:
                    found = _take_result(next(rows), name, cache)
                yield image, ImageResult.from_json(found)
    finally:
        (settings.out / COPY_FILE).unlink(missing_ok=True)


def _worker_rows(
    ray: Any, waiting: list[str], settings: Settings, excluded: ExcludedImages | None
) -> Iterator[dict[str, Any]]:
    """What the workers make of images, in the same order.

    waiting: the images' numbers, as JSON. Nothing starts before the first row is asked for.
    """
    if not waiting:
        return
    numbers = ray.data.from_items(
        [{"number": number} for number in waiting],
        override_num_blocks=max(1, len(waiting) // IMAGES_PER_BATCH),
    )
    results = numbers.map_batches(
        RayWorker,
        batch_size=IMAGES_PER_BATCH,
        fn_constructor_args=(settings, excluded),
        compute=ray.data.ActorPoolStrategy(size=settings.workers),
    )
    yield from results.iter_rows()


def _take_result(row: dict[str, Any], name: str, cache: ResultCache) -> dict[str, Any]:
    """Store a worker's row; returns the image's result as JSON object. name: of the image's result."""
    for cached_name, value in json.loads(row["cached"]).items():
        cache.put(cached_name, value)
    if row["error"]:
        raise BadInput(row["error"])
    result = json.loads(row["result"])
    if ImageResult.from_json(result).is_final:
        cache.put(name, result)
    return result
