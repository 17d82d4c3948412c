"""What all language models have in common: how they are asked, how an answer is read, and what it cost.

    answer = await model.ask(messages, SCHEMA)        # a dict as the schema says, or None

Three kinds follow the protocol `LanguageModel`: behind a server (`server`), in this process (`local_model`),
and on a cluster, asked later and all together (`pending`).
"""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from datagen.llm.requests import Message, Schema
from datagen.result_cache import fingerprint

MAX_ATTEMPTS = 3  # at one question, for an answer of the right form
MAX_ERROR_LENGTH = 160  # characters of somebody else's error message in one of ours


@dataclass
class Ledger:
    """What was asked and what it cost; tokens as the server counts them, cost in the currency of --price."""

    requests: int = 0
    from_cache: int = 0
    bad_answers: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    last_error: str = ""


class LanguageModel(Protocol):
    """A model that answers in JSON.

    Attributes:
        name: What the user calls it.
    """

    name: str

    async def ask(self, messages: list[Message], schema: Schema, seed: int = 0) -> dict[str, Any] | None:
        """Ask once and for all: an answer is cached by the content of its request, and never asked for again.

        Args:
            messages: In the form of OpenAI's chat completions.
            schema: The JSON schema of the answer.
            seed: Another seed draws another answer.

        Returns:
            The answer; None where there is none of the right form.
        """


def request_name(model: str, messages: list[Message], schema: Schema, seed: int) -> str:
    """Names a request in the result cache. It stays as it is: answers that were paid for are found by it."""
    return fingerprint("answer", model, messages, schema, seed)


def parse_answer(content: str) -> dict[str, Any] | None:
    """Read a JSON object, also from within a Markdown fence; None where it is none."""
    try:
        value = json.loads(content.strip().removeprefix("```json").removeprefix("```").removesuffix("```"))
    except (AttributeError, TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def fits_schema(value: Any, schema: Schema) -> bool:
    """Whether a value follows a schema, which servers may not enforce. Only what our schemas use is known."""
    kind = schema["type"]
    if kind == "object":
        if not isinstance(value, dict) or any(key not in value for key in schema["required"]):
            return False
        properties = schema["properties"]
        return all(key in properties and fits_schema(item, properties[key]) for key, item in value.items())
    if kind == "array":
        return isinstance(value, list) and all(fits_schema(item, schema["items"]) for item in value)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str) and value in schema.get("enum", [value])


def answer_of(content: str, schema: Schema) -> dict[str, Any] | None:
    """Read an answer of the schema's form; None where it is none."""
    answer = parse_answer(content)
    return answer if answer is not None and fits_schema(answer, schema) else None


def one_line(error: object) -> str:
    """An error message, or anything, as one short line."""
    return " ".join(str(error).split())[:MAX_ERROR_LENGTH]
