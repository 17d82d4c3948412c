"""Answers as the `supervision` package takes them, for its annotators, trackers and metrics.

detections = to_supervision((480, 640), [("umbrella", mask, 0.9)])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from assistant.errors import BadInput
from assistant.sam.mask_ops import tight_box

if TYPE_CHECKING:
    from supervision import Detections


def to_supervision(size: tuple[int, int], present: Sequence[tuple[str, np.ndarray, float]]) -> Detections:
    """The instances of one image.

    Args:
        size: (height, width) in pixels of the image.
        present: (phrase, mask (H, W) bool, confidence in [0, 1]) of each instance. Empty masks are left out.

    Returns:
        Boxes as half-open xyxy in px, masks, confidences, the number of each distinct phrase as class_id, and
        the phrases as data["class_name"].

    Raises:
        BadInput: The package is not installed.
    """
    try:
        from supervision import Detections
    except ImportError:
        raise BadInput("to_detections needs one more package: pip install supervision") from None

    seen = [row for row in present if row[1].any()]
    numbers: dict[str, int] = {}
    class_ids = [numbers.setdefault(phrase, len(numbers)) for phrase, _, _ in seen]
    boxes = [tight_box(mask) for _, mask, _ in seen]
    return Detections(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        mask=np.array([mask for _, mask, _ in seen], bool).reshape(-1, *size),
        confidence=np.array([confidence for _, _, confidence in seen], np.float32),
        class_id=np.array(class_ids, int),
        data={"class_name": np.array([phrase for phrase, _, _ in seen], str)},
    )
