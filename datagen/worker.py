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
from dataclasses import asdict, dataclass, field
from pathlib import Path

from assistant.errors import BadInput
from assistant.record import Record, from_dict, to_dict
from datagen import followups, given, phrasebank, places, questions, wording
from datagen.kept import Kept, code_of, fingerprint
from datagen.leaks import Known, leak
from datagen.photos import Photo

UNANSWERED = ("no usable answer", "no second opinion")  # drops that another run may mend


@dataclass
class Made:
    """What became of a photo. rows: records as JSON objects; used: it was asked about."""

    rows: list[dict] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)
    used: bool = True

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
        self.told = captions(options.captions)
        self.rules = self._rules()

    def _rules(self) -> str:
        """Names all that decides what is made of a photo, but the photo."""
        o = self.options
        parts = [o.writer, o.bank, o.per_image, o.seed, phrases_state(o.bank), known_state(self.known)]
        if o.writer == "phrasebank":
            return fingerprint(*parts, o.split, code_of(phrasebank, questions, given, places, followups, wording))
        from datagen import checks, llm_writer

        return fingerprint(*parts, o.model, o.describe_with, o.no_second_opinion, code_of(checks, llm_writer, phrasebank))

    def name(self, photo: Photo) -> str:
        """Names what is made of a photo; of a picture that is looked at, by its file's size and time."""
        looked_at = self.known or self.options.describe_with
        state = photo.file.stat() if looked_at else None
        return fingerprint(self.rules, str(photo.file), state and [state.st_size, state.st_mtime_ns], photo.id, photo.width, photo.height,
                           [asdict(each) for each in photo.instances], sorted(photo.absent), sorted(photo.partial),
                           self.told.get(photo.file.name, ""))

    async def __aenter__(self) -> "Worker":
        self.opened = contextlib.AsyncExitStack()
        if self.options.writer == "openai":
            self.model, self.eyes = await self._servers()
        return self

    async def _servers(self):
        from datagen.server import Server

        o = self.options
        if not o.model:
            raise BadInput("--writer openai needs --model, the name by which the server knows it")
        open_one = lambda model: self.opened.enter_async_context(
            Server(model, o.base_url, self.kept, o.concurrency, tuple(o.price), o.budget))
        model = await open_one(o.model)
        eyes = await open_one(o.describe_with) if o.describe_with else None
        if eyes:
            eyes.ledger, eyes.slots = model.ledger, model.slots  # one budget, one limit
        return model, eyes

    async def __aexit__(self, *error) -> None:
        if self.options.writer != "phrasebank" and hasattr(self, "model"):
            print(f"{self.model.ledger}", file=sys.stderr)
        await self.opened.aclose()

    async def make(self, photo: Photo) -> Made:
        drops: Counter = Counter()
        if self.known and (why := await asyncio.to_thread(leak, photo.file, self.known)):
            return Made(drops={f"photo: {why}": 1}, used=False)
        if self.options.writer == "phrasebank":
            o = self.options
            records = list(questions.compose(photo, self.bank, o.split, o.per_image, o.seed, drops, self.groups))
        else:
            records = await self._ask(photo, drops)
        return Made([to_dict(record) for record in records], dict(drops))

    async def _ask(self, photo: Photo, drops: Counter) -> list[Record]:
        """Drives `llm_writer.asking`."""
        from datagen.llm_writer import Settings, asking

        o = self.options
        settings = Settings(o.per_image, o.writer, self.model.model, self.eyes is not None, self.told.get(photo.file.name, ""),
                            not o.no_second_opinion)
        steps, answers = asking(photo, self.bank, settings, drops), None
        while True:
            try:
                requests = steps.send(answers)
            except StopIteration as end:
                return end.value
            answers = await asyncio.gather(*map(self._answer, requests))

    async def _answer(self, request) -> dict | None:
        messages = request.messages
        if request.picture:
            from datagen.describe import with_picture

            messages = await asyncio.to_thread(with_picture, messages, request.picture)
        return await (self.eyes if request.picture else self.model).ask(messages, request.schema, request.seed)


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
    files = sorted({*phrasebank.FOLDER.glob("*.toml"), wording.TEMPLATES, *([Path(bank)] if bank.endswith(".toml") else [])})
    return fingerprint(*(file.read_bytes() for file in files))


def known_state(known: Known | None) -> str:
    return fingerprint(sorted(known.names), known.hashes.tobytes()) if known else ""
