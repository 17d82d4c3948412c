"""One mask, however it was saved: the same pixels, or one line that says why they cannot be told."""

import numpy as np
import pytest
from PIL import Image

from assistant.mask_images import open_label_map, open_mask
from tests.helpers.refusals import refusal

MASK = np.zeros((40, 60), bool)
MASK[8:30, 10:35] = True
GREY = MASK.astype(np.uint8) * 255
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def palette(indices, *colours) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def transparent(colours, alpha) -> Image.Image:
    colours = np.broadcast_to(colours, (*MASK.shape, 3)).astype(np.uint8)
    return Image.fromarray(np.dstack([colours, alpha.astype(np.uint8)]))


GREY_ALPHA = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (60, 40), 255)])
RIGHT = {
    "grey": Image.fromarray(GREY),
    "one": Image.fromarray(MASK.astype(np.uint8)),
    "one bit": Image.fromarray(MASK),
    "sixteen bits": Image.fromarray(MASK.astype(np.uint16)),
    "colour": Image.fromarray(np.dstack([GREY, GREY * 0, GREY * 0])),
    "grey with alpha": GREY_ALPHA,
    "colour with alpha": GREY_ALPHA.convert("RGBA"),
    "faint": transparent(np.dstack([GREY] * 3), np.full(MASK.shape, 100)),
    "white cut-out": transparent(255, GREY),
    "cut-out over black": transparent(np.dstack([GREY] * 3), GREY),
    "half transparent cut-out": transparent((255, 0, 0), MASK * 100),
    "cut out of a photo": transparent(np.maximum(PHOTO, 1), GREY),
    "palette": palette(MASK, (0, 0, 0), (128, 0, 0)),
    "palette, white first": palette(~MASK, (255, 255, 255), (0, 0, 0)),
}
AMBIGUOUS = {
    "palette without black": palette(MASK, (68, 1, 84), (253, 231, 37)),
    "black drawn on nothing": transparent(0, GREY),
    "black and white on nothing": transparent(
        np.dstack([GREY] * 3), np.arange(60)[None] % 2 * 255 + GREY * 0
    ),
    "wholly transparent": transparent(np.dstack([GREY] * 3), GREY * 0),
    "scores": Image.fromarray(np.where(MASK, 3.5, -2).astype(np.float32)),
    "soft": Image.fromarray(np.tile(np.linspace(0, 1, 60, dtype=np.float32), (40, 1))),
    "no number": Image.fromarray(np.where(MASK, 1, np.nan).astype(np.float32)),
    "no outside": Image.fromarray(GREY // 2 + 1),
}


@pytest.mark.parametrize("name", RIGHT)
def test_one_mask_however_it_is_saved(tmp_path, name):
    assert np.array_equal(open_mask(RIGHT[name]), MASK)
    file = tmp_path / "mask.png"
    RIGHT[name].save(file)
    assert np.array_equal(open_mask(file), MASK)


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, name):
    file = tmp_path / "mask.tif"
    AMBIGUOUS[name].save(file)
    for source in (file, AMBIGUOUS[name]):
        assert "black outside and white inside" in refusal(lambda source=source: open_mask(source))


def test_a_mask_of_wide_integers(tmp_path):
    Image.fromarray(MASK.astype(np.int32) * 70_000).save(tmp_path / "mask.tif")
    assert np.array_equal(open_mask(tmp_path / "mask.tif"), MASK)


def test_a_transparent_colour_of_a_palette(tmp_path):
    file = tmp_path / "mask.png"
    palette(MASK, (255, 255, 255), (200, 0, 0)).save(file, transparency=0)
    assert np.array_equal(open_mask(file), MASK)


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_blurred_edges_are_cut_in_the_middle(tmp_path, kind):
    file = tmp_path / f"mask.{kind}"
    for white in (100, 255):  # LISA writes 100
        Image.fromarray(MASK.astype(np.uint8) * white).save(file, quality=60)
        found = open_mask(file)
        assert (found & MASK).sum() / (found | MASK).sum() > 0.98
    Image.fromarray(GREY * 0).save(file)
    assert not open_mask(file).any()
    Image.fromarray(PHOTO).save(file)
    assert "looks like a photo" in refusal(lambda: open_mask(file))


def test_a_photo_and_several_images_are_no_mask(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    assert "looks like a photo" in refusal(lambda: open_mask(photo))
    Image.fromarray(GREY).save(
        tmp_path / "stack.tif", save_all=True, append_images=[Image.fromarray(GREY.T.reshape(GREY.shape))]
    )
    assert "several images" in refusal(lambda: open_mask(tmp_path / "stack.tif"))
    assert "no image at" in refusal(lambda: open_mask(tmp_path / "none.png"))


def test_label_maps_have_the_numbers_that_are_stored(tmp_path):
    labels = MASK.astype(np.uint8) * 7
    labels[0, 0] = 255
    colours = [(k, 255 - k, 9) for k in range(256)]
    rgb = Image.merge("RGB", [Image.fromarray(labels)] * 3)
    for image in (
        Image.fromarray(labels),
        Image.fromarray(labels.astype(np.uint16)),
        palette(labels, *colours),
        rgb,
        rgb.convert("RGBA"),
        rgb.convert("LA"),
    ):
        image.save(tmp_path / "labels.png")
        read = open_label_map(tmp_path / "labels.png")
        assert np.array_equal(read, labels) and read.dtype.kind in "iu"
    Image.fromarray(MASK).save(tmp_path / "bits.png")
    assert np.array_equal(open_label_map(tmp_path / "bits.png"), MASK)


def test_what_is_no_label_map_is_refused(tmp_path):
    cases = {
        "colour.png": Image.fromarray(np.dstack([GREY, GREY * 0, GREY * 0])),
        "cutout.png": transparent(np.dstack([GREY] * 3), GREY),
        "blurred.jpg": Image.fromarray(GREY),
        "scores.tif": Image.fromarray(np.where(MASK, 3.5, 0).astype(np.float32)),
    }
    for name, image in cases.items():
        image.save(tmp_path / name)
        assert name in refusal(lambda name=name: open_label_map(tmp_path / name))
