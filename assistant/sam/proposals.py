"""Everything mode: all the masks that a grid of clicks finds in a picture.

    proposals = everything(segmenter, segmenter.encode(image))
    proposals.masks, proposals.boxes, proposals.predicted_iou          # (N, H, W) bool, (N, 4), (N,)
    everything(segmenter, embedding, fast=True)                        # fewer clicks, for pictures opened while waiting
    everything(segmenter, embedding, granularity=1, max_proposals=60)  # whole objects rather than parts

With fast=False the masks are those of segment-anything's SamAutomaticMaskGenerator (Kirillov et al. 2023, arXiv
2304.02643, appendix B) for the same weights, grid and thresholds; only the order of the work differs:

1. predicted IoU is known before a mask is drawn, so hopeless prompts are never drawn;
2. the most that stability can be, given the low-resolution logits, removes what is unstable;
3. non-maximum suppression runs from the best mask down and looks at full resolution only at masks that their
   low-resolution box does not already rule out; stability and box are exact for all that it keeps;
4. a mask is upsampled within its own box, by two small matrix products, and kept as RLE.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from assistant.errors import BadInput
from assistant.sam.mask_ops import (
    box_area,
    box_intersection,
    box_iou,
    decode_rle,
    encode_patch_rle,
    encode_rle,
    tight_box,
    tight_boxes,
)
from assistant.sam.mask_resizing import Resizer, fill_and_drop, solid

FAR = -10.0  # logit given to the cells that a proposal does not keep; SAM's background lies about there
AGREED = 0.9  # IoU from which two clicks mean the same thing (fast)
EDGE = 20  # px: a mask whose box comes so near to the edge of a crop was cut off by it (SamAutomaticMaskGenerator's)


@dataclass
class Proposals:
    """N masks of one picture of `size` (H, W), best first.

    rles: COCO RLE dicts with str counts. boxes: (N, 4) float32 xyxy px, SAM's convention: the first and last
    columns and rows of the mask, both included. predicted_iou, stability: (N,) float32. areas: (N,) int64 px.
    points: (N, 2) float32 xy px, the click behind each. low_res_logits: (N, l, l) float32 logits over the model's square.
    """

    rles: list[dict]
    boxes: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray
    areas: np.ndarray
    points: np.ndarray
    low_res_logits: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rles)

    def mask(self, i: int) -> np.ndarray:
        """(H, W) bool."""
        return decode_rle(self.rles[i])

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, decoded at each call: N * H * W bytes."""
        out = np.zeros((len(self), *self.size), bool)
        for i in range(len(self)):
            out[i] = self.mask(i)
        return out

    def select(self, indices) -> "Proposals":
        """The proposals at `indices` (ints in that order, or a bool mask)."""
        indices = np.arange(len(self))[indices]
        arrays = (
            self.boxes,
            self.predicted_iou,
            self.stability,
            self.areas,
            self.points,
            self.low_res_logits,
        )
        return Proposals([self.rles[i] for i in indices], *(a[indices] for a in arrays), self.size)


def by_granularity(proposals: Proposals, granularity: float = 0.5) -> Proposals:
    """A choice of `proposals`: 0 = parts, 1 = whole objects, .5 = no preference.

    Greedy by predicted IoU plus 2 (granularity - .5) sqrt(area share), as `everything` orders. One is kept unless half of
    it is covered by those before it that are at most 2 / (1 - granularity)^2 times its size: at 0 a whole leaves its
    parts standing, at 1 it swallows them. BadInput: granularity outside of [0, 1].
    """
    if not 0 <= granularity <= 1:
        raise BadInput("granularity must lie between 0 (parts) and 1 (whole objects)")
    score = proposals.predicted_iou + 2 * (granularity - 0.5) * np.sqrt(
        proposals.areas / np.prod(proposals.size)
    )
    reach = 2 / (1 - granularity) ** 2 if granularity < 1 else np.inf
    kept: dict[int, np.ndarray] = {}
    for i in np.argsort(-score, kind="stable"):
        mask, covered = proposals.mask(int(i)), np.zeros(proposals.size, bool)
        for k, before in kept.items():
            if proposals.areas[k] <= reach * proposals.areas[i]:
                covered |= before
        if 2 * (mask & ~covered).sum() >= mask.sum():
            kept[int(i)] = mask
    return proposals.select(list(kept))


@dataclass
class Candidate:
    """A drawn mask that passed the low-resolution filters: only the part of its logits that can matter is kept."""

    score: float  # what orders suppression: predicted IoU, shifted by the granularity
    iou: float
    point: np.ndarray  # (x, y) px
    corner: tuple[int, int]  # cell (y, x) of the first of `logits`
    logits: np.ndarray  # (h, w) float32
    outer: list[int]  # pixels (x0, y0, x1, y1), ends excluded, that the mask cannot leave
    inner: list[int]  # pixels that its box contains for certain


