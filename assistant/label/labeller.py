"""Labels one photo after the other: asks for the classes, takes their masks apart, writes the photo's files.

labeller = Labeller(settings, Assistant(*settings.models.load()))
outcome = labeller.label(photo)
outcome.error                      # None, or in one line why the photo has no labels
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from assistant.answer import Target
from assistant.dialogue.class_list import ClassMap, ask_classes
from assistant.errors import BadInput
from assistant.export.colours import palette, rgb_of
from assistant.export.drawing import draw_targets
from assistant.export.image_folder import PNG_COMPRESSION
from assistant.export.yolo import yolo_line
from assistant.files import replace_whole
from assistant.images import collect_notes
from assistant.label.photos import ENDINGS, IMAGES, LABEL_MAPS, LABELS, OVERLAYS, RESULTS, Photo, add_image
from assistant.label.result import FoundClass, PhotoResult, read_result, write_result
from assistant.label.settings import LabelSettings
from assistant.sam.instances import fitted
from assistant.sam.mask_ops import encode_rle
from assistant.scene import Assistant, Scene

OVERLAY_SIDE = 640  # px, the longer side of a photo on the contact sheet
OVERLAY_QUALITY = 85  # of its JPEG
# Area of an instance, relative to the largest one of its class in the photo, from which it is annotated. On
# 36 photos of COCO with 12 classes .1 leaves 372 annotations and .05 leaves 465, at the same AP and AR.
MIN_INSTANCE_AREA_RATIO = 0.1

ClassMasks = list[tuple[int, list[np.ndarray]]]  # (index of a class, the masks of its instances)


@dataclass(frozen=True)
class Outcome:
    """How it went with one photo.

    Attributes:
        name: The photo's.
        error: Why it has no labels, in one line; None where it has.
        was_opened: Whether the error came after the photo was opened: from the models, not from the file.
    """

    name: str
    error: str | None = None
    was_opened: bool = False


class Labeller:
    """Labels photos with the models of one process.

    Args:
        settings: Of the run.
        assistant: The models.
    """

    def __init__(self, settings: LabelSettings, assistant: Assistant):
        self.settings = settings
        self.assistant = assistant
        self.colours = palette(len(settings.classes))
        self._key = settings.key()

    def label(self, photo: Photo) -> Outcome:
        """Label a photo. Its result is written last: where it is there, all files of the photo are."""
        was_opened = False
        try:
            with collect_notes() as notes:
                scene = self.assistant.open(photo.file)
            was_opened = True
            class_map = ask_classes(scene, self.settings.classes)
            self._write(photo, scene, class_map, notes)
        except BadInput as error:
            return Outcome(photo.name, str(error), was_opened)
        return Outcome(photo.name)

    def _write(self, photo: Photo, scene: Scene, class_map: ClassMap, notes: list[str]) -> None:
        """Write the files of one photo."""
        out, names = self.settings.out, self.settings.classes
        masks = list(_masks_of_classes(class_map))
        earlier = read_result(photo.path_in(out, RESULTS))
        has_own_image = add_image(photo, out, None if earlier is None else earlier.has_own_image)
        with replace_whole(photo.path_in(out, LABELS)) as temporary:
            lines = [yolo_line(index, mask) + "\n" for index, parts in masks for mask in parts]
            temporary.write_text("".join(lines), encoding="utf-8")
        with replace_whole(photo.path_in(out, LABEL_MAPS)) as temporary:
            label_image(class_map.label, self.colours).save(temporary, "PNG", compress_level=PNG_COMPRESSION)
        with replace_whole(photo.path_in(out, OVERLAYS)) as temporary:
            self._overlay(scene.image, masks).save(temporary, "JPEG", quality=OVERLAY_QUALITY)
        found = [
            FoundClass(names[index], class_map.answers[names[index]][1], [encode_rle(mask) for mask in parts])
            for index, parts in masks
        ]
        absent = [name for name, target in class_map.found.items() if not target.present]
        result = PhotoResult(
            photo_key(self._key, photo.file),
            photo.name,
            scene.size[1],
            scene.size[0],
            found,
            [name for name in absent if class_map.found[name].known],
            [name for name in absent if not class_map.found[name].known],
            class_map.unanswered,
            notes,
            has_own_image,
        )
        write_result(photo.path_in(out, RESULTS), result)

    def _overlay(self, image: np.ndarray, masks: ClassMasks) -> Image.Image:
        """The photo with all masks, small; each class is named once."""
        scale = min(1.0, OVERLAY_SIDE / max(image.shape[:2]))
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        shown = []
        for index, parts in masks:
            for number, mask in enumerate(parts):
                name = self.settings.classes[index] if number == 0 else ""
                small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
                shown.append((index + 1, self.colours[index], name, small))
        return draw_targets(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)), shown)


def photo_key(settings_key: str, file: Path) -> str:
    """Names what a result is made of: the settings, and the photo by its file's size and time."""
    state = file.stat()
    return f"{settings_key} {state.st_size} {state.st_mtime_ns}"


def is_labelled(photo: Photo, settings_key: str, out: Path) -> bool:
    """Whether a run has labelled a photo in the same way, and its files are all there."""
    result = read_result(photo.path_in(out, RESULTS))
    return (
        result is not None
        and result.name == photo.name
        and result.key == photo_key(settings_key, photo.file)
        and all(photo.path_in(out, folder).is_file() for folder in (IMAGES, *ENDINGS))
    )


def label_image(label: np.ndarray, colours: list[str]) -> Image.Image:
    """A label map as a palette image.

    Args:
        label: (H, W), the index of each pixel's class; negative where there is none.
        colours: "#rrggbb" of each class.

    Returns:
        A PIL palette image: 0 where there is no class, and 1 more than its index where there is one.
    """
    image = Image.fromarray((label + 1).astype(np.uint8))
    image.putpalette([0, 0, 0, *(value for colour in colours for value in rgb_of(colour))])
    return image


def _masks_of_classes(class_map: ClassMap) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(index, masks (H, W) bool of its instances) of each class that has pixels in the label map."""
    for index, name in enumerate(class_map.names):
        pixels = class_map.label == index
        if pixels.any():
            yield index, instance_masks(class_map.found[name], pixels)


def instance_masks(target: Target, pixels: np.ndarray) -> list[np.ndarray]:
    """The instances of a class, none of which overlaps another.

    Args:
        target: The class, as it was answered.
        pixels: (H, W) bool, not empty: where the label map has the class.

    Returns:
        Masks (H, W) bool in reading order, without splinters.
    """
    rest = pixels.copy()
    masks = []
    for mask in fitted(target.instances, pixels):
        masks.append(mask & rest)
        rest &= ~mask
    least = MIN_INSTANCE_AREA_RATIO * max(mask.sum() for mask in masks)
    return [mask for mask in masks if mask.sum() >= max(1, least)]
