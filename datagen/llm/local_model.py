"""A language model in this process, through transformers; answers as `datagen.llm.server` does, and from the same store.

    async with Local("path/to/Qwen3-4B", Kept(file), batch=8, device="cuda") as model:
        found = await model.ask(messages, SCHEMA)

Text models and multimodal ones. Questions that wait are answered together, `batch` at a time. Only tokens that keep an
answer in its form are allowed (`assistant.mllm.structured_output`), so it can only fail by being too long. The first
answer is the likeliest one; others, for the same question, are drawn.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from assistant.errors import BadInput
from datagen.llm.server import ATTEMPTS, Ledger, fits, parsed
from datagen.result_cache import Kept, fingerprint

ITEMS, LETTERS = 40, 1200  # an answer's arrays and texts are at most so long: a weak model would go on and on


@dataclass
class Waiting:
    messages: list[dict]
    schema: dict
    seed: int | None  # None: the likeliest answer
    answer: asyncio.Future

    @property
    def sees(self) -> bool:
        return any(isinstance(message["content"], list) for message in self.messages)


class Local:
    """name: a folder in transformers' layout or a hub id; tokens: of an answer, at most."""

    def __init__(
        self,
        name: str,
        kept: Kept,
        batch: int = 8,
        device: str = "cpu",
        tokens: int = 2048,
        temperature: float = 0.8,
    ):
        self.model, self.kept, self.batch, self.tokens, self.temperature = (
            name,
            kept,
            batch,
            tokens,
            temperature,
        )
        self.ledger = Ledger()
        self.network, self.processor = load(name, device)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.sees = self.tokenizer is not self.processor
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        ends = self.network.generation_config.eos_token_id
        ends = [*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id]
        self.ends = list(dict.fromkeys(end for end in ends if end is not None))
        self.tokens_of = tokens_of(self.tokenizer, self.ends)
        self.system_role = takes_system(self.processor)

    async def __aenter__(self) -> "Local":
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self.runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error) -> None:
        self.runner.cancel()
        await asyncio.gather(self.runner, return_exceptions=True)

    async def ask(self, messages: list[dict], schema: dict, seed: int = 0) -> dict | None:
        """One answer of the schema's form, or None where it does not fit into `tokens`."""
        name = fingerprint("answer", self.model, messages, schema, seed)
        if (answer := self.kept.get(name)) is not None:
            self.ledger.from_cache += 1
            return answer
        for attempt in range(ATTEMPTS):
            answered = asyncio.get_running_loop().create_future()
            waiting = Waiting(messages, schema, seed + attempt if attempt else None, answered)
            self.queue.put_nowait(waiting)
            self.ledger.requests += 1
            answer = parsed(await waiting.answer)
            if answer is not None and fits(answer, schema):
                self.kept.put(name, answer)
                return answer
            self.ledger.bad_answers += 1
        return None

    async def _run(self) -> None:
        held: list[Waiting] = []
        while True:
            if not held:
                held.append(await self.queue.get())
            await asyncio.sleep(0)  # lets the others put theirs
            while not self.queue.empty():
                held.append(self.queue.get_nowait())
            # Together go those of one sort: with or without a picture, likeliest or drawn.
            sort = lambda one: (one.sees, one.seed is not None)
            batch = [one for one in held if sort(one) == sort(held[0])][: self.batch]
            held = [one for one in held if one not in batch]
            try:
                texts = await asyncio.to_thread(self.generate, batch)
                for one, text in zip(batch, texts):
                    one.answer.set_result(text)
            except Exception as error:  # what a model's code raises is not ours to tell apart
                print(
                    f"{self.model}: {type(error).__name__}: {' '.join(str(error).split())[:160]}",
                    file=sys.stderr,
                )
                self.ledger.failed += len(batch)
                for one in batch:
                    one.answer.set_result("")

    def generate(self, batch: Sequence[Waiting]) -> list[str]:
        """The answers' texts."""
        import torch

        from assistant.mllm.structured_output import Constraint

        inputs = self._inputs([one.messages for one in batch]).to(self.network.device)
        length = inputs["input_ids"].shape[1]
        forms = Together([Constraint(self.tokens_of, bounded(one.schema)) for one in batch], self.ends)
        drawn = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        if batch[0].seed is not None:
            drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(sum(one.seed or 0 for one in batch) % 2**31)
            out = self.network.generate(
                **inputs,
                **drawn,
                max_new_tokens=self.tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                repetition_penalty=1.0,
                logits_processor=[forms],
            )
        self.ledger.prompt_tokens += int(inputs["attention_mask"].sum())
        answers = out[:, length:]
        self.ledger.completion_tokens += int((answers != self.tokenizer.pad_token_id).sum())
        return self.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def _inputs(self, conversations: list[list[dict]]):
        more = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        more |= {"processor_kwargs": {"padding": True}} if self.sees else {"padding": True}
        if "enable_thinking" in (self.processor.chat_template or ""):
            more["enable_thinking"] = False
        return self.processor.apply_chat_template(
            [self._told(messages) for messages in conversations], **more
        )

    def _told(self, messages: list[dict]) -> list[dict]:
        """Messages as this model's template takes them."""
        from datagen.llm.describe import pictures_of

        if not self.system_role and messages[0]["role"] == "system":
            first, second, *rest = messages
            messages = [second | {"content": f"{first['content']}\n\n{second['content']}"}, *rest]
        if not self.sees:
            if any(isinstance(message["content"], list) for message in messages):
                raise BadInput(f"{self.model} sees no pictures")
            return messages
        pictures, told = iter(pictures_of(messages)), []
        for message in messages:
            parts = message["content"]
            if not isinstance(parts, list):
                parts = [{"type": "text", "text": parts}]
            told.append(
                {
                    "role": message["role"],
                    "content": [
                        {"type": "image", "image": next(pictures)} if part["type"] == "image_url" else part
                        for part in parts
                    ],
                }
            )
        return told


