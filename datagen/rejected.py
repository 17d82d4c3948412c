"""Rows that a person has thrown out: `DIR/rejected.jsonl`. They stay out when DIR is written again.

reject("questions", record)                  # throw it out
is_rejected(record, read_rejected("questions"))
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assistant.errors import BadInput
from assistant.files import read_text, replace_whole
from assistant.record import Record

REJECTED_FILE = "rejected.jsonl"


def row_id(record: Record) -> str:
    """Names a row by what it says, wherever it stands in the file: its image, question and targets.

    Of the image's path the folder counts too: two folders may each have an image of one name.
    """
    return _hash(record, "/".join(Path(record.image).parts[-2:]))


def is_rejected(record: Record, rejected: Mapping[str, dict[str, str]]) -> bool:
    """Whether a row was thrown out. rejected: what `read_rejected` gave."""
    return row_id(record) in rejected or _earlier_id(record) in rejected


def _earlier_id(record: Record) -> str:
    """As earlier versions named a row, by its image's name alone."""
    return _hash(record, Path(record.image).name)


def _hash(record: Record, image: str) -> str:
    content: list[Any] = [image, record.question, [[target.phrase, target.rle] for target in record.targets]]
    if record.history:
        content.append(record.source["history"])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_rejected(folder: str | Path) -> dict[str, dict[str, str]]:
    """Read what was thrown out of a folder.

    Returns:
        {row id: {"id", "image", "question"}}.

    Raises:
        BadInput: The file is not what `reject` writes.
    """
    file = Path(folder) / REJECTED_FILE
    if not file.exists():
        return {}
    try:
        rows = [json.loads(line) for line in read_text(file).splitlines() if line.strip()]
        return {row["id"]: row for row in rows}
    except BadInput:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} must hold one object with an id a line ({error})") from None


def reject(folder: str | Path, record: Record) -> None:
    """Throw a row out of a folder."""
    rows = read_rejected(folder)
    name = row_id(record)
    rows[name] = {"id": name, "image": Path(record.image).name, "question": record.question}
    _write(folder, rows)


def take_back(folder: str | Path, record: Record) -> None:
    """Take back a row that was thrown out."""
    rows = read_rejected(folder)
    for name in (row_id(record), _earlier_id(record)):
        rows.pop(name, None)
    _write(folder, rows)


def _write(folder: str | Path, rows: dict[str, dict[str, str]]) -> None:
    with replace_whole(Path(folder) / REJECTED_FILE) as path:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()]
        path.write_text("".join(lines), encoding="utf-8")
