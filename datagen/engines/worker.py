"""All steps of one photo: kept out, outlined, described, asked about, checked. Engines differ in how many run where.

async with Worker(options, known) as worker:
    made = await worker.make(photo)         # Made(rows, drops, ...)
"""

import argparse
import asyncio
import contextlib
import json
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from assistant.errors import BadInput
from assistant.record import Record, from_dict, to_dict
from datagen.composer import followups, phrasebank, places, questions, wording
from datagen.llm.server import Ledger
from datagen.result_cache import Kept, code_of, fingerprint
from datagen.sources import given, outline
from datagen.sources.leaks import Known, leak
from datagen.sources.outline import Outliner
from datagen.sources.photos import Photo
from datagen.sources.pick import difficulty

UNANSWERED = ("no usable answer", "no second opinion")  # drops that another run may mend


class Unreadable(Exception):
    """A picture that cannot be looked at: it costs itself, and not the run."""


@dataclass
class Made:
    """What became of a photo. rows: records as JSON objects; sort: its difficulty, "" where it was not asked about."""

    rows: list[dict] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)
    sort: str = ""

    @property
    def final(self) -> bool:
        """Whether another run would make the same of it."""
        return not any(drop.endswith(UNANSWERED) for drop in self.drops)

    @property
    def records(self) -> list[Record]:
        return [from_dict(row) for row in self.rows]


