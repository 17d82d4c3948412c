"""The text of a reply from the tokens of an LLM, as a whole and while it is generated."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from assistant.grammar import TOKEN

Decode = Callable[[list[int]], str]


def neutralise_spelled_markers(ids: Sequence[int], places: Sequence[int], decode: Decode) -> str:
    """The text of a reply in which every [SEG] and [ABS] is one of the model's own tokens.

    A model may also spell the letters of "[SEG]" in ordinary tokens. They are no marker, as there is no
    hidden state that belongs to them, and become "(SEG)".

    Args:
        ids: The tokens of the reply.
        places: Where the tokens [SEG] and [ABS] are among them.
        decode: Gives the text of tokens.
    """
    ids = list(ids)
    text = decode(ids)
    if len(TOKEN.findall(text)) == len(places):
        return text
    parts = []
    begin = 0
    for place in [*places, len(ids)]:
        # Differences of decoded beginnings, as the tokens of a part alone may decode to other spaces.
        before = decode(ids[:begin])
        spelled = decode(ids[:place])[len(before) :]
        parts.append(TOKEN.sub(lambda marker: f"({marker[1]})", spelled))
        parts.append(decode(ids[: place + 1])[len(decode(ids[:place])) :])
        begin = place + 1
    return "".join(parts)


class ReplyStreamer:
    """A streamer for transformers' `generate` that passes text on as soon as later tokens cannot change it.

    Args:
        decode: Gives the text of tokens.
        receive: Called with each new piece of the text.
    """

    def __init__(self, decode: Decode, receive: Callable[[str], Any]):
        self._decode = decode
        self._receive = receive
        self._ids: list[int] | None = None
        self._sent = ""

    def put(self, ids: Tensor) -> None:
        """Take new tokens; the first call brings the prompt."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += ids.flatten().tolist()
        text = self._decode(self._ids).lstrip()
        # U+FFFD stands for bytes that begin a character; they wait for the rest. Llama's tokenizer writes
        # control characters as bytes as well, and they become U+FFFD too where the next character is cut off.
        is_final = text[-1:].isprintable() and not text.endswith("\ufffd")
        if is_final and text != self._sent:
            self._receive(text[len(self._sent) :])
            self._sent = text

    def end(self) -> None:
        """Pass on what is left when the reply is complete."""
        text = self._decode(self._ids or []).strip()
        if len(text) > len(self._sent):
            self._receive(text[len(self._sent) :])
