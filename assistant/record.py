"""Records: questions about images with their answers and masks, one JSON object a line.

    for record in stream_records("questions.jsonl"): ...
    problems = check_records("questions.jsonl", image_root="photos")     # [] when all is well
    write_records("questions.jsonl", records)
    datasets.load_dataset("json", data_files="questions.jsonl")          # needs nothing of this module

{"image": "path", "width": int, "height": int, "question": str, "answer": "... [SEG] ... [ABS]",
 "targets": [{"phrase": str, "rle": {"size": [h, w], "counts": str} | null}], "source": {...}}

There is one target for each token of the answer, in the same order; null = absent. Image paths are relative
to the file's folder. `datasets` needs the same keys and types in the "source" of every line of a file.

A question that follows others ("and the one beside it?") holds the earlier turns, oldest first, as
`source["history"]`: [{"question": str, "answer": "... [SEG] ..."}]; [] or no such key where it stands alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.grammar import ABS, SEG, Turn, parse
from assistant.images import image_size
from assistant.sam.mask_ops import Rle, decode_rle, rle_of_segmentation
from assistant.sam.outlines import run_lengths

MAX_REASON_LENGTH = 80  # characters of the JSON reader's message that an error repeats
REQUIRED_FIELDS: dict[str, type] = {
    "image": str,
    "width": int,
    "height": int,
    "question": str,
    "answer": str,
    "targets": list,
}


@dataclass
class RecordTarget:
    """Something that is asked about.

    Attributes:
        phrase: What the answer calls it.
        rle: Its mask, a COCO RLE with counts as a str; None where it is absent.
    """

    phrase: str
    rle: Rle | None


@dataclass
class Record:
    """A question about an image, and its answer.

    Attributes:
        image: Path of the image from the records file's folder.
        width: Of the image in pixels, as it is shown (EXIF orientation applied).
        height: Likewise.
        question: The question.
        answer: The answer in the reply grammar (`assistant.grammar`).
        targets: One for each token of the answer, in their order.
        source: Where the record comes from, as JSON values; see the module's head for "history".
    """

    image: str
    width: int
    height: int
    question: str
    answer: str
    targets: list[RecordTarget]
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def history(self) -> list[Turn]:
        """The turns before this question, oldest first; their answers hold tokens as `answer` does."""
        return [Turn(turn["question"], turn["answer"]) for turn in self.source.get("history") or ()]


def record_masks(record: Record) -> list[np.ndarray | None]:
    """Decode the masks of a record.

    Returns:
        (height, width) bool for each target, None for an absent one.

    Raises:
        BadInput: A mask cannot be decoded, or has another size than the record says.
    """
    return [_target_mask(target, record) for target in record.targets]


def _target_mask(target: RecordTarget, record: Record) -> np.ndarray | None:
    if target.rle is None:
        return None
    mask = decode_rle(target.rle)
    if mask.shape != (record.height, record.width):
        raise BadInput(
            f"the mask of {target.phrase!r} is {mask.shape[1]}x{mask.shape[0]}, the record says "
            f"{record.width}x{record.height}"
        )
    return mask


def image_path(record: Record, records_file: str | Path) -> Path:
    """Where the record's image is: its path from the records file's folder, or its absolute path."""
    return Path(records_file).parent / record.image


def from_dict(row: Any) -> Record:
    """Build a record from its JSON object.

    Raises BadInput, which names the field, where a field is missing or of another type.
    """
    if not isinstance(row, dict):
        raise BadInput("a record is a JSON object")
    for name, kind in REQUIRED_FIELDS.items():
        value = row.get(name)
        has_type = isinstance(value, kind) and not isinstance(value, bool)
        if not has_type or (kind is int and row[name] <= 0):
            raise BadInput(
                f"{name!r} is missing or not a {'positive ' if kind is int else ''}{kind.__name__}"
            )
    source = row.get("source", {})
    if not isinstance(source, dict):
        raise BadInput("'source' is not an object")
    if not _is_history(source.get("history") or []):
        raise BadInput("'source.history' must be a list of {'question': str, 'answer': str}")
    targets = [_target_from_dict(number, target) for number, target in enumerate(row["targets"], 1)]
    return Record(row["image"], row["width"], row["height"], row["question"], row["answer"], targets, source)


def _is_history(turns: Any) -> bool:
    return isinstance(turns, list) and all(
        isinstance(turn, dict)
        and isinstance(turn.get("question"), str)
        and isinstance(turn.get("answer"), str)
        for turn in turns
    )


def _target_from_dict(number: int, row: Any) -> RecordTarget:
    """A target from its JSON object; `number`: its place in the record, from 1."""
    if not isinstance(row, dict) or not isinstance(row.get("phrase"), str) or "rle" not in row:
        raise BadInput(f"target {number} must be {{'phrase': str, 'rle': object or null}}")
    if not isinstance(row["rle"], dict | None):
        raise BadInput(f"target {number}: 'rle' is neither an object nor null")
    return RecordTarget(row["phrase"], _with_string(row["rle"]))


def _with_string(rle: Rle | None) -> Rle | None:
    """A mask whose counts are run lengths, as other programs write them, with a string; others as they are.

    What is wrong with it, `check_record` says.
    """
    if rle is None or not isinstance(rle.get("counts"), list):
        return rle
    try:
        _, height, width = run_lengths(rle)
        return rle_of_segmentation(rle, height, width)
    except BadInput:
        return rle


def to_dict(record: Record) -> dict[str, Any]:
    """The record's JSON object."""
    return dataclasses.asdict(record)


