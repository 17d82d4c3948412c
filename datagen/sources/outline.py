"""Step 1, pick, where masks are missing: SAM makes them from boxes, or proposes regions.

    outliner = Outliner("pocket", cache)
    image = outliner.outline_boxes(image, drops)     # EgoObjects, any COCO file that has boxes alone
    marked, rles = outliner.propose(image)           # to be named: see `datagen.llm.naming`

SAM encodes an image once; what it gave is cached by the image's content and SAM's own weights. A change of
what is made here needs a new `datagen.versions.OUTLINER_VERSION`.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.errors import BadInput
from datagen.result_cache import Cache, fingerprint
from datagen.sources.annotated_images import AnnotatedImage

if TYPE_CHECKING:
    from assistant.pipeline import ImageOpener

MAX_PROPOSALS = 60  # of everything mode, before those that cannot be named are left out
MAX_REGIONS_TO_NAME = 20  # of an image, in one drawing: more numbers cover what they stand for
MIN_REGION_SHARE, MAX_REGION_SHARE = 0.002, 0.9  # of the image's area: no specks, and not the image itself
MAX_REGION_IOU = 0.7  # two proposals that overlap more are the same object
MIN_BOX_IOU = 0.5  # of a mask's own box with the box it was made from: below, SAM outlined something else
# Of outlines and numbers: Okabe and Ito's, which the colour-blind can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


class Outliner:
    """Makes masks with one SAM, loaded when it is first needed.

    Args:
        sam: "pocket", an official .pth, or a transformers folder or hub id of SAM or SAM 2.
        cache: Where masks are stored.
        device: Such as "cpu" or "cuda".

    Attributes:
        weights: Names SAM's weights: `sam`, or [path, size, modification time] of a file.
    """

    def __init__(self, sam: str, cache: Cache, device: str = "cpu"):
        self.sam = sam
        self.cache = cache
        self.device = device
        self.opener: ImageOpener[Any] | None = None
        self._lock = threading.Lock()  # SAM handles one image at a time, threads ask for many
        self.weights: str | list[Any] = sam
        if Path(sam).is_file():
            state = Path(sam).stat()
            self.weights = [sam, state.st_size, state.st_mtime_ns]

    def load(self) -> "ImageOpener[Any]":
        """Return what opens images.

        Raises:
            BadInput: There is no SAM by that name.
        """
        if self.opener is None:
            from assistant.loading.sams import load_image_opener
            from assistant.sam.image_opener import SamImageOpener

            opener, _ = load_image_opener(self.sam, self.device)
            if isinstance(opener, SamImageOpener):
                # Whole objects are easier to name than parts; the pocket SAM's own opener has no such choice.
                opener = SamImageOpener(opener.segmenter, MAX_PROPOSALS, granularity=1)
            self.opener = opener
        return self.opener

    def outline_boxes(self, image: AnnotatedImage, drops: Counter[str]) -> AnnotatedImage:
        """Make a mask for each instance that has a box alone.

        Args:
            image: The image.
            drops: Counts the instances whose mask does not fill their box; they are left out, and their
                categories are partial.

        Raises:
            BadInput: The image cannot be read, or has another size than its annotations say.
        """
        from assistant.sam.mask_ops import rle_area

        without_mask = [each for each in image.instances if each.segmentation is None]
        if not without_mask:
            return image
        boxes = [each.box for each in without_mask]
        name = fingerprint("boxes", self.weights, image.file.read_bytes(), boxes)
        if (rles := self.cache.get(name)) is None:
            with self._lock:
                rles = self._masks_from_boxes(image, boxes)
            self.cache.put(name, rles)
        masks = dict(zip((each.id for each in without_mask), rles, strict=True))
        instances = []
        partial = set(image.partial)
        for each in image.instances:
            if each.segmentation is None:
                rle = masks[each.id]
                if rle is None or not _fills(rle, each.box):
                    drops["box: SAM's mask does not fill it"] += 1
                    partial.add(each.key)
                    continue
                each = replace(each, segmentation=rle, area=float(rle_area(rle)))
            instances.append(each)
        return replace(image, instances=tuple(instances), partial=frozenset(partial))

    def _masks_from_boxes(
        self, image: AnnotatedImage, boxes: Sequence[tuple[float, float, float, float]]
    ) -> list[dict[str, Any] | None]:
        """An RLE for each box (x, y, width, height) in px; None where SAM finds nothing in it."""
        from assistant.sam.mask_ops import encode_rle

        pixels = open_pixels(image)
        segmenter = self.load().segmenter
        embedding = segmenter.encode(pixels)
        rles: list[dict[str, Any] | None] = []
        for x, y, width, height in boxes:
            corners = [x, y, x + width, y + height]
            try:
                masks, _, _ = segmenter.predict(embedding, box=corners, multimask=False)
                rles.append(encode_rle(masks[0]) if masks[0].any() else None)
            except BadInput:  # a box outside of the image
                rles.append(None)
        return rles

    def propose(self, image: AnnotatedImage) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Outline and number some regions of an image.

        Returns:
            The image with their outlines and numbers, (H, W, 3) uint8 RGB, and their masks as RLE; the first
            has number 1.

        Raises:
            BadInput: The image cannot be read, or has another size than its annotations say.
        """
        from assistant.export.drawing import draw_targets
        from assistant.sam.mask_ops import decode_rle

        pixels = open_pixels(image)
        name = fingerprint("marks", self.weights, image.file.read_bytes())
        if (rles := self.cache.get(name)) is None:
            with self._lock:
                _, proposals = self.load().propose(pixels)
                rles = distinct_regions(proposals.rles, image)
            self.cache.put(name, rles)
        targets = [
            (number, COLOURS[number % len(COLOURS)], str(number), decode_rle(rle))
            for number, rle in enumerate(rles, 1)
        ]
        return np.asarray(draw_targets(pixels, targets)), rles


def open_pixels(image: AnnotatedImage) -> np.ndarray:
    """Read an image's file as (H, W, 3) uint8 RGB.

    Raises:
        BadInput: It cannot be read, or has another size than its annotations say.
    """
    from assistant.images import open_image

    pixels = open_image(image.file)
    height, width = pixels.shape[:2]
    if (height, width) != (image.height, image.width):
        raise BadInput(f"{image.file} is {width}x{height}, its annotations say {image.width}x{image.height}")
    return pixels


def distinct_regions(rles: Sequence[dict[str, Any]], image: AnnotatedImage) -> list[dict[str, Any]]:
    """Choose the first masks that are neither specks nor the whole image, and unlike each other."""
    from assistant.sam.mask_ops import rle_iou

    chosen: list[dict[str, Any]] = []
    for rle in rles:
        is_new = not chosen or rle_iou([rle], chosen).max() < MAX_REGION_IOU
        if is_new and MIN_REGION_SHARE <= image.area_share(rle) <= MAX_REGION_SHARE:
            chosen.append(rle)
        if len(chosen) == MAX_REGIONS_TO_NAME:
            break
    return chosen


def _fills(rle: dict[str, Any], box: tuple[float, float, float, float]) -> bool:
    """Whether a mask's own box is about the box (x, y, width, height) that it was made from."""
    from pycocotools import mask as coco_mask

    return bool(coco_mask.iou([list(coco_mask.toBbox(rle))], [list(box)], [0])[0, 0] >= MIN_BOX_IOU)
