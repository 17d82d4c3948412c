"""What every part passes on: the things an answer is about, with their masks, and its exports.

answer.mask                 # (H, W) bool, union of what is there
answer.overlay().show()     # the picture with coloured, named masks
answer.save("out")          # PNGs, answer.json, coco.json, labelme.json
"""

import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.record import to_rle

# Told apart on photos and by most colour-blind eyes first (after Okabe & Ito 2008), then more hues.
COLOURS = [
    "#e69f00",
    "#0072b2",
    "#e6194b",
    "#009e73",
    "#f0e442",
    "#cc79a7",
    "#56b4e9",
    "#911eb4",
    "#aaffc3",
    "#d55e00",
    "#9a6324",
    "#f032e6",
]
PICTURE = "image.png"  # the name of the picture beside the exports


def colour_of(index: int) -> str:
    """The "#rrggbb" of an answer's target, counted from 0; after the last colour the first comes again."""
    return COLOURS[index % len(COLOURS)]


@dataclass
class Target:
    """One thing that was asked about.

    confidence: in [0, 1], that it is there; mask: (H, W) bool, None where it is absent; proposals: indices of the
    proposals whose union the mask is; others: the next best proposals, best first, where the selector tells.
    """

    phrase: str
    present: bool
    confidence: float
    mask: np.ndarray | None = field(repr=False)
    proposals: list[int]
    others: list[int] = field(default_factory=list, repr=False)


