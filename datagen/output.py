"""Step 5, write: records, LLM-Seg40K's json, splits, statistics and a `datasets` folder, row by row as they come.

    with output(folder, val=0.1, from_dataset="coco") as out:
        out.add(made)
    out.statistics.figures()

Every file is written beside its place and takes it when all is done: a run that was killed leaves what was there before.
Nothing is held back but counts, whatever the size of the set.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from assistant.errors import BadInput
from assistant.export.converters import to_llmseg40k
from assistant.files import replace_whole
from assistant.record import Record, to_dict
from datagen.engines.worker import Made
from datagen.rejected import read_rejected, row_id
from datagen.statistics import Statistics


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file that takes its place when the block ends without an error."""
    with replace_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


@contextlib.contextmanager
def output(folder: Path, val: float = 0.0, from_dataset: str = "coco") -> Iterator["Output"]:
    """val: share of the photos whose questions go to val.jsonl, the others to train.jsonl; 0: neither is written.
    from_dataset: what LLM-Seg40K's json calls the source of the photos. Raises BadInput where there is nothing to write."""
    names = ["records.jsonl", "llmseg40k.json"] + (["train.jsonl", "val.jsonl"] if val else [])
    for leftover in [old for name in names for old in folder.glob(f".{name}.*")]:  # of a run that was killed
        leftover.unlink()
    with contextlib.ExitStack() as files:
        opened = {name: files.enter_context(whole_file(folder / name)) for name in names}
        out = Output(folder, val, from_dataset, opened)
        yield out
        if not out.statistics.questions:
            drops = ", ".join(f"{count} x {reason}" for reason, count in out.statistics.drops.most_common(8))
            raise BadInput(
                "no question could be made of these photos" + (f"; given up: {drops}" if drops else "")
            )
        out.files["llmseg40k.json"].write("}" if out.begun else "{}")
        for name, content in (
            ("statistics.json", json.dumps(out.statistics.figures(), indent=1, ensure_ascii=False)),
            ("statistics.html", out.statistics.page(folder.resolve().name)),
        ):
            files.enter_context(whole_file(folder / name)).write(content)


class Output:
    """What `output` gives to write to."""

    def __init__(self, folder: Path, val: float, from_dataset: str, files: dict[str, TextIO]):
        self.folder, self.val, self.from_dataset, self.files = folder, val, from_dataset, files
        self.statistics, self.rejected, self.begun = Statistics(), read_rejected(folder), False

    def add(self, made: Made) -> None:
        """All questions about one photo."""
        if made.sort:
            self.statistics.photo(made.sort)
        self.statistics.drops.update(made.drops)
        good, image = [], ""
        for record in made.records:
            # Relative, so that the photos and the questions may be moved together.
            image = (
                image or Path(os.path.relpath(Path(record.image).resolve(), self.folder.resolve())).as_posix()
            )
            record.image = image
            record.source.setdefault("history", [])  # the same keys in all lines, for `datasets`
            if row_id(record) in self.rejected:
                self.statistics.drops["thrown out by hand"] += 1
            else:
                good.append(record)
        for record in good:
            line = json.dumps(to_dict(record), ensure_ascii=False) + "\n"
            self.files["records.jsonl"].write(line)
            if self.val:
                self.files["val.jsonl" if in_val(record, self.val) else "train.jsonl"].write(line)
            self.statistics.record(record)
        # A question that follows others means nothing alone, and LLM-Seg40K knows only such.
        for file, row in to_llmseg40k(record for record in good if not record.history).items():
            row["from_dataset"] = self.from_dataset
            self.files["llmseg40k.json"].write(
                f"{', ' if self.begun else '{'}{json.dumps(file)}: {json.dumps(row)}"
            )
            self.begun = True


def in_val(record: Record, share: float) -> bool:
    """Whether a record's photo is one of the validation photos: by its name alone, so that no photo is on both sides,
    and more photos move none."""
    return zlib.crc32(Path(record.image).name.encode()) / 2**32 < share
