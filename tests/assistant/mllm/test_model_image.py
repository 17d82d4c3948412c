"""What a model is shown of an image: within the limit, in one shape, and resized once for a conversation."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from assistant.mllm.coordinates import frame_of, scale_of
from assistant.mllm.model_image import (
    DEFAULT_PIXELS,
    FittedImages,
    ImageFit,
    image_fit_of,
    image_fit_of_server,
)

QWEN = SimpleNamespace(merge_size=2, patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216})
SMOLVLM = SimpleNamespace(max_image_size={"longest_edge": 512}, size={"longest_edge": 2048})
INTERNVL = SimpleNamespace(max_patches=12, size={"height": 448, "width": 448})
LLAVA = SimpleNamespace(do_center_crop=True)


@given(
    st.integers(1, 1200),
    st.integers(1, 1200),
    st.sampled_from([1, 28, 32]),
    st.booleans(),
    st.sampled_from([65536, 400_000]),
)
@example(20000, 3, 32, False, DEFAULT_PIXELS)
@example(1144, 1145, 32, False, DEFAULT_PIXELS)  # the nearest multiples of 32 would be too many
@example(1, 30000, 1, True, DEFAULT_PIXELS)
def test_every_image_fits_and_then_stays_as_it_is(height, width, multiple, padded, pixels):
    image_fit = ImageFit(pixels, multiple, padded and multiple == 1)
    fitted = image_fit.fit(np.zeros((height, width, 3), np.uint8))
    high, wide = fitted.shape[:2]
    assert high % multiple == wide % multiple == 0
    assert high * wide <= pixels
    if image_fit.padded:
        assert high == wide
    else:
        assert max(high, wide) < 200 * min(high, wide) or multiple == 1  # else Qwen's processor refuses it
    assert image_fit.fit(fitted) is fitted


def test_an_image_within_the_limit_keeps_its_pixels():
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    assert image_fit_of(QWEN).fit(image) is image and image_fit_of_server("gpt-9").fit(image) is image
    padded = image_fit_of(LLAVA).fit(image)
    assert padded.shape == (640, 640, 3) and np.array_equal(padded[80:560], image)
    assert image_fit_of(LLAVA).share_of_image((480, 640)) == (0.75, 1.0)


@pytest.mark.parametrize(
    "processor, pixels, expected",
    [
        (QWEN, None, 1280 * 32 * 32),
        (QWEN, 5_000_000, 5_000_000),
        (SMOLVLM, None, 2048**2),  # its own
        (SMOLVLM, 1_000_000, 512**2),
        (SMOLVLM, 1_100_000, 1024**2),
        (SMOLVLM, 99_000_000, 2048**2),
        (INTERNVL, None, 6 * 448**2),
        (INTERNVL, 2_500_000, 12 * 448**2),
        (INTERNVL, 70_000, 448**2),
        (LLAVA, None, DEFAULT_PIXELS),
    ],
)
def test_the_limit_of_each_kind_of_processor(processor, pixels, expected):
    image_fit = image_fit_of(processor, pixels)
    assert image_fit.max_pixels == expected
    assert image_fit_of(processor, expected) == image_fit or pixels is None and processor is LLAVA
    assert image_fit.padded == (processor is LLAVA)


def test_a_server_that_counts_pixels_gets_images_that_it_leaves_as_they_are():
    image = np.zeros((3024, 4032, 3), np.uint8)
    model = "Qwen/Qwen2.5-VL-7B-Instruct"
    height, width = image_fit_of_server(model).fit(image).shape[:2]
    assert height % 28 == width % 28 == 0 and height * width <= 1280 * 28 * 28
    frame = frame_of(scale_of(model), image.shape[:2], (width, height))
    assert frame.point(width, height / 2) == (4032, 1512)
    assert np.prod(image_fit_of_server(model, 400_000).fit(image).shape[:2]) <= 400_000


def test_a_conversation_resizes_its_photo_once():
    fitted_images = FittedImages()
    photo = np.zeros((3000, 4000, 3), np.uint8)
    once = fitted_images.fit(photo, image_fit_of(QWEN))
    assert fitted_images.fit(photo, image_fit_of(QWEN)) is once
    assert fitted_images.fit(photo, image_fit_of(QWEN, 100_000)) is not once
    others = [np.zeros((1200, 1200, 3), np.uint8) for _ in range(8)]
    for other in others:
        assert fitted_images.fit(other, image_fit_of(QWEN)).shape == (1120, 1120, 3)
    assert fitted_images.fit(photo, image_fit_of(QWEN)) is not once  # forgotten