class Worker:
    """options: of the command; known: evaluation pictures; kept: finished work, down to single requests."""

    def __init__(self, options: argparse.Namespace, known: Known | None, kept: Kept):
        self.options, self.known, self.kept = options, known, kept
        self.bank, self.groups = phrasebank.load(options.bank), phrasebank.load_groups(options.bank)
        self.told, self.model, self.eyes = captions(options.captions), None, None
        self.outliner = None if options.sam == "none" else Outliner(options.sam, kept, options.device)
        self.rules = self._rules()

    def _rules(self) -> str:
        """Names all that decides what is made of a photo, but the photo."""
        o = self.options
        parts = [
            o.writer,
            o.bank,
            o.per_image,
            o.seed,
            phrases_state(o.bank),
            known_state(self.known),
            o.describe_with,
            self.outliner and [self.outliner.weights, code_of(outline)],
        ]
        if o.writer == "phrasebank":
            return fingerprint(
                *parts, o.split, code_of(phrasebank, questions, given, places, followups, wording)
            )
        from datagen import checks
        from datagen.llm import writer as llm_writer

        return fingerprint(*parts, o.model, o.no_second_opinion, code_of(checks, llm_writer, phrasebank))

    def name(self, photo: Photo) -> str:
        """Names what is made of a photo; of a picture that is looked at, by its file's size and time."""
        boxes = any(each.segmentation is None for each in photo.instances)
        looked_at = self.known or self.options.describe_with or boxes
        state = photo.file.stat() if looked_at else None
        return fingerprint(
            self.rules,
            str(photo.file),
            state and [state.st_size, state.st_mtime_ns],
            photo.id,
            photo.width,
            photo.height,
            [vars(each) for each in photo.instances],
            sorted(photo.absent),
            sorted(photo.partial),
            sorted(photo.parts & set(photo.keys())),
            self.told.get(photo.file.name, ""),
        )

    async def __aenter__(self) -> "Worker":
        self.opened = contextlib.AsyncExitStack()
        o = self.options
        if o.writer != "phrasebank":
            if not o.model:
                raise BadInput(f"--writer {o.writer} needs --model, the language model's name")
            self.model = await self._open(o.model)
        if o.describe_with == o.model and self.model:
            self.eyes = self.model
        elif o.describe_with:
            self.eyes = await self._open(o.describe_with)
            if self.model:
                self.eyes.ledger = self.model.ledger
                # One budget, one limit.
                self.eyes.slots = getattr(self.model, "slots", getattr(self.eyes, "slots", None))
        return self

    async def _open(self, model: str):
        """A model in this process for --writer hf, and where it is a folder and no server is named."""
        o = self.options
        if o.writer == "hf" or (o.writer == "phrasebank" and not o.base_url and Path(model).is_dir()):
            from datagen.llm.local import Local

            return await self.opened.enter_async_context(
                Local(model, self.kept, o.concurrency, o.device, o.answer_tokens or 2048)
            )
        if o.writer == "vllm":
            from datagen.engines.vllm import Answers

            return Answers(model, self.kept)
        from datagen.llm.server import Server

        return await self.opened.enter_async_context(
            Server(
                model, o.base_url, self.kept, o.concurrency, tuple(o.price), o.budget, tokens=o.answer_tokens
            )
        )

    async def __aexit__(self, *error) -> None:
        if (asked := self.model or self.eyes) and asked.ledger != Ledger():
            print(f"{asked.ledger}", file=sys.stderr)
        await self.opened.aclose()

    async def once(self, photo: Photo) -> Made:
        """What was made of a photo by an earlier run, or is made now; kept where another run would make the same."""
        name = self.name(photo)
        if (found := self.kept.get(name)) is not None:
            return Made(**found)
        made = await self.make(photo)
        if made.final:
            self.kept.put(name, vars(made))
        return made

    async def make(self, photo: Photo) -> Made:
        drops: Counter = Counter()
        try:
            if self.known and (why := await look(leak, photo.file, self.known)):
                return Made(drops={f"photo: {why}": 1})
            photo = await self._outlined(photo, drops)
            if not photo.instances:
                drops["photo: nothing in it could be outlined and named"] += 1
                return Made(drops=dict(drops))
            if self.options.writer == "phrasebank":
                o = self.options
                records = list(
                    questions.compose(photo, self.bank, o.split, o.per_image, o.seed, drops, self.groups)
                )
            else:
                records = await self._ask(photo, drops)
        except Unreadable:
            return Made(drops={"photo: cannot be read, or is not of the size that its annotations say": 1})
        return Made([to_dict(record) for record in records], dict(drops), difficulty(photo))

    async def _outlined(self, photo: Photo, drops: Counter) -> Photo:
        """With masks for boxes, and where nothing is known with masks and names."""
        boxes = any(each.segmentation is None for each in photo.instances)
        if photo.instances and not boxes:
            return photo
        await asyncio.to_thread(self.outliner.load)
        if boxes:
            return await look(self.outliner.boxes, photo, drops)
        marked, rles = await look(self.outliner.marks, photo)
        if not rles:
            return photo
        photo = outline.named(photo, rles, await self._answer(outline.naming(marked)), drops)
        if self.options.writer == "phrasebank":
            drops.update(
                f"name without phrases: {each.key}" for each in photo.instances if each.key not in self.bank
            )
            photo = replace(photo, instances=tuple(each for each in photo.instances if each.key in self.bank))
        return photo

    async def _ask(self, photo: Photo, drops: Counter) -> list[Record]:
        """Drives `llm_writer.asking`."""
        from datagen.llm.writer import Settings, asking

        o = self.options
        settings = Settings(
            o.per_image,
            o.writer,
            self.model.model,
            self.eyes is not None,
            self.told.get(photo.file.name, ""),
            not o.no_second_opinion,
        )
        steps, answers = asking(photo, self.bank, settings, drops), None
        while True:
            try:
                requests = steps.send(answers)
            except StopIteration as end:
                return end.value
            answers = await asyncio.gather(*map(self._answer, requests))

    async def _answer(self, request) -> dict | None:
        messages = request.messages
        if request.picture is not None:
            from datagen.llm.describe import with_picture

            messages = await look(with_picture, messages, request.picture)
        return await (self.model if request.picture is None else self.eyes).ask(
            messages, request.schema, request.seed
        )


async def look(function, *args):
    """A function that opens a picture, beside what else is going on. Unreadable: the picture cannot be opened."""
    try:
        return await asyncio.to_thread(function, *args)
    except (BadInput, OSError) as error:
        raise Unreadable from error


def captions(file: str | None) -> dict[str, str]:
    """{file name: caption} of COCO's captions json."""
    if not file:
        return {}
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
        names = {row["id"]: row["file_name"] for row in data["images"]}
        return {names[row["image_id"]]: row["caption"] for row in data["annotations"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is not COCO's captions json ({error})") from None


def phrases_state(bank: str) -> str:
    own = [Path(part) for part in bank.split(",") if part.endswith(".toml")]
    files = sorted({*phrasebank.FOLDER.rglob("*.toml"), wording.TEMPLATES, *own})
    return fingerprint(*(file.read_bytes() for file in files))


def known_state(known: Known | None) -> str:
    return fingerprint(sorted(known.names), known.hashes.tobytes()) if known else ""
