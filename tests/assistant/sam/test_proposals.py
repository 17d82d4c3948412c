"""Everything mode against segment-anything's generator, on tiny weights that were taught to draw discs."""

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from assistant.errors import BadInput
from assistant.sam.mask_ops import encode_patch_rle
from assistant.sam.mask_resizing import Resizer, fill_and_drop
from assistant.sam.proposals import agreement, coarse_to_fine, crop_boxes, everything, readings
from assistant.sam.segmenter import Segmenter
from eval.speed import overlaps, random_sam, reference, teach, thresholds

CLICKS = 12


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    sam = random_sam("tiny")
    teach(sam, 60, 0)
    return sam


@pytest.fixture(scope="module")
def coffee():
    return np.ascontiguousarray(skimage.data.coffee()[::3, ::3])  # 134 x 200


@pytest.fixture(scope="module")
def opened(sam, coffee):
    segmenter = Segmenter.from_sam(sam)
    embedding = segmenter.encode(coffee)
    return segmenter, embedding, dict(points_per_side=CLICKS) | thresholds(segmenter, embedding, CLICKS)


def same(a: list[dict], b: list[dict]) -> None:
    """At least 99 % of each are among the other at IoU >= .99."""
    table = overlaps(a, b)
    assert len(a) > 5 and (table.max(1) >= 0.99).mean() >= 0.99 and (table.max(0) >= 0.99).mean() >= 0.99


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
        {"box_nms_thresh": 0.95},
        {"points_per_batch": 5},
    ],
    ids=["plain", "crops", "loose", "small batches"],
)
def test_equals_segment_anything(sam, coffee, opened, more):
    segmenter, embedding, chosen = opened
    ours = everything(segmenter, embedding, image=coffee, **(chosen | more))
    same(reference(sam, coffee, chosen | more), ours.rles)


def test_fast_asks_each_point_at_most_once(opened, monkeypatch):
    """How much of the result it keeps is measured by `python -m eval speed`, not here: these masks are noise."""
    segmenter, embedding, chosen = opened
    asked = []
    decode = segmenter.decode
    monkeypatch.setattr(
        segmenter,
        "decode",
        lambda e, points, *a, **k: asked.append(len(points)) or decode(e, points, *a, **k),
    )
    fast = everything(segmenter, embedding, fast=True, **chosen)
    assert 0 < sum(asked) <= CLICKS**2 and len(fast)
    assert (fast.predicted_iou > chosen["pred_iou_thresh"]).all() and (
        fast.stability >= chosen["stability_score_thresh"]
    ).all()
    asked.clear()
    nothing = everything(segmenter, embedding, fast=True, **(chosen | {"pred_iou_thresh": 9.0}))
    assert sum(asked) == CLICKS**2 and not len(nothing)


def test_fast_leaves_out_what_two_clicks_agreed_on():
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[0, :8], masks[1, :8], masks[2, 10:] = True, True, True
    agreed, seen = agreement(masks[:1], None)
    assert not agreed.any()
    agreed, seen = agreement(masks[1:], seen)
    assert np.array_equal(agreed, masks[0].numpy()) and len(seen) == 3


def test_what_is_returned_fits_together(opened):
    segmenter, embedding, chosen = opened
    found = everything(segmenter, embedding, **chosen)
    assert found.masks.shape == (len(found), 134, 200) and found.low_res_logits.shape == (len(found), 64, 64)
    assert (np.diff(found.predicted_iou) <= 0).all()
    for mask, box, area, low in zip(found.masks, found.boxes, found.areas, found.low_res_logits):
        ys, xs = np.nonzero(mask)
        assert mask.sum() == area and [xs.min(), ys.min(), xs.max(), ys.max()] == box.tolist()
        again = segmenter.upsample(embedding, torch.from_numpy(low)[None])[0]
        assert (again != mask).mean() < 2e-4
    half = found.select([2, 0])
    assert (
        len(half) == 2
        and np.array_equal(half.mask(0), found.mask(2))
        and half.boxes[1].tolist() == found.boxes[0].tolist()
    )


def test_the_best_so_many(opened):
    segmenter, embedding, chosen = opened
    found = everything(segmenter, embedding, **chosen)
    few = everything(segmenter, embedding, max_proposals=4, **chosen)
    assert few.rles == found.rles[:4]


def test_granularity_goes_from_parts_to_wholes(opened):
    segmenter, embedding, chosen = opened
    areas = [np.median(everything(segmenter, embedding, granularity=g, **chosen).areas) for g in (0, 0.5, 1)]
    assert areas[0] < areas[1] < areas[2]
    assert (
        everything(segmenter, embedding, granularity=0.5, **chosen).rles
        == everything(segmenter, embedding, **chosen).rles
    )


