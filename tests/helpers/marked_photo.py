"""A photo with regions of known places, and stand-ins for what looks at it: for tests of zero-shot selection."""

from types import SimpleNamespace

import numpy as np
import skimage.data

from assistant.mllm.structured_output import Said
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.mask_ops import encode_rle
from assistant.sam.proposals import Proposals

PHOTO = skimage.data.coffee()  # 400 x 600
H, W = PHOTO.shape[:2]


def ellipse(x, y, a, b):
    v, u = np.mgrid[:H, :W]
    return ((u - x) / a) ** 2 + ((v - y) / b) ** 2 <= 1


THINGS = {
    "saucer": ellipse(280, 210, 200, 185),
    "cup": ellipse(292, 150, 118, 125),
    "coffee": ellipse(287, 145, 82, 50),
    "spoon": ellipse(367, 275, 42, 50),
    "table": ellipse(540, 320, 55, 70),
    "shine": ellipse(415, 78, 12, 14),
}
NAMES = list(THINGS)


def proposals_of(masks) -> Proposals:
    """Masks (H, W) bool as proposals, best first."""
    masks = list(masks)
    boxes = [
        (
            np.flatnonzero(m.any(0))[0],
            np.flatnonzero(m.any(1))[0],
            np.flatnonzero(m.any(0))[-1],
            np.flatnonzero(m.any(1))[-1],
        )
        for m in masks
    ]
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


class SamImageOpener:
    """Finds THINGS; asked by hand, it fills the box or a disc around the point, and notes what it was asked."""

    def __init__(self, masks=None):
        self.masks, self.asked = list(THINGS.values()) if masks is None else masks, []
        self.segmenter = SimpleNamespace(predict=self.predict)

    def open(self, image, progress=None):
        return SamOpenedImage(None, proposals_of(self.masks), image)

    def predict(self, embedding, points=None, labels=None, box=None, mask=None, multimask=True):
        self.asked.append((points, box))
        if box is None:
            mask = ellipse(*points[0], 20, 20)
        else:
            mask = np.zeros((H, W), bool)
            x0, y0, x1, y1 = (round(v) for v in box)
            mask[y0:y1, x0:x1] = True
        return mask[None], np.array([0.9], np.float32), None


class Scripted:
    """A multimodal LLM that says what `script` (turns, system, schema) -> text or Said makes of a request, or the next of
    a list of texts; everything that it was asked is in `asked`."""

    def __init__(self, script, name="qwen3_vl", crops=False, seen=None):
        self.script, self.name, self.crops, self.seen, self.asked = script, name, crops, seen, []

    def seen_size(self, image):
        return self.seen or (image.shape[1], image.shape[0])

    def ask(self, turns, system, schema, **options):
        self.asked.append((turns, system, schema))
        said = self.script(turns, system, schema) if callable(self.script) else self.script.pop(0)
        return said if isinstance(said, Said) else Said(said, tokens=5)
