"""Numbered marks on an image ("set-of-mark", Yang et al. 2023, arXiv 2310.11441).

Each region is outlined and has its number.

    sheets = arrange_sheets(proposals, marks_per_sheet=20, max_marks=60)
    numbers = number_marks(sheets)                             # {1: index of a proposal, 2: ...}
    sheet = draw_sheet(image, [(1, proposals.mask(i)), ...])   # (h, w, 3) uint8

A sheet is a copy of the image with marks. The outlines on one sheet hardly overlap: an object and its parts
are drawn on different sheets.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from assistant.mllm.label_placement import LabelPlace, place_labels
from assistant.sam.mask_ops import crop_around, rle_containment, rle_iou
from assistant.sam.proposals import Proposals

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

MIN_DUPLICATE_IOU = 0.75  # from which two proposals share one mark
# Where marks are too few, see `_covering`. Measured on 20 photos of COCO train2017 with 60 proposals of the
# pocket SAM: the IoU of each object with the best marked proposal is .24 on average for 20 marks and .29 for
# 30; .20 and .25 where the proposals of the best predicted IoU get the marks.
AREA_POWER = 0.25  # 0 favours small parts, 1 the background
QUALITY_POWER = 4  # of the predicted IoU
COVERAGE_SIDE = 128  # px of the image's longest side at which it is measured
MAX_OVERLAP_ON_SHEET = 0.3  # share of the smaller of two masks that may lie in the other one on a sheet
SHEET_SIDE = 1024  # px of a sheet's longest side; smaller images are enlarged, so that the numbers have room
READING_ROWS = 4  # into which a sheet is divided for the order of its numbers
LABEL_FONT_SIZE = 24  # px
OUTLINE_WIDTH = 3  # px inside the mask; a black line of 1 px surrounds it
# Bright colours. Each has a black line beside it, so that together they show on light and on dark.
MARK_COLOURS = ["#ffd400", "#00b7ff", "#ff4b3e", "#2ee66b", "#ff7ae0", "#ff9500", "#00e5d0", "#c49bff"]


def mask_overlaps(proposals: Proposals) -> tuple[np.ndarray, np.ndarray]:
    """How N proposals overlap each other.

    Returns:
        (N, N) IoU of the masks, and (N, N) intersection over the smaller area.
    """
    containment = rle_containment(proposals.rles, proposals.rles)
    return rle_iou(proposals.rles, proposals.rles), np.maximum(containment, containment.T)


def arrange_sheets(proposals: Proposals, marks_per_sheet: int, max_marks: int) -> list[list[int]]:
    """Choose the proposals that get marks, and the sheet of each.

    Of proposals that are nearly the same, the best one gets a mark. Where that leaves too many, those get one
    that cover the image best, see `_covering`. Larger ones choose their sheet first. What overlaps too
    much with others on every sheet goes where it overlaps least.

    Args:
        proposals: Best first.
        marks_per_sheet: Marks on one sheet, at most.
        max_marks: Marks in all, at most.

    Returns:
        For each sheet, the indices of its proposals in reading order.
    """
    iou, containment = mask_overlaps(proposals)
    distinct: list[int] = []
    for i in range(len(proposals)):
        if not distinct or iou[i, distinct].max() < MIN_DUPLICATE_IOU:
            distinct.append(i)
    chosen = _covering(proposals, distinct, max_marks)
    sheets: list[list[int]] = [[] for _ in range(-(-len(chosen) // marks_per_sheet))]
    max_sheets = -(-max_marks // marks_per_sheet)
    for i in sorted(chosen, key=lambda i: -proposals.areas[i]):
        with_room = [sheet for sheet in sheets if len(sheet) < marks_per_sheet]
        overlap = [containment[i, sheet].max() if sheet else 0.0 for sheet in with_room]
        fitting = [
            sheet
            for sheet, share in zip(with_room, overlap, strict=True)
            if not sheet or share <= MAX_OVERLAP_ON_SHEET
        ]
        if fitting:
            min(fitting, key=len).append(i)
        elif len(sheets) < max_sheets:
            sheets.append([i])
        else:
            with_room[int(np.argmin(overlap))].append(i)
    return [_in_reading_order(sheet, proposals) for sheet in sheets if sheet]


def _covering(proposals: Proposals, candidates: list[int], count: int) -> list[int]:
    """Choose proposals that cover an image: whole objects and large parts, and then what is small.

    The best predicted IoU alone would choose small crisp parts, since they are the easiest to outline. The
    next one is always that with the largest product of novelty, area and predicted IoU, the latter two to
    their powers. The novelty is the mean over its pixels of 1 / (1 + number of chosen masks there) squared.

    Args:
        proposals: The proposals.
        candidates: Indices of those to choose from.
        count: Number of proposals to choose, at most.

    Returns:
        Their indices.
    """
    if len(candidates) <= count:
        return candidates
    step = max(1, max(proposals.size) // COVERAGE_SIDE)
    masks = np.stack([proposals.mask(i)[::step, ::step] for i in candidates])
    sampled = masks.sum((1, 2))
    quality = proposals.predicted_iou[candidates].clip(0, 1) ** QUALITY_POWER
    weights = quality * np.maximum(proposals.areas[candidates], 1) ** AREA_POWER / np.maximum(sampled, 1)
    chosen: list[int] = []
    times_chosen = np.zeros(masks.shape[1:])
    for _ in range(count):
        gains = weights * np.einsum("nhw,hw->n", masks, 1 / (1 + times_chosen) ** 2)
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
        times_chosen += masks[chosen[-1]]
    return [candidates[k] for k in chosen]


def _in_reading_order(sheet: list[int], proposals: Proposals) -> list[int]:
    """The proposals of a sheet from left to right, row by row."""
    height = proposals.size[0]
    centres = (proposals.boxes[:, :2] + proposals.boxes[:, 2:]) / 2
    return sorted(sheet, key=lambda i: (int(centres[i, 1] * READING_ROWS / height), centres[i, 0]))


def number_marks(sheets: Sequence[Sequence[int]]) -> dict[int, int]:
    """{number of a mark, from 1: index of its proposal}, in the order of the sheets."""
    return dict(enumerate((i for sheet in sheets for i in sheet), 1))


def draw_sheet(image: np.ndarray, marks: Sequence[tuple[int | None, np.ndarray]]) -> np.ndarray:
    """Draw marks on a copy of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        marks: (number, mask (H, W) bool) pairs; a mark whose number is None is only outlined.

    Returns:
        (h, w, 3) uint8 RGB whose longest side is `SHEET_SIDE`.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape[:2]
    scale = SHEET_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    masks = [_resized_mask(mask, size) for _, mask in marks]
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    sheet = Image.fromarray(_outlined(resized, masks))
    font = ImageFont.load_default(size=LABEL_FONT_SIZE)
    texts = [str(number) if number is not None else None for number, _ in marks]
    places = place_labels([font.getbbox(text)[2:] if text else None for text in texts], masks, size)
    drawing = ImageDraw.Draw(sheet)
    for k, place in enumerate(places):  # all lines first, so that none crosses a label
        if place is not None:
            _draw_pointer(drawing, place, _colour_of(k))
    for k, (text, place) in enumerate(zip(texts, places, strict=True)):
        if text is not None and place is not None:
            _draw_label(drawing, text, place, _colour_of(k), font)
    return np.asarray(sheet)


