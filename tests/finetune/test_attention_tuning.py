"""One-shot tuning of attention: which images stand for the categories."""

import numpy as np

from finetune.attention_tuning import draw_supports, support_map


def label_map_of(*category_shares: tuple[int, float]) -> np.ndarray:
    """A label map of 10 x 10 px with categories that cover given shares of it."""
    pixels = [category for category, share in category_shares for _ in range(int(100 * share))]
    return np.array(pixels + [0] * (100 - len(pixels))).reshape(10, 10)


def test_one_image_for_each_category():
    label_maps = [
        label_map_of((1, 0.3), (2, 0.3)),
        label_map_of((1, 0.3)),
        label_map_of((2, 0.5)),
        label_map_of(),
    ]
    supports = dict(draw_supports(["mug", "box", "cup"], label_maps, np.random.default_rng(0)))
    assert supports == {1: 1, 2: 2}  # alone in the image; no image shows a cup
    again = [draw_supports(["mug", "box"], label_maps, np.random.default_rng(5)) for _ in range(2)]
    assert again[0] == again[1]
    assert support_map(label_maps[0], 2).unique().tolist() == [-1, 0, 2]  # the mug's label is not given away
