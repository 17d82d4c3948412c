"""A generated set as a `datasets` folder with its card: pictures inside, masks as RLE, ready for `load_dataset` or a hub.

python -m datagen ... --val 0.1 --parquet --out questions
datasets.load_dataset("questions/dataset")
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from assistant.errors import BadInput
from assistant.record import Record, image_path, stream_records

ROWS, BYTES = (
    2000,
    64_000_000,
)  # a parquet file holds at most: memory stays flat, whatever the size of the set
CARD = """---
license: other
task_categories: [image-segmentation, visual-question-answering]
configs:
- config_name: default
  data_files:
{files}
---
# {name}

Questions in everyday words about photos; the answers are masks, or that the thing is not there. Written by maskpick's
`datagen`.

| split | questions | photos | targets present | absent |
|---|---|---|---|---|
{table}

| kind of question | rows |
|---|---|
{kinds}

Columns: `image`; `question`; `answer` with one `[SEG]` or `[ABS]` per target; `targets`: for each the phrase and its
COCO RLE (`size` [h, w], `counts`; empty counts = absent); `source`: JSON with
kind, writer, annotation ids and `history`, the turns before a question that follows others.
The photos keep their own licences.
"""


def features():
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


def rows_of(records: Iterable[Record], records_file: Path) -> Iterator[dict]:
    """Rows with the pictures' bytes as they are on disk."""
    for record in records:
        path = image_path(record, records_file)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        absent = {"size": [record.height, record.width], "counts": ""}
        targets = [{"phrase": t.phrase, "rle": t.rle or absent} for t in record.targets]
        yield {
            "image": {"bytes": content, "path": path.name},
            "file_name": path.name,
            "question": record.question,
            "answer": record.answer,
            "targets": targets,
            "source": json.dumps(record.source, ensure_ascii=False),
        }


def write_dataset(folder: Path, splits: dict[str, Path], name: str) -> None:
    """Write `folder`/SPLIT-NNNNN.parquet and README.md of {split: records file}, a shard at a time; the folder takes its
    place when all is done. Raises BadInput where `datasets` is not installed."""
    try:
        from datasets import Dataset
    except ImportError:
        raise BadInput("--parquet needs the datasets package: pip install 'maskpick[data]'") from None

    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    lines, table, kinds = [], [], Counter()
    for split, file in splits.items():
        counts, photos = Counter(), set()

        def counted():
            for record in stream_records(file):
                counts["questions"] += 1
                counts.update("absent" if target.rle is None else "present" for target in record.targets)
                kinds[str(record.source.get("kind", "-"))] += 1
                photos.add(hash(record.image))
                yield record

        for number, rows in enumerate(shards(rows_of(counted(), file))):
            Dataset.from_list(rows, features=features()).to_parquet(
                unfinished / f"{split}-{number:05}.parquet"
            )
        lines.append(f"  - split: {split}\n    path: {split}-*.parquet")
        table.append(
            f"| {split} | {counts['questions']} | {len(photos)} | {counts['present']} | {counts['absent']} |"
        )
    card = CARD.format(
        name=name,
        files="\n".join(lines),
        table="\n".join(table),
        kinds="\n".join(f"| {kind} | {count} |" for kind, count in kinds.most_common()),
    )
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def shards(rows: Iterable[dict]) -> Iterator[list[dict]]:
    """Rows in lists that fit into memory."""
    shard, size = [], 0
    for row in rows:
        shard.append(row)
        size += len(row["image"]["bytes"])
        if len(shard) == ROWS or size >= BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard
