"""Records: questions about pictures with their answers and masks, one JSON object a line.

    for record in stream_records("questions.jsonl"): ...
    troubles = check_records("questions.jsonl", image_root="photos")     # [] when all is well
    write_records("questions.jsonl", records)
    datasets.load_dataset("json", data_files="questions.jsonl")          # needs nothing from here

{"image": "path", "width": int, "height": int, "question": str, "answer": "... [SEG] ... [ABS]",
 "targets": [{"phrase": str, "rle": {"size": [h, w], "counts": str} | null}], "source": {...}}

One target per token of the answer, in the same order; null = absent. Image paths are relative to the file's folder.
For `datasets`, keep the keys and types of `source` the same in all lines of a file.

A question that follows others ("and the one beside it?") holds what was said before, oldest first, as
`source["history"]`: [{"question": str, "answer": "... [SEG] ..."}]; [] or no such key where it stands alone.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.grammar import Turn, parse
from assistant.images import picture_size
from assistant.sam.mask_ops import decode_rle, encode_rle, rle_of_segmentation

to_rle = encode_rle
from_rle = decode_rle
coco_rle = rle_of_segmentation


@dataclass
class RecordTarget:
    """A thing that is asked about; rle is COCO's compressed form with str counts, None where it is absent."""

    phrase: str
    rle: dict | None


@dataclass
class Record:
    """A question and its answer. image: path from the records file's folder; width, height: px, as it is shown."""

    image: str
    width: int
    height: int
    question: str
    answer: str
    targets: list[RecordTarget]
    source: dict = field(default_factory=dict)

    @property
    def history(self) -> list[Turn]:
        """The turns before this question, oldest first; their answers hold tokens as `answer` does."""
        return [Turn(turn["question"], turn["answer"]) for turn in self.source.get("history") or ()]


def record_masks(record: Record) -> list[np.ndarray | None]:
    """(height, width) bool per target, None for an absent one. Raises BadInput where a mask has another size."""
    masks = []
    for target in record.targets:
        mask = None if target.rle is None else decode_rle(target.rle)
        if mask is not None and mask.shape != (record.height, record.width):
            raise BadInput(
                f"the mask of {target.phrase!r} is {mask.shape[1]}x{mask.shape[0]}, the record says "
                f"{record.width}x{record.height}"
            )
        masks.append(mask)
    return masks


def image_path(record: Record, records_file: str | Path) -> Path:
    """Where the record's picture is: its path from the records file's folder, or as it stands when absolute."""
    return Path(records_file).parent / record.image


def from_dict(row: dict) -> Record:
    """A record from its JSON object; BadInput names the field that is missing or of the wrong kind."""
    if not isinstance(row, dict):
        raise BadInput("a record is a JSON object")
    kinds = {"image": str, "width": int, "height": int, "question": str, "answer": str, "targets": list}
    for name, kind in kinds.items():
        value = row.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value <= 0):
            raise BadInput(
                f"{name!r} is missing or not a {'positive ' if kind is int else ''}{kind.__name__}"
            )
    source = row.get("source", {})
    if not isinstance(source, dict):
        raise BadInput("'source' is not an object")
    turns = source.get("history") or []
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict)
        and isinstance(turn.get("question"), str)
        and isinstance(turn.get("answer"), str)
        for turn in turns
    ):
        raise BadInput("'source.history' must be a list of {'question': str, 'answer': str}")
    targets = []
    for k, target in enumerate(row["targets"]):
        if not isinstance(target, dict) or not isinstance(target.get("phrase"), str) or "rle" not in target:
            raise BadInput(f"target {k + 1} must be {{'phrase': str, 'rle': object or null}}")
        if not isinstance(target["rle"], dict | None):
            raise BadInput(f"target {k + 1}: 'rle' is neither an object nor null")
        targets.append(RecordTarget(target["phrase"], target["rle"]))
    return Record(*(row[name] for name in kinds if name != "targets"), targets, source)


def to_dict(record: Record) -> dict:
    """The record's JSON object."""
    return dataclasses.asdict(record)


def _lines(path: str | Path) -> Iterator[tuple[int, dict | Record | BadInput]]:
    """(line number, Record or what is wrong with it) of every line that is not blank."""
    path = Path(path)
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
                reason = " ".join(str(error).split())[:80]
                yield number, BadInput(f"{path}:{number}: not a line of JSON in UTF-8 ({reason})")


def stream_records(path: str | Path) -> Iterator[Record]:
    """Records one by one, of a file of any length. Raises BadInput with file:line at the first bad line."""
    for _, record in _lines(path):
        if isinstance(record, BadInput):
            raise record
        yield record


def read_records(path: str | Path) -> list[Record]:
    """All records of a JSON lines file. Raises BadInput with file:line at the first bad line."""
    return list(stream_records(path))


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records to a JSON lines file, whole or not at all; returns how many."""
    count = 0
    with replace_whole(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
        for count, record in enumerate(records, 1):
            file.write(json.dumps(to_dict(record), ensure_ascii=False) + "\n")
    return count


def check(record: Record) -> list[str]:
    """What is wrong with a record in itself, one line each: masks, and the answer's tokens against the targets."""
    troubles = []
    for k, target in enumerate(record.targets):
        try:
            record_masks(dataclasses.replace(record, targets=[target]))
        except BadInput as error:
            troubles.append(f"target {k + 1}: {error}")
    mentions = parse(record.answer)
    if len(mentions) != len(record.targets):
        troubles.append(f"the answer has {len(mentions)} tokens for {len(record.targets)} targets")
    for k, (mention, target) in enumerate(zip(mentions, record.targets)):
        if mention.present != (target.rle is not None):
            said, is_ = ("[SEG]", "null") if mention.present else ("[ABS]", "a mask")
            troubles.append(f"target {k + 1}: the answer says {said} of {target.phrase!r}, its rle is {is_}")
    if not record.question.strip():
        troubles.append("the question is empty")
    return troubles


def check_records(path: str | Path, image_root: str | Path | None = None) -> list[str]:
    """Everything that is wrong with a records file, a "file:line: trouble" each; pictures are looked up in image_root.

    image_root: the file's own folder when None. Raises BadInput only where there is no file.
    """
    path = Path(path)
    root = path.parent if image_root is None else Path(image_root)
    troubles, sizes = [], {}
    for number, record in _lines(path):
        if isinstance(record, BadInput):
            troubles.append(str(record))
            continue
        if record.image not in sizes:
            try:
                sizes[record.image] = picture_size(root / record.image)
            except BadInput as error:
                sizes[record.image] = str(error)
        size, found = sizes[record.image], check(record)
        if isinstance(size, str):
            found.append(size)
        elif size != (record.height, record.width):
            found.append(
                f"the picture is {size[1]}x{size[0]}, the record says {record.width}x{record.height}"
            )
        troubles += [f"{path}:{number}: {trouble}" for trouble in found]
    return troubles
