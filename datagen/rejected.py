"""Rows that a person has thrown out: `DIR/rejected.jsonl`, one a line. They stay out when DIR is written again."""

import hashlib
import json
from pathlib import Path

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.record import Record

FILE = "rejected.jsonl"


def row_id(record: Record) -> str:
    """Names a row by what it says, wherever it stands in the file: its picture's name, question and targets."""
    said = [Path(record.image).name, record.question, [[t.phrase, t.rle] for t in record.targets]]
    if record.history:
        said.append(record.source["history"])
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def read_rejected(folder: str | Path) -> dict[str, dict]:
    """{row id: {"id", "image", "question"}}; BadInput where the file is not what `reject` writes."""
    file = Path(folder) / FILE
    if not file.exists():
        return {}
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {row["id"]: row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} must hold one object with an id a line ({error})") from None


def reject(folder: str | Path, record: Record, out: bool = True) -> None:
    """Throw a row out, or take it back."""
    rows = read_rejected(folder)
    name = row_id(record)
    if out:
        rows[name] = {"id": name, "image": Path(record.image).name, "question": record.question}
    else:
        rows.pop(name, None)
    with replace_whole(Path(folder) / FILE) as path:
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()), encoding="utf-8"
        )
