"""The language model's steps on a cluster with GPUs: Ray Data's vLLM processor answers one round of requests of all photos
after the other (the questions, then second opinions).

    RAY_ADDRESS=head:6379 python -m datagen ... --engine ray --writer vllm --model Qwen/Qwen3-32B --workers 8

`datagen.llm_writer.asking` says what to ask; it is run again from the start for each round, with the answers so far: a
photo is a row with nothing but its number and those. Pictures are not sent: descriptions come from --captions. An answer
of another form than was asked for is not asked for again here, but by the next run. The rounds are tested on lists.
NOT YET SHOWN TO WORK as a whole: vLLM needs a GPU, and with a scripted model in its place a run on a local Ray failed or
was too slow to end on the machine it was written on; gathering a round's answers by `groupby` is what to look at first.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator

from assistant.errors import BadInput
from assistant.record import to_dict
from datagen.engine_ray import on_cluster
from datagen.kept import Kept
from datagen.photos import Photo, Photos
from datagen.pick import difficulty
from datagen.server import fits, parsed
from datagen.worker import Made, Worker, captions

ROUNDS = 2  # of requests; then every photo is done
EMPTY = {"place": -1, "messages": "", "schema": "{}", "seed": 0, "made": ""}


class Asks:
    """A row {"number", "rounds"} -> a row for each thing to ask next, or one that holds what was made of the photo."""

    def __init__(self, options: argparse.Namespace):
        from datagen.__main__ import open_photos
        from datagen.phrasebank import load

        self.options, self.photos = options, open_photos(options)
        self.bank, self.told = load(options.bank), captions(options.captions)

    def __call__(self, row: dict) -> list[dict]:
        from datagen.llm_writer import Settings, asking

        o, photo, drops = self.options, self.photos.one(json.loads(row["number"])), Counter()
        settings = Settings(o.per_image, o.writer, o.model, False, self.told.get(photo.file.name, ""), not o.no_second_opinion)
        steps, state = asking(photo, self.bank, settings, drops), {"number": row["number"], "rounds": row["rounds"]}
        try:
            requests = next(steps)
            for texts in json.loads(row["rounds"]):
                answers = [parsed(text) for text in texts]
                requests = steps.send([a if a is not None and fits(a, r.schema) else None for a, r in zip(answers, requests)])
        except StopIteration as end:
            made = Made([to_dict(record) for record in end.value], dict(drops), difficulty(photo))
            return [EMPTY | state | {"made": json.dumps(vars(made))}]
        return [EMPTY | state | {"place": k, "messages": json.dumps(r.messages), "schema": json.dumps(r.schema), "seed": r.seed}
                for k, r in enumerate(requests)]


def gathered(rows) -> dict:
    """The answered rows of one photo (columns of arrays) -> its one row for the next round."""
    texts = [text for _, text in sorted(zip(rows["place"].tolist(), rows["text"].tolist()))]
    return {"number": [rows["number"][0]], "rounds": [json.dumps([*json.loads(rows["rounds"][0]), texts])]}


def vllm_processor(options: argparse.Namespace) -> Callable:
    """Ray Data's own, with one engine a worker; answers are held to their form by vLLM's structured outputs."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    def before(row: dict) -> dict:
        return row | {"messages": json.loads(row["messages"]), "sampling_params": {
            "temperature": 0.8, "max_tokens": options.answer_tokens or 2048, "seed": int(row["seed"]) % 2**31,
            "structured_outputs": {"json": row["schema"]}}}

    def after(row: dict) -> dict:
        return {key: row[key] for key in ("number", "rounds", "place")} | {"text": row["generated_text"]}

    return build_processor(vLLMEngineProcessorConfig(model_source=options.model, concurrency=options.workers), before, after)


def on_vllm(photos: Photos, drops: Counter, options: argparse.Namespace, kept: Kept, processor: Callable | None = None
            ) -> Iterator[tuple[Photo, Made]]:
    """(photo, what was made of it), in the photos' order. processor: from a data set of requests to one with their "text"."""
    if options.exclude or options.describe_with or options.format in ("none", "egoobjects"):
        raise BadInput("--writer vllm sends no pictures: leave out --exclude, --describe-with and formats without masks")
    names = Worker(options, None, kept)
    waiting = {json.dumps(photo.id): names.name(photo) for photo in photos}
    waiting = {number: name for number, name in waiting.items() if kept.get(name) is None}
    with on_cluster(options) as ray:
        answer = processor or vllm_processor(options)
        rows = ray.data.from_items([{"number": number, "rounds": "[]"} for number in waiting]) if waiting else None
        for _ in range(ROUNDS + 1 if waiting else 0):
            asked = rows.flat_map(Asks, fn_constructor_args=(options,), compute=ray.data.ActorPoolStrategy(size=options.workers)).materialize()
            for row in asked.filter(lambda row: row["place"] < 0).iter_rows():
                if Made(**json.loads(row["made"])).final:
                    kept.put(waiting[row["number"]], json.loads(row["made"]))
                else:
                    waiting[row["number"]] = Made(**json.loads(row["made"]))
            asked = asked.filter(lambda row: row["place"] >= 0)
            if not asked.count():
                break
            rows = answer(asked).groupby("number").map_groups(gathered, batch_format="numpy")
    for photo in photos.read(drops):
        found = waiting.get(json.dumps(photo.id))
        yield photo, found if isinstance(found, Made) else Made(**kept.get(names.name(photo)))
