"""Numbered marks on a photo ("set-of-mark", Yang et al. 2023, arXiv 2310.11441): regions outlined, each with its number.

    sheets = lay_out(proposals, a_sheet=20, most=60)       # [[index of a proposal, ...], ...] one list a sheet
    numbers = number(sheets)                               # {1: index, 2: index, ...} in the order of the sheets
    picture = draw_sheet(image, [(1, proposals.mask(i)), ...])     # (h, w, 3) uint8

Outlines of one sheet hardly overlap: a whole and its parts come on different sheets.
"""

import numpy as np

from assistant.sam.proposals import Proposals

ALIKE = 0.75  # IoU from which two proposals are one mark
APART = 0.3  # share of the smaller of two masks that may lie in the other on one sheet
SIDE = 1024  # px of a sheet's longest side; smaller photos are enlarged, so that the numbers have room
PLACING = 4  # labels are placed on a grid of so many px
DETOUR = 24  # such cells that a label goes further rather than lie on another region
# Bright, since each has a black line beside it: together they show on light and on dark.
COLOURS = ["#ffd400", "#00b7ff", "#ff4b3e", "#2ee66b", "#ff7ae0", "#ff9500", "#00e5d0", "#c49bff"]


def overlaps(proposals: Proposals) -> tuple[np.ndarray, np.ndarray]:
    """(N, N) IoU of the masks, and (N, N) intersection over the smaller area."""
    from pycocotools import mask as coco

    n, rles = len(proposals), proposals.rles
    if not n:
        return np.zeros((0, 0)), np.zeros((0, 0))
    within = np.asarray(coco.iou(rles, rles, [1] * n))  # of a crowd: the share of the first inside the second
    return np.asarray(coco.iou(rles, rles, [0] * n)), np.maximum(within, within.T)