def test_no_small_regions_are_left(opened):
    segmenter, embedding, chosen = opened
    found = everything(segmenter, embedding, min_mask_region_area=30, **chosen)
    assert len(found) and all(not fill_and_drop(m, 30)[1] for m in found.masks)


def test_nothing_found_is_empty(opened):
    segmenter, embedding, _ = opened
    found = everything(segmenter, embedding, points_per_side=4, pred_iou_thresh=9.0)
    assert len(found) == 0 and found.masks.shape == (0, 134, 200) and found.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"points_per_side": 0}, "at least 1"),
        ({"granularity": 2}, "between 0"),
        ({"crop_n_layers": 1}, "image="),
    ],
)
def test_bad_settings(opened, wrong, words):
    with pytest.raises(BadInput, match=words):
        everything(opened[0], opened[1], **wrong)


def test_progress_reaches_the_end(opened):
    segmenter, embedding, chosen = opened
    said = []
    everything(segmenter, embedding, fast=True, progress=lambda *x: said.append(x), **chosen)
    assert said == sorted(said) and said[-1] == (CLICKS**2, CLICKS**2)


def test_memory_stays_bounded_at_twelve_megapixels(sam, monkeypatch):
    """No array of all masks at full size is ever made: the widest is one mask's."""
    segmenter = Segmenter.from_sam(sam)
    embedding = segmenter.encode(np.zeros((3000, 4000, 3), np.uint8))
    import tracemalloc

    tracemalloc.start()
    found = everything(
        segmenter, embedding, points_per_side=6, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) > 3 and peak < 12 * 3000 * 4000  # numpy's part: a few masks, not all


@given(n=st.integers(1, 40))
def test_levels_cover_the_grid_once(n):
    assert sorted(np.concatenate(coarse_to_fine(n)).tolist()) == list(range(n * n))


@given(height=st.integers(64, 2000), width=st.integers(64, 2000), layers=st.integers(0, 2))
def test_crops_cover_the_picture(height, width, layers):
    boxes = crop_boxes((height, width), layers, 512 / 1500)
    assert boxes[0] == ((0, 0, width, height), 0) and len(boxes) == sum(4**k for k in range(layers + 1))
    for layer in range(layers + 1):
        mine = [box for box, k in boxes if k == layer]
        assert all(0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height for x0, y0, x1, y1 in mine)
        assert max(b[2] for b in mine) == width and max(b[3] for b in mine) == height


@given(seed=st.integers(0, 10**6), top=st.integers(0, 20), left=st.integers(0, 20))
def test_rle_of_a_small_mask_in_a_large_picture(seed, top, left):
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 12), rng.integers(1, 12))) < rng.random()
    whole = np.zeros((32, 32), bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask[: 32 - top, : 32 - left]
    expected = coco_mask.encode(np.asfortranarray(whole.astype(np.uint8)))
    ours = encode_patch_rle(mask[: 32 - top, : 32 - left], (top, left), (32, 32))
    assert ours["size"] == [32, 32] and np.array_equal(coco_mask.decode(ours), coco_mask.decode(expected))
    if whole.any():
        assert ours["counts"] == expected["counts"].decode()


@given(seed=st.integers(0, 10**6))
def test_a_mask_upsampled_in_its_box_is_the_mask_upsampled_whole(seed):
    rng = np.random.default_rng(seed)
    rows, columns = (
        torch.nn.functional.interpolate(torch.eye(8)[None], size=int(n), mode="linear")
        .squeeze(0)
        .T.contiguous()
        for n in rng.integers(8, 40, 2)
    )
    resizer = Resizer(rows, columns)
    low = rng.normal(-1, 2, (8, 8)).astype(np.float32)
    whole = (rows @ torch.from_numpy(low) @ columns.T > 0).numpy()
    found = resizer.mask(low, (0, 0), [0, 0, len(columns), len(rows)])
    if found is None:
        assert not whole.any()
    else:
        mask, (x0, y0, x1, y1), stability = found
        assert (
            np.array_equal(mask, whole[y0 : y1 + 1, x0 : x1 + 1])
            and mask.sum() == whole.sum()
            and 0 <= stability <= 1
        )


def test_which_readings_stay():
    good, areas = (
        torch.tensor([[True, True, True], [True, False, True]]),
        torch.tensor([[30, 10, 20], [5, 1, 9]]),
    )
    assert readings(good, areas, 0.0)[good].tolist() == [False, True, False, True, False]
    assert readings(good, areas, 1.0)[good].tolist() == [True, False, False, False, True]
    assert readings(good, areas, 0.5)[good].all()
