"""A model's answer in JSON, how it is read, and what a model that gives such answers must offer.

    answer = model.ask([Turn("what keeps the rain off?", images=[image])], system, schema)
    read_json(answer.text)                      # {"targets": [{"phrase": "umbrella", "marks": [3]}]}
    probabilities(answer, rb'"marks": .', lambda byte: byte != b"]")      # [0.97]: that the list is not empty

Two classes are such models: `assistant.mllm.structured_output.StructuredLLM` on this machine, which can write
nothing but what a JSON schema allows, and `assistant.mllm.openai_client.OpenAIClient`, whose server may or
may not keep to it. The reader therefore takes fenced JSON, JSON within prose, and JSON that was cut off.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import nn

from assistant.grammar import Turn
from assistant.mllm.model_image import ImageFit
from assistant.pipeline import AttentionProbe

MAX_ANSWER_TOKENS = 1024  # of an answer in JSON, at most, where nothing else is asked for
# Of a model that thinks before it answers, at most. Thoughts about an image of several things take one to
# four thousand tokens; a cut one is worth nothing.
MAX_THINKING_TOKENS = 8192


class TokenStep(NamedTuple):
    """One generated token.

    Attributes:
        token: Its bytes.
        likely: The probabilities of the likeliest tokens in its place, by their bytes; its own is among them.
    """

    token: bytes
    likely: dict[bytes, float]


@dataclass
class StructuredAnswer:
    """An answer in JSON.

    Attributes:
        text: The JSON.
        reasoning: What the model thought before, where it says so.
        tokens: Number of all generated tokens.
        steps: The tokens of `text`; [] where their probabilities are unknown.
        calls: Number of times that the model was asked for it.
        read_tokens: Number of tokens that it read, those of images included; None where that is unknown.
        image_tokens: Number of those of images; None where that is unknown.
        is_cut: Whether the limit of tokens cut it off.
        thinks: Whether the model thought before it answered.
    """

    text: str
    reasoning: str = ""
    tokens: int = 0
    steps: list[TokenStep] = field(default_factory=list)
    calls: int = 1
    read_tokens: int | None = None
    image_tokens: int | None = None
    is_cut: bool = False
    thinks: bool = False

    def add_cost(self, other: "StructuredAnswer") -> None:
        """Count what another answer took as part of this one."""
        self.tokens += other.tokens
        self.calls += other.calls
        if other.read_tokens is not None:
            self.read_tokens = (self.read_tokens or 0) + other.read_tokens
        if other.image_tokens is not None:
            self.image_tokens = (self.image_tokens or 0) + other.image_tokens


class StructuredModel(Protocol):
    """A multimodal LLM that answers in JSON."""

    @property
    def name(self) -> str:
        """The model's type or name, from which `coordinates.scale_of` tells its family."""

    @property
    def image_fit(self) -> ImageFit:
        """How it is shown images."""

    def input_size(self, image: np.ndarray) -> tuple[int, int]:
        """The size to which the model resizes an image.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (width, height) px; the image's own size where the model does not resize it.
        """

    def attention_probe(self) -> AttentionProbe:
        """The probe of the model. Raises BadInput where it exposes no attention."""

    def networks(self) -> dict[str, nn.Module]:
        """Its networks on this machine, by what they do."""

    def ask(
        self,
        turns: list[Turn],
        system: str,
        schema: dict[str, Any],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> StructuredAnswer:
        """Answer the last turn.

        Args:
            turns: Earlier turns with their answers, then the one to answer.
            system: The system prompt.
            schema: JSON schema of the answer, with a "title".
            max_new_tokens: The answer is cut off after so many tokens; None for as many as suit the model.
            temperature: 0 for greedy decoding.
            seed: Fixes what is sampled.

        Raises:
            BadInput: The model gives no answer.
        """


def read_json(text: str) -> Any:
    """The JSON object or array in an answer; None where there is none.

    It may be fenced or followed by prose. Of JSON that was cut off, what is complete is read.
    """
    from json_repair import repair_json

    start = min((k for k in (text.find("{"), text.find("[")) if k >= 0), default=None)
    if start is None:
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        pass
    end = text.rfind("}") + 1 or len(text)  # what was cut off after it may end in half a number
    try:
        value = repair_json(text[start:end], return_objects=True, skip_json_loads=True)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict if text[start] == "{" else list) and value else None


def probability(answer: StructuredAnswer, place: int, wanted: Callable[[bytes], bool]) -> float | None:
    """The probability that the byte at `place` is a wanted one, given the bytes before it.

    A token may hold several bytes, so that the choice may fall in an earlier token than the one in which the
    byte stands ("[]", or "[" and then "3"). The tokens from the one that holds the byte before it are
    followed; each likely token that decides the byte is counted, and those together are taken for all.

    Args:
        answer: Whose tokens are read.
        place: Index of the byte in the UTF-8 text.
        wanted: Says of a byte whether it is a wanted one.

    Returns:
        The probability in [0, 1]; None where it is unknown.
    """
    end = 0
    reaching, yes, no = 1.0, 0.0, 0.0
    for step in answer.steps:
        begin, end = end, end + len(step.token)
        if end < place:
            continue
        wanted_share, unwanted_share = _decided_shares(step, place - begin, wanted)
        yes += reaching * wanted_share
        no += reaching * unwanted_share
        if end > place:
            break
        reaching *= step.likely.get(step.token, 0.0)
    return yes / (yes + no) if yes + no > 0 else None


def _decided_shares(step: TokenStep, offset: int, wanted: Callable[[bytes], bool]) -> tuple[float, float]:
    """The probabilities that a token makes the byte at `offset` a wanted one, and that it makes it another.

    Of Qwen's vocabulary " []" is one token. After " [" alone a model hardly ever writes "]", which would be a
    spelling of the empty list that it has never read. Where " []" is written or likely, a " [" in its place
    is therefore a choice of something else. Of other tokens that leave the byte open, such as " " for
    " true", half is counted to either side.
    """
    before = step.token[:offset]
    deciding = {t: p for t, p in step.likely.items() if len(t) > offset and t[:offset] == before}
    yes = sum(p for token, p in deciding.items() if wanted(token[offset : offset + 1]))
    no = sum(deciding.values()) - yes
    if len(step.token) <= offset:  # the next token says what follows `before`
        return yes, no
    undecided = step.likely.get(before, 0.0)
    if before.endswith(b"["):
        return (yes + undecided if no > 0 else yes), no
    return yes + undecided / 2, no + undecided / 2


def probabilities(
    answer: StructuredAnswer, before: bytes, wanted: Callable[[bytes], bool]
) -> list[float | None]:
    """`probability` at every place of the text that comes right after a match of the pattern `before`."""
    text = b"".join(step.token for step in answer.steps)
    return [probability(answer, match.end(), wanted) for match in re.finditer(before, text)]
