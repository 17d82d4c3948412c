"""Refinement of coarse maps: ConvCRF at an edge, and votes of masks."""

import numpy as np
import pytest
import torch

from assistant.attention.refinement import ConvCRF, vote


def test_crf_follows_the_edges_of_the_image():
    image = np.zeros((24, 24, 3), np.uint8)
    image[:, 12:] = 200
    coarse = torch.full((2, 24, 24), 0.5)
    # drawn over the edge by three columns
    coarse[0, :, 9:], coarse[1, :, 9:] = 0.3, 0.7
    coarse[0, :, :9], coarse[1, :, :9] = 0.7, 0.3
    coarse[:, 4, 4] = torch.tensor([0.4, 0.6])  # a speck
    fine = ConvCRF(appearance_sigma=8.0)(coarse, image)
    assert fine.shape == coarse.shape
    assert torch.allclose(fine.sum(0), torch.ones(24, 24), atol=1e-5)
    label_map = fine.argmax(0)
    assert (label_map[:, 12:] == 1).all() and label_map[4, 4] == 0
    assert (label_map[:, 9:12] == 0).float().mean() > 0.9


def test_pixels_follow_the_most_confident_mask():
    probabilities = torch.tensor([[[0.9, 0.4, 0.4, 0.8]], [[0.1, 0.6, 0.6, 0.2]]])
    masks = torch.tensor([[[False, True, True, True]], [[True, False, False, False]]])
    voted = vote(probabilities, masks)
    assert voted[:, 0, 3].tolist() == pytest.approx([1.6 / 3, 1.4 / 3])
    assert voted[0, 0, 0] == pytest.approx(0.9)
    assert torch.equal(vote(probabilities, masks[:0]), probabilities)
    assert torch.equal(vote(probabilities, masks, min_confidence=1.0), probabilities)
