"""What the converters share: building a record of a single mask, and naming what is wrong."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.grammar import parse, reply_for
from assistant.record import Record, RecordTarget
from assistant.sam.mask_ops import encode_rle

MAX_REASON_LENGTH = 80  # characters of another library's message that an error repeats

# Where a converter lists what it cannot read: (name, reason).
BadItems = list[tuple[str, str]]


def on_one_line(error: Exception) -> str:
    """The beginning of an error's message, on one line."""
    return " ".join(str(error).split())[:MAX_REASON_LENGTH]


def reason_of(error: Exception) -> str:
    """What an error says about an item of a data set."""
    return f"no {error} there" if isinstance(error, KeyError) else str(error)


def refuse(bad: BadItems | None, name: str, reason: str) -> None:
    """List an item that cannot be read in `bad`; without such a list raise BadInput."""
    if bad is None:
        raise BadInput(reason if name in reason else f"{name}: {reason}")
    bad.append((name, reason))


def record_of_mask(
    image: str, question: str, phrase: str, mask: np.ndarray, source: dict[str, Any]
) -> Record:
    """A record with one target.

    Args:
        image: Path of the image, from the records file's folder.
        question: The question.
        phrase: What the answer calls the target; its article is dropped, as the answer has its own.
        mask: (H, W) bool; an empty mask means that the target is absent.
        source: `Record.source`.
    """
    present = bool(mask.any())
    answer = reply_for([(re.sub(r"^\s*(the|an?)\s+", "", phrase, flags=re.I), present)])
    target = RecordTarget(parse(answer)[0].phrase, encode_rle(mask) if present else None)
    return Record(image, mask.shape[1], mask.shape[0], question, answer, [target], source)
