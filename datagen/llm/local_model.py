"""A language model in this process, through transformers; it answers as `datagen.llm.server` does.

    async with LocalModel("path/to/Qwen3-4B", cache, Ledger(), batch_size=8, device="cuda") as model:
        answer = await model.ask(messages, SCHEMA)

Takes text models and multimodal ones. Questions that wait are answered together, `batch_size` at a time. Only
tokens that keep an answer in its form are allowed (`assistant.mllm.structured_output`), so it can only fail
by being too long. The first answer is the likeliest one; further ones to the same question are drawn at
random.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assistant.errors import BadInput
from datagen.llm.answers import MAX_ATTEMPTS, Ledger, answer_of, one_line, request_name
from datagen.llm.image_messages import has_images, images_of
from datagen.llm.requests import Message, Schema
from datagen.result_cache import Cache

# Limits of an answer beside those of its schema: a weak model would go on and on.
MAX_ARRAY_ITEMS = 40
MAX_TEXT_LENGTH = 1200  # characters
MAX_INTEGER = 9999
TEMPERATURE = 0.8  # of answers that are drawn at random


@dataclass(eq=False)
class QueuedQuestion:
    """A question that waits for its turn.

    Attributes:
        messages, schema: As in `datagen.llm.requests.Request`.
        seed: Of an answer that is drawn at random; None: the likeliest one.
        answer: Gets the text, "" where the model failed.
    """

    messages: list[Message]
    schema: Schema
    seed: int | None
    answer: asyncio.Future[str]

    @property
    def sort(self) -> tuple[bool, bool]:
        """What questions of one batch have in common: whether they show images and draw at random."""
        return has_images(self.messages), self.seed is not None


class LocalModel:
    """A model in this process; see `datagen.llm.answers.LanguageModel`.

    Args:
        name: A folder in transformers' layout or a hub id.
        cache: Where answers are stored.
        ledger: Where questions and tokens are noted.
        batch_size: Number of questions that are answered together.
        device: Such as "cpu" or "cuda".
        max_tokens: Of an answer.

    Raises:
        BadInput: There is no language model by that name, or its answers cannot be constrained.
    """

    def __init__(
        self,
        name: str,
        cache: Cache,
        ledger: Ledger,
        batch_size: int = 8,
        device: str = "cpu",
        max_tokens: int = 2048,
    ):
        self.name = name
        self.cache = cache
        self.ledger = ledger
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.network, self.processor, self.is_multimodal = load_model(name, device)
        self.tokenizer = self.processor.tokenizer if self.is_multimodal else self.processor
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.end_tokens = _end_tokens(self.network, self.tokenizer)
        self._constraint_tokenizer = _constraint_tokenizer(self.tokenizer, self.end_tokens)
        self._has_system_role = _has_system_role(self.processor, self.is_multimodal)

    async def __aenter__(self) -> "LocalModel":
        self._queue: asyncio.Queue[QueuedQuestion] = asyncio.Queue()
        self._answering = asyncio.create_task(self._answer_queue())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._answering.cancel()
        await asyncio.gather(self._answering, return_exceptions=True)

    async def ask(self, messages: list[Message], schema: Schema, seed: int = 0) -> dict[str, Any] | None:
        """Ask once and for all; see `datagen.llm.answers.LanguageModel`.

        Returns:
            The answer; None where it does not fit into `max_tokens`, or the model fails.
        """
        name = request_name(self.name, messages, schema, seed)
        if (answer := self.cache.get(name)) is not None:
            self.ledger.from_cache += 1
            return answer
        for attempt in range(MAX_ATTEMPTS):
            text: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            drawn_seed = seed + attempt if attempt else None
            self._queue.put_nowait(QueuedQuestion(messages, schema, drawn_seed, text))
            self.ledger.requests += 1
            if (answer := answer_of(await text, schema)) is not None:
                self.cache.put(name, answer)
                return answer
            self.ledger.bad_answers += 1
        return None

    async def _answer_queue(self) -> None:
        """Answer what is in the queue, batch by batch, until cancelled."""
        waiting: list[QueuedQuestion] = []
        while True:
            if not waiting:
                waiting.append(await self._queue.get())
            await asyncio.sleep(0)  # lets the others put theirs
            while not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            sort = waiting[0].sort
            batch = [question for question in waiting if question.sort == sort][: self.batch_size]
            waiting = [question for question in waiting if question not in batch]
            await self._answer_batch(batch)

    async def _answer_batch(self, batch: list[QueuedQuestion]) -> None:
        try:
            texts = await asyncio.to_thread(self.generate, batch)
        except Exception as error:  # a model's code may raise anything; it costs its batch, and not the run
            print(f"{self.name}: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
            self.ledger.failed += len(batch)
            texts = [""] * len(batch)
        for question, text in zip(batch, texts, strict=True):
            if not question.answer.done():  # cancelled, where the run has ended meanwhile
                question.answer.set_result(text)

    def generate(self, batch: Sequence[QueuedQuestion]) -> list[str]:
        """Answer questions of one sort together; returns the answers' texts."""
        import torch

        from assistant.mllm.structured_output import Constraint

        inputs = self._inputs([question.messages for question in batch]).to(self.network.device)
        prompt_length = inputs["input_ids"].shape[1]
        constraints = [Constraint(self._constraint_tokenizer, bounded(question.schema)) for question in batch]
        if batch[0].seed is None:
            sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        else:
            sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(sum(question.seed or 0 for question in batch) % 2**31)
            out = self.network.generate(
                **inputs,
                **sampling,
                max_new_tokens=self.max_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                repetition_penalty=1.0,
                logits_processor=[BatchConstraint(constraints, self.end_tokens)],
            )
        answers = out[:, prompt_length:]
        self.ledger.prompt_tokens += int(inputs["attention_mask"].sum())
        self.ledger.completion_tokens += int((answers != self.tokenizer.pad_token_id).sum())
        return self.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def _inputs(self, conversations: list[list[Message]]) -> Any:
        """The tokens of several conversations, padded to one length."""
        options: dict[str, Any] = {
            "tokenize": True,
            "return_dict": True,
            "return_tensors": "pt",
            "add_generation_prompt": True,
        }
        options |= {"processor_kwargs": {"padding": True}} if self.is_multimodal else {"padding": True}
        if "enable_thinking" in (self.processor.chat_template or ""):
            options["enable_thinking"] = False
        prepared = [self._for_template(messages) for messages in conversations]
        return self.processor.apply_chat_template(prepared, **options)

    def _for_template(self, messages: list[Message]) -> list[Message]:
        """Messages as this model's chat template takes them."""
        if not self._has_system_role and messages[0]["role"] == "system":
            system, first, *rest = messages
            messages = [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest]
        if not self.is_multimodal:
            if has_images(messages):
                raise BadInput(f"{self.name} reads no images: choose a multimodal model")
            return messages
        images = iter(images_of(messages))
        prepared = []
        for message in messages:
            parts = message["content"]
            if not isinstance(parts, list):
                parts = [{"type": "text", "text": parts}]
            content = [
                {"type": "image", "image": next(images)} if part["type"] == "image_url" else part
                for part in parts
            ]
            prepared.append({"role": message["role"], "content": content})
        return prepared


