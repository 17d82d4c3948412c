"""A language model that is asked later: requests without a cached answer wait, to be sent all together.

model = PendingRequests("Qwen/Qwen3-32B", cache, Ledger())
await model.ask(messages, SCHEMA)          # the cached answer, or None: then the request is in model.waiting
model.take(row)                            # an answer from the cluster; the next round finds it
"""

import json
from typing import Any

from datagen.llm.answers import Ledger, answer_of, one_line, request_name
from datagen.llm.requests import Message, Schema
from datagen.result_cache import Cache


class PendingRequests:
    """Stands in the place of a server, for `datagen.engines.vllm`.

    Args:
        name: The model.
        cache: Where answers are stored.
        ledger: Where requests and tokens are noted.

    Attributes:
        waiting: Requests without an answer: {"name", "messages", "schema", "seed"}, messages and schema as
            JSON.
    """

    def __init__(self, name: str, cache: Cache, ledger: Ledger):
        self.name = name
        self.cache = cache
        self.ledger = ledger
        self.waiting: list[dict[str, Any]] = []

    async def ask(self, messages: list[Message], schema: Schema, seed: int = 0) -> dict[str, Any] | None:
        """Return the cached answer; without one, None, and the request waits."""
        name = request_name(self.name, messages, schema, seed)
        if (answer := self.cache.get(name)) is None:
            self.waiting.append(
                {"name": name, "messages": json.dumps(messages), "schema": json.dumps(schema), "seed": seed}
            )
        return answer

    def take(self, row: dict[str, Any]) -> None:
        """Store the answer to a request, if it is of the form asked for.

        Args:
            row: {"name", "schema"} of the request and {"text", "read", "written"}: the answer and its tokens.
                Without "text", the cluster failed at it.
        """
        if "text" not in row:
            self.ledger.failed += 1
            self.ledger.last_error = one_line(row.get("__inference_error__"))
            return
        self.ledger.requests += 1
        self.ledger.prompt_tokens += int(row["read"])
        self.ledger.completion_tokens += int(row["written"])
        if (answer := answer_of(row["text"], json.loads(row["schema"]))) is not None:
            self.cache.put(row["name"], answer)
        else:
            self.ledger.bad_answers += 1
