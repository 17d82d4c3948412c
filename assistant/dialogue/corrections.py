"""Corrected answers as training records, which `finetune` and `eval records` read as they are.

save_correction("corrections", answer, history)      # corrections/records.jsonl, corrections/images/HASH.jpg
"""

import hashlib
from pathlib import Path

from assistant.answer import Answer
from assistant.dialogue.conversation_file import as_jpeg
from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.grammar import Turn, clean_phrase, reply_for
from assistant.record import Record, RecordTarget, read_records, to_rle, write_records

FILE = "records.jsonl"


def save_correction(folder, answer: Answer, history: list[Turn] = ()) -> Path:
    """Add an answer as it now stands to the records of `folder`, made where missing; returns the records file.

    history: the turns before it, for a question that needs them. The same question about the same photo is replaced.
    The photo is kept once, as JPEG, under a name made from its pixels. BadInput: no photo or question, nothing in the
    answer, a folder that cannot be written, records in it that cannot be read.
    """
    if answer.image is None or not answer.question.strip():
        raise BadInput("a training record needs a photo and a question: ask something first")
    if not answer.targets:
        raise BadInput(
            "the answer names nothing: a training record needs at least one thing, there or not there"
        )
    folder = Path(folder)
    pixels = hashlib.sha256(repr(answer.size).encode() + answer.image.tobytes()).hexdigest()[:16]
    file, image = folder / FILE, f"images/{pixels}.jpg"
    targets = [
        RecordTarget(clean_phrase(t.phrase), to_rle(t.mask) if t.present else None) for t in answer.targets
    ]
    said = reply_for([(t.phrase, t.rle is not None) for t in targets])
    before = [{"question": turn.question, "answer": turn.answer or ""} for turn in history]
    record = Record(
        image,
        answer.size[1],
        answer.size[0],
        answer.question,
        said,
        targets,
        {"dataset": "corrections", "history": before},
    )
    try:
        kept = read_records(file) if file.exists() else []
        if not (folder / image).exists():
            with replace_whole(folder / image) as temporary:
                temporary.write_bytes(as_jpeg(answer.image))
        same = lambda r: (r.image, r.question, r.source.get("history")) == (image, answer.question, before)
        write_records(file, [*(r for r in kept if not same(r)), record])
    except OSError as error:
        raise BadInput(
            f"cannot write to {folder} ({error.strerror or error}): choose another folder"
        ) from None
    return file
