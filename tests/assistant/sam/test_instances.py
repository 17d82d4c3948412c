"""A mask and the parts that it is made of stay together."""

import numpy as np

from assistant.sam.instances import fitted, in_reading_order

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
