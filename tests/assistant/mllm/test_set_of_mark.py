"""Numbered marks: which proposals get one, on which sheet, and that each number is read on its region."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from assistant.mllm.set_of_mark import (
    MAX_OVERLAP_ON_SHEET,
    MIN_DUPLICATE_IOU,
    SHEET_SIDE,
    arrange_sheets,
    draw_sheet,
    mask_overlaps,
    number_marks,
)
from tests.helpers.marked_image import IMAGE, INSTANCES, NAMES, H, W, ellipse, find_label, make_proposals


def test_overlaps_are_those_of_the_masks():
    iou, containment = mask_overlaps(make_proposals(INSTANCES.values()))
    cup, coffee = INSTANCES["cup"], INSTANCES["coffee"]
    assert iou[1, 2] == pytest.approx((cup & coffee).sum() / (cup | coffee).sum())
    assert containment[1, 2] == containment[2, 1] == pytest.approx((cup & coffee).sum() / coffee.sum())


def test_a_whole_and_its_parts_come_on_different_sheets():
    sheets = arrange_sheets(make_proposals(INSTANCES.values()), marks_per_sheet=4, max_marks=12)
    where = {NAMES[i]: k for k, sheet in enumerate(sheets) for i in sheet}
    assert set(where) == set(NAMES) and max(map(len, sheets)) <= 4
    assert len({where["saucer"], where["cup"], where["coffee"]}) == 3


def test_of_two_that_are_alike_the_better_gets_the_mark():
    masks = [INSTANCES["cup"], ellipse(292, 151, 119, 125), INSTANCES["table"]]
    assert sorted(i for sheet in arrange_sheets(make_proposals(masks), 5, 10) for i in sheet) == [0, 2]


def test_large_things_get_marks_before_small_crisp_parts():
    things = [ellipse(150, 200, 120, 150), ellipse(450, 200, 110, 130)]
    parts = [ellipse(60 + 30 * k, y, 8, 8) for k in range(16) for y in (120, 280)]
    proposals = make_proposals([*parts, *things])
    proposals.predicted_iou[len(parts) :] = 0.8  # 0.9 for the parts
    marked = {i for sheet in arrange_sheets(proposals, 5, 10) for i in sheet}
    assert len(marked) == 10 and {len(parts), len(parts) + 1} <= marked
    assert len({i for sheet in arrange_sheets(proposals, 20, 60) for i in sheet}) == len(proposals)


def test_numbers_run_through_the_sheets_in_reading_order():
    row = [ellipse(60 + 80 * k, 60, 20, 20) for k in range(6)] + [
        ellipse(60 + 80 * k, 340, 20, 20) for k in range(6)
    ]
    assert arrange_sheets(make_proposals(row[::-1]), 20, 60) == [list(range(11, -1, -1))]
    numbers = number_marks(arrange_sheets(make_proposals(row), 5, 15))
    assert sorted(numbers) == list(range(1, 13)) and sorted(numbers.values()) == list(range(12))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(*[st.integers(40, 360)] * 2, *[st.integers(6, 150)] * 2), max_size=30),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_any_proposals_are_laid_out(ellipses, per_sheet, sheets):
    small = [ellipse(*e)[::4, ::4] for e in ellipses]
    arranged = arrange_sheets(make_proposals(small), per_sheet, per_sheet * sheets)
    chosen = [i for sheet in arranged for i in sheet]
    assert len(chosen) == len(set(chosen))
    assert len(arranged) <= sheets and all(0 < len(sheet) <= per_sheet for sheet in arranged)
    iou, containment = mask_overlaps(make_proposals(small))
    assert all(iou[i, j] < MIN_DUPLICATE_IOU for i in chosen for j in chosen if i != j)
    left_out = set(range(len(small))) - set(chosen)
    assert len(chosen) == per_sheet * sheets or all(
        iou[i, chosen].max() >= MIN_DUPLICATE_IOU for i in left_out
    )
    if len(arranged) < sheets:  # there was another sheet to go to
        pairs = [(i, j) for sheet in arranged for i in sheet for j in sheet if i < j]
        assert all(containment[i, j] <= MAX_OVERLAP_ON_SHEET for i, j in pairs)


@pytest.mark.parametrize("light", [0.25, 1.0, 1.6])
def test_each_number_is_read_on_its_region(light):
    image = (IMAGE * light).clip(0, 255).astype(np.uint8)
    marks = [
        (4, INSTANCES["cup"]),
        (17, INSTANCES["table"]),
        (23, ellipse(60, 330, 45, 45)),
        (58, ellipse(80, 80, 60, 40)),
    ]
    sheet = draw_sheet(image, marks)
    assert sheet.shape == (round(SHEET_SIDE * H / W), SHEET_SIDE, 3) and sheet.dtype == np.uint8
    for n, mask in marks:
        x, y = (v * W / SHEET_SIDE for v in find_label(sheet, n))
        assert mask[round(y), round(x)], f"{n} lies at {x:.0f}, {y:.0f}"


def test_numbers_of_small_thin_and_nested_regions_stand_free_and_close():
    thin = np.zeros((H, W), bool)
    thin[60:340, 30:33] = True
    marks = [
        (31, thin),
        (2, INSTANCES["coffee"]),
        (7, INSTANCES["cup"]),
        (40, INSTANCES["shine"]),
        (5, ellipse(400, 95, 6, 6)),
        (66, ellipse(596, 4, 5, 4)),
    ]
    sheet = draw_sheet(IMAGE, marks)
    places = {n: find_label(sheet, n) for n, _ in marks}
    for n, mask in marks:
        ys, xs = np.nonzero(mask)
        x, y = (v * W / SHEET_SIDE for v in places[n])
        assert np.hypot(xs - x, ys - y).min() < 45  # px of the image
    for a in places:
        for b in places:
            distance = max(abs(places[a][0] - places[b][0]), abs(places[a][1] - places[b][1]))
            assert a == b or distance > 30
    x, y = (v * W / SHEET_SIDE for v in places[7])
    assert INSTANCES["cup"][round(y), round(x)] and not INSTANCES["coffee"][round(y), round(x)]


def test_an_outline_without_a_number_and_a_tiny_image():
    plain = draw_sheet(IMAGE, [])
    outlined = draw_sheet(IMAGE, [(None, INSTANCES["cup"])])
    changed = (plain != outlined).any(2)
    edge = np.asarray(Image.fromarray(INSTANCES["cup"]).resize((changed.shape[1], changed.shape[0]))) != 0
    assert changed.any() and not changed[edge][len(edge[edge]) // 2]  # the middle of the cup is as it was
    assert draw_sheet(IMAGE[:9, :40].copy(), [(1, np.ones((9, 40), bool))]).shape[1] == SHEET_SIDE
