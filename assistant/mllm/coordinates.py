"""How each family of multimodal LLMs writes places in a picture, in the one place where that is decided.

    scale = scale_of("qwen3_vl")                     # THOUSAND; a model type, or the name that a server knows it by
    frame = frame_of(scale, (H, W), seen=(w, h))     # seen: px of the picture that the model sees
    frame.point(500, 500), frame.box([0, 0, 1000, 1000])     # px of the photo

Qwen2.5-VL writes pixels of the picture as its processor has resized it, Qwen2-VL and Qwen3-VL thousandths of its width
and height (their model cards' grounding recipes), LLaVA-1.5 shares of the photo padded to a square (its training data
was so; Liu et al. 2023, arXiv 2310.03744). Whatever is not known is asked for thousandths.
"""

from dataclasses import dataclass

import numpy as np

PIXELS, THOUSAND, UNIT = "pixels", "thousand", "unit"
MEANING = {
    PIXELS: "in pixels of the picture, which is {w} wide and {h} high",
    THOUSAND: "as whole numbers from 0 to 1000: 0 is the left or top edge of the picture, 1000 the right or bottom one",
    UNIT: "as shares from 0 to 1: 0 is the left or top edge of the picture, 1 the right or bottom one",
}
PATCH = 28  # px that Qwen2.5-VL rounds sides to
QWEN_PIXELS = 1280 * PATCH * PATCH  # no more than every server's settings allow, so that none resizes again


@dataclass(frozen=True)
class Frame:
    """From what a model writes to px of the photo: corner + value / extent * span, clipped to the photo of `size` (H, W)."""

    scale: str
    size: tuple[int, int]
    extent: tuple[float, float]  # (x, y): the value of the right and bottom edge
    span: tuple[float, float]  # px of the photo that the picture is wide and high
    corner: tuple[float, float] = (0.0, 0.0)  # px of the photo where the picture begins

    def point(self, x: float, y: float) -> tuple[float, float]:
        """(x, y) px of the photo."""
        h, w = self.size
        place = [c + float(v) / e * s for v, e, s, c in zip((x, y), self.extent, self.span, self.corner)]
        return min(max(place[0], 0.0), float(w)), min(max(place[1], 0.0), float(h))

    def box(self, box) -> list[float] | None:
        """xyxy px of the photo, corners in order; None where nothing of it lies in the photo."""
        (x0, y0), (x1, y1) = self.point(*box[:2]), self.point(*box[2:])
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        return [x0, y0, x1, y1] if x1 - x0 >= 1 and y1 - y0 >= 1 else None

    @property
    def meaning(self) -> str:
        """What the numbers mean, in words for the model."""
        return MEANING[self.scale].format(w=round(self.extent[0]), h=round(self.extent[1]))


def scale_of(name: str) -> str:
    """name: transformers' model type ("qwen2_5_vl") or any name that holds the family's ("Qwen/Qwen2.5-VL-7B-Instruct")."""
    name = name.lower().replace("-", "_").replace(".", "_")
    if "qwen2_5_vl" in name or "qwen2_5vl" in name:
        return PIXELS
    return UNIT if name == "llava" or "llava_1_5" in name or "llava_v1_5" in name else THOUSAND


def frame_of(
    scale: str, size: tuple[int, int], seen: tuple[int, int] | None = None, padded: bool = False
) -> Frame:
    """size: (H, W) of the photo; seen: (w, h) px of the picture in front of the model, for PIXELS; padded: see `squared`."""
    h, w = size
    span, corner = ((w, h), (0.0, 0.0))
    if padded:
        side = max(h, w)
        span, corner = (side, side), (-float((side - w) // 2), -float((side - h) // 2))
    extent = {PIXELS: seen, THOUSAND: (1000, 1000), UNIT: (1, 1)}[scale]
    return Frame(scale, size, extent, span, corner)


def squared(image: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) uint8 in the middle of a grey square, for models that see a picture's middle square only."""
    h, w = image.shape[:2]
    side = max(h, w)
    square = np.full((side, side, 3), 127, np.uint8)
    square[(side - h) // 2 : (side - h) // 2 + h, (side - w) // 2 : (side - w) // 2 + w] = image
    return square


def within(image: np.ndarray, most: int, multiple: int = 1, pixels: int | None = None) -> np.ndarray:
    """The picture (H, W, 3) uint8 with sides of at most `most` px that are multiples of `multiple` (two at least, where
    that is not 1), and at most `pixels` in all; only what is smaller than that is enlarged."""
    from PIL import Image

    h, w = image.shape[:2]
    scale = min(1.0, most / max(h, w), (pixels / (h * w)) ** 0.5 if pixels else 1.0)
    down = pixels is not None and scale < 1
    least = 2 * multiple if multiple > 1 else 1
    side = lambda s: max(least, int(s * scale / multiple + (0 if down else 0.5)) * multiple)
    if (side(h), side(w)) == (h, w):
        return image
    return np.asarray(Image.fromarray(image).resize((side(w), side(h)), Image.Resampling.LANCZOS))
