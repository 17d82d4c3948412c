"""Which points are clicked, and which of a click's masks stay."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from assistant.sam.click_grid import agreement, coarse_to_fine, matches_granularity


@given(count=st.integers(1, 40))
def test_levels_cover_the_grid_once(count):
    assert sorted(np.concatenate(coarse_to_fine(count)).tolist()) == list(range(count * count))


def test_two_clicks_agree_on_a_mask():
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[0, :8] = True
    masks[1, :8] = True
    masks[2, 10:] = True
    agreed, earlier = agreement(masks[:1], None)
    assert not agreed.any()
    agreed, earlier = agreement(masks[1:], earlier)
    assert np.array_equal(agreed, masks[0].numpy()) and len(earlier) == 3


def test_which_masks_match_the_granularity():
    passes = torch.tensor([[True, True, True], [True, False, True]])
    areas = torch.tensor([[30, 10, 20], [5, 1, 9]])
    assert matches_granularity(passes, areas, 0.0)[passes].tolist() == [False, True, False, True, False]
    assert matches_granularity(passes, areas, 1.0)[passes].tolist() == [True, False, False, False, True]
    assert matches_granularity(passes, areas, 0.5)[passes].all()
