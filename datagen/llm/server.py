"""A language model behind an OpenAI-compatible server, asked many things at once; nothing is asked twice.

    address = "http://127.0.0.1:8000/v1"
    async with Server("qwen3-vl", address, cache, asyncio.Semaphore(64), Ledger()) as server:
        answer = await server.ask(messages, SCHEMA)    # a dict as the schema says, or None

Works with vLLM, SGLang, llama.cpp, Ollama, `transformers serve` and the cloud. The official client waits and
retries (429, 5xx, broken connections). An answer that is not JSON of the wanted form is asked for again with
another seed, and with the schema in the text, since not all servers enforce it. Every good answer is cached
by the content of its request: a run that was killed, or is given again, only asks what is new. The key comes
from OPENAI_API_KEY and is written nowhere.
"""

import asyncio
import json
import os
from dataclasses import dataclass
from typing import Any

from assistant.errors import BadInput
from datagen.llm.answers import MAX_ATTEMPTS, Ledger, answer_of, one_line, request_name
from datagen.llm.requests import Message, Schema
from datagen.result_cache import Cache

MAX_RETRIES = 6  # of the client, for a server that is busy or away
TIMEOUT_SECONDS = 300.0  # for one answer: long ones of large models on one GPU take minutes
PROBE_SECONDS = 10.0  # to find out whether anything listens at the server's address
TEMPERATURE = 0.8  # varied questions, and yet of the form asked for


class OutOfBudget(BadInput):
    """The budget of this run is spent."""


@dataclass(frozen=True)
class Price:
    """What a server charges, per million tokens of the prompt and of the answer."""

    prompt: float = 0.0
    completion: float = 0.0


FREE = Price()


