"""Masks on the grid of SAM's square: one transform for an image, its mask and its features."""

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.errors import BadInput
from assistant.few_shot.episode import cell_coverage
from assistant.few_shot.matcher import open_references
from assistant.images import open_image
from assistant.sam.backends import OfficialSegmenter, TransformersSegmenter, square_input
from assistant.sam.checkpoints import default_processor
from tests.helpers.few_shot import RED, image_with_box
from tests.helpers.tiny_sams import tiny_official_sam, tiny_sam2


@pytest.mark.parametrize("size", [(128, 128), (90, 161), (333, 77), (40, 30)])
def test_a_mask_goes_through_the_transform_that_sam_gives_the_image(size):
    """The cells that a mask covers are those where SAM's square shows its colour."""
    segmenter = OfficialSegmenter(tiny_official_sam())
    height, width = size
    box = (width // 5, height // 4, width * 3 // 5, height * 4 // 5)
    pixels, mask = image_with_box(height, width, box, RED)
    square = square_input(segmenter, pixels)[0] * segmenter.model.pixel_std + segmenter.model.pixel_mean
    red = (square[0] - square[2] > 90).float()
    share = cell_coverage(segmenter, size, mask, (128, 128))
    assert ((share > 0.5).float() - red).abs().mean() < 0.02
    whole = cell_coverage(segmenter, size, np.ones(size, bool), (128, 128))
    assert abs(float(share.sum() / whole.sum()) - mask.mean()) < 1e-4


def test_a_stretched_square_is_filled_whole():
    model = tiny_sam2()
    segmenter = TransformersSegmenter(model, default_processor(model))
    left_half = np.pad(np.ones((50, 50), bool), ((0, 0), (0, 50)))
    share = cell_coverage(segmenter, (50, 100), left_half, (8, 8))
    assert torch.allclose(share, torch.tensor([[1.0] * 4 + [0.0] * 4] * 8), atol=1e-5)


def test_clip_sees_what_the_mask_covers(matcher):
    """Painting a box into an image that is not square changes the patches that the box's mask covers."""
    plain = np.full((60, 120, 3), 190, np.uint8)
    pixels, mask = image_with_box(60, 120, (60, 15, 120, 45), RED)
    embedding = matcher.segmenter.encode(pixels)
    outputs = []
    patch_embedding = matcher.extractor.model.vision_model.embeddings.patch_embedding
    hook = patch_embedding.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    for image in (plain, pixels):
        matcher.extractor(image, embedding)
    hook.remove()
    change = (outputs[0] - outputs[1]).abs().amax(0)
    changed = change > 0.3 * change.max()  # bicubic resizing rings a little beyond the edge
    share = cell_coverage(matcher.segmenter, (60, 120), mask, (8, 8))
    assert torch.equal(changed, share > 0.5)
    assert changed.any() and not changed.all()


def test_a_turned_photo_and_the_mask_painted_on_it_agree(matcher, tmp_path):
    """A photo that EXIF turns is turned before the mask, painted on what is displayed, is laid over it."""
    pixels, mask = image_with_box(60, 120, (10, 10, 50, 50), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees, so that the file's rows are the display's columns
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert np.array_equal(open_image(tmp_path / "turned.png"), pixels)
    (reference,) = open_references(matcher, tmp_path / "turned.png", tmp_path / "mask.png")
    expected = cell_coverage(matcher.segmenter, (60, 120), mask, tuple(reference.mask.shape))
    assert torch.equal(reference.mask, expected)
    with pytest.raises(BadInput, match="60x120, its image 120x60"):
        open_references(matcher, tmp_path / "turned.png", mask.T)
