"""A generated set as a folder for the `datasets` package, with the images inside and masks as RLE.

python -m datagen ... --val 0.1 --parquet --out questions
datasets.load_dataset("questions/dataset")
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assistant.errors import BadInput
from assistant.record import Record, image_path, stream_records

# A parquet file holds at most so much, and no more is in memory, whatever the size of the set.
MAX_SHARD_ROWS = 2000
MAX_SHARD_BYTES = 64_000_000  # of images

CARD = """---
license: other
task_categories: [image-segmentation, visual-question-answering]
configs:
- config_name: default
  data_files:
{files}
---
# {name}

Questions in everyday words about photos; the answers are masks, or that what is asked for is not there.
Written by maskpick's `datagen`.

| split | questions | photos | targets present | absent |
|---|---|---|---|---|
{table}

| kind of question | rows |
|---|---|
{kinds}

Columns: `image`; `question`; `answer` with one `[SEG]` or `[ABS]` per target; `targets`: for each the phrase
and its COCO RLE (`size` [h, w], `counts`; empty counts = absent); `source`: JSON with kind, writer,
annotation ids and `history`, the turns before a question that follows others.
The photos keep their own licences.
"""


@dataclass
class SplitCounts:
    """What a split holds."""

    questions: int = 0
    targets: Counter[str] = field(default_factory=Counter)  # "present", "absent"
    kinds: Counter[str] = field(default_factory=Counter)
    images: set[int] = field(default_factory=set)  # hashes of their paths

    def counted(self, records: Iterable[Record]) -> Iterator[Record]:
        """Pass records on, and count them."""
        for record in records:
            self.questions += 1
            self.targets.update("absent" if target.rle is None else "present" for target in record.targets)
            self.kinds[str(record.source.get("kind", "-"))] += 1
            self.images.add(hash(record.image))
            yield record


def write_dataset(folder: Path, splits: Mapping[str, Path], name: str) -> None:
    """Write SPLIT-NNNNN.parquet and README.md; the folder takes its place when all is done.

    Args:
        folder: Where they are written; what is in it is deleted.
        splits: {split: records file}.
        name: Title of the card.

    Raises:
        BadInput: `datasets` is not installed, or an image cannot be read.
    """
    try:
        from datasets import Dataset
    except ImportError:
        raise BadInput("--parquet needs the datasets package: pip install 'maskpick[data]'") from None

    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    counts = {split: SplitCounts() for split in splits}
    for split, file in splits.items():
        records = counts[split].counted(stream_records(file))
        for number, rows in enumerate(_shards(_rows(records, file))):
            shard = Dataset.from_list(rows, features=_features())
            shard.to_parquet(unfinished / f"{split}-{number:05}.parquet")
    (unfinished / "README.md").write_text(_card(name, counts), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _features() -> Any:
    """The columns, as `datasets` wants them."""
    from datasets import Features, Image, List, Value

    rle = {"size": List(Value("int32")), "counts": Value("string")}
    return Features(
        {
            "image": Image(),
            "file_name": Value("string"),
            "question": Value("string"),
            "answer": Value("string"),
            "targets": List({"phrase": Value("string"), "rle": rle}),
            "source": Value("string"),
        }
    )


def _rows(records: Iterable[Record], records_file: Path) -> Iterator[dict[str, Any]]:
    """Rows with the bytes of the image files."""
    for record in records:
        path = image_path(record, records_file)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        absent = {"size": [record.height, record.width], "counts": ""}
        yield {
            "image": {"bytes": content, "path": path.name},
            "file_name": path.name,
            "question": record.question,
            "answer": record.answer,
            "targets": [{"phrase": t.phrase, "rle": t.rle or absent} for t in record.targets],
            "source": json.dumps(record.source, ensure_ascii=False),
        }


def _shards(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists that fit into memory."""
    shard: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        shard.append(row)
        size += len(row["image"]["bytes"])
        if len(shard) == MAX_SHARD_ROWS or size >= MAX_SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _card(name: str, counts: Mapping[str, SplitCounts]) -> str:
    """The text of README.md."""
    kinds: Counter[str] = Counter()
    for split in counts.values():
        kinds.update(split.kinds)
    table = [
        f"| {split} | {c.questions} | {len(c.images)} | {c.targets['present']} | {c.targets['absent']} |"
        for split, c in counts.items()
    ]
    return CARD.format(
        name=name,
        files="\n".join(f"  - split: {split}\n    path: {split}-*.parquet" for split in counts),
        table="\n".join(table),
        kinds="\n".join(f"| {kind} | {count} |" for kind, count in kinds.most_common()),
    )
