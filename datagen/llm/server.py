"""A language model behind an OpenAI-compatible server, asked many things at once; nothing is asked twice.

    async with Server("qwen3-vl", "http://127.0.0.1:8000/v1", Kept(Path("kept.sqlite")), concurrency=64) as server:
        found = await server.ask(messages, SCHEMA)        # a dict as the schema says, or None after too many bad answers

Works with vLLM, SGLang, llama.cpp, Ollama, `transformers serve` and the cloud. The official client does the waiting and
the retries (429, 5xx, broken connections); an answer that is not JSON of the wanted form is asked for again with another
seed, and with the form in words, since not all servers enforce it. Every good answer is kept by the content of its
request: a run that was killed, or is given again, only asks what is new. The key comes from OPENAI_API_KEY and is written
nowhere.
"""

import asyncio
import json
import os
from dataclasses import dataclass

from assistant.errors import BadInput
from datagen.result_cache import Kept, fingerprint

ATTEMPTS = 3  # for an answer of the right form
RETRIES = 6  # of the client, for a server that is busy or away


class OutOfBudget(BadInput):
    """The money for this run is spent."""


@dataclass
class Ledger:
    """What was asked and what it cost; tokens as the server counts them."""

    requests: int = 0
    from_cache: int = 0
    bad_answers: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0  # in the currency of --price
    last_error: str = ""


class Server:
    """price: (per million prompt tokens, per million completion tokens); budget: stop before more than this is spent."""

    def __init__(
        self,
        model: str,
        base_url: str | None,
        kept: Kept,
        concurrency: int = 16,
        price: tuple[float, float] = (0, 0),
        budget: float | None = None,
        timeout: float = 300.0,
        temperature: float = 0.8,
        tokens: int | None = None,
    ):
        try:
            import openai
        except ImportError:
            raise BadInput("--writer openai needs the client: pip install 'maskpick[llm]'") from None

        self.kept, self.tokens, self.enforces, self.answered = kept, tokens, True, False
        self.openai, self.model, self.price, self.budget, self.temperature = (
            openai,
            model,
            price,
            budget,
            temperature,
        )
        key = os.environ.get("OPENAI_API_KEY", "none" if base_url else None)
        if key is None:
            raise BadInput("set OPENAI_API_KEY, or name a server of your own with --base-url")
        self.client = openai.AsyncOpenAI(
            api_key=key,
            base_url=base_url,
            timeout=timeout,
            max_retries=RETRIES,
            http_client=transport(openai),
        )
        self.slots = asyncio.Semaphore(concurrency)
        self.ledger = Ledger()

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *error) -> None:
        await self.client.close()

    async def ask(self, messages: list[dict], schema: dict, seed: int = 0) -> dict | None:
        """One answer of the schema's form, another for another seed; None where the server fails for good or keeps giving
        rubbish. BadInput: the server refuses the key or does not know the model. OutOfBudget: before a request that could
        not be paid."""
        name = fingerprint("answer", self.model, messages, schema, seed)
        if (answer := self.kept.get(name)) is not None:
            self.ledger.from_cache += 1
            return answer
        form = {
            "type": "json_schema",
            "json_schema": {"name": schema["title"], "schema": schema, "strict": True},
        }
        for attempt in range(ATTEMPTS):
            async with self.slots:
                if self.budget is not None and self.ledger.cost >= self.budget:
                    raise OutOfBudget(
                        f"the budget of {self.budget} is spent; the same command with a larger --budget goes on"
                    )
                try:
                    self.ledger.requests += 1
                    # As chat.completions.create sends it, without its walk through every key: that takes longer than the rest.
                    reply = await self.client.post(
                        "/chat/completions",
                        cast_to=object,
                        body={
                            "model": self.model,
                            "messages": in_words(messages, schema)
                            if attempt or not self.enforces
                            else messages,
                            "seed": (seed + attempt) % 2**31,
                            "temperature": self.temperature,
                            **({"response_format": form} if self.enforces else {}),
                            **({"max_completion_tokens": self.tokens} if self.tokens else {}),
                        },
                    )
                except (self.openai.AuthenticationError, self.openai.PermissionDeniedError) as error:
                    raise BadInput(f"the server refuses the key: {_line(error)}") from None
                except self.openai.NotFoundError as error:
                    raise BadInput(f"the server does not know {self.model}: {_line(error)}") from None
                except (self.openai.BadRequestError, self.openai.UnprocessableEntityError) as error:
                    if not self.enforces or "response_format" not in str(error):
                        return self._failed(error)
                    self.enforces = False  # it does not know the form: from now on it is told in words
                    continue
                except self.openai.OpenAIError as error:  # after the client's own retries
                    lost = isinstance(error, self.openai.APIConnectionError) and not self.answered
                    if lost and not await self._there():
                        raise BadInput(
                            f"no server answers at {self.client.base_url}: start it, or name another with "
                            "--base-url; the same command goes on"
                        ) from None
                    return self._failed(error)
                except (ValueError, TypeError):  # not even an envelope
                    self.ledger.bad_answers += 1
                    continue
            self.answered = True
            self._count(reply)
            answer = parsed(content_of(reply))
            if answer is not None and fits(answer, schema):
                self.kept.put(name, answer)
                return answer
            self.ledger.bad_answers += 1
        return None

    async def _there(self) -> bool:
        """Whether anything takes connections at the address: the client calls a refused one a timeout, too."""
        url = self.client.base_url
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            _, writer = await asyncio.wait_for(asyncio.open_connection(url.host, port), 10)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    def _failed(self, error: Exception) -> None:
        self.ledger.failed += 1
        self.ledger.last_error = f"{type(error).__name__}: {_line(error)}"

    def _count(self, reply) -> None:
        usage = reply.get("usage") if isinstance(reply, dict) else None
        prompt, completion = ((usage or {}).get(key) or 0 for key in ("prompt_tokens", "completion_tokens"))
        self.ledger.prompt_tokens += prompt
        self.ledger.completion_tokens += completion
        self.ledger.cost += (prompt * self.price[0] + completion * self.price[1]) / 1e6


def transport(openai):
    """aiohttp where it is installed: the client's own transport looks at every connection for every request."""
    try:
        return openai.DefaultAioHttpClient()
    except RuntimeError:
        return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def in_words(messages: list[dict], schema: dict) -> list[dict]:
    """The messages with the wanted form in words, for servers that do not enforce it."""
    *others, last = messages
    told = f"\n\nAnswer with one JSON object and nothing else, of this JSON schema: {json.dumps(schema)}"
    content = last["content"]
    content = content + told if isinstance(content, str) else [*content, {"type": "text", "text": told}]
    return [*others, last | {"content": content}]


def content_of(reply) -> str:
    """The text of a reply, "" where it is none."""
    try:
        return reply["choices"][0]["message"]["content"] or ""
    except (KeyError, IndexError, TypeError):
        return ""


def parsed(content: str) -> dict | None:
    """A JSON object, also in the fence that models like to put around it; None where it is none."""
    try:
        found = json.loads(content.strip().removeprefix("```json").removeprefix("```").removesuffix("```"))
    except (AttributeError, TypeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def fits(value, schema: dict) -> bool:
    """Whether a value has the form of the part of JSON Schema that our prompts use: a server may not enforce it."""
    kind = schema["type"]
    if kind == "object":
        return (
            isinstance(value, dict)
            and all(k in value for k in schema["required"])
            and all(k in schema["properties"] and fits(v, schema["properties"][k]) for k, v in value.items())
        )
    if kind == "array":
        return isinstance(value, list) and all(fits(v, schema["items"]) for v in value)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str) and value in schema.get("enum", [value])
