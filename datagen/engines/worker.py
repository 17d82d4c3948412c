"""All steps of one image: excluded, outlined, described, asked about, checked.

async with Worker(settings, excluded, cache) as worker:
    result = await worker.result(image)         # ImageResult(rows, drops, difficulty)
"""

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from assistant.errors import BadInput
from assistant.record import Record, to_dict
from datagen.composer import questions, wording
from datagen.composer.phrasebank import PHRASES_FOLDER, load_bank, load_groups
from datagen.image_result import ImageResult
from datagen.inputs import read_captions
from datagen.llm.answers import LanguageModel, Ledger
from datagen.llm.image_messages import with_image
from datagen.llm.naming import naming_request, with_names
from datagen.llm.pending import PendingRequests
from datagen.llm.requests import Request
from datagen.llm.writer import WriterSettings, write_questions
from datagen.result_cache import Cache, fingerprint
from datagen.settings import Settings
from datagen.sources.annotated_images import AnnotatedImage, Instance
from datagen.sources.leaks import ExcludedImages, leak
from datagen.sources.outline import Outliner
from datagen.sources.pick import difficulty
from datagen.versions import COMPOSER_VERSION, FAILED_BOXES_VERSION, LLM_WRITER_VERSION, OUTLINER_VERSION

DEFAULT_ANSWER_TOKENS = 2048  # of a model in this process, where --answer-tokens names no other limit

P = ParamSpec("P")
T = TypeVar("T")


class UnreadableImage(Exception):
    """An image that cannot be read. It is dropped, and the run goes on."""