class BatchConstraint:
    """A logits processor of several sequences, each with its own constraint until it ends.

    Args:
        constraints: One for each sequence.
        end_tokens: Tokens that end a sequence.
    """

    def __init__(self, constraints: Sequence[Any], end_tokens: Sequence[int]):
        self.constraints = list(constraints)
        self.end_tokens = end_tokens
        self._has_begun = False

    def __call__(self, ids: Any, scores: Any) -> Any:
        """Set the logits of what is not allowed to -inf.

        ids: (N, L) int64, the tokens so far. scores: (N, V) float, the logits of the next one; returned
        changed.
        """
        for row, constraint in enumerate(self.constraints):
            if constraint and self._has_begun and int(ids[row, -1]) in self.end_tokens:
                self.constraints[row] = constraint = None
            if constraint:
                scores[row] = constraint(ids[row : row + 1], scores[row : row + 1])[0]
        self._has_begun = True
        return scores


def _end_tokens(network: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer."""
    ends = network.generation_config.eos_token_id
    ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    return list(dict.fromkeys(end for end in ends if end is not None))


def _constraint_tokenizer(tokenizer: Any, end_tokens: list[int]) -> Any:
    """The tokenizer as constraints need it."""
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer, eos_token=end_tokens)
    except Exception as error:  # a tokenizer of a kind that it does not know
        raise BadInput(
            f"the answers of this model cannot be constrained: {str(error).splitlines()[0][:160]}"
        ) from None


def load_model(name: str, device: str) -> tuple[Any, Any, bool]:
    """Load a language model.

    Args:
        name: A folder in transformers' layout or a hub id.
        device: Such as "cpu" or "cuda".

    Returns:
        The model; its processor, or tokenizer where it is a text model; and whether it is multimodal.

    Raises:
        BadInput: There is no language model by that name, or it was not tuned to answer.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
        ProcessorMixin,
    )

    try:
        config = AutoConfig.from_pretrained(name)
        takes_images = type(config) in AutoModelForImageTextToText._model_mapping
        model_class = AutoModelForImageTextToText if takes_images else AutoModelForCausalLM
        processor_class = AutoProcessor if takes_images else AutoTokenizer
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        network = model_class.from_pretrained(name, dtype=dtype, device_map={"": device}).eval()
        processor = processor_class.from_pretrained(name)
    except Exception as error:  # a broken folder and an unreachable hub raise a dozen kinds
        raise BadInput(
            f"cannot load {name} as a language model; give a folder that holds one, or a hub id while the "
            f"hub can be reached ({' '.join(str(error).split())[:120]})"
        ) from None
    if not processor.chat_template:
        raise BadInput(f"{name} has no chat template; use a model that was tuned to answer")
    return network, processor, isinstance(processor, ProcessorMixin)


def _has_system_role(processor: Any, is_multimodal: bool) -> bool:
    """Whether the chat template has a place for a system prompt."""

    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if is_multimodal else text

    messages = [
        {"role": "system", "content": content("umbrella")},
        {"role": "user", "content": content("?")},
    ]
    try:
        return "umbrella" in processor.apply_chat_template(messages, tokenize=False)
    except Exception:  # templates refuse a role by raising whatever they like
        return False


def bounded(schema: Schema) -> Schema:
    """The schema with a limit for each array, text and number."""
    if schema["type"] == "object":
        return schema | {"properties": {key: bounded(value) for key, value in schema["properties"].items()}}
    if schema["type"] == "array":
        return schema | {"items": bounded(schema["items"]), "maxItems": MAX_ARRAY_ITEMS}
    if schema["type"] == "integer":
        return schema | {"minimum": 0, "maximum": MAX_INTEGER}
    if schema["type"] == "string" and "enum" not in schema:
        return schema | {"maxLength": MAX_TEXT_LENGTH}
    return schema