class Together:
    """A logits processor of several sequences, each with its own constraint until it ends."""

    def __init__(self, constraints: list, ends: list[int]):
        self.constraints, self.ends, self.begun = constraints, ends, False

    def __call__(self, ids, scores):
        for k, constraint in enumerate(self.constraints):
            if constraint and self.begun and int(ids[k, -1]) in self.ends:
                self.constraints[k] = constraint = None
            if constraint:
                scores[k] = constraint(ids[k : k + 1], scores[k : k + 1])[0]
        self.begun = True
        return scores


def tokens_of(tokenizer, ends: list[int]):
    """The tokenizer as constraints need it."""
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer, eos_token=ends)
    except Exception as error:  # a tokenizer of a kind that it does not know
        raise BadInput(
            f"the answers of this model cannot be constrained: {str(error).splitlines()[0][:160]}"
        ) from None


def load(name: str, device: str):
    """(model, processor or tokenizer). BadInput: there is none by that name."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )

    try:
        config = AutoConfig.from_pretrained(name)
        sees = type(config) in AutoModelForImageTextToText._model_mapping
        kind, reader = (
            (AutoModelForImageTextToText, AutoProcessor) if sees else (AutoModelForCausalLM, AutoTokenizer)
        )
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        network = kind.from_pretrained(name, dtype=dtype, device_map={"": device}).eval()
        processor = reader.from_pretrained(name)
    except Exception as error:  # a broken folder and an unreachable hub raise a dozen kinds
        raise BadInput(
            f"cannot load {name} as a language model; give a folder that holds one, or a hub id while the hub can "
            f"be reached ({' '.join(str(error).split())[:120]})"
        ) from None
    if not processor.chat_template:
        raise BadInput(f"{name} has no chat template; use a model that was tuned to answer")
    return network, processor


def takes_system(processor) -> bool:
    """Whether the chat template has a place for a system prompt."""
    text = lambda words: [{"type": "text", "text": words}] if hasattr(processor, "tokenizer") else words
    try:
        return "umbrella" in processor.apply_chat_template(
            [{"role": "system", "content": text("umbrella")}, {"role": "user", "content": text("?")}],
            tokenize=False,
        )
    except Exception:  # templates refuse a role by raising whatever they like
        return False


def bounded(schema: dict) -> dict:
    """The schema with a most for each array, text and number."""
    if schema["type"] == "object":
        return schema | {"properties": {key: bounded(value) for key, value in schema["properties"].items()}}
    if schema["type"] == "array":
        return schema | {"items": bounded(schema["items"]), "maxItems": ITEMS}
    if schema["type"] == "integer":
        return schema | {"minimum": 0, "maximum": 9999}
    return schema | {"maxLength": LETTERS} if schema["type"] == "string" and "enum" not in schema else schema