class Worker:
    """Makes the questions of one image after another.

    Args:
        settings: Of the run.
        excluded: Images that no question may be made about.
        cache: Finished work, down to single requests.

    Attributes:
        model: The writing model; None with the phrase bank.
        describer: The multimodal model that describes images, names regions and verifies what is absent; None
            without.
        ledger: What both were asked and what it cost.
    """

    def __init__(self, settings: Settings, excluded: ExcludedImages | None, cache: Cache):
        self.settings = settings
        self.excluded = excluded
        self.cache = cache
        self.bank = load_bank(settings.bank)
        self.groups = load_groups(settings.bank)
        self.captions = read_captions(settings.captions)
        self.outliner: Outliner | None = None
        if settings.sam != "none":
            self.outliner = Outliner(settings.sam, cache, settings.device)
        self.model: LanguageModel | None = None
        self.describer: LanguageModel | None = None
        self.ledger = Ledger()
        self._rules = self._rules_name()
        self._opened = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "Worker":
        settings = self.settings
        self._slots = asyncio.Semaphore(settings.concurrency)
        if not settings.is_offline:
            if not settings.model:
                raise BadInput(f"--writer {settings.writer} needs --model, the language model's name")
            self.model = await self._open_model(settings.model)
        if settings.describe_with:
            is_writer_too = self.model is not None and settings.describe_with == settings.model
            self.describer = self.model if is_writer_too else await self._open_model(settings.describe_with)
        return self

    async def _open_model(self, name: str) -> LanguageModel:
        """Open a model: in this process for --writer hf, and for a folder where no server is named; else a
        server's."""
        settings = self.settings
        if settings.writer == "vllm":
            return PendingRequests(name, self.cache, self.ledger)
        is_folder = settings.is_offline and not settings.base_url and Path(name).is_dir()
        if settings.writer == "hf" or is_folder:
            from datagen.llm.local_model import LocalModel

            max_tokens = settings.answer_tokens or DEFAULT_ANSWER_TOKENS
            return await self._opened.enter_async_context(
                LocalModel(name, self.cache, self.ledger, settings.concurrency, settings.device, max_tokens)
            )
        from datagen.llm.server import Price, Server

        return await self._opened.enter_async_context(
            Server(
                name,
                settings.base_url,
                self.cache,
                self._slots,
                self.ledger,
                Price(*settings.price),
                settings.budget,
                settings.answer_tokens,
            )
        )

    async def __aexit__(self, *error: object) -> None:
        if self.ledger != Ledger():
            print(f"{self.ledger}", file=sys.stderr)
        await self._opened.aclose()

    # The names that results are cached under. They must stay as they are, down to the order of their parts:
    # they find the results in the folders of earlier versions, and results of language models cost money.

    def _rules_name(self) -> str:
        """Names everything that decides what is made of an image, except the image itself."""
        settings = self.settings
        parts = [
            settings.writer,
            settings.bank,
            settings.per_image,
            settings.seed,
            phrases_state(settings.bank),
            _excluded_state(self.excluded),
            settings.describe_with,
            self.outliner and [self.outliner.weights, OUTLINER_VERSION],
        ]
        if settings.is_offline:
            return fingerprint(*parts, settings.split, COMPOSER_VERSION)
        return fingerprint(*parts, settings.model, not settings.second_opinion, LLM_WRITER_VERSION)

    def result_name(self, image: AnnotatedImage) -> str:
        """Names what is made of an image; where its file is read, by the file's size and time too."""
        reads_file = self.excluded or self.settings.describe_with or image.lacks_masks()
        state = image.file.stat() if reads_file else None
        return fingerprint(
            self._rules,
            str(image.file),
            state and [state.st_size, state.st_mtime_ns],
            image.id,
            image.width,
            image.height,
            [_instance_state(instance) for instance in image.instances],
            sorted(image.absent),
            sorted(image.partial),
            sorted(image.parts & set(image.keys())),
            self._caption(image),
            # Images with boxes whose masks fail were made otherwise before: what failed was called absent.
            *([FAILED_BOXES_VERSION] if image.lacks_masks() else []),
        )

    def _caption(self, image: AnnotatedImage) -> str:
        """An image's caption, which is listed by its path from the folder of the images; "" without one."""
        file, folder = image.file, self.settings.images
        name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
        return self.captions.get(name, "")

    async def result(self, image: AnnotatedImage) -> ImageResult:
        """Return what an earlier run made of an image, or make it now.

        A result that lacks answers of a model is not cached, because another run may get them.
        """
        name = self.result_name(image)
        if (row := self.cache.get(name)) is not None:
            return ImageResult.from_json(row)
        result = await self.make(image)
        if result.is_final:
            self.cache.put(name, result.to_json())
        return result

    async def make(self, image: AnnotatedImage) -> ImageResult:
        """Make the questions of an image."""
        drops: Counter[str] = Counter()
        try:
            if self.excluded:
                reason = await in_thread(leak, image.file, self.excluded)
                if reason:
                    return ImageResult(drops={f"photo: {reason}": 1})
            image = await self._with_masks(image, drops)
            if not image.instances:
                drops["photo: nothing in it could be outlined and named"] += 1
                return ImageResult(drops=dict(drops))
            if self.settings.is_offline:
                records = self._compose(image, drops)
            else:
                records = await self._ask(image, drops)
        except UnreadableImage:
            return ImageResult(drops={"photo: unreadable, or of another size than its annotations say": 1})
        return ImageResult([to_dict(record) for record in records], dict(drops), difficulty(image))

    async def _with_masks(self, image: AnnotatedImage, drops: Counter[str]) -> AnnotatedImage:
        """The image with masks for boxes, and where nothing is annotated with masks and names."""
        if image.instances and not image.lacks_masks():
            return image
        if self.outliner is None:  # --sam none takes only images whose instances have masks
            return image
        await asyncio.to_thread(self.outliner.load)
        if image.instances:
            return await in_thread(self.outliner.outline_boxes, image, drops)
        marked, rles = await in_thread(self.outliner.propose, image)
        if not rles:
            return image
        image = with_names(image, rles, await self._answer(naming_request(marked)), drops)
        if not self.settings.is_offline:
            return image
        unknown = [each.key for each in image.instances if each.key not in self.bank]
        drops.update(f"name without phrases: {key}" for key in unknown)
        known = tuple(each for each in image.instances if each.key in self.bank)
        return replace(image, instances=known)

    def _compose(self, image: AnnotatedImage, drops: Counter[str]) -> list[Record]:
        """Questions from the phrase bank."""
        settings = self.settings
        return list(
            questions.compose(
                image, self.bank, settings.split, settings.per_image, settings.seed, drops, self.groups
            )
        )

    async def _ask(self, image: AnnotatedImage, drops: Counter[str]) -> list[Record]:
        """Questions by a language model."""
        assert self.model is not None  # opened on entry for every writer but the phrase bank
        writer_settings = WriterSettings(
            per_image=self.settings.per_image,
            writer=self.settings.writer,
            model=self.model.name,
            has_describer=self.describer is not None,
            caption=self._caption(image),
            second_opinion=self.settings.second_opinion,
        )
        steps = write_questions(image, self.bank, writer_settings, drops)
        requests = next(steps)
        while True:
            answers = await asyncio.gather(*map(self._answer, requests))
            try:
                requests = steps.send(answers)
            except StopIteration as end:
                return end.value

    async def _answer(self, request: Request) -> dict | None:
        """Ask the describer where the request has an image, else the writing model."""
        messages, model = request.messages, self.model
        if request.image is not None:
            messages, model = await in_thread(with_image, messages, request.image), self.describer
        assert model is not None  # nothing is asked that the settings name no model for
        return await model.ask(messages, request.schema, request.seed)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that reads an image in a thread, so that requests go on meanwhile.

    Raises:
        UnreadableImage: It cannot be read.
    """
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except (BadInput, OSError) as error:
        raise UnreadableImage from error


def phrases_state(bank: str) -> str:
    """Names the content of all phrase banks and templates. bank: as `load_bank` takes it."""
    own_files = [Path(part) for part in bank.split(",") if part.endswith(".toml")]
    files = sorted({*PHRASES_FOLDER.rglob("*.toml"), wording.TEMPLATES_FILE, *own_files})
    return fingerprint(*(file.read_bytes() for file in files))


def _excluded_state(excluded: ExcludedImages | None) -> str:
    """Names the excluded images."""
    return fingerprint(sorted(excluded.names), excluded.hashes.tobytes()) if excluded else ""


def _instance_state(instance: Instance) -> dict[str, object]:
    """An instance as it goes into the name of a result."""
    return {
        "id": instance.id,
        "key": instance.key,
        "segmentation": instance.segmentation,
        "box": instance.box,
        "area": instance.area,
        "crowd": instance.crowd,
    }
