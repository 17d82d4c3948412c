"""The refer sets (RefCLEF, RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO) as records: refs and COCO's
instances.json."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.export.converters.common import BadItems, on_one_line, reason_of, record_of_mask, refuse
from assistant.files import read_json
from assistant.record import Record
from assistant.sam.mask_ops import decode_rle, rle_of_segmentation
from assistant.sam.outlines import check_image_size

NOTHING_FITS = -1  # gRefCOCO's ann_id where nothing in the image fits the sentence


def from_refer(
    refs_path: str | Path,
    instances_path: str | Path,
    split: str | None = None,
    prefix: str = "",
    bad: BadItems | None = None,
) -> Iterator[Record]:
    """Read one record per sentence; several annotations of a ref become one mask.

    Args:
        refs_path: The refs, see `read_refs`.
        instances_path: COCO's instances.json, with the images and annotations.
        split: Part of the data set; None for all.
        prefix: What is put before an image's file name.
        bad: Where refs that cannot be read are listed; None to raise BadInput for the first.

    Raises:
        BadInput: A file cannot be read, or is not of its form.
    """
    refs = read_refs(refs_path)
    table = read_json(instances_path)
    try:
        images, annotations = _by_id(table["images"]), _by_id(table["annotations"])
    except (KeyError, TypeError):
        raise BadInput(f"{instances_path} is not COCO's instances.json") from None
    dataset = Path(refs_path).parent.name
    for ref in refs:
        try:
            if split is not None and ref["split"] != split:
                continue
            records = _records_of_ref(ref, images, annotations, dataset, prefix)
        except (KeyError, TypeError, ValueError) as error:
            name = f"ref {ref.get('ref_id')}"
            refuse(bad, name, f"{refs_path}: {name}: {reason_of(error)}")
            continue
        yield from records


def _by_id(rows: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Rows by their ids, but for the ids that two different rows have: nothing says which one is meant."""
    found: dict[Any, dict[str, Any]] = {}
    shared = set()
    for row in rows:
        if found.setdefault(row["id"], row) != row:
            shared.add(row["id"])
    return {number: row for number, row in found.items() if number not in shared}


def _records_of_ref(
    ref: dict[str, Any], images: dict[Any, Any], annotations: dict[Any, Any], dataset: str, prefix: str
) -> list[Record]:
    """The records of one ref's sentences. Raises KeyError, TypeError or ValueError for another form."""
    image = images[ref["image_id"]]
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    mask = _union([annotations[number] for number in ids if number != NOTHING_FITS], image)
    if not ids:
        raise BadInput("it names no annotation")
    source = {
        "dataset": dataset,
        "split": str(ref.get("split", "")),
        "ref_id": ref["ref_id"],
        "ann_id": [int(number) for number in ids],
    }
    records = []
    for number, sentence in enumerate(ref["sentences"]):
        text = sentence["sent"]
        if not isinstance(text, str) or not text.strip():
            raise BadInput("a sentence is empty")
        sentence_source = source | {"sent_id": sentence.get("sent_id", number)}
        records.append(record_of_mask(prefix + image["file_name"], text, text, mask, sentence_source))
    return records


def _union(annotations: list[dict[str, Any]], image: dict[str, Any]) -> np.ndarray:
    """The union of the masks of some annotations of an image, (H, W) bool; empty where there are none.

    Raises:
        BadInput: One of them has no outline that can be read: it must not pass for "nothing fits".
    """
    height, width = image["height"], image["width"]
    check_image_size(height, width)
    mask = np.zeros((height, width), bool)
    for annotation in annotations:
        try:
            outlined = decode_rle(rle_of_segmentation(annotation["segmentation"], height, width))
        except BadInput as error:
            raise BadInput(f"annotation {annotation['id']}: {error}") from None
        if not outlined.any():
            raise BadInput(f"annotation {annotation['id']}: the outline is empty")
        mask |= outlined
    return mask


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain data only: no class or function of any module but the builtin containers and scalars."""

    ALLOWED = {kind.__name__: kind for kind in (dict, list, tuple, set, frozenset, str, int, float, bool)}

    def find_class(self, module: str, name: str) -> Any:
        """The class that a pickle asks for, where it is allowed."""
        if module in ("builtins", "__builtin__") and name in self.ALLOWED:
            return self.ALLOWED[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_refs(path: str | Path) -> list[dict[str, Any]]:
    """Read the refs of a refer set.

    Args:
        path: A .json file, or a pickle of plain data; a pickle that asks for more is refused.

    Raises:
        BadInput: The file cannot be read, or holds something else.
    """
    path = Path(path)
    refs = read_json(path) if path.suffix == ".json" else _read_pickle(path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise BadInput(f"{path} is not a list of refs")
    return refs


def _read_pickle(path: Path) -> Any:
    """The content of a pickle of plain data."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    try:
        return _PlainUnpickler(io.BytesIO(raw), encoding="latin1").load()  # written by Python 2
    except Exception as error:  # a broken pickle may raise anything
        raise BadInput(f"{path} is not a pickle of plain data ({on_one_line(error)})") from None
