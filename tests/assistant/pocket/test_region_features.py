"""The features of regions for the pocket preset."""

import pytest
import torch

from assistant.pocket.proposals import low_res_boxes
from assistant.pocket.region_features import (
    FEATURE_DIM,
    compute_region_features,
    crop_grid,
    fixed_size_batches,
)
from assistant.sam.backends import PocketSegmenter
from assistant.sam.region_features import GEOMETRY, geometry


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_batches_are_all_of_one_size(count):
    parts = fixed_size_batches(count, 16)
    assert {len(part) for part in parts} == {16}
    assert torch.cat(parts)[:count].tolist() == list(range(count))
    assert torch.cat(parts).max() == count - 1


def test_crops_are_where_the_box_is():
    grid = crop_grid(torch.tensor([[100.0, 300.0]]), torch.tensor([64.0]))
    corner, opposite = (grid[0, 0, 0] + 1) * 256, (grid[0, -1, -1] + 1) * 256
    assert torch.allclose(corner, torch.tensor([68.2, 268.2]))
    assert torch.allclose(opposite, torch.tensor([131.8, 331.8]))


def test_features_have_one_row_a_region_and_end_in_geometry(sam, image):
    masks = torch.zeros(2, 128, 128)
    masks[0, 10:30, 10:40] = masks[1, 40:80, 60:120] = 1
    boxes, areas = low_res_boxes(masks > 0), masks.sum((1, 2)) * 16
    maps = PocketSegmenter(sam).encode(image).maps
    features, classes = compute_region_features(sam.image_encoder, image, maps, masks, boxes, areas)
    assert features.shape == (2, FEATURE_DIM) and features.isfinite().all() and classes.shape == (2, 0)
    assert torch.allclose(features[:, -GEOMETRY:], geometry(boxes, areas, image.shape[:2]))
