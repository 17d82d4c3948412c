"""Numbered marks: which proposals get one, on which sheet, and that a reader finds each number on its region."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from skimage.feature import match_template

from assistant.mllm.set_of_mark import ALIKE, APART, SIDE, draw_sheet, lay_out, number, overlaps
from tests.helpers.marked_photo import NAMES, PHOTO, THINGS, H, W, ellipse, proposals_of


def test_overlaps_are_those_of_the_masks():
    iou, inside = overlaps(proposals_of(THINGS.values()))
    cup, coffee = THINGS["cup"], THINGS["coffee"]
    assert iou[1, 2] == pytest.approx((cup & coffee).sum() / (cup | coffee).sum())
    assert inside[1, 2] == inside[2, 1] == pytest.approx((cup & coffee).sum() / coffee.sum())


def test_a_whole_and_its_parts_come_on_different_sheets():
    sheets = lay_out(proposals_of(THINGS.values()), a_sheet=4, most=12)
    where = {NAMES[i]: k for k, sheet in enumerate(sheets) for i in sheet}
    assert set(where) == set(NAMES) and max(map(len, sheets)) <= 4
    assert len({where["saucer"], where["cup"], where["coffee"]}) == 3


def test_of_two_that_are_alike_the_better_gets_the_mark():
    masks = [THINGS["cup"], ellipse(292, 151, 119, 125), THINGS["table"]]
    assert sorted(i for sheet in lay_out(proposals_of(masks), 5, 10) for i in sheet) == [0, 2]


def test_numbers_run_through_the_sheets_in_reading_order():
    row = [ellipse(60 + 80 * k, 60, 20, 20) for k in range(6)] + [
        ellipse(60 + 80 * k, 340, 20, 20) for k in range(6)
    ]
    assert lay_out(proposals_of(row[::-1]), 20, 60) == [list(range(11, -1, -1))]
    numbers = number(lay_out(proposals_of(row), 5, 15))
    assert sorted(numbers) == list(range(1, 13)) and sorted(numbers.values()) == list(range(12))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(*[st.integers(40, 360)] * 2, *[st.integers(6, 150)] * 2), max_size=30),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_any_proposals_are_laid_out(ellipses, a_sheet, sheets):
    small = [ellipse(*e)[::4, ::4] for e in ellipses]
    found = lay_out(proposals_of(small), a_sheet, a_sheet * sheets)
    chosen = [i for sheet in found for i in sheet]
    assert (
        len(chosen) == len(set(chosen))
        and len(found) <= sheets
        and all(0 < len(sheet) <= a_sheet for sheet in found)
    )
    iou, inside = overlaps(proposals_of(small))
    assert all(iou[i, j] < ALIKE for i in chosen for j in chosen if i != j)
    left_out = set(range(len(small))) - set(chosen)
    assert len(chosen) == a_sheet * sheets or all(iou[i, chosen].max() >= ALIKE for i in left_out)
    if len(found) < sheets:  # there was another sheet to go to
        assert all(inside[i, j] <= APART for sheet in found for i in sheet for j in sheet if i < j)


def find_label(sheet: np.ndarray, n: int) -> tuple[float, float]:
    """(x, y) of the middle of the number on the sheet, read off its pixels."""
    font = ImageFont.load_default(size=24)
    wide, high = font.getbbox(str(n))[2:]
    patch = Image.new("L", (round(wide) + 8, round(high) + 4), 0)
    ImageDraw.Draw(patch).text((patch.width / 2, patch.height / 2), str(n), font=font, fill=255, anchor="mm")
    fit = match_template(np.asarray(Image.fromarray(sheet).convert("L")), np.asarray(patch))
    y, x = np.unravel_index(fit.argmax(), fit.shape)
    assert fit.max() > 0.9, f"{n} cannot be read"
    return x + patch.width / 2, y + patch.height / 2


@pytest.mark.parametrize("light", [0.25, 1.0, 1.6])
def test_each_number_is_read_on_its_region(light):
    photo = (PHOTO * light).clip(0, 255).astype(np.uint8)
    marks = [
        (4, THINGS["cup"]),
        (17, THINGS["table"]),
        (23, ellipse(60, 330, 45, 45)),
        (58, ellipse(80, 80, 60, 40)),
    ]
    sheet = draw_sheet(photo, marks)
    assert sheet.shape == (round(SIDE * H / W), SIDE, 3) and sheet.dtype == np.uint8
    for n, mask in marks:
        x, y = (v * W / SIDE for v in find_label(sheet, n))
        assert mask[round(y), round(x)], f"{n} lies at {x:.0f}, {y:.0f}"


def test_numbers_of_small_thin_and_nested_regions_stand_free_and_near():
    thin = np.zeros((H, W), bool)
    thin[60:340, 30:33] = True
    marks = [
        (31, thin),
        (2, THINGS["coffee"]),
        (7, THINGS["cup"]),
        (40, THINGS["shine"]),
        (5, ellipse(400, 95, 6, 6)),
        (66, ellipse(596, 4, 5, 4)),
    ]
    sheet = draw_sheet(PHOTO, marks)
    places = {n: find_label(sheet, n) for n, _ in marks}
    for n, mask in marks:
        ys, xs = np.nonzero(mask)
        x, y = (v * W / SIDE for v in places[n])
        assert np.hypot(xs - x, ys - y).min() < 45  # px of the photo
    for a in places:
        for b in places:
            assert (
                a == b
                or max(abs(places[a][0] - places[b][0]) / 30, abs(places[a][1] - places[b][1]) / 30) > 1
            )
    x, y = (v * W / SIDE for v in places[7])
    assert THINGS["cup"][round(y), round(x)] and not THINGS["coffee"][round(y), round(x)]


def test_an_outline_without_a_number_and_a_tiny_picture():
    plain = draw_sheet(PHOTO, [])
    outlined = draw_sheet(PHOTO, [(None, THINGS["cup"])])
    changed = (plain != outlined).any(2)
    edge = np.asarray(Image.fromarray(THINGS["cup"]).resize((changed.shape[1], changed.shape[0]))) != 0
    assert changed.any() and not changed[edge][len(edge[edge]) // 2]  # the middle of the cup is as it was
    assert draw_sheet(PHOTO[:9, :40].copy(), [(1, np.ones((9, 40), bool))]).shape[1] == SIDE
