"""Folders of PNGs, JSON tables and texts: their images, their file names, and writing them.

images = {"mask.png": mask_image(mask), "1_cup_cutout.png": cut_out(image, mask)}
write_folder(folder, images, {"answer.json": row, "coco.json": instances}, {"classes.txt": "cup"})
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.errors import DISK_FULL, ROOM_ADVICE, BadInput
from assistant.files import replace_whole
from assistant.sam.mask_ops import crop_around

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

PNG_COMPRESSION = 3  # of 9: half as large as none, in a fraction of the time of the most
MAX_NAME_BYTES = 60  # of a phrase in a file name
INDEX_FILE = "answer.json"  # lists the files of its folder
FIXED_NAMES = (
    "mask.png",
    "overlay.png",
    "image.png",
    "coco.json",
    "labelme.json",
    "image.txt",
    "classes.txt",
    INDEX_FILE,
)
NUMBERED_NAME = re.compile(r"\d+_[\w-]+\.png")  # of a target's mask or cut-out, see `file_safe`


def mask_image(mask: np.ndarray) -> PilImage:
    """A mask (H, W) bool as a grey PIL image, 255 inside and 0 outside."""
    from PIL import Image

    return Image.fromarray(mask.astype(np.uint8) * 255)


def cut_out(image: np.ndarray, mask: np.ndarray) -> PilImage:
    """The part of an image under a mask.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.

    Returns:
        A PIL RGBA image of the mask's box, transparent outside the mask.
    """
    from PIL import Image

    box = crop_around(mask)
    if box is None:
        raise ValueError("an empty mask cuts nothing out")
    return Image.fromarray(np.dstack([image[box], mask[box].astype(np.uint8) * 255]))


def file_safe(phrase: str) -> str:
    """A phrase as part of a file name: letters and digits of any script, dashes for the rest, never empty."""
    name = re.sub(r"[^\w]+", "-", phrase, flags=re.UNICODE).strip("-_")
    return name.encode("utf-8")[:MAX_NAME_BYTES].decode("utf-8", "ignore") or "it"


def write_folder(
    folder: Path,
    images: Mapping[str, PilImage],
    tables: Mapping[str, Mapping[str, Any]],
    texts: Mapping[str, str],
) -> list[Path]:
    """Write PNGs, JSON files and texts into a folder, each of them whole or not at all.

    What an earlier answer wrote there is removed, as far as its answer.json lists it, so that no two answers
    mix. Nothing else is.

    Args:
        folder: The folder; it is created where it is missing.
        images: {file name: PIL image}.
        tables: {file name: JSON values}, among them answer.json, which also gets the list "files".
        texts: {file name: content}.

    Returns:
        The paths of the files.

    Raises:
        BadInput: The folder cannot be written to.
    """
    names = [*images, *texts, *tables]
    old_names = sorted(_files_of_answer(folder) - set(names))
    try:
        # Before the first file and after the last: wherever this is killed, the list holds all that is there.
        _write_table(folder / INDEX_FILE, {**tables[INDEX_FILE], "files": names + old_names})
        for name, image in images.items():
            with replace_whole(folder / name) as temporary:
                image.save(temporary, format="PNG", compress_level=PNG_COMPRESSION)
        for name, text in texts.items():
            with replace_whole(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        for name in old_names:
            (folder / name).unlink(missing_ok=True)
        for name, table in tables.items():
            _write_table(folder / name, {**table, "files": names} if name == INDEX_FILE else table)
    except OSError as error:
        advice = ROOM_ADVICE if error.errno in DISK_FULL else "choose another folder"
        raise BadInput(f"cannot write to {folder} ({error.strerror or error}): {advice}") from None
    return [folder / name for name in names]


def _write_table(file: Path, table: Mapping[str, Any]) -> None:
    """Write JSON values, whole or not at all."""
    with replace_whole(file) as temporary:
        temporary.write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")


def _files_of_answer(folder: Path) -> set[str]:
    """The names of the files that the answer.json of a folder lists; none where it is no answer's.

    That of an earlier version names the masks only, beside which lie their cut-outs.
    """
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        listed = index.get("files")
        if listed is None:
            masks = [target["file"] for target in index["targets"] if target.get("file")]
            listed = masks + [mask.removesuffix(".png") + "_cutout.png" for mask in masks]
        return {name for name in listed if name in FIXED_NAMES or NUMBERED_NAME.fullmatch(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
