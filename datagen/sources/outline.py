"""Step 1, pick, where masks or names are missing: boxes become masks through SAM, photos without any labels get SAM's
proposals and a multimodal model's names for them.

    outliner = Outliner("pocket", kept)
    photo = outliner.boxes(photo, drops)                    # EgoObjects, any COCO file with boxes alone
    marked, rles = outliner.marks(photo); request = naming(marked); photo = named(photo, rles, answer, drops)

SAM looks at a picture once; what it found is kept by the picture's content and its own weights.
"""

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from datagen.llm.writer import Request, form
from datagen.result_cache import Kept, fingerprint
from datagen.sources.photos import Instance, Photo

MARKS = 20  # proposals at most that a model is asked to name
AREA = 0.002, 0.9  # share of the picture that such a proposal covers
ALIKE = 0.7  # IoU from which two proposals are the same thing
FILLS = 0.5  # IoU of a mask's own box with the box it was made from, at least
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

NAME = """In this photo some regions are outlined and numbered. Give for each number what the region shows: the common name of one
whole thing in one to three words, in the singular, or "nothing" where it shows no whole thing, several, or mere \
background. "count"
is how many of that name there are in the whole photo, outlined or not."""
NAMES = form(
    "names",
    things={
        "type": "array",
        "items": form(
            "thing", number={"type": "integer"}, name={"type": "string"}, count={"type": "integer"}
        ),
    },
)


class Outliner:
    """sam: "pocket", an official .pth, or a transformers folder or hub id of SAM or SAM 2. Loaded when first needed."""

    def __init__(self, sam: str, kept: Kept, device: str = "cpu"):
        self.sam, self.kept, self.device = sam, kept, device
        self.lock, self.segmenter = threading.Lock(), None
        file = Path(sam)
        self.weights = (
            [sam, file.stat().st_size, file.stat().st_mtime_ns] if sam != "pocket" and file.is_file() else sam
        )

    def load(self):
        """The segmenter. BadInput: there is none by that name."""
        if self.segmenter is None:
            from assistant.sam.segmenter import Segmenter

            if self.sam == "pocket":
                from assistant.pocket.pipeline import load_eyes
                from assistant.weights import pocket_file

                self.eyes = load_eyes(pocket_file("sam.safetensors"))
                self.segmenter = self.eyes.segmenter
            else:
                kind = Segmenter.official if self.sam.endswith(".pth") else Segmenter.transformers
                self.segmenter, self.eyes = kind(self.sam, device=self.device), None
        return self.segmenter

    def boxes(self, photo: Photo, drops: Counter) -> Photo:
        """The photo with a mask for each instance that had only a box; those whose mask does not fill its box go."""
        from pycocotools import mask as coco_mask

        without = [each for each in photo.instances if each.segmentation is None]
        if not without:
            return photo
        content = photo.file.read_bytes()
        name = fingerprint("boxes", self.weights, content, [each.box for each in without])
        if (rles := self.kept.get(name)) is None:
            with self.lock:
                rles = self._boxes(photo, [each.box for each in without])
            self.kept.put(name, rles)
        masks = dict(zip((each.id for each in without), rles))
        kept = []
        for each in photo.instances:
            if each.segmentation is None:
                rle = masks[each.id]
                if (
                    rle is None
                    or coco_mask.iou([list(coco_mask.toBbox(rle))], [list(each.box)], [0])[0, 0] < FILLS
                ):
                    drops["box: SAM's mask does not fill it"] += 1
                    continue
                each = replace(each, segmentation=rle, area=float(coco_mask.area(rle)))
            kept.append(each)
        return replace(photo, instances=tuple(kept))

    def _boxes(self, photo: Photo, boxes: list) -> list[dict | None]:
        from assistant.record import to_rle

        image = open_sized(photo)
        segmenter = self.load()
        embedding, found = segmenter.encode(image), []
        for x, y, width, height in boxes:
            try:
                masks, _, _ = segmenter.predict(embedding, box=[x, y, x + width, y + height], multimask=False)
                found.append(to_rle(masks[0]) if masks[0].any() else None)
            except BadInput:  # a box outside of the picture
                found.append(None)
        return found

    def marks(self, photo: Photo) -> tuple[np.ndarray, list[dict]]:
        """The picture with some proposals drawn and numbered, (H, W, 3) uint8, and their masks."""
        from assistant.export.drawing import draw_targets
        from assistant.record import from_rle

        image = open_sized(photo)
        name = fingerprint("marks", self.weights, photo.file.read_bytes())
        if (rles := self.kept.get(name)) is None:
            with self.lock:
                rles = distinct(self._propose(image), photo)
            self.kept.put(name, rles)
        targets = [(k, COLOURS[k % len(COLOURS)], str(k), from_rle(rle)) for k, rle in enumerate(rles, 1)]
        return np.asarray(draw_targets(image, targets)), rles

    def _propose(self, image: np.ndarray) -> list[dict]:
        segmenter = self.load()
        if self.eyes:
            return self.eyes.open(image).proposals.rles
        from assistant.sam.proposals import everything

        return everything(
            segmenter, segmenter.encode(image), image=image, fast=True, granularity=1, max_proposals=60
        ).rles


def open_sized(photo: Photo) -> np.ndarray:
    from assistant.images import open_image

    image = open_image(photo.file)
    if image.shape[:2] != (photo.height, photo.width):
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise BadInput(f"{photo.file} is {size}, its annotations say {photo.width}x{photo.height}")
    return image


def distinct(rles: list[dict], photo: Photo) -> list[dict]:
    """The first MARKS of the masks, best first, that are of some size and unlike each other."""
    from pycocotools import mask as coco_mask

    chosen = []
    for rle in rles:
        share = coco_mask.area(rle) / (photo.width * photo.height)
        new = not chosen or coco_mask.iou([rle], chosen, [0] * len(chosen)).max() < ALIKE
        if new and AREA[0] <= share <= AREA[1]:
            chosen.append(rle)
        if len(chosen) == MARKS:
            break
    return chosen


def naming(marked: np.ndarray) -> Request:
    """Asks a multimodal model what the numbered regions are."""
    return Request([{"role": "user", "content": NAME}], NAMES, 0, marked)


def named(photo: Photo, rles: list[dict], answer: dict | None, drops: Counter) -> Photo:
    """The photo with an instance for each region that was named. Names of which more were counted than outlined are
    `partial`. Nothing is known to be absent."""
    from pycocotools import mask as coco_mask

    if answer is None:
        drops["names: no usable answer"] += 1
        return photo
    instances, counted = {}, Counter()
    for thing in answer["things"]:
        key, number = " ".join(thing["name"].lower().replace("_", " ").split()), thing["number"]
        if not 1 <= number <= len(rles) or number in instances:
            drops["names: no such region"] += 1
        elif key in ("", "nothing", "none", "background", "unknown") or len(key.split()) > 4:
            drops["names: no whole thing"] += 1
        else:
            rle = rles[number - 1]
            box = tuple(float(v) for v in coco_mask.toBbox(rle))
            instances[number] = Instance(number, key, rle, box, float(coco_mask.area(rle)), False)
            counted[key] = max(counted[key], thing["count"])
    outlined = Counter(each.key for each in instances.values())
    partial = frozenset(key for key in outlined if counted[key] > outlined[key])
    return replace(photo, instances=tuple(instances[k] for k in sorted(instances)), partial=partial)
