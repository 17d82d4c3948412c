"""A mask and the parts that it is made of stay together."""

import numpy as np

from assistant.sam.instances import fitted, in_reading_order, merged, separate
from assistant.sam.mask_ops import encode_rle
from assistant.sam.proposals import Proposals

H, W = 40, 60


def block(top, left, height, width):
    mask = np.zeros((H, W), bool)
    mask[top : top + height, left : left + width] = True
    return mask


LEFT, MIDDLE, RIGHT = (block(5, left, 20, 10) for left in (0, 20, 40))


def test_parts_are_fitted_to_a_mask():
    mask = (LEFT | RIGHT) & ~block(0, 0, 10, W) | block(10, 50, 5, 4) | block(30, 2, 4, 4)
    left, right = fitted([RIGHT, MIDDLE, LEFT], mask)[::-1]
    assert (left | right == mask).all() and not (left & right).any()
    assert left[12, 5] and not left[6, 5]  # cut off where the mask ends
    assert right[12, 52] and left[31, 3]  # what no part covers goes to the nearest


def test_one_part_is_the_mask_itself():
    for parts in ([], [LEFT], [MIDDLE, LEFT], [MIDDLE, MIDDLE]):
        (only,) = fitted(parts, LEFT | RIGHT if parts == [LEFT] else LEFT)
        assert (only == (LEFT | RIGHT if parts == [LEFT] else LEFT)).all()


def test_reading_order():
    assert [part is m for part, m in zip(in_reading_order([RIGHT, LEFT]), (LEFT, RIGHT), strict=True)]
    low, high, aside = block(30, 0, 5, 5), block(0, 4, 5, 5), block(14, 10, 5, 5)
    order = in_reading_order([low, high, aside])
    assert [id(part) for part in order] == [id(high), id(aside), id(low)]
    order = in_reading_order([block(0, 0, 0, 0), RIGHT, LEFT])
    assert [part.any() for part in order] == [True, True, False] and order[0] is LEFT


def proposals_of(*masks, predicted_iou=0.9):
    count = len(masks)
    return Proposals(
        [encode_rle(mask) for mask in masks],
        np.zeros((count, 4), np.float32),
        np.full(count, predicted_iou, np.float32),
        np.ones(count, np.float32),
        np.array([mask.sum() for mask in masks]),
        np.zeros((count, 2), np.float32),
        np.zeros((count, 4, 4), np.float32),
        (H, W),
    )


def same(found, expected):
    found, expected = in_reading_order(found), in_reading_order(expected)
    return len(found) == len(expected) and all((f == e).all() for f, e in zip(found, expected, strict=True))


def test_connected_parts_are_instances_and_crumbs_are_not():
    crumb, small = block(30, 22, 2, 2), block(30, 40, 5, 5)
    mask = LEFT | RIGHT | crumb | small
    assert same(separate(mask, proposals_of()), [LEFT | crumb, RIGHT | small])
    assert same(separate(mask, proposals_of(small)), [LEFT | crumb, RIGHT, small])  # a proposal shows it
    parts = proposals_of(small, LEFT)
    assert same(separate(mask, parts, [0.2, 0.9]), [LEFT | crumb, RIGHT | small])  # a mere part, likely
    assert same(separate(mask, parts, [0.2, 0.3]), [LEFT | crumb, RIGHT, small])  # as sure as any other
    empty = np.zeros((H, W), bool)
    assert separate(empty, proposals_of(small), [1.0])[0] is empty


def test_a_connected_part_is_split_into_whole_objects():
    """Two objects that touch, beneath a proposal that holds both, and a part of the first."""
    first, second = block(5, 10, 20, 12), block(5, 22, 20, 12)
    both, part = first | second, block(5, 10, 10, 12)
    proposals = proposals_of(both, first, second, part, RIGHT)
    assert same(separate(both, proposals, [0.3, 0.9, 0.8, 0.3, 1.0]), [first, second])
    assert same(separate(both, proposals, [0.9, 0.3, 0.3, 0.2, 1.0]), [both])  # one object of two parts
    assert same(separate(both, proposals, [0.3, 0.9, 0.2, 0.3, 1.0]), [both])  # nothing is sure of the second
    assert same(separate(both, proposals), [both])  # nobody knows what is whole
    overlapping = proposals_of(first, block(5, 20, 20, 14))
    found = separate(both, overlapping, [0.9, 0.8])
    assert same(found, [first, second]) and not (found[0] & found[1]).any()


def test_what_was_pointed_at_twice_is_one_object():
    inner = block(6, 1, 10, 8)
    assert same(merged([inner, RIGHT, LEFT]), [LEFT, RIGHT])
    assert merged([]) == []