@dataclass
class Answer:
    """A reply and what it points at. size: (h, w) px; image: (H, W, 3) uint8 or None; tokens: generated, if known;
    said: the reply as the model wrote it, if a model wrote it; reasoning: what it thought before, if it says so.

    Raises BadInput where a mask or the image has another size, or a present target has no mask.
    """

    text: str
    targets: list[Target]
    size: tuple[int, int]
    image: np.ndarray | None = field(repr=False)
    question: str = ""
    tokens: int | None = None
    said: str = field(default="", repr=False)
    reasoning: str = ""

    def __post_init__(self):
        self.size = (int(self.size[0]), int(self.size[1]))
        if self.image is not None and self.image.shape != (*self.size, 3):
            raise BadInput(f"the image of an answer has shape {self.image.shape}, expected {(*self.size, 3)}")
        for target in self.targets:
            if target.mask is None and target.present:
                raise BadInput(f"{target.phrase!r} is present but has no mask")
            if target.mask is not None:
                target.mask = np.asarray(target.mask).astype(bool, copy=False)
                if target.mask.shape != self.size:
                    raise BadInput(
                        f"the mask of {target.phrase!r} has shape {target.mask.shape}, expected {self.size}"
                    )

    @property
    def present(self) -> list[Target]:
        """The targets that are there."""
        return [target for target in self.targets if target.present]

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: the union of the present targets."""
        union = np.zeros(self.size, dtype=bool)
        for target in self.present:
            union |= target.mask
        return union

    def to_json(self) -> dict:
        """Question, text and targets as JSON: box is xywh px (null where absent), rle COCO's with str counts;
        the reasoning only where there is some."""
        rows = []
        for target in self.targets:
            rle = to_rle(target.mask) if target.present else None
            rows.append(
                {
                    "phrase": target.phrase,
                    "present": bool(target.present),
                    "confidence": float(target.confidence),
                    "box": _box(target.mask) if rle else None,
                    "area": int(target.mask.sum()) if rle else 0,
                    "proposals": [int(k) for k in target.proposals],
                    "rle": rle,
                }
            )
        thought = {"reasoning": self.reasoning} if self.reasoning else {}
        return {
            "question": self.question,
            "text": self.text,
            **thought,
            "width": self.size[1],
            "height": self.size[0],
            "targets": rows,
        }

    def to_coco(self, file_name: str = PICTURE) -> dict:
        """COCO instances of one image: compressed RLE with str counts, box xywh px, area px, `score` in [0, 1].

        A category per distinct phrase that is there; phrases that are not are listed under "absent".
        """
        numbers: dict[str, int] = {}
        annotations = []
        for target in self.present:
            category = numbers.setdefault(target.phrase, len(numbers) + 1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 1,
                    "category_id": category,
                    "segmentation": to_rle(target.mask),
                    "bbox": _box(target.mask),
                    "area": int(target.mask.sum()),
                    "iscrowd": 0,
                    "score": float(target.confidence),
                }
            )
        return {
            "images": [{"id": 1, "file_name": file_name, "width": self.size[1], "height": self.size[0]}],
            "annotations": annotations,
            "categories": [{"id": k, "name": name} for name, k in numbers.items()],
            "absent": [target.phrase for target in self.targets if not target.present],
        }

    def to_labelme(self, image_path: str = PICTURE) -> dict:
        """A LabelMe 5 file. Points in px, (0, 0) the outer corner of the first pixel; a target's parts share group_id.

        LabelMe's polygons have no holes: a hole is filled, and the shape's description says so. A phrase that is
        absent is an image flag `no <phrase>`.
        """
        from assistant.export.drawing import outlines

        shapes = []
        for group, target in enumerate(self.present, 1):
            for points, holes in outlines(target.mask):
                shapes.append(
                    {
                        "label": target.phrase,
                        "points": points.tolist(),
                        "group_id": group,
                        "description": f"{holes} holes filled" if holes else "",
                        "shape_type": "polygon",
                        "flags": {},
                        "mask": None,
                    }
                )
        return {
            "version": "5.5.0",
            "flags": {f"no {t.phrase}": True for t in self.targets if not t.present},
            "shapes": shapes,
            "imagePath": image_path,
            "imageData": None,
            "imageHeight": self.size[0],
            "imageWidth": self.size[1],
        }

    def overlay(self):
        """A PIL RGB image of the answer's size: masks in COLOURS (by target), outlined, named; grey without image."""
        from assistant.export.drawing import draw_targets

        image = np.full((*self.size, 3), 128, np.uint8) if self.image is None else self.image
        return draw_targets(
            image,
            [
                (k + 1, colour_of(k), target.phrase, target.mask)
                for k, target in enumerate(self.targets)
                if target.present
            ],
        )

    def save(self, folder) -> list[Path]:
        """Write the answer into a folder, made where missing, every file whole or not at all; returns their paths.

        mask.png (union, 0/255), K_name.png per present target (K: its place among the targets), overlay.png,
        image.png where the image is known and K_name_cutout.png then (RGBA of its box, see-through around it),
        answer.json (which names the masks' files), coco.json, labelme.json.
        """
        from PIL import Image

        folder = Path(folder)
        pictures = {"mask.png": _grey(self.mask), "overlay.png": self.overlay()}
        if self.image is not None:
            pictures[PICTURE] = Image.fromarray(self.image)
        rows = self.to_json()
        for k, (target, row) in enumerate(zip(self.targets, rows["targets"]), 1):
            row["file"] = f"{k}_{_file_safe(target.phrase)}.png" if target.present else None
            if row["file"]:
                pictures[row["file"]] = _grey(target.mask)
            if row["file"] and self.image is not None and target.mask.any():
                pictures[row["file"].replace(".png", "_cutout.png")] = cut_out(self.image, target.mask)
        tables = {"answer.json": rows, "coco.json": self.to_coco(), "labelme.json": self.to_labelme()}
        with _writing(folder):
            for name, picture in pictures.items():
                with replace_whole(folder / name) as temporary:
                    picture.save(temporary, format="PNG", compress_level=3)
            for name, table in tables.items():
                with replace_whole(folder / name) as temporary:
                    temporary.write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")
        return [folder / name for name in (*pictures, *tables)]


def cut_out(image: np.ndarray, mask: np.ndarray):
    """image (H, W, 3) uint8, mask (H, W) bool, not empty -> PIL RGBA image of the mask's box, transparent elsewhere."""
    from PIL import Image

    x, y, w, h = _box(mask)
    part = slice(y, y + h), slice(x, x + w)
    return Image.fromarray(np.dstack([image[part], mask[part].astype(np.uint8) * 255]))


@contextlib.contextmanager
def _writing(folder: Path):
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"cannot write to {folder} ({error.strerror or error}): choose another folder"
        ) from None


def _box(mask: np.ndarray) -> list[int]:
    """xywh in px; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return [0, 0, 0, 0]
    y, x = int(rows[0]), int(columns[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def _grey(mask: np.ndarray):
    from PIL import Image

    return Image.fromarray(mask.astype(np.uint8) * 255)


def _file_safe(phrase: str) -> str:
    """Letters and digits of any script, dashes for the rest, 60 bytes at most; never empty."""
    name = re.sub(r"[^\w]+", "-", phrase, flags=re.UNICODE).strip("-_")
    return name.encode("utf-8")[:60].decode("utf-8", "ignore") or "it"
