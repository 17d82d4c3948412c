"""YOLO's segmentation format: for each image a text file with a polygon a line, and one list of names.

labels = yolo_labels((480, 640), [("umbrella", mask)])
labels.names, labels.lines         # ["umbrella"], ["0 0.351562 0.187500 ..."]
data_yaml(labels.names, "images")  # the content of a data.yaml
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assistant.export.drawing import outlines

DECIMALS = 6  # of a coordinate between 0 and 1: a hundredth of a pixel in the largest images


@dataclass(frozen=True)
class YoloLabels:
    """The labels of one image.

    Attributes:
        names: The classes, in the order of their numbers, which count from 0.
        lines: A line for each instance: the number of its class, then x and y of each corner of its polygon,
            in shares of the image's width and height.
    """

    names: list[str]
    lines: list[str]

    @property
    def text(self) -> str:
        """The content of the image's text file."""
        return "".join(f"{line}\n" for line in self.lines)


def yolo_labels(size: tuple[int, int], present: Sequence[tuple[str, np.ndarray]]) -> YoloLabels:
    """The labels of one image, whose classes are the distinct phrases.

    Args:
        size: (height, width) in pixels of the image.
        present: (phrase, mask (H, W) bool) of each instance. Empty masks are left out.
    """
    numbers: dict[str, int] = {}
    lines = []
    for phrase, mask in present:
        number = numbers.setdefault(phrase, len(numbers))
        if mask.any():
            lines.append(yolo_line(number, mask))
    return YoloLabels(list(numbers), lines)


def yolo_line(number: int, mask: np.ndarray) -> str:
    """The line of one instance.

    Args:
        number: Of its class, from 0.
        mask: (H, W) bool, not empty.
    """
    height, width = mask.shape
    shares = (joined_polygon(mask) / (width, height)).clip(0, 1)
    return " ".join([str(number), *(f"{share:.{DECIMALS}f}" for share in shares.ravel())])


def joined_polygon(mask: np.ndarray) -> np.ndarray:
    """One polygon around all parts of a mask: a line of YOLO's has room for one only.

    Each further part is reached, and left again, along the shortest line between corners, which encloses
    nothing. Holes are filled.

    Args:
        mask: (H, W) bool, not empty.

    Returns:
        (P, 2) float xy in px; (0, 0) is the outer corner of the first pixel.
    """
    from scipy.spatial.distance import cdist

    polygon, *others = sorted((points for points, _ in outlines(mask)), key=len, reverse=True)
    for part in others:
        here, there = divmod(int(cdist(polygon, part).argmin()), len(part))
        bridged = np.concatenate([part[there:], part[: there + 1]])
        polygon = np.concatenate([polygon[: here + 1], bridged, polygon[here:]])
    return polygon


def data_yaml(names: Sequence[str], images: str) -> str:
    """The content of a data.yaml.

    Args:
        names: The classes, in the order of their numbers.
        images: The folder of the images, from the file's own.
    """
    place = json.dumps(images, ensure_ascii=False)  # a JSON string is one of YAML
    rows = [f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(names)]
    return "\n".join(
        [
            "# For `yolo segment train data=data.yaml`.",
            f"train: {place}",
            f"val: {place}  # the same images: name others before a score means anything",
            "names:",
            *rows,
            "",
        ]
    )
