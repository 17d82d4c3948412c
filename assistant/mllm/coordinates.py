"""How each family of multimodal LLMs writes coordinates, decided in one place.

    scale = scale_of("qwen3_vl")                             # THOUSAND; by a model's type or name
    frame = frame_of(scale, (H, W), input_size=(w, h))
    frame.point(500, 500)                                    # px of the image
    frame.box([0, 0, 1000, 1000])                            # xyxy px of the image

Qwen2.5-VL writes pixels of the image as its processor has resized it. Qwen2-VL and Qwen3-VL write thousandths
of its width and height (the grounding recipes of their model cards). LLaVA-1.5 writes shares of the image
padded to a square, as in its training data (Liu et al. 2023, arXiv 2310.03744). Models that are not known are
asked for thousandths.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

PIXELS, THOUSAND, UNIT = "pixels", "thousand", "unit"

# What the numbers of each scale mean, in the words of a prompt.
SCALE_DESCRIPTIONS = {
    PIXELS: "in pixels of the picture, which is {w} wide and {h} high",
    THOUSAND: (
        "as whole numbers from 0 to 1000: 0 is the left or top edge of the picture, "
        "1000 the right or bottom one"
    ),
    UNIT: "as shares from 0 to 1: 0 is the left or top edge of the picture, 1 the right or bottom one",
}
# Families that read marks and were taught to write boxes as left, top, right, bottom (their model cards).
COORDINATE_FAMILIES = ("qwen2vl", "qwen25vl", "qwen3vl", "qwen35", "internvl", "glm4v", "glm45v", "glm46v")
QWEN_PATCH_SIZE = 28  # px; Qwen2.5-VL rounds the sides of an image to multiples of it


@dataclass(frozen=True)
class Frame:
    """Turns the coordinates that a model writes into px of the image.

    A value becomes corner + value / extent * span, clipped to the image.

    Attributes:
        scale: PIXELS, THOUSAND or UNIT.
        size: (H, W) px of the image.
        extent: The (x, y) values of the right and bottom edge of what the model sees.
        span: (x, y) px of the image over which those values extend.
        corner: (x, y) px of the image where what the model sees begins; negative where it was padded.
    """

    scale: str
    size: tuple[int, int]
    extent: tuple[float, float]
    span: tuple[float, float]
    corner: tuple[float, float] = (0.0, 0.0)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """The point (x, y) px of the image that the model means by (x, y)."""
        height, width = self.size
        px = self.corner[0] + float(x) / self.extent[0] * self.span[0]
        py = self.corner[1] + float(y) / self.extent[1] * self.span[1]
        return min(max(px, 0.0), float(width)), min(max(py, 0.0), float(height))

    def box(self, box: Sequence[float]) -> list[float] | None:
        """The box that the model means by two opposite corners (x, y, x, y).

        Returns:
            Half-open xyxy px of the image; None where less than a pixel of it lies in the image.
        """
        x0, y0 = self.point(*box[:2])
        x1, y1 = self.point(*box[2:])
        x0, x1 = min(x0, x1), max(x0, x1)
        y0, y1 = min(y0, y1), max(y0, y1)
        return [x0, y0, x1, y1] if x1 - x0 >= 1 and y1 - y0 >= 1 else None

    def written_box(self, box: Sequence[float]) -> list[float]:
        """A box, xyxy px of the image, in the numbers that the model writes."""
        written = []
        for k, px in enumerate(box):
            axis = k % 2
            value = (px - self.corner[axis]) / self.span[axis] * self.extent[axis]
            written.append(round(value, 2) if self.scale == UNIT else round(value))
        return written

    @property
    def meaning(self) -> str:
        """What the numbers mean, in the words of a prompt."""
        return SCALE_DESCRIPTIONS[self.scale].format(w=round(self.extent[0]), h=round(self.extent[1]))


def scale_of(name: str) -> str:
    """The scale in which a model writes coordinates.

    Args:
        name: transformers' model type ("qwen2_5_vl"), or any name that contains the family's
            ("Qwen/Qwen2.5-VL-7B-Instruct").
    """
    name = name.lower().replace("-", "_").replace(".", "_")
    if "qwen2_5_vl" in name or "qwen2_5vl" in name:
        return PIXELS
    return UNIT if name == "llava" or "llava_1_5" in name or "llava_v1_5" in name else THOUSAND


def selection_of(name: str) -> str:
    """How an untrained model selects masks best; `name`: see `scale_of`.

    LLaVA-1.5 was taught boxes but hardly reads numbers drawn on images (arXiv 2404.16375). Families that were
    taught both, or read numbers and write boxes, choose between them for each target. All others select by
    numbers, since a box that is wrong is worth nothing.
    """
    if scale_of(name) == UNIT:
        return "boxes"
    name = re.sub(r"[^a-z0-9]", "", name.lower())
    return "hybrid" if any(family in name for family in COORDINATE_FAMILIES) else "marks"


def frame_of(
    scale: str, size: tuple[int, int], input_size: tuple[int, int] | None = None, padded: bool = False
) -> Frame:
    """The frame in which a model writes coordinates of an image.

    Args:
        scale: See `scale_of`.
        size: (H, W) px of the image.
        input_size: (w, h) px of the image as the model sees it; needed for PIXELS.
        padded: Whether the model sees the image in the middle of a square.
    """
    height, width = size
    span: tuple[float, float] = (width, height)
    corner = (0.0, 0.0)
    if padded:
        side = max(height, width)
        span = (side, side)
        corner = (-float((side - width) // 2), -float((side - height) // 2))
    if scale == PIXELS:
        if input_size is None:
            raise ValueError("pixels need the size of the image as the model sees it")
        return Frame(scale, size, input_size, span, corner)
    return Frame(scale, size, (1000, 1000) if scale == THOUSAND else (1, 1), span, corner)
