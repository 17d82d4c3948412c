"""LLM-Seg40K (Wang and Ke 2024), both ways.

The file is an object: {file name: {"from_dataset": "coco" | "ego_objects", "qa_pairs": [{"question",
"answer", "rle_seg"}]}}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.export.converters.common import BadItems, reason_of, record_of_mask, refuse
from assistant.files import read_json
from assistant.grammar import plain
from assistant.record import Record, record_masks
from assistant.sam.mask_ops import Rle, decode_rle, encode_rle, merge_rles, rle_of_segmentation

LLMSEG_FOLDERS = {"coco": "coco/train2017/", "ego_objects": "ego_objects/images/"}
MAX_NAME_WORDS = 5  # an answer of at most so many words is taken for the target's name


def from_llmseg40k(
    path: str | Path, folders: Mapping[str, str] = LLMSEG_FOLDERS, bad: BadItems | None = None
) -> Iterator[Record]:
    """Read one record per question.

    A short answer names the target; of a longer one the target is called "it". The answer is stored whole in
    the record's source.

    Args:
        path: The json file.
        folders: {from_dataset: what is put before the image's file name}.
        bad: Where pairs that cannot be read are listed; None to raise BadInput for the first.

    Raises:
        BadInput: The file cannot be read, or is not of this form.
    """
    rows = read_json(path)
    if not isinstance(rows, dict):
        raise BadInput(f"{path} is not LLM-Seg40K's form: an object keyed by file name")
    for file, row in rows.items():
        try:
            folder = folders.get(row["from_dataset"], "")
            pairs = list(row["qa_pairs"])
        except (KeyError, TypeError) as error:
            refuse(bad, file, f"{path}: {file}: not as in LLM-Seg40K: {reason_of(error)}")
            continue
        for number, pair in enumerate(pairs, 1):
            try:
                mask = decode_rle(pair["rle_seg"])
                question, answer = pair["question"], pair["answer"]
                if not isinstance(question, str) or not isinstance(answer, str) or not question.strip():
                    raise TypeError("question and answer must be texts")
            except (KeyError, TypeError, BadInput) as error:
                refuse(
                    bad, f"{file}, pair {number}", f"{path}: {file}: not as in LLM-Seg40K: {reason_of(error)}"
                )
                continue
            source = {
                "dataset": "LLM-Seg40K",
                "from_dataset": row["from_dataset"],
                "file": file,
                "answer": answer,
            }
            yield _record(folder + file, question, answer, mask, source)


def _record(image: str, question: str, answer: str, mask: np.ndarray, source: dict[str, Any]) -> Record:
    """The record of one pair."""
    words = answer.strip().rstrip(".").split()
    if len(words) <= MAX_NAME_WORDS:
        return record_of_mask(image, question, " ".join(words), mask, source)
    record = record_of_mask(image, question, "it", mask, source)
    record.answer += f" {plain(answer)}"
    return record


def to_llmseg40k(records: Iterable[Record]) -> dict[str, Any]:
    """Write records in LLM-Seg40K's form.

    It has one mask per question, so a record's targets are merged, and an absent target has an empty mask. It
    has no conversations, so questions that follow others are left out. Nothing is lost of records that
    `from_llmseg40k` made; others lose their single masks, phrases and source.

    Args:
        records: The records.

    Returns:
        The file as JSON values.

    Raises:
        BadInput: Two images have one file name.
    """
    rows: dict[str, dict[str, Any]] = {}
    images: dict[str, str] = {}
    for record in records:
        if record.history:
            continue
        file = record.source.get("file") or Path(record.image).name
        if images.setdefault(file, record.image) != record.image:
            raise BadInput(f"two images are called {file}, which LLM-Seg40K's form cannot hold")
        row = rows.setdefault(
            file, {"from_dataset": record.source.get("from_dataset", "coco"), "qa_pairs": []}
        )
        answer = record.source.get("answer", plain(record.answer))
        row["qa_pairs"].append({"question": record.question, "answer": answer, "rle_seg": _union(record)})
    return rows


def _union(record: Record) -> Rle:
    """The union of a record's masks, as RLE; empty where every target is absent."""
    size = [record.height, record.width]
    nothing = {"size": size, "counts": [record.height * record.width]}
    rles = [target.rle for target in record.targets if target.rle is not None]
    rles = rles or [rle_of_segmentation(nothing, record.height, record.width)]
    if any(rle["size"] != size or not isinstance(rle["counts"], str) for rle in rles):
        return encode_rle(np.any([mask for mask in record_masks(record) if mask is not None], axis=0))
    # As runs, because decoding takes longer than everything else here.
    return rles[0] if len(rles) == 1 else merge_rles(rles)