@dataclass
class Region:
    """A candidate that was kept, in px of the whole picture."""

    candidate: Candidate
    rle: dict
    box: np.ndarray  # (4,) float32 xyxy, both ends included
    stability: float
    area: int
    crop: tuple
    changed: bool = False  # by fill_and_drop


def everything(
    segmenter,
    embedding,
    *,
    image=None,
    points_per_side: int = 32,
    points_per_batch: int = 64,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    stability_score_offset: float = 1.0,
    box_nms_thresh: float = 0.7,
    crop_n_layers: int = 0,
    crop_nms_thresh: float = 0.7,
    crop_overlap_ratio: float = 512 / 1500,
    crop_n_points_downscale_factor: int = 1,
    min_mask_region_area: int = 0,
    fast: bool = False,
    granularity: float | None = None,
    max_proposals: int | None = None,
    progress=None,
) -> Proposals:
    """Proposals of one encoded picture; no mask found gives an empty Proposals.

    The thresholds and crop settings are SamAutomaticMaskGenerator's. image: (H, W, 3) uint8, needed for crops only.
    points_per_batch: most prompts decoded at once (fewer where the segmenter finds that faster).
    fast: a coarse grid first, then only the points outside of masks that two clicks have agreed on.
    granularity: 0 = parts, 1 = whole objects, .5 or None = no preference. It decides which of a click's readings
    stay (at 0 its smallest, at 1 its largest, between them those whose rank among the click's readings is near) and
    adds (granularity - .5) * sqrt(area share) to the predicted IoU that orders suppression and the cut.
    max_proposals: keep the best so many. progress: called with (prompts done, prompts in all).
    """
    if points_per_side < 1 or points_per_batch < 1:
        raise BadInput("points_per_side and points_per_batch must be at least 1")
    if granularity is not None and not 0 <= granularity <= 1:
        raise BadInput("granularity must lie between 0 (parts) and 1 (whole objects)")
    if crop_n_layers and image is None:
        raise BadInput("crops need the picture itself: pass image=")
    size, found = embedding.size, []
    crops = crop_boxes(size, crop_n_layers, crop_overlap_ratio)
    grids = [max(1, int(points_per_side / crop_n_points_downscale_factor**layer)) for _, layer in crops]
    total, done = sum(n * n for n in grids), 0
    cut = max_proposals if len(crops) == 1 and not min_mask_region_area else None
    for (crop, layer), n in zip(crops, grids):
        x0, y0, x1, y1 = crop
        part = embedding if layer == 0 else segmenter.encode(np.ascontiguousarray(image[y0:y1, x0:x1]))
        report = None if progress is None else lambda i, base=done: progress(base + i, total)
        resizer = Resizer(*segmenter.resizing(part), segmenter.threshold, stability_score_offset)
        candidates = propose(
            segmenter,
            part,
            resizer,
            n,
            points_per_batch,
            pred_iou_thresh,
            stability_score_thresh,
            fast,
            granularity,
            report,
        )
        found += suppress(candidates, resizer, crop, size, stability_score_thresh, box_nms_thresh, cut)
        done += n * n
    if len(crops) > 1:  # masks of smaller crops see more detail, so they win
        found = distinct(found, [-box_area(region.crop) for region in found], crop_nms_thresh)
    if min_mask_region_area:
        found = [clean(region, min_mask_region_area) for region in found]
        found = distinct(found, [-region.changed for region in found], max(box_nms_thresh, crop_nms_thresh))
    if max_proposals is not None:
        found = sorted(found, key=lambda region: -region.candidate.score)[:max_proposals]
    return gather(found, segmenter, embedding)


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[tuple, int]]:
    """[((x0, y0, x1, y1) px, layer)]: the picture, then per layer i a grid of 2^i x 2^i overlapping crops."""
    height, width = size
    boxes = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(size) * 2 / n)
        w, h = (-(-(overlap * (n - 1) + full) // n) for full in (width, height))
        boxes += [
            ((x, y, min(x + w, width), min(y + h, height)), layer)
            for x in ((w - overlap) * i for i in range(n))
            for y in ((h - overlap) * i for i in range(n))
        ]
    return boxes


@torch.no_grad()
def propose(
    segmenter, embedding, resizer, n, batch, iou_thresh, stability_thresh, fast, granularity, progress
):
    """Click on an n x n grid -> Candidates."""
    line = (np.arange(n) + 0.5) / n
    unit = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)  # row by row
    points = unit * embedding.size[::-1]
    inside = resizer.cells  # (h, w) cells of the low-resolution square that show the picture
    levels = coarse_to_fine(n) if fast else [np.arange(n * n)]
    explained, seen = np.zeros(inside, bool), None
    batch = min(batch, segmenter.prompts_per_batch)
    candidates, visited = [], 0
    for level in levels:
        left = list(level)
        while left:
            where = (unit[left] * inside[::-1]).astype(int)
            left = [i for i, (x, y) in zip(left, where) if not explained[y, x]]
            take, left = left[:batch], left[batch:]
            if not take:
                break
            prompts = points[take]
            decoded = segmenter.decode(embedding, prompts[:, None], np.ones((len(take), 1), int))
            iou = decoded.iou[:, 1:].float()
            good = iou > iou_thresh if iou_thresh > 0 else torch.ones_like(iou, dtype=torch.bool)
            rows = good.any(1).nonzero()[:, 0]
            if len(rows):
                low = segmenter.draw(embedding, decoded, rows, slice(1, None))[..., : inside[0], : inside[1]]
                good, iou, prompts = good[rows], iou[rows], prompts[rows.cpu().numpy()]
                new, covers = filter_low(low, good, iou, prompts, resizer, stability_thresh, granularity)
                candidates += new
                if fast:
                    agreed, seen = agreement(covers, seen)
                    explained |= agreed
            visited += len(take)
            if progress:
                progress(visited)
    if progress:
        progress(n * n)
    return candidates


def filter_low(low, good, iou, prompts, resizer, stability_thresh, granularity):
    """Drawn masks (R, 3, h, w) of R clicks, of which `good` (R, 3) are wanted -> Candidates, and each click's smallest
    stable reading (K, h, w) bool."""
    threshold, offset = resizer.threshold, resizer.offset
    tight, wide = resizer.most(low > threshold + offset), resizer.least(low > threshold - offset)
    good = good & (tight > 0 if stability_thresh <= 0 else tight >= stability_thresh * wide)
    inside = low > threshold
    areas = inside.sum((2, 3))
    stability = (low > threshold + offset).sum((2, 3)) / (low > threshold - offset).sum((2, 3)).clamp(min=1)
    stable = good & (
        stability >= stability_thresh
    )  # an estimate, on cells: good enough for where to click next
    smallest = torch.where(stable, areas, areas.max() + 1).argmin(1)
    covers = inside[torch.arange(len(low)), smallest][stable.any(1)]
    score = iou
    if granularity is not None:
        good = good & readings(good, areas, granularity)
        score = iou + (granularity - 0.5) * (areas / inside[0, 0].numel()).sqrt()
    rows, inside, drawn = good.nonzero()[:, 0].tolist(), inside[good], low[good]
    reach, block = extents(drawn > threshold - offset), extents(solid(inside, resizer.span))
    block[:, 2:] += (resizer.span - 1) * (block[:, 2:] > 0)
    out = []
    for i, (row, s, q) in enumerate(zip(rows, score[good].tolist(), iou[good].tolist())):
        y0, x0, y1, x1 = reach[i]
        y, x = (
            max(0, y0 - resizer.span),
            max(0, x0 - resizer.span),
        )  # pixels at the rim are made of those cells too
        patch = drawn[i, y : y1 + resizer.span, x : x1 + resizer.span].cpu().numpy().copy()
        out.append(
            Candidate(s, q, prompts[row], (y, x), patch, resizer.outer(reach[i]), resizer.inner(block[i]))
        )
    return out, covers


def extents(masks: Tensor) -> np.ndarray:
    """The tight boxes of masks (K, h, w) bool -> (K, 4) int64 (y0, x0, y1, x1), ends excluded; all 0 for an empty mask."""
    return tight_boxes(masks)[:, [1, 0, 3, 2]].cpu().numpy()


def agreement(covers: Tensor, seen: Tensor | None) -> tuple[np.ndarray, Tensor]:
    """The cells (h, w) bool of those masks (K, h, w) that two clicks gave alike, IoU above AGREED, among themselves and
    what was `seen` before (S, n) float; and what is seen now."""
    flat = covers[:, ::2, ::2].flatten(1).float()
    every = flat if seen is None else torch.cat([seen, flat])
    inter = flat @ every.T
    iou = inter / (flat.sum(1)[:, None] + every.sum(1)[None] - inter).clamp(min=1)
    again = (iou > AGREED).sum(1) > 1  # itself is one
    return covers[again].any(0).cpu().numpy(), every


def readings(good: Tensor, areas: Tensor, granularity: float) -> Tensor:
    """Which readings of each click stay, (R, 3) bool: those whose rank by area among the good ones, 0 = smallest and
    1 = largest, is within 2 * min(g, 1 - g) of g."""
    smaller = (good[:, None] & (areas[:, None] < areas[..., None])).sum(2)
    larger = (good[:, None] & (areas[:, None] > areas[..., None])).sum(2)
    rank = smaller / (smaller + larger).clamp(min=1)
    alone = smaller + larger == 0
    return alone | ((rank - granularity).abs() <= 2 * min(granularity, 1 - granularity) + 1e-6)


def coarse_to_fine(n: int) -> list[np.ndarray]:
    """The indices of an n x n grid in three levels: every fourth row and column, every second, the rest."""
    step = np.full((n, n), 1)
    step[n % 2 :: 2, n % 2 :: 2] = 2
    step[min(1, n - 1) :: 4, min(1, n - 1) :: 4] = 4
    return [np.flatnonzero(step == k) for k in (4, 2, 1)]


def suppress(candidates, resizer, crop, size, stability_thresh, nms_thresh, limit) -> list[Region]:
    """Greedy suppression by box IoU, best score first, looking at full resolution only where it can matter."""
    kept, boxes = [], np.zeros((0, 4))
    x0, y0, _, _ = crop
    for i in np.argsort([-c.score for c in candidates], kind="stable"):
        if limit is not None and len(kept) >= limit:
            break
        candidate = candidates[i]
        inner, outer = candidate.inner, candidate.outer
        if len(kept) and inner[2] > inner[0] and inner[3] > inner[1]:
            # IoU is least for the least intersection and the greatest union that the bounds allow.
            least = box_intersection((inner[0], inner[1], inner[2] - 1, inner[3] - 1), boxes)
            if (
                least > nms_thresh * (box_area(outer) + box_area(boxes) - box_intersection(outer, boxes))
            ).any():
                continue
        exact = resizer.mask(candidate.logits, candidate.corner, outer)
        if exact is None:
            continue
        mask, box, stability = exact
        if stability_thresh > 0 and stability < stability_thresh or (box_iou(box, boxes) > nms_thresh).any():
            continue
        place = np.array(box) + (x0, y0, x0, y0)
        if cut_off(place, crop, size):
            continue
        boxes = np.concatenate([boxes, [box]])
        rle = encode_patch_rle(mask, (place[1], place[0]), size)
        kept.append(Region(candidate, rle, place.astype(np.float32), stability, int(mask.sum()), crop))
    return kept


def cut_off(box, crop, size) -> bool:
    """Whether a box (xyxy px of the picture) ends at an edge of the crop that is not an edge of the picture."""
    near = lambda edges: np.abs(np.subtract(box, edges)) <= EDGE
    return bool((near(crop) & ~near((0, 0, size[1], size[0]))).any())


def distinct(regions: list[Region], scores, thresh: float) -> list[Region]:
    """Suppression by box IoU among finished regions, highest score first."""
    from torchvision.ops import nms

    if not regions:
        return []
    boxes = torch.from_numpy(np.stack([r.box for r in regions]))
    return [regions[i] for i in nms(boxes, torch.tensor(scores, dtype=torch.float32), thresh)]


def clean(region: Region, smallest: int) -> Region:
    mask, changed = fill_and_drop(decode_rle(region.rle), smallest)
    if not changed:
        return region
    x0, y0, x1, y1 = tight_box(mask)
    box = np.array([x0, y0, x1 - 1, y1 - 1], np.float32)
    return replace(region, rle=encode_rle(mask), box=box, area=int(mask.sum()), changed=True)


def gather(regions: list[Region], segmenter, embedding) -> Proposals:
    n, side = len(regions), segmenter.low_res_side
    low = np.full((n, side, side), FAR, np.float32)
    for i, region in enumerate(regions):
        if region.changed or region.crop != (0, 0, *embedding.size[::-1]):
            low[i] = segmenter.low_res_logits(embedding, decode_rle(region.rle))
        else:
            (y, x), patch = region.candidate.corner, region.candidate.logits
            low[i, y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    column = lambda values, dtype=np.float32, shape=(n,): np.array(list(values), dtype).reshape(shape)
    return Proposals(
        [r.rle for r in regions],
        column((r.box for r in regions), shape=(n, 4)),
        column(r.candidate.iou for r in regions),
        column(r.stability for r in regions),
        column((r.area for r in regions), np.int64),
        column((r.candidate.point + r.crop[:2] for r in regions), shape=(n, 2)),
        low,
        embedding.size,
    )
