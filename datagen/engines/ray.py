"""The same steps on Ray Data, over as many processes and machines as the cluster has.

    python -m datagen ... --engine ray --workers 8                        # on this machine
    RAY_ADDRESS=head:6379 python -m datagen ... --engine ray --workers 64  # on a cluster; DIR, photos on a shared disk

Each worker reads its photos from the index in DIR, and has its own share of the requests, its own SAM, its own local
model. What comes back is kept here, in one file and in the photos' order: rows and their order are the plain engine's.
"""

import argparse
import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from copy import copy
from pathlib import Path

from assistant.errors import BadInput
from datagen.engines.plain import in_order
from datagen.engines.worker import Made, Worker
from datagen.result_cache import Kept
from datagen.sources.leaks import Known
from datagen.sources.photos import Photo, Photos

BATCH = 8  # photos that a worker takes at a time


class Share:
    """One worker: a batch of photos' numbers in, what was made of them out."""

    def __init__(self, options: argparse.Namespace, known: Known | None):
        import asyncio

        from datagen.__main__ import open_photos

        self.options = copy(options)
        self.options.concurrency = max(1, options.concurrency // options.workers)
        self.photos, self.runner = open_photos(options), asyncio.Runner()
        # The driver keeps what is done; single answers of a photo that was not finished are asked again.
        self.worker = Worker(self.options, known, Kept(None))
        self.runner.run(self.worker.__aenter__())

    def __call__(self, batch: dict) -> dict:
        numbers = [json.loads(number) for number in batch["number"]]
        return {"made": [json.dumps(vars(made)) for made in self.runner.run(self._all(numbers))]}

    async def _all(self, numbers: list) -> list[Made]:
        at_once = 1 if self.options.writer == "phrasebank" else 2 * self.options.concurrency
        return [made async for _, made in in_order(map(self.photos.one, numbers), self.worker.make, at_once)]


@contextlib.contextmanager
def on_cluster(options: argparse.Namespace):
    """The ray module, connected; what a worker's BadInput says becomes ours."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BadInput(f"--engine ray needs Ray: pip install 'maskpick[scale]' ({error})") from None

    started = not ray.is_initialized()
    # CPUs to count beside the workers': with none free to read what they are to be given, all would wait for ever.
    spare = 3 if options.writer == "vllm" else 1
    if started:
        try:
            ray.init(
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=False,
                **({} if os.environ.get("RAY_ADDRESS") else {"num_cpus": options.workers + spare}),
                runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
            )
        except (
            Exception
        ) as error:  # of no common kind: no cluster at RAY_ADDRESS, a machine too busy to start one
            ray.shutdown()
            raise BadInput(
                f"Ray does not start: {str(error).splitlines()[0][:200]}; is the machine very busy, or "
                "RAY_ADDRESS that of no cluster?"
            ) from None
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = options.writer != "vllm"
    context.enable_progress_bars = False
    try:
        yield ray
    except ray.exceptions.RayError as error:
        while error is not None and not isinstance(error, BadInput):
            error = getattr(error, "cause", None) or error.__cause__
        if error is None:
            raise
        raise BadInput(str(error)) from None
    finally:
        if started:
            ray.shutdown()


def on_ray(
    photos: Photos, drops: Counter, options: argparse.Namespace, known: Known | None, kept: Kept
) -> Iterator[tuple[Photo, Made]]:
    """(photo, what was made of it), in the photos' order."""
    names = Worker(options, known, kept)
    waiting = [json.dumps(photo.id) for photo in photos if kept.get(names.name(photo)) is None]
    with on_cluster(options) as ray:
        made = iter(())
        if waiting:
            rows = ray.data.from_items(
                [{"number": number} for number in waiting], override_num_blocks=max(1, len(waiting) // BATCH)
            )
            made = iter(
                rows.map_batches(
                    Share,
                    batch_size=BATCH,
                    fn_constructor_args=(options, known),
                    compute=ray.data.ActorPoolStrategy(size=options.workers),
                ).iter_rows()
            )
        for photo in photos.read(drops):
            name = names.name(photo)
            if (found := kept.get(name)) is None:
                found = json.loads(next(made)["made"])
                if Made(**found).final:
                    kept.put(name, found)
            yield photo, Made(**found)