class Server:
    """A model behind a server.

    Args:
        name: The model, as the server calls it.
        base_url: Such as http://127.0.0.1:8000/v1; None: the client's own.
        cache: Where answers are stored.
        slots: Held while a request is under way; shared by all models of a run.
        ledger: Where requests and cost are noted; shared by all models of a run.
        price: For the cost in the ledger.
        budget: Cost from which no further request is sent; None: no limit.
        max_tokens: Of an answer; None: the server's own limit.

    Raises:
        BadInput: The client is not installed, or there is no key.
    """

    def __init__(
        self,
        name: str,
        base_url: str | None,
        cache: Cache,
        slots: asyncio.Semaphore,
        ledger: Ledger,
        price: Price = FREE,
        budget: float | None = None,
        max_tokens: int | None = None,
    ):
        try:
            import openai
        except ImportError:
            raise BadInput("--writer openai needs the client: pip install 'maskpick[llm]'") from None

        key = os.environ.get("OPENAI_API_KEY", "none" if base_url else None)
        if key is None:
            raise BadInput("set OPENAI_API_KEY, or name a server of your own with --base-url")
        self.name = name
        self.cache = cache
        self.slots = slots
        self.ledger = ledger
        self.price = price
        self.budget = budget
        self.max_tokens = max_tokens
        self.enforces_schemas = True  # until it refuses one
        self.has_answered = False
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=base_url,
            timeout=TIMEOUT_SECONDS,
            max_retries=MAX_RETRIES,
            http_client=_transport(openai),
        )

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def ask(self, messages: list[Message], schema: Schema, seed: int = 0) -> dict[str, Any] | None:
        """Ask once and for all; see `datagen.llm.answers.LanguageModel`.

        Returns:
            The answer; None where the server fails for good or keeps giving answers of another form.

        Raises:
            BadInput: The server refuses the key, does not know the model, or is not there.
            OutOfBudget: Before a request that could not be paid.
        """
        name = request_name(self.name, messages, schema, seed)
        if (answer := self.cache.get(name)) is not None:
            self.ledger.from_cache += 1
            return answer
        for attempt in range(MAX_ATTEMPTS):
            async with self.slots:
                self._check_budget()
                body = self._body(messages, schema, seed, attempt)
                try:
                    self.ledger.requests += 1
                    # As chat.completions.create sends it, without its walk through every key, which takes
                    # longer than all the rest.
                    reply = await self._client.post("/chat/completions", cast_to=object, body=body)
                except self._openai.OpenAIError as error:  # after the client's own retries
                    if "response_format" in body and self._refuses_schemas(error):
                        self.enforces_schemas = False
                        continue
                    await self._raise_if_hopeless(error)
                    self.ledger.failed += 1
                    self.ledger.last_error = f"{type(error).__name__}: {one_line(error)}"
                    return None
                except (ValueError, TypeError):  # what came back is not even JSON
                    self.ledger.bad_answers += 1
                    continue
            self.has_answered = True
            self._note_cost(reply)
            if (answer := answer_of(_content_of(reply), schema)) is not None:
                self.cache.put(name, answer)
                return answer
            self.ledger.bad_answers += 1
        return None

    def _check_budget(self) -> None:
        if self.budget is not None and self.ledger.cost >= self.budget:
            raise OutOfBudget(
                f"the budget of {self.budget} is spent; the same command with a larger --budget goes on"
            )

    def _body(self, messages: list[Message], schema: Schema, seed: int, attempt: int) -> dict[str, Any]:
        """The body of a request. attempt: from 0; later ones have the schema in the text as well."""
        in_text = attempt > 0 or not self.enforces_schemas
        body: dict[str, Any] = {
            "model": self.name,
            "messages": with_schema_in_text(messages, schema) if in_text else messages,
            "seed": (seed + attempt) % 2**31,
            "temperature": TEMPERATURE,
        }
        if self.enforces_schemas:
            form = {"name": schema["title"], "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if self.max_tokens:
            body["max_completion_tokens"] = self.max_tokens
        return body

    def _refuses_schemas(self, error: Exception) -> bool:
        """Whether a request with a response_format failed because the server does not know it."""
        refusals = (self._openai.BadRequestError, self._openai.UnprocessableEntityError)
        return isinstance(error, refusals) and "response_format" in str(error)

    async def _raise_if_hopeless(self, error: Exception) -> None:
        """Raise BadInput for an error that every further request would meet too."""
        if isinstance(error, (self._openai.AuthenticationError, self._openai.PermissionDeniedError)):
            raise BadInput(f"the server refuses the key: {one_line(error)}") from None
        if isinstance(error, self._openai.NotFoundError):
            raise BadInput(f"the server does not know {self.name}: {one_line(error)}") from None
        is_lost = isinstance(error, self._openai.APIConnectionError) and not self.has_answered
        if is_lost and not await self._listens():
            raise BadInput(
                f"no server answers at {self._client.base_url}: start it, or name another with "
                "--base-url; the same command goes on"
            ) from None

    async def _listens(self) -> bool:
        """Whether anything takes connections at the address; the client calls a refused one a timeout."""
        url = self._client.base_url
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(url.host, port), PROBE_SECONDS)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    def _note_cost(self, reply: Any) -> None:
        """Add the tokens of a reply to the ledger."""
        usage = (reply.get("usage") if isinstance(reply, dict) else None) or {}
        prompt = usage.get("prompt_tokens") or 0
        completion = usage.get("completion_tokens") or 0
        self.ledger.prompt_tokens += prompt
        self.ledger.completion_tokens += completion
        self.ledger.cost += (prompt * self.price.prompt + completion * self.price.completion) / 1e6


def with_schema_in_text(messages: list[Message], schema: Schema) -> list[Message]:
    """The messages with the wanted form in the text of the last one, for servers that do not enforce it."""
    *others, last = messages
    wanted = f"\n\nAnswer with one JSON object and nothing else, of this JSON schema: {json.dumps(schema)}"
    content = last["content"]
    content = content + wanted if isinstance(content, str) else [*content, {"type": "text", "text": wanted}]
    return [*others, last | {"content": content}]


def _transport(openai: Any) -> Any:
    """aiohttp where it is installed: the default transport checks every connection for every request."""
    try:
        return openai.DefaultAioHttpClient()
    except RuntimeError:
        return None


def _content_of(reply: Any) -> str:
    """The text of a reply, "" where it is none."""
    try:
        return reply["choices"][0]["message"]["content"] or ""
    except (KeyError, IndexError, TypeError):
        return ""
