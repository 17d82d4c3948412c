"""An image with regions of known places, and doubles of what opens it and of what answers about it.

scene = Assistant(ZeroShotPipeline(MarkedImageOpener(), ScriptedModel(['{"targets": []}'])), {}).open(IMAGE)
"""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont
from skimage.feature import match_template

from assistant.mllm.model_image import ImageFit
from assistant.mllm.set_of_mark import LABEL_FONT_SIZE
from assistant.mllm.structured_answer import StructuredAnswer
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.mask_ops import encode_rle
from assistant.sam.proposals import Proposals

IMAGE = skimage.data.coffee()  # 400 x 600
H, W = IMAGE.shape[:2]


def ellipse(x: float, y: float, a: float, b: float) -> np.ndarray:
    """(H, W) bool, an ellipse around (x, y) px with half axes a and b."""
    v, u = np.mgrid[:H, :W]
    return ((u - x) / a) ** 2 + ((v - y) / b) ** 2 <= 1


INSTANCES = {
    "saucer": ellipse(280, 210, 200, 185),
    "cup": ellipse(292, 150, 118, 125),
    "coffee": ellipse(287, 145, 82, 50),
    "spoon": ellipse(367, 275, 42, 50),
    "table": ellipse(540, 320, 55, 70),
    "shine": ellipse(415, 78, 12, 14),
}
NAMES = list(INSTANCES)


def make_proposals(masks: Iterable[np.ndarray]) -> Proposals:
    """Masks (H, W) bool as proposals, best first."""
    masks = list(masks)
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((columns[0], rows[0], columns[-1], rows[-1]))
    n = len(masks)
    return Proposals(
        [encode_rle(m) for m in masks],
        np.array(boxes, np.float32).reshape(n, 4),
        np.full(n, 0.9, np.float32),
        np.full(n, 0.97, np.float32),
        np.array([m.sum() for m in masks], np.int64),
        np.zeros((n, 2), np.float32),
        np.zeros((n, 8, 8), np.float32),
        masks[0].shape if n else (H, W),
    )


class MarkedImageOpener:
    """Proposes given masks, by default those of `INSTANCES`.

    Prompted by hand, it fills the box, or a disc around the point, and records the prompts in `prompts`.
    """

    def __init__(self, masks: Iterable[np.ndarray] | None = None):
        self.masks = list(INSTANCES.values()) if masks is None else list(masks)
        self.prompts: list[tuple[Any, Any]] = []
        self.segmenter = SimpleNamespace(predict=self.predict, close_up_below=0.0)

    def open(self, image: np.ndarray, progress: Any = None) -> SamOpenedImage:
        return SamOpenedImage(None, make_proposals(self.masks), image)

    def predict(self, embedding, points=None, labels=None, box=None, mask=None, multimask=True):
        self.prompts.append((points, box))
        if box is None:
            mask = ellipse(*points[0], 20, 20)
        else:
            mask = np.zeros((H, W), bool)
            x0, y0, x1, y1 = (round(v) for v in box)
            mask[y0:y1, x0:x1] = True
        return mask[None], np.array([0.9], np.float32), None


class ScriptedModel:
    """A `StructuredModel` that answers what a script says, and records every request in `requests`.

    Args:
        script: A function of (turns, system, schema) that gives the answer or its text, or a list of texts,
            one per request.
        name: See `StructuredModel`.
        crops: Whether it sees the middle square of an image only.
        size: What `input_size` gives; None for the size of the image.
    """

    def __init__(
        self,
        script: Callable[..., Any] | list[Any],
        name: str = "qwen3_vl",
        crops: bool = False,
        size: tuple[int, int] | None = None,
    ):
        self.script = script
        self.name = name
        self.image_fit = ImageFit(padded=crops)
        self.size = size
        self.requests: list[tuple[Any, str, dict]] = []

    def input_size(self, image: np.ndarray) -> tuple[int, int]:
        return self.size or (image.shape[1], image.shape[0])

    def networks(self) -> dict:
        return {}

    def ask(self, turns, system, schema, **options) -> StructuredAnswer:
        self.requests.append((turns, system, schema))
        answer = self.script(turns, system, schema) if callable(self.script) else self.script.pop(0)
        return answer if isinstance(answer, StructuredAnswer) else StructuredAnswer(answer, tokens=5)


def find_label(sheet: np.ndarray, number: int) -> tuple[float, float]:
    """(x, y) px of the middle of a number on a sheet, found by its pixels. Fails where it cannot be read."""
    font = ImageFont.load_default(size=LABEL_FONT_SIZE)
    width, height = font.getbbox(str(number))[2:]
    patch = Image.new("L", (round(width) + 8, round(height) + 4), 0)
    ImageDraw.Draw(patch).text(
        (patch.width / 2, patch.height / 2), str(number), font=font, fill=255, anchor="mm"
    )
    match = match_template(np.asarray(Image.fromarray(sheet).convert("L")), np.asarray(patch))
    y, x = np.unravel_index(match.argmax(), match.shape)
    assert match.max() > 0.9, f"{number} cannot be read"
    return x + patch.width / 2, y + patch.height / 2
