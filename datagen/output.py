"""Step 5, write: records, LLM-Seg40K's json, splits and statistics, row by row as they come.

    with output(folder, val_share=0.1, from_dataset="coco") as out:
        out.add(result)
    out.statistics.figures()

Every file is written under a temporary name and renamed when all is done: a run that was killed leaves what
was there before. Only counts stay in memory, whatever the size of the set.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from assistant.errors import BadInput
from assistant.export.converters import to_llmseg40k
from assistant.files import replace_whole
from assistant.record import Record, to_dict
from datagen.image_result import ImageResult
from datagen.rejected import is_rejected, read_rejected
from datagen.statistics import Statistics

if TYPE_CHECKING:
    from assistant.export.html_report import Sample

RECORDS_FILE, LLMSEG40K_FILE = "records.jsonl", "llmseg40k.json"
TRAIN_FILE, VAL_FILE = "train.jsonl", "val.jsonl"
MAX_SHOWN, MAX_SHOWN_OF_A_KIND = 30, 3  # questions on the page of statistics
MAX_REASONS_SHOWN = 8  # of why nothing was made, in one line: the most frequent say enough


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open a text file that takes its place when the block ends without an error."""
    with replace_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


def file_name(path: Path) -> str:
    """A file's name, without its folder."""
    return path.name


@contextlib.contextmanager
def output(
    folder: Path,
    val_share: float = 0.0,
    from_dataset: str = "coco",
    path_in_set: Callable[[Path], str] = file_name,
) -> Iterator["Output"]:
    """Open the files of a generated set, which take their places when the block ends without an error.

    Args:
        folder: Where they are written.
        val_share: Share of the images whose questions go to val.jsonl, the others' to train.jsonl; 0: neither
            is written.
        from_dataset: What LLM-Seg40K's json calls the source of the images.
        path_in_set: What LLM-Seg40K's json calls an image, by its file: no two alike.

    Raises:
        BadInput: At the end, when no question was written.
    """
    names = [RECORDS_FILE, LLMSEG40K_FILE] + ([TRAIN_FILE, VAL_FILE] if val_share else [])
    for name in names:
        for leftover in list(folder.glob(f".{name}.*")):  # of a run that was killed
            leftover.unlink()
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(whole_file(folder / name)) for name in names}
        out = Output(folder, val_share, from_dataset, path_in_set, files)
        yield out
        out.finish()
        statistics = {
            "statistics.json": json.dumps(out.statistics.figures(), indent=1, ensure_ascii=False),
            "statistics.html": out.statistics.page(folder.resolve().name, out.samples()),
        }
        for name, content in statistics.items():
            stack.enter_context(whole_file(folder / name)).write(content)


class Output:
    """What `output` gives to write to.

    Args:
        folder, val_share, from_dataset, path_in_set: As `output` takes them.
        files: {name: the opened file}.

    Attributes:
        statistics: Of what was written so far.
    """

    def __init__(
        self,
        folder: Path,
        val_share: float,
        from_dataset: str,
        path_in_set: Callable[[Path], str],
        files: Mapping[str, TextIO],
    ):
        self.folder = folder
        self.val_share = val_share
        self.from_dataset = from_dataset
        self.path_in_set = path_in_set
        self.files = files
        self.statistics = Statistics()
        self._rejected = read_rejected(folder)
        self._has_llmseg40k_rows = False
        self._shown: list[Record] = []  # on the page of statistics

    def add(self, result: ImageResult) -> None:
        """Write all questions about one image, but for those that were thrown out by hand."""
        if result.difficulty:
            self.statistics.add_image(result.difficulty)
        self.statistics.drops.update(result.drops)
        records = []
        name = self.path_in_set(Path(result.rows[0]["image"])) if result.rows else ""
        for record in self._with_relative_paths(result.records):
            record.source.setdefault("history", [])  # the same keys in all lines, for `datasets`
            if is_rejected(record, self._rejected):
                self.statistics.drops["thrown out by hand"] += 1
            else:
                records.append(record)
        for record in records:
            self._write_record(record)
        self._write_llmseg40k(name, records)

    def _with_relative_paths(self, records: Sequence[Record]) -> Sequence[Record]:
        """Make an image's path relative, so that images and questions may be moved together."""
        if records:
            image = os.path.relpath(Path(records[0].image).resolve(), self.folder.resolve())
            for record in records:
                record.image = Path(image).as_posix()
        return records

    def _write_record(self, record: Record) -> None:
        line = json.dumps(to_dict(record), ensure_ascii=False) + "\n"
        self.files[RECORDS_FILE].write(line)
        if self.val_share:
            self.files[VAL_FILE if in_val(record, self.val_share) else TRAIN_FILE].write(line)
        self.statistics.add_record(record)
        if self._is_worth_showing(record):
            self._shown.append(record)

    def _is_worth_showing(self, record: Record) -> bool:
        """Whether a page of few questions has room for it: for its kind, and for another image."""
        kind = record.source["kind"]
        alike = sum(other.source["kind"] == kind for other in self._shown)
        return (
            alike < MAX_SHOWN_OF_A_KIND
            and len(self._shown) < MAX_SHOWN
            and all(other.image != record.image for other in self._shown)
        )

    def samples(self) -> "Iterator[Sample]":
        """A few of the questions with their masks, by kind, to be looked at."""
        from assistant.export.html_report import Sample
        from assistant.grammar import plain
        from assistant.images import open_image
        from assistant.record import image_path, record_masks

        for record in sorted(self._shown, key=lambda record: record.source["kind"]):  # stable
            try:
                image = open_image(image_path(record, self.folder / RECORDS_FILE))
            except BadInput:  # removed since
                continue
            kind = record.source["kind"]
            earlier = [f"before: {turn.question} {plain(turn.answer or '')}" for turn in record.history]
            masks = [mask for mask in record_masks(record) if mask is not None]
            names = ", ".join(f"{t.phrase}{'' if t.rle else ' (absent)'}" for t in record.targets)
            words = [*earlier, f"answer: {plain(record.answer)}"]
            yield Sample(kind, record.question, words, [(names, image, masks)], [kind])

    def _write_llmseg40k(self, name: str, records: Sequence[Record]) -> None:
        """Write the questions that stand alone: one that follows others means nothing without them.

        name: Of the image that all of them are about.
        """
        standalone = (record for record in records if not record.history)
        for row in to_llmseg40k(standalone).values():
            row["from_dataset"] = self.from_dataset
            separator = ", " if self._has_llmseg40k_rows else "{"
            self.files[LLMSEG40K_FILE].write(f"{separator}{json.dumps(name)}: {json.dumps(row)}")
            self._has_llmseg40k_rows = True

    def finish(self) -> None:
        """End the files that need it.

        Raises:
            BadInput: No question was written.
        """
        if not self.statistics.questions:
            reasons = ", ".join(
                f"{count} x {reason}"
                for reason, count in self.statistics.drops.most_common(MAX_REASONS_SHOWN)
            )
            raise BadInput(
                "no question could be made of these photos" + (f"; dropped: {reasons}" if reasons else "")
            )
        self.files[LLMSEG40K_FILE].write("}" if self._has_llmseg40k_rows else "{}")


def in_val(record: Record, share: float) -> bool:
    """Whether a record's image is one of the validation images.

    It is decided by its name alone, so that no image is on both sides, and further images move none.
    """
    return zlib.crc32(Path(record.image).name.encode()) / 2**32 < share
