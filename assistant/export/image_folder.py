"""Folders of PNGs and JSON tables: their images, their file names, and writing them.

write_folder(folder, {"mask.png": mask_image(mask), "1_cup_cutout.png": cut_out(image, mask)}, {"answer.json":
row})
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.sam.mask_ops import crop_around

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

PNG_COMPRESSION = 3  # of 9: half as large as none, in a fraction of the time of the most
MAX_NAME_BYTES = 60  # of a phrase in a file name


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
    folder: Path, images: Mapping[str, PilImage], tables: Mapping[str, Mapping[str, Any]]
) -> list[Path]:
    """Write PNGs and JSON files into a folder, each of them whole or not at all.

    Args:
        folder: The folder; it is created where it is missing.
        images: {file name: PIL image}.
        tables: {file name: JSON values}.

    Returns:
        The paths of the files.

    Raises:
        BadInput: The folder cannot be written to.
    """
    try:
        for name, image in images.items():
            with replace_whole(folder / name) as temporary:
                image.save(temporary, format="PNG", compress_level=PNG_COMPRESSION)
        for name, table in tables.items():
            with replace_whole(folder / name) as temporary:
                temporary.write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"cannot write to {folder} ({error.strerror or error}): choose another folder"
        ) from None
    return [folder / name for name in (*images, *tables)]
