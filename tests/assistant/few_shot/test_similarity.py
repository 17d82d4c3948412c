"""Similarity maps on colours whose similarity is known."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.few_shot.similarity import IMAGE_MAPS, LABEL_MAPS, reference_similarity, scaled_to_unit
from tests.helpers.few_shot import BLUE, RED, image_with_box


def unit_patches(*images) -> list[Tensor]:
    """Images (h, w, 3) uint8 -> their colours as unit patches (1, 3, h, w)."""
    colours = [torch.tensor(image, dtype=torch.float32).permute(2, 0, 1) - 128 for image in images]
    return [F.normalize(colour, dim=0)[None] for colour in colours]


def test_the_colour_of_the_reference_is_found():
    pixels, mask = image_with_box(16, 16, (2, 2, 8, 8), RED)
    other, truth = image_with_box(16, 16, (9, 4, 15, 15), RED)
    other[:3, :3] = BLUE
    truth = torch.tensor(truth)
    reference, query = unit_patches(pixels, other)
    maps = reference_similarity(
        query, reference[:, None], torch.tensor(mask)[None, None].float(), torch.ones(1, 1, 16, 16)
    )
    assert torch.equal(maps.best[0] > 0.99, truth)
    assert torch.equal(maps.contrast[0] > 0.5, truth)
    assert maps.level[0][truth].mean() == pytest.approx(1, abs=1e-4)
    assert maps.separation.min() == maps.separation.max() > 0.3
    # the grey around it is that around the reference
    assert abs(float(maps.level[0][~truth].median())) < 1e-4


def test_a_mask_smaller_than_a_cell_still_counts():
    pixels, _ = image_with_box(8, 8, (3, 3, 4, 4), RED)
    reference, query = unit_patches(pixels, pixels)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3, 3] = 0.1
    best = reference_similarity(query, reference[:, None], mask, torch.ones(1, 1, 8, 8)).best
    assert best[0, 3, 3] > 0.99
    assert best[0, 0, 0] < 0.9


def test_several_references_act_as_one_memory():
    """The same reference twice changes nothing, and what only the second one shows is found as well."""
    red, mask = image_with_box(16, 16, (2, 2, 8, 8), RED)
    blue, _ = image_with_box(16, 16, (2, 2, 8, 8), BLUE)
    query, _ = image_with_box(16, 16, (0, 0, 4, 16), RED)
    query[:, 12:] = BLUE
    red, blue, query = unit_patches(red, blue, query)
    masks = torch.tensor(mask)[None, None].float()
    ones = torch.ones(1, 2, 16, 16)
    once = reference_similarity(query, red[:, None], masks, ones[:, :1])
    twice = reference_similarity(query, torch.stack([red, red], 1), masks.expand(1, 2, -1, -1), ones)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(once, twice, strict=True))
    both = reference_similarity(query, torch.stack([red, blue], 1), masks.expand(1, 2, -1, -1), ones)
    assert both.best[0, 5, 14] > 0.99
    assert once.best[0, 5, 14] < 0.5


def test_a_map_is_scaled_over_what_the_image_covers(matcher):
    coverage = matcher.open(image_with_box(60, 120, (20, 10, 60, 50), RED)[0]).coverage
    scaled = scaled_to_unit(torch.randn(1, 8, 8), coverage[None])
    assert scaled[0, :4].amin() == 0 and scaled[0, :4].amax() == 1
    assert not scaled[0, 4:].any()


def test_the_published_weights_read_nine_maps_and_four_with_a_label():
    assert (IMAGE_MAPS, LABEL_MAPS) == (9, 4)
