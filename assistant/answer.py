"""An answer: what was asked about, with a mask for everything that is present, and its exports.

answer.mask                 # (H, W) bool, union of the present targets
answer.overlay().show()     # the image with coloured, named masks
answer.save("out")          # PNGs, answer.json, coco.json, labelme.json, and image.txt as YOLO reads it
answer.to_detections()      # as the supervision package takes it
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.errors import BadInput
from assistant.export.coco import coco_instances
from assistant.export.colours import colours_on
from assistant.export.detections import to_supervision
from assistant.export.drawing import draw_targets
from assistant.export.image_folder import cut_out, file_safe, mask_image, write_folder
from assistant.export.labelme import labelme_file
from assistant.export.yolo import YoloLabels, yolo_labels
from assistant.sam.instances import fitted, in_reading_order
from assistant.sam.mask_ops import encode_rle, tight_box_xywh

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from supervision import Detections

IMAGE_FILE = "image.png"  # name of the image beside its exports
MISSING_IMAGE_GREY = 128  # of an overlay without an image
MAX_NUMBERED_INSTANCES = 9  # of a target on an overlay, which has no room for more names


@dataclass
class Target:
    """Something that was asked about.

    Attributes:
        phrase: What the answer calls it.
        present: Whether it is in the image.
        confidence: In [0, 1], that it is in the image.
        mask: (H, W) bool; None where it is absent.
        proposals: Indices of the proposals whose union is the mask.
        others: Indices of the next best proposals, best first; [] where the selector does not rank them.
        known: Whether the preset knows what was asked for. False for an absent target means that the word is
            not known, which is not to say that nothing of the kind is there.
        seen: Whether the model sees it though nothing outlines it. Such a target has no mask and so is not
            `present`, but it is not said to be absent either: the text says that it is there.
        instances: (H, W) bool each, one for each object that the mask covers, from left to right or from top
            to bottom; [] where it is absent. Their union is the mask: whatever is given is fitted to it, and
            without any the whole mask is one instance.
        searched: The phrases that a concept segmenter looked for; [] without one.
    """

    phrase: str
    present: bool
    confidence: float
    mask: np.ndarray | None = field(repr=False)
    proposals: list[int]
    others: list[int] = field(default_factory=list, repr=False)
    known: bool = True
    seen: bool = False
    instances: list[np.ndarray] = field(default_factory=list, repr=False, compare=False)
    searched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fit_instances()

    def fit_instances(self) -> None:
        """Make the instances fit the mask, for whoever changed either. Raises BadInput for other sizes."""
        if not self.present or self.mask is None:
            self.instances = []
            return
        mask = self.mask = np.asarray(self.mask).astype(bool, copy=False)
        for instance in self.instances:
            if instance.shape != mask.shape:
                raise BadInput(
                    f"an instance of {self.phrase!r} has shape {instance.shape}, its mask {mask.shape}"
                )
        self.instances = in_reading_order(fitted(self.instances, mask))


@dataclass(frozen=True)
class Cost:
    """What answering a question took.

    Attributes:
        seconds: From the question to the answer, on an opened image.
        calls: Number of times that a language model was asked.
        tokens: Number of tokens that it wrote, those of its thoughts included.
        read_tokens: Number of tokens that it read, those of images included; None where that is unknown.
        image_tokens: Number of those of images; None where that is unknown.
        passes: Number of phrases that a concept segmenter looked for; None without one.
    """

    seconds: float = 0.0
    calls: int = 0
    tokens: int = 0
    read_tokens: int | None = None
    image_tokens: int | None = None
    passes: int | None = None


@dataclass
class Answer:
    """An answer to one question about an image.

    Attributes:
        text: The answer as a person reads it, without tokens.
        targets: What was asked about, in the order of the text.
        size: (height, width) in pixels of the image.
        image: (H, W, 3) uint8 RGB; None where it is not at hand.
        question: The question.
        tokens: Number of tokens that were generated; None where that is unknown.
        said: The reply as the model wrote it; "" where no model wrote it.
        reasoning: What the model thought before it answered, where it says so.
        cost: What it took; None where that is not known.

    Raises:
        BadInput: A mask or the image has another size, or a present target has no mask.
    """

    text: str
    targets: list[Target]
    size: tuple[int, int]
    image: np.ndarray | None = field(repr=False)
    question: str = ""
    tokens: int | None = None
    said: str = field(default="", repr=False)
    reasoning: str = ""
    cost: Cost | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
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
                target.fit_instances()

    @property
    def present(self) -> list[Target]:
        """The targets that are in the image."""
        return [target for target in self.targets if target.present]

    @property
    def searched(self) -> list[list[str]]:
        """The phrases that a concept segmenter looked for, for each target; see `Scene.search_again`."""
        return [target.searched for target in self.targets]

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: the union of the present targets."""
        union = np.zeros(self.size, dtype=bool)
        for _, mask in self._present_masks():
            union |= mask
        return union

    def _present_masks(self) -> list[tuple[Target, np.ndarray]]:
        """The present targets with their masks."""
        return [(target, target.mask) for target in self.present if target.mask is not None]

    def _present_instances(self) -> list[tuple[Target, np.ndarray]]:
        """The mask of each instance of the present targets, with its target."""
        return [(target, mask) for target in self.present for mask in target.instances]

    def _absent_phrases(self) -> list[str]:
        return [target.phrase for target in self.targets if not target.present]

    def to_json(self) -> dict[str, Any]:
        """Question, text and targets as JSON values.

        Returns:
            {"question", "text", "width", "height", "targets": [{"phrase", "present", "confidence", "box",
            "area", "proposals", "rle", "instances": [{"box", "area", "rle"}]}]}, and "reasoning" where there
            is some. "box" is xywh in px and "rle" COCO's with counts as a str; both are None for an absent
            target, which has no instances. A target that is not `known` has "known": False, one that is only
            `seen` has "seen": True, and one that phrases were looked for has them in "searched".
        """
        rows = []
        for target in self.targets:
            mask = target.mask if target.present else None
            more: dict[str, Any] = {} if target.known else {"known": False}
            more |= {"seen": True} if target.seen else {}
            more |= {"searched": list(target.searched)} if target.searched else {}
            rows.append(
                {
                    "phrase": target.phrase,
                    "present": bool(target.present),
                    "confidence": float(target.confidence),
                    **({"box": None, "area": 0, "rle": None} if mask is None else _outline_to_json(mask)),
                    "proposals": [int(index) for index in target.proposals],
                    "instances": [_outline_to_json(instance) for instance in target.instances],
                    **more,
                }
            )
        reasoning = {"reasoning": self.reasoning} if self.reasoning else {}
        return {
            "question": self.question,
            "text": self.text,
            **reasoning,
            "width": self.size[1],
            "height": self.size[0],
            "targets": rows,
        }

    def to_coco(self, file_name: str = IMAGE_FILE) -> dict[str, Any]:
        """The instances of the present targets, see `assistant.export.coco`; `file_name`: of the image."""
        instances = [(target.phrase, mask, target.confidence) for target, mask in self._present_instances()]
        return coco_instances(self.size, file_name, instances, self._absent_phrases())

    def to_labelme(self, image_path: str = IMAGE_FILE) -> dict[str, Any]:
        """The targets as a LabelMe 5 file, see `assistant.export.labelme`.

        `image_path`: the image, from the file's folder.
        """
        instances = [(target.phrase, mask) for target, mask in self._present_instances()]
        return labelme_file(self.size, image_path, instances, self._absent_phrases())

    def to_yolo(self) -> YoloLabels:
        """A line of YOLO's segmentation format for each instance, see `assistant.export.yolo`."""
        return yolo_labels(self.size, [(target.phrase, mask) for target, mask in self._present_instances()])

    def to_detections(self) -> Detections:
        """The instances of the present targets, see `assistant.export.detections`.

        Raises:
            BadInput: The supervision package is not installed.
        """
        instances = [(target.phrase, mask, target.confidence) for target, mask in self._present_instances()]
        return to_supervision(self.size, instances)

    @cached_property
    def colours(self) -> list[str]:
        """The "#rrggbb" of each target's mask, see `assistant.export.colours.colours_on`."""
        return colours_on(self.image, [target.mask for target in self.targets])

    def overlay(self) -> PilImage:
        """Draw the present targets on the image.

        Returns:
            A PIL RGB image of the answer's size: each instance in its target's colour
            (`assistant.export.colours`), with outline and name, and with its number where there are several;
            on grey where the image is not at hand.
        """
        image = self.image
        if image is None:
            image = np.full((*self.size, 3), MISSING_IMAGE_GREY, np.uint8)
        shown = [
            (number, colour, name, mask)
            for number, (target, colour) in enumerate(zip(self.targets, self.colours, strict=True), 1)
            for name, mask in zip(_instance_names(target), target.instances, strict=True)
        ]
        return draw_targets(image, shown)

    def save(self, folder: str | Path) -> list[Path]:
        """Write the answer into a folder, each file whole or not at all.

        The files are mask.png (the union, 0 and 255), N_NAME.png for each present target (N: its place among
        the targets), N_NAME_K.png for each instance of one that has several, overlay.png, answer.json (which
        names the masks' files), coco.json, labelme.json, and image.txt and classes.txt as YOLO reads them;
        where the image is at hand also image.png, and N_NAME_cutout.png for each present target (RGBA of its
        box, transparent around the mask). Of an answer that was saved there before, the files that its
        answer.json lists are removed or replaced, so that the two do not mix; nothing else is.

        Args:
            folder: The folder; it is created where it is missing.

        Returns:
            The paths of the files.

        Raises:
            BadInput: The folder cannot be written to.
        """
        from PIL import Image

        images = {"mask.png": mask_image(self.mask), "overlay.png": self.overlay()}
        if self.image is not None:
            images[IMAGE_FILE] = Image.fromarray(self.image)
        row = self.to_json()
        for number, (target, target_row) in enumerate(zip(self.targets, row["targets"], strict=True), 1):
            target_row["file"] = None
            if target.present and target.mask is not None:
                name = f"{number}_{file_safe(target.phrase)}"
                target_row["file"] = f"{name}.png"
                images[f"{name}.png"] = mask_image(target.mask)
                if len(target.instances) > 1:
                    for k, (mask, mask_row) in enumerate(
                        zip(target.instances, target_row["instances"], strict=True), 1
                    ):
                        mask_row["file"] = f"{name}_{k}.png"
                        images[mask_row["file"]] = mask_image(mask)
                if self.image is not None and target.mask.any():
                    images[f"{name}_cutout.png"] = cut_out(self.image, target.mask)
        tables = {"answer.json": row, "coco.json": self.to_coco(), "labelme.json": self.to_labelme()}
        yolo = self.to_yolo()
        names = "".join(f"{' '.join(name.split())}\n" for name in yolo.names)
        texts = {Path(IMAGE_FILE).with_suffix(".txt").name: yolo.text, "classes.txt": names}
        return write_folder(Path(folder), images, tables, texts)


def _outline_to_json(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) bool as JSON values: its box xywh in px, its area in px, and its RLE."""
    return {"box": tight_box_xywh(mask), "area": int(mask.sum()), "rle": encode_rle(mask)}


def _instance_names(target: Target) -> list[str]:
    """What is written on each instance of a target: its name, with a number where there are several."""
    count = len(target.instances)
    if count <= MAX_NUMBERED_INSTANCES:
        return [f"{target.phrase} {k}" if count > 1 else target.phrase for k in range(1, count + 1)]
    return [target.phrase, *[""] * (count - 1)]
