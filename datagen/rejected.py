"""Rows that a person has thrown out: `DIR/rejected.jsonl`. They stay out when DIR is written again.

reject("questions", record)                  # throw it out
row_id(record) in read_rejected("questions")
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.record import Record

REJECTED_FILE = "rejected.jsonl"


def row_id(record: Record) -> str:
    """Names a row by what it says, wherever it stands in the file: its image's name, question and targets."""
    content: list[Any] = [
        Path(record.image).name,
        record.question,
        [[target.phrase, target.rle] for target in record.targets],
    ]
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
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {row["id"]: row for row in rows}
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
    rows.pop(row_id(record), None)
    _write(folder, rows)


def _write(folder: str | Path, rows: dict[str, dict[str, str]]) -> None:
    with replace_whole(Path(folder) / REJECTED_FILE) as path:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()]
        path.write_text("".join(lines), encoding="utf-8")
