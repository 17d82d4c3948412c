"""The language model's steps on a cluster with GPUs: Ray Data's vLLM processor answers all requests of a round together.

    RAY_ADDRESS=head:6379 python -m datagen ... --engine ray --writer vllm --model Qwen/Qwen3-32B --workers 8 \\
        --vllm '{"tensor_parallel_size": 2}'

All else is the plain engine's, here: its steps are gone through for every photo, and what a model has yet to be asked is
written to DIR/requests, which the workers must be able to read. Their answers are kept as a server's are, one by one as
they come: the next round finds them and gets further (questions, then second opinions), and so does a run that was killed.
Pictures are not sent: descriptions come from --captions.
"""

import argparse
import asyncio
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from assistant.errors import BadInput
from datagen.engines.plain import plain
from datagen.engines.ray import on_cluster
from datagen.engines.worker import Made, Worker
from datagen.llm.server import Ledger, fits, parsed
from datagen.result_cache import Kept, fingerprint
from datagen.sources.leaks import Known
from datagen.sources.photos import Photo, Photos

ROUNDS = 4  # two for the two steps, two more for answers that were not of the form asked for
RESTARTS = 5  # of an engine that ended, in a round: Ray's own default is for ever
PART = 64  # requests in a file: what a worker takes at a time, and what is lost of one that is killed


class Answers:
    """In the place of a server: what is kept is the answer; what is not waits in `waiting` to be asked."""

    def __init__(self, model: str, kept: Kept):
        self.model, self.kept, self.ledger, self.waiting = model, kept, Ledger(), []

    async def __aenter__(self) -> "Answers":
        return self

    async def __aexit__(self, *error) -> None:
        pass

    async def ask(self, messages: list[dict], schema: dict, seed: int = 0) -> dict | None:
        name = fingerprint("answer", self.model, messages, schema, seed)
        if (answer := self.kept.get(name)) is None:
            self.waiting.append(
                {"name": name, "messages": json.dumps(messages), "schema": json.dumps(schema), "seed": seed}
            )
        return answer

    def take(self, row: dict) -> None:
        """Keeps an answered request {"name", "schema", "text", "read", "written"}, if it is of the form asked for."""
        if "text" not in row:  # vLLM failed at it
            self.ledger.failed += 1
            self.ledger.last_error = " ".join(str(row.get("__inference_error__")).split())[:160]
            return
        self.ledger.requests += 1
        self.ledger.prompt_tokens += int(row["read"])
        self.ledger.completion_tokens += int(row["written"])
        answer = parsed(row["text"])
        if answer is not None and fits(answer, json.loads(row["schema"])):
            self.kept.put(row["name"], answer)
        else:
            self.ledger.bad_answers += 1


def vllm_processor(options: argparse.Namespace, gpus: float, attempt: int = 0) -> Callable:
    """Ray Data's own, from a data set of requests to one of answers, with one engine a worker; vLLM's structured outputs
    hold answers to their form. gpus: of the cluster; with none, vLLM's CPU build is taken to be installed. attempt: another
    one draws other answers."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    def before(row: dict) -> dict:
        return {
            "messages": json.loads(row["messages"]),
            "sampling_params": {
                "temperature": 0.8,
                "max_tokens": options.answer_tokens or 2048,
                "seed": (row["seed"] + attempt) % 2**31,
                "structured_outputs": {"json": row["schema"]},
            },
        }

    def after(row: dict) -> dict:
        return {
            "name": row["name"],
            "schema": row["schema"],
            "text": row["generated_text"],
            "read": row["num_input_tokens"],
            "written": row["num_generated_tokens"],
        }

    config = vLLMEngineProcessorConfig(
        model_source=options.model,
        engine_kwargs=json.loads(options.vllm),
        concurrency=options.workers,
        batch_size=PART,
        should_continue_on_error=True,
        log_engine_metrics=False,  # a request that cannot be answered costs itself
        placement_group_config=None if gpus else {"bundles": [{"CPU": 1}]},
        chat_template_stage={
            "num_cpus": 0.1,
            "concurrency": 1,
            "chat_template_kwargs": {"enable_thinking": False},
        },
        tokenize_stage=False,
        detokenize_stage=False,
    )  # vLLM does both itself
    few = {"num_cpus": 0.1}
    processor = build_processor(config, before, after, preprocess_map_kwargs=few, postprocess_map_kwargs=few)
    # In place: an assignment would make Ray work out the stage's resources once more, without its placement group.
    processor.stages["vLLMEngineStage"].map_batches_kwargs.update(
        max_restarts=RESTARTS, max_task_retries=RESTARTS
    )
    return processor


def write_requests(photos: Iterable[Photo], worker: Worker, runner: asyncio.Runner, folder: Path) -> int:
    """Goes through every photo's steps as far as the kept answers lead, and writes what is to be asked next as parquet
    files of PART rows; returns how many files."""
    import pyarrow
    from pyarrow import parquet

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files, waiting = 0, worker.model.waiting
    for photo in itertools.chain(photos, [None]):
        if photo:
            runner.run(worker.once(photo))
        while len(waiting) >= PART or (waiting and not photo):
            parquet.write_table(pyarrow.Table.from_pylist(waiting[:PART]), folder / f"{files:06}.parquet")
            del waiting[:PART]
            files += 1
    return files


def on_vllm(
    photos: Photos, drops: Counter, options: argparse.Namespace, known: Known | None, kept: Kept
) -> Iterator[tuple[Photo, Made]]:
    """(photo, what was made of it), in the photos' order."""
    if options.describe_with:
        raise BadInput(
            "--writer vllm sends no pictures: leave out --describe-with; --captions gives descriptions"
        )
    folder = Path(options.out).resolve() / "requests"
    with on_cluster(options) as ray, asyncio.Runner() as runner:
        worker = runner.run(Worker(options, known, kept).__aenter__())
        try:
            for attempt in range(ROUNDS):
                if not (files := write_requests(photos, worker, runner, folder)):
                    break
                processor = vllm_processor(options, ray.cluster_resources().get("GPU", 0), attempt)
                try:
                    for row in processor(
                        ray.data.read_parquet(str(folder), override_num_blocks=files)
                    ).iter_rows():
                        worker.model.take(row)
                except ray.exceptions.RayActorError as error:
                    raise BadInput(
                        f"vLLM ended {RESTARTS + 1} times ({str(error).splitlines()[0][:120]}); what it said is in "
                        "the worker-*.err files of Ray's session_latest/logs; what it answered is kept"
                    ) from None
        finally:
            runner.run(worker.__aexit__())
            shutil.rmtree(folder, ignore_errors=True)
    yield from plain(photos.read(drops), options, known, kept)
