"""A choice of proposals, from parts to whole objects."""

import numpy as np
import pytest

from assistant.errors import BadInput
from assistant.sam.mask_ops import encode_rle
from assistant.sam.proposals import Proposals, by_granularity


def test_granularity_prefers_parts_or_whole_objects():
    whole, part = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    whole[:30, :30], part[:20, :20] = True, True
    masks = [part, whole]
    proposals = Proposals(
        [encode_rle(mask) for mask in masks],
        np.zeros((2, 4), np.float32),
        np.full(2, 0.9, np.float32),
        np.ones(2, np.float32),
        np.array([mask.sum() for mask in masks]),
        np.zeros((2, 2), np.float32),
        np.zeros((2, 4, 4), np.float32),
        (40, 40),
    )
    assert by_granularity(proposals, 1).areas.tolist() == [900]
    assert by_granularity(proposals, 0).areas.tolist() == [400, 900]
    with pytest.raises(BadInput, match="between 0"):
        by_granularity(proposals, 1.5)