def lay_out(proposals: Proposals, a_sheet: int, most: int) -> list[list[int]]:
    """Indices of the proposals that get marks, sheet by sheet, in reading order: the best of those that are alike, at most
    `most`, at most `a_sheet` a sheet, larger ones first. What overlaps too much for every sheet goes where it does least."""
    iou, inside = overlaps(proposals)
    kept: list[int] = []
    for i in range(len(proposals)):  # best first
        if len(kept) < most and (not kept or iou[i, kept].max() < ALIKE):
            kept.append(i)
    sheets: list[list[int]] = [[] for _ in range(-(-len(kept) // a_sheet))]
    limit = -(-most // a_sheet)
    for i in sorted(kept, key=lambda i: -proposals.areas[i]):
        room = [sheet for sheet in sheets if len(sheet) < a_sheet]
        free = [sheet for sheet in room if not sheet or inside[i, sheet].max() <= APART]
        if free:
            min(free, key=len).append(i)
        elif len(sheets) < limit:
            sheets.append([i])
        else:
            min(room, key=lambda sheet: inside[i, sheet].max()).append(i)
    height = proposals.size[0]
    middle = (proposals.boxes[:, :2] + proposals.boxes[:, 2:]) / 2
    return [
        sorted(sheet, key=lambda i: (int(middle[i, 1] * 4 / height), middle[i, 0]))
        for sheet in sheets
        if sheet
    ]


def number(sheets: list[list[int]]) -> dict[int, int]:
    """{number on the picture, from 1: index of the proposal}."""
    return dict(enumerate((i for sheet in sheets for i in sheet), 1))


def draw_sheet(image: np.ndarray, marks: list[tuple[int | None, np.ndarray]]) -> np.ndarray:
    """image (H, W, 3) uint8, marks: (number, mask (H, W) bool) -> (h, w, 3) uint8, longest side SIDE. A mark without a
    number is only outlined."""
    from PIL import Image, ImageDraw, ImageFont

    h, w = image.shape[:2]
    scale = SIDE / max(h, w)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    resize = lambda x, how: np.asarray(Image.fromarray(x).resize(size, how))
    masks = [resize(np.asarray(mask, np.uint8) * 255, Image.Resampling.BILINEAR) > 127 for _, mask in marks]
    picture = Image.fromarray(_outlined(resize(image, Image.Resampling.LANCZOS), masks))
    font = ImageFont.load_default(size=24)
    places = _places([font.getbbox(str(n))[2:] if n is not None else None for n, _ in marks], masks, size)
    draw = ImageDraw.Draw(picture)
    for k, ((n, _), place) in enumerate(zip(marks, places)):
        if place is None:
            continue
        colour, (box, tip) = COLOURS[k % len(COLOURS)], place
        if tip is not None:  # a small region: its label stands beside it
            middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            draw.line([middle, tip], fill="black", width=5)
            draw.line([middle, tip], fill=colour, width=3)
    for k, ((n, _), place) in enumerate(zip(marks, places)):
        if place is not None:
            box, _ = place
            draw.rectangle(box, fill="black", outline=COLOURS[k % len(COLOURS)], width=2)
            draw.text(
                ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), str(n), font=font, fill="white", anchor="mm"
            )
    return np.asarray(picture)


def _outlined(image: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """A coloured rim inside each mask and a black one around it, so that it shows on light and on dark."""
    from scipy import ndimage

    out = image.copy()
    around = ndimage.generate_binary_structure(2, 2)
    for k, mask in sorted(enumerate(masks), key=lambda pair: -pair[1].sum()):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        part = (slice(max(0, rows[0] - 2), rows[-1] + 3), slice(max(0, columns[0] - 2), columns[-1] + 3))
        inside = mask[part]
        edge = ndimage.binary_dilation(inside, around) & ~inside
        rim = inside & ~ndimage.binary_erosion(inside, around, iterations=3, border_value=1)
        colour = [int(COLOURS[k % len(COLOURS)][j : j + 2], 16) for j in (1, 3, 5)]
        out[part][edge], out[part][rim] = 0, colour
    return out


def _places(labels: list, masks: list[np.ndarray], size: tuple[int, int]) -> list:
    """Where the labels (w, h) px go: (box xyxy px, None) inside their masks, (box, a point of the mask) beside those that
    are too small, None for no label. Small masks choose first; a label lies neither on another nor on a smaller mask."""
    from scipy import ndimage

    w, h = size[0] // PLACING, size[1] // PLACING
    taken, places = np.zeros((h, w), bool), [None] * len(masks)
    small = [mask[PLACING // 2 :: PLACING, PLACING // 2 :: PLACING][:h, :w] for mask in masks]
    small = [np.pad(m, ((0, h - m.shape[0]), (0, w - m.shape[1]))) for m in small]
    covered = np.zeros((h, w), bool)  # by the masks that have chosen
    everything = np.any(small, axis=0) if small else covered
    for k in sorted(range(len(masks)), key=lambda k: masks[k].sum()):
        if labels[k] is None:
            continue
        half = [-(-(side + 10) // 2 // PLACING) for side in labels[k]]  # of the box around the text, in cells
        fits = lambda free: ndimage.binary_erosion(free, np.ones((2 * half[1] + 1, 2 * half[0] + 1)))
        inside = fits(small[k] & ~taken & ~covered)
        tip = None
        if inside.any():  # the roomiest place of the mask
            depth = ndimage.distance_transform_edt(np.pad(small[k] & ~taken & ~covered, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(np.argmax(np.where(inside, depth, -1)), depth.shape)
        else:
            ys, xs = np.nonzero(masks[k])
            if not len(ys):
                continue
            nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
            tip = int(xs[nearest]), int(ys[nearest])
            room = fits(~taken & ~small[k])
            if not room.any():
                continue
            cost = np.hypot(np.arange(h)[:, None] - tip[1] / PLACING, np.arange(w)[None] - tip[0] / PLACING)
            cost += DETOUR * ~fits(~covered) + DETOUR / 4 * ~fits(~everything)
            y, x = np.unravel_index(np.argmin(np.where(room, cost, np.inf)), cost.shape)
        left, top, right, bottom = x - half[0], y - half[1], x + half[0] + 1, y + half[1] + 1
        taken[max(0, top) : bottom, max(0, left) : right] = True
        covered |= small[k]
        places[k] = [left * PLACING, top * PLACING, right * PLACING, bottom * PLACING], tip
    return places
