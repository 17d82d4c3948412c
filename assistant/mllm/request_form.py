"""What a server takes in a request, found out from what it refuses.

    form = RequestForm()
    body = form.body(parameters, max_tokens=1024)                       # what to send
    form.without_named("'temperature' does not support 0", body)       # what to send instead; None: no idea
    form.guesses(body)                                                  # what to try where nothing is named

Servers of the OpenAI protocol differ: models that think refuse `max_tokens`, `temperature` and `logprobs`,
some servers refuse JSON schemas, and others a seed. Most of them name what they refuse.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

MAX_ALTERNATIVES = 20  # tokens whose probability is asked for at each step, the most that OpenAI's API allows
# Options that a server may refuse, in the order in which they are left out.
OPTIONAL_PARAMETERS = ("logprobs", "response_format", "seed", "temperature")
LIMIT_NAMES = (
    "max_tokens",
    "max_completion_tokens",
)  # of the limit of tokens; models that think take the second
# Words of a message about a conversation or a limit that is too long, which nothing left out would mend.
LENGTH_WORDS = re.compile(r"too large|too long|context (length|window|size)|exceed", re.I)
NUMBER = re.compile(r"\b\d+\b")


@dataclass(frozen=True)
class RequestForm:
    """What a server takes in a request.

    Attributes:
        left_out: The names among `OPTIONAL_PARAMETERS` that it refuses.
        limit_name: What it calls the limit of tokens, one of `LIMIT_NAMES`.
        alternatives: Tokens whose probability it tells at each step, at most.
    """

    left_out: frozenset[str] = frozenset()
    limit_name: str = LIMIT_NAMES[0]
    alternatives: int = MAX_ALTERNATIVES

    def body(self, parameters: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        """The options of a request in this form.

        Args:
            parameters: Those that would be sent to a server that takes all.
            max_tokens: Tokens that the model may write.
        """
        body = {name: value for name, value in parameters.items() if name not in self.left_out}
        if "logprobs" in body:
            body["top_logprobs"] = self.alternatives
        return body | {self.limit_name: max_tokens}

    def without_named(self, message: str, body: dict[str, Any]) -> "RequestForm | None":
        """The form without the first option that a refusal names.

        Args:
            message: Of the server.
            body: What it refused.

        Returns:
            The form; None where the message names nothing that can be left out.
        """
        fewer = [int(n) for n in NUMBER.findall(message) if 0 < int(n) < self.alternatives]
        if "top_logprobs" in message and "top_logprobs" in body and len(fewer) == 1:
            return replace(self, alternatives=fewer[0])  # "must be less than or equal to 5"
        named = [name for name in OPTIONAL_PARAMETERS if name in body and name in message]
        if named:
            return self._without(named[0])
        if any(name in message for name in LIMIT_NAMES) and not LENGTH_WORDS.search(message):
            return self._with_other_limit()
        return None

    def guesses(self, body: dict[str, Any]) -> list["RequestForm"]:
        """The forms to try where a refusal of `body` names nothing: one option less each, then none."""
        optional = [name for name in OPTIONAL_PARAMETERS if name in body]
        singly = [self._without(name) for name in optional]
        other_limit = self._with_other_limit()
        if other_limit is not None:
            singly.append(other_limit)
        nothing = [self._without(*optional)] if len(optional) > 1 else []
        return singly + nothing

    def _without(self, *names: str) -> "RequestForm":
        return replace(self, left_out=self.left_out | set(names))

    def _with_other_limit(self) -> "RequestForm | None":
        """The form under the limit's other name; None where it has that already."""
        return replace(self, limit_name=LIMIT_NAMES[1]) if self.limit_name == LIMIT_NAMES[0] else None


def is_about_length(message: str) -> bool:
    """Whether a refusal is about a conversation, an image or a limit that is too long."""
    return LENGTH_WORDS.search(message) is not None
