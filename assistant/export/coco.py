"""COCO's instances format, for the masks of one image.

table = coco_instances((480, 640), "image.png", [("umbrella", mask, 0.9)], ["bench"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from assistant.sam.mask_ops import encode_rle, tight_box_xywh


def coco_instances(
    size: tuple[int, int],
    file_name: str,
    present: Sequence[tuple[str, np.ndarray, float]],
    absent: Sequence[str],
) -> dict[str, Any]:
    """The content of an instances.json.

    Args:
        size: (height, width) in pixels of the image.
        file_name: Name of the image.
        present: (phrase, mask (H, W) bool, confidence in [0, 1]) of each instance; each distinct phrase is a
            category.
        absent: Phrases of what is not in the image.

    Returns:
        {"images", "annotations", "categories", "absent"}. An annotation has a compressed RLE with counts as a
        str, its bbox xywh in px, its area in px, and its confidence as "score".
    """
    categories: dict[str, int] = {}
    annotations = []
    for number, (phrase, mask, confidence) in enumerate(present, 1):
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": categories.setdefault(phrase, len(categories) + 1),
                "segmentation": encode_rle(mask),
                "bbox": tight_box_xywh(mask),
                "area": int(mask.sum()),
                "iscrowd": 0,
                "score": float(confidence),
            }
        )
    return {
        "images": [{"id": 1, "file_name": file_name, "width": size[1], "height": size[0]}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "absent": list(absent),
    }
