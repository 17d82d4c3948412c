"""Corrected answers as training records, which `python -m finetune` and `python -m eval records` read.

save_correction("corrections", answer, history)

It writes corrections/records.jsonl and corrections/images/HASH.jpg.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from assistant.answer import Answer
from assistant.dialogue.conversation_file import as_jpeg
from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.grammar import Turn, clean_phrase, reply_for
from assistant.record import Record, RecordTarget, read_records, write_records
from assistant.sam.mask_ops import encode_rle

RECORDS_FILE = "records.jsonl"
HASH_LENGTH = 16  # hexadecimal digits of an image's SHA-256 in its file name


def save_correction(folder: str | Path, answer: Answer, history: Sequence[Turn] = ()) -> Path:
    """Add an answer, as it now stands, to the records of a folder.

    A record of the same question about the same image after the same turns is replaced. The image is stored
    once, as JPEG, under a name made of its pixels.

    Args:
        folder: The folder; it is made where it does not exist.
        answer: The answer, with its image, its question and at least one target.
        history: The turns before it, oldest first, for a question that refers to them.

    Returns:
        The records file.

    Raises:
        BadInput: The answer has no image, no question or no target; the folder cannot be written, or its
            records cannot be read.
    """
    if answer.image is None or not answer.question.strip():
        raise BadInput("a training record needs a photo and a question: ask something first")
    if not answer.targets:
        raise BadInput(
            "the answer names nothing: a training record needs at least one thing, there or not there"
        )
    folder = Path(folder)
    digest = hashlib.sha256(repr(answer.size).encode() + answer.image.tobytes()).hexdigest()[:HASH_LENGTH]
    image_path = f"images/{digest}.jpg"
    record = _record_of(answer, image_path, history)
    records_file = folder / RECORDS_FILE
    try:
        earlier = read_records(records_file) if records_file.exists() else []
        if not (folder / image_path).exists():
            with replace_whole(folder / image_path) as temporary:
                temporary.write_bytes(as_jpeg(answer.image))
        write_records(records_file, [*(r for r in earlier if not _same_question(r, record)), record])
    except OSError as error:
        raise BadInput(
            f"cannot write to {folder} ({error.strerror or error}): choose another folder"
        ) from None
    return records_file


def _record_of(answer: Answer, image_path: str, history: Sequence[Turn]) -> Record:
    targets = [
        RecordTarget(
            clean_phrase(target.phrase),
            encode_rle(target.mask) if target.present and target.mask is not None else None,
        )
        for target in answer.targets
    ]
    reply = reply_for([(target.phrase, target.rle is not None) for target in targets])
    height, width = answer.size
    source = {
        "dataset": "corrections",
        "history": [{"question": turn.question, "answer": turn.answer or ""} for turn in history],
    }
    return Record(image_path, width, height, answer.question, reply, targets, source)


def _same_question(first: Record, second: Record) -> bool:
    """Whether two records ask the same about the same image after the same turns."""
    return (first.image, first.question, first.source.get("history")) == (
        second.image,
        second.question,
        second.source.get("history"),
    )