def _colour_of(k: int) -> str:
    return MARK_COLOURS[k % len(MARK_COLOURS)]


def _resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) bool at another size (w, h)."""
    from PIL import Image

    grey = Image.fromarray(np.asarray(mask, np.uint8) * 255)
    return np.asarray(grey.resize(size, Image.Resampling.BILINEAR)) > 127


def _draw_pointer(drawing: "ImageDraw", place: LabelPlace, colour: str) -> None:
    """The line from a label to its region, where the label stands beside it."""
    if place.tip is not None:
        drawing.line([place.centre, place.tip], fill="black", width=5)
        drawing.line([place.centre, place.tip], fill=colour, width=3)


def _draw_label(drawing: "ImageDraw", text: str, place: LabelPlace, colour: str, font: "Font") -> None:
    drawing.rectangle(place.box, fill="black", outline=colour, width=2)
    drawing.text(place.centre, text, font=font, fill="white", anchor="mm")


def _outlined(image: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """An image with a coloured rim inside each mask and a black line around it.

    Smaller masks are drawn later.
    """
    from scipy import ndimage

    out = image.copy()
    neighbours = ndimage.generate_binary_structure(2, 2)
    for k, mask in sorted(enumerate(masks), key=lambda pair: -pair[1].sum()):
        crop = crop_around(mask, margin=2)
        if crop is None:
            continue
        inside = mask[crop]
        edge = ndimage.binary_dilation(inside, neighbours) & ~inside
        core = ndimage.binary_erosion(inside, neighbours, iterations=OUTLINE_WIDTH, border_value=1)
        out[crop][edge] = 0
        out[crop][inside & ~core] = [int(_colour_of(k)[j : j + 2], 16) for j in (1, 3, 5)]
    return out
