"""A generated set as a `datasets` folder with its card: pictures inside, masks as RLE, ready for `load_dataset` or a hub.

    python -m datagen ... --val 0.1 --parquet --out questions
    datasets.load_dataset("questions/dataset")
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.record import Record, image_path

SHARD = 2000  # rows a parquet file: memory stays flat, whatever the size of the set
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
COCO RLE (`size` [h, w], `counts`; empty counts = absent); `source`: JSON with kind, writer and annotation ids.
The photos keep their own licences.
"""


def features():
    from datasets import Features, Image, List, Value

    rle = {"size": List(Value("int32")), "counts": Value("string")}
    return Features({"image": Image(), "file_name": Value("string"), "question": Value("string"), "answer": Value("string"),
                     "targets": List({"phrase": Value("string"), "rle": rle}), "source": Value("string")})


def rows_of(records: Iterable[Record], records_file: Path) -> Iterator[dict]:
    """Rows with the pictures' bytes as they are on disk."""
    for record in records:
        path = image_path(record, records_file)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        targets = [{"phrase": t.phrase, "rle": t.rle or {"size": [record.height, record.width], "counts": ""}} for t in record.targets]
        yield {"image": {"bytes": content, "path": path.name}, "file_name": path.name, "question": record.question,
               "answer": record.answer, "targets": targets, "source": json.dumps(record.source, ensure_ascii=False)}


def write_dataset(folder: Path, splits: dict[str, list[Record]], records_file: Path, name: str) -> None:
    """Write `folder`/SPLIT-NNNNN.parquet and README.md, each whole; files of an earlier writing that are no longer
    needed go. Raises BadInput where `datasets` is not installed."""
    try:
        from datasets import Dataset
    except ImportError:
        raise BadInput("--parquet needs the datasets package: pip install 'maskpick[data]'") from None

    folder.mkdir(parents=True, exist_ok=True)
    written, lines, table = set(), [], []
    for split, records in splits.items():
        for number, first in enumerate(range(0, len(records), SHARD)):
            rows = list(rows_of(records[first : first + SHARD], records_file))
            file = folder / f"{split}-{number:05}.parquet"
            with replace_whole(file) as path:
                Dataset.from_list(rows, features=features()).to_parquet(path)
            written.add(file)
        lines.append(f"  - split: {split}\n    path: {split}-*.parquet")
        there = [t for r in records for t in r.targets]
        present = sum(t.rle is not None for t in there)
        table.append(f"| {split} | {len(records)} | {len({r.image for r in records})} | {present} | {len(there) - present} |")
    kinds = Counter(str(r.source.get("kind", "-")) for records in splits.values() for r in records)
    with replace_whole(folder / "README.md") as path:
        path.write_text(CARD.format(name=name, files="\n".join(lines), table="\n".join(table),
                                    kinds="\n".join(f"| {k} | {n} |" for k, n in kinds.most_common())), encoding="utf-8")
    for old in set(folder.glob("*.parquet")) - written:
        old.unlink()
