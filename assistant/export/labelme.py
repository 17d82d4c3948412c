"""LabelMe's file format, for the masks of one image.

table = labelme_file((480, 640), "image.png", [("umbrella", mask)], ["bench"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from assistant.export.drawing import outlines

LABELME_VERSION = "5.5.0"  # of the files that LabelMe 5.5.0 writes


def labelme_file(
    size: tuple[int, int], image_path: str, present: Sequence[tuple[str, np.ndarray]], absent: Sequence[str]
) -> dict[str, Any]:
    """The content of a LabelMe 5 file.

    Args:
        size: (height, width) in pixels of the image.
        image_path: The image, from the file's folder.
        present: (phrase, mask (H, W) bool) of each instance. Its connected parts are a polygon each and share
            a group_id.
        absent: Phrases of what is not in the image; each becomes an image flag "no PHRASE".

    Returns:
        The file as JSON values. Points are in px, (0, 0) is the outer corner of the first pixel. LabelMe's
        polygons have no holes: a hole is filled, and the shape's description says so.
    """
    shapes = []
    for group, (phrase, mask) in enumerate(present, 1):
        for points, holes in outlines(mask):
            shapes.append(
                {
                    "label": phrase,
                    "points": points.tolist(),
                    "group_id": group,
                    "description": f"{holes} holes filled" if holes else "",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
            )
    return {
        "version": LABELME_VERSION,
        "flags": {f"no {phrase}": True for phrase in absent},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }
