"""Features of regions of any SAM."""

import torch

from assistant.sam.region_features import pooled


def test_pooling_under_a_mask_is_the_mean_there():
    features = torch.zeros(1, 2, 8, 8)
    features[0, 0, :, 4:] = 1.0
    features[0, 1, :4] = 3.0
    masks = torch.zeros(2, 64, 64)
    masks[0, :32, 32:] = masks[1] = 1.0
    assert torch.allclose(pooled(features, masks), torch.tensor([[1.0, 3.0], [0.5, 1.5]]))
