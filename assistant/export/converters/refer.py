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
from assistant.export.converters.common import (
    BadItems,
    on_one_line,
    read_json,
    reason_of,
    record_of_mask,
    refuse,
)
from assistant.record import Record
from assistant.sam.mask_ops import Rle, decode_rle, rle_of_segmentation

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
        images = {row["id"]: row for row in table["images"]}
        annotations = {row["id"]: row for row in table["annotations"]}
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


def _records_of_ref(
    ref: dict[str, Any], images: dict[Any, Any], annotations: dict[Any, Any], dataset: str, prefix: str
) -> list[Record]:
    """The records of one ref's sentences. Raises KeyError, TypeError or ValueError for another form."""
    image = images[ref["image_id"]]
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    mask = np.zeros((image["height"], image["width"]), bool)
    for number in ids:
        if number != NOTHING_FITS:
            mask |= segmentation_mask(annotations[number]["segmentation"], (mask.shape[0], mask.shape[1]))
    source = {
        "dataset": dataset,
        "split": str(ref.get("split", "")),
        "ref_id": ref["ref_id"],
        "ann_id": [int(number) for number in ids],
    }
    records = []
    for number, sentence in enumerate(ref["sentences"]):
        text = sentence["sent"]
        sentence_source = source | {"sent_id": sentence.get("sent_id", number)}
        records.append(record_of_mask(prefix + image["file_name"], text, text, mask, sentence_source))
    return records


def segmentation_mask(segmentation: list[Any] | Rle, size: tuple[int, int]) -> np.ndarray:
    """The mask of a COCO annotation.

    Args:
        segmentation: Polygons [[x, y, ...], ...] in px, or an RLE.
        size: (height, width) in pixels of the image.

    Returns:
        (height, width) bool.

    Raises:
        BadInput: An RLE has another size.
    """
    if isinstance(segmentation, dict):
        mask = decode_rle(segmentation)
        if mask.shape != tuple(size):
            raise BadInput(f"a mask of {mask.shape[1]}x{mask.shape[0]} in an image of {size[1]}x{size[0]}")
        return mask
    return decode_rle(rle_of_segmentation(segmentation, *size))


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
