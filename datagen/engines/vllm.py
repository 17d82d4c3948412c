"""A language model on a cluster with GPUs: Ray Data's vLLM processor answers a round of requests together.

    RAY_ADDRESS=head:6379 python -m datagen ... --engine ray --writer vllm --model Qwen/Qwen3-32B \\
        --workers 8 --vllm '{"tensor_parallel_size": 2}'

Everything but the answers is made in this process, as by the plain engine: every image goes through its steps
as far as answers are known, and what a model has yet to be asked is written to DIR/requests, which the
workers must be able to read. Their answers are cached one by one as they come, as a server's are: the next
round finds them and gets further (questions, then second opinions), and so does a run that was killed. Images
are not sent: descriptions come from --captions.
"""

import asyncio
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from assistant.errors import BadInput
from assistant.label.cluster import connected_ray
from datagen.engines.plain import run_plain
from datagen.engines.worker import DEFAULT_ANSWER_TOKENS, Worker
from datagen.image_result import ImageResult
from datagen.llm.pending import PendingRequests
from datagen.result_cache import ResultCache
from datagen.settings import Settings
from datagen.sources.annotated_images import AnnotatedImage, AnnotatedImages
from datagen.sources.leaks import ExcludedImages

MAX_ROUNDS = 4  # two for the two steps, two more for answers that were not of the form asked for
MAX_RESTARTS = 5  # of an engine that ended, in a round: Ray's own default is for ever
REQUESTS_PER_FILE = 64  # what a worker takes at a time, and what is lost when one is killed
SPARE_CPUS = 3  # beside the workers': for Ray's stages before and after vLLM
TEMPERATURE = 0.8  # as with a server
MAX_ERROR_LENGTH = 120  # characters of Ray's own message in ours
STAGE_CPUS = {"num_cpus": 0.1}  # of a stage that only moves text


def run_vllm(
    images: AnnotatedImages,
    drops: Counter[str],
    settings: Settings,
    excluded: ExcludedImages | None,
    cache: ResultCache,
) -> Iterator[tuple[AnnotatedImage, ImageResult]]:
    """Make the questions of all images with vLLM on a cluster; arguments and results as `run_ray`."""
    folder = settings.out.resolve() / "requests"
    with connected_ray(settings.workers + SPARE_CPUS, keeps_order=False) as ray, asyncio.Runner() as runner:
        worker = runner.run(Worker(settings, excluded, cache).__aenter__())
        pending = worker.model
        assert isinstance(pending, PendingRequests)  # what a worker opens for --writer vllm
        try:
            for attempt in range(MAX_ROUNDS):
                file_count = write_requests(images, worker, pending, runner, folder)
                if not file_count:
                    break
                requests = ray.data.read_parquet(str(folder), override_num_blocks=file_count)
                gpu_count = ray.cluster_resources().get("GPU", 0)
                processor = vllm_processor(settings, gpu_count, attempt)
                _take_answers(ray, processor(requests).iter_rows(), pending)
        finally:
            runner.run(worker.__aexit__())
            shutil.rmtree(folder, ignore_errors=True)
    yield from run_plain(images.read(drops), settings, excluded, cache)


def write_requests(
    images: Iterable[AnnotatedImage],
    worker: Worker,
    pending: PendingRequests,
    runner: asyncio.Runner,
    folder: Path,
) -> int:
    """Go through every image's steps as far as the cached answers lead, and write what is to be asked next.

    Args:
        images: The data set.
        worker: Goes through the steps; its model is `pending`.
        pending: Collects what is to be asked.
        runner: Runs the worker.
        folder: Gets parquet files of `REQUESTS_PER_FILE` rows; what is in it is deleted.

    Returns:
        The number of files.
    """
    import pyarrow
    from pyarrow import parquet

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file_count = 0
    for image in itertools.chain(images, [None]):
        if image is not None:
            runner.run(worker.result(image))
        while len(pending.waiting) >= REQUESTS_PER_FILE or (pending.waiting and image is None):
            rows = pending.waiting[:REQUESTS_PER_FILE]
            del pending.waiting[:REQUESTS_PER_FILE]
            parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{file_count:06}.parquet")
            file_count += 1
    return file_count


def _take_answers(ray: Any, rows: Iterable[dict[str, Any]], pending: PendingRequests) -> None:
    """Cache the answers of a round as they come."""
    try:
        for row in rows:
            pending.take(row)
    except ray.exceptions.RayActorError as error:
        reason = str(error).splitlines()[0][:MAX_ERROR_LENGTH]
        raise BadInput(
            f"vLLM ended {MAX_RESTARTS + 1} times ({reason}); its messages are in the worker-*.err files of "
            "Ray's session_latest/logs; what it answered is cached"
        ) from None


def vllm_processor(settings: Settings, gpu_count: float, attempt: int = 0) -> Callable[[Any], Any]:
    """Ray Data's vLLM processor, with one engine a worker, whose answers can only be of the form asked for.

    Args:
        settings: Of the run.
        gpu_count: Of the cluster; with none, vLLM's CPU build is taken to be installed.
        attempt: Another one draws other answers.

    Returns:
        From a data set of requests, as `write_requests` writes them, to one of the rows that
        `PendingRequests.take` takes.
    """
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    max_tokens = settings.answer_tokens or DEFAULT_ANSWER_TOKENS

    def before(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "messages": json.loads(row["messages"]),
            "sampling_params": {
                "temperature": TEMPERATURE,
                "max_tokens": max_tokens,
                "seed": (row["seed"] + attempt) % 2**31,
                "structured_outputs": {"json": row["schema"]},
            },
        }

    def after(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": row["name"],
            "schema": row["schema"],
            "text": row["generated_text"],
            "read": row["num_input_tokens"],
            "written": row["num_generated_tokens"],
        }

    config = vLLMEngineProcessorConfig(
        model_source=settings.model or "",  # `Settings` sees to it that there is one
        engine_kwargs=dict(settings.vllm),
        concurrency=settings.workers,
        batch_size=REQUESTS_PER_FILE,
        should_continue_on_error=True,  # a request that cannot be answered costs itself
        log_engine_metrics=False,
        placement_group_config=None if gpu_count else {"bundles": [{"CPU": 1}]},
        chat_template_stage=STAGE_CPUS
        | {"concurrency": 1, "chat_template_kwargs": {"enable_thinking": False}},
        # vLLM does both itself.
        tokenize_stage=False,
        detokenize_stage=False,
    )
    processor = build_processor(
        config, before, after, preprocess_map_kwargs=STAGE_CPUS, postprocess_map_kwargs=STAGE_CPUS
    )
    # In place: an assignment would make Ray work out the stage's resources once more, without its placement
    # group.
    processor.stages["vLLMEngineStage"].map_batches_kwargs.update(
        max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS
    )
    return processor