def _read_lines(path: Path) -> Iterator[tuple[int, Record | BadInput]]:
    """(line number, the record or what is wrong with it) of every line that is not blank."""
    if not path.is_file():
        raise BadInput(f"no records file at {path}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, from_dict(json.loads(line.decode("utf-8-sig")))
            except BadInput as error:
                yield number, BadInput(f"{path}:{number}: {error}")
            except (ValueError, RecursionError) as error:
                reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
                yield number, BadInput(f"{path}:{number}: not a line of JSON in UTF-8 ({reason})")


def stream_records(path: str | Path) -> Iterator[Record]:
    """Read the records of a file of any length one by one.

    Raises BadInput with file:line at the first bad line.
    """
    for _, record in _read_lines(Path(path)):
        if isinstance(record, BadInput):
            raise record
        yield record


def read_records(path: str | Path) -> list[Record]:
    """Read all records of a JSON lines file. Raises BadInput with file:line at the first bad line."""
    return list(stream_records(path))


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records to a JSON lines file, whole or not at all, and return how many they are."""
    count = 0
    with replace_whole(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(to_dict(record), ensure_ascii=False) + "\n")
            count += 1
    return count


def check_record(record: Record) -> list[str]:
    """What is wrong with a record in itself, a line each: with its masks, targets and tokens."""
    problems = []
    for number, target in enumerate(record.targets, 1):
        try:
            _target_mask(target, record)
        except BadInput as error:
            problems.append(f"target {number}: {error}")
    mentions = parse(record.answer)
    if len(mentions) != len(record.targets):
        problems.append(f"the answer has {len(mentions)} tokens for {len(record.targets)} targets")
    pairs = zip(mentions, record.targets, strict=False)  # a difference in length is listed above
    for number, (mention, target) in enumerate(pairs, 1):
        if mention.present != (target.rle is not None):
            token, rle = (SEG, "null") if mention.present else (ABS, "a mask")
            problems.append(
                f"target {number}: the answer says {token} of {target.phrase!r}, its rle is {rle}"
            )
    if not record.question.strip():
        problems.append("the question is empty")
    return problems


def check_records(path: str | Path, image_root: str | Path | None = None) -> list[str]:
    """List everything that is wrong with a records file.

    Args:
        path: The records file.
        image_root: Folder from which the image paths count; None for the file's own.

    Returns:
        "file:line: problem" each; [] when all is well.

    Raises:
        BadInput: There is no such file.
    """
    path = Path(path)
    root = path.parent if image_root is None else Path(image_root)
    sizes: dict[str, tuple[int, int] | str] = {}  # of the images read so far; a str says why there is none
    problems = []
    for number, record in _read_lines(path):
        if isinstance(record, BadInput):
            problems.append(str(record))
            continue
        if record.image not in sizes:
            sizes[record.image] = _image_size(root / record.image)
        size = sizes[record.image]
        in_record = check_record(record)
        if isinstance(size, str):
            in_record.append(size)
        elif size != (record.height, record.width):
            in_record.append(
                f"the image is {size[1]}x{size[0]}, the record says {record.width}x{record.height}"
            )
        problems += [f"{path}:{number}: {problem}" for problem in in_record]
    return problems


def _image_size(path: Path) -> tuple[int, int] | str:
    """(height, width) in pixels of an image file, or what is wrong with it."""
    try:
        return image_size(path)
    except BadInput as error:
        return str(error)
