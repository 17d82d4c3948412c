"""Every kind of image becomes the same plain array; what is none is refused in one line."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from assistant.errors import BadInput, Note
from assistant.images import MAX_PIXELS, collect_notes, image_size, open_image

COFFEE = np.ascontiguousarray(data.coffee()[::4, ::4])  # (100, 150, 3)


def refused(source, *words):
    with pytest.raises(BadInput) as caught:
        open_image(source)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    for word in words:
        assert word in message, message


def png_header(width, height, bits=8, colour=2) -> bytes:
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_the_same_pixels_from_path_pil_and_array(tmp_path):
    path = tmp_path / "a photo ü.png"
    Image.fromarray(COFFEE).save(path)
    for source in (path, str(path), Image.open(path), COFFEE, COFFEE[:, :, :]):
        image = open_image(source)
        assert image.dtype == np.uint8 and image.flags.c_contiguous and np.array_equal(image, COFFEE)
    assert image_size(path) == COFFEE.shape[:2]


def test_an_array_is_copied():
    array = COFFEE.copy()
    open_image(array)[:] = 0
    assert array.any()


def test_grey_array_and_modes(tmp_path):
    grey = COFFEE[..., 0]
    assert np.array_equal(open_image(grey), np.dstack([grey] * 3))
    for mode in ("L", "1", "P", "CMYK", "YCbCr", "HSV", "LA", "RGBA", "PA"):
        source = Image.fromarray(COFFEE)
        source = source.convert("P").convert("PA") if mode == "PA" else source.convert(mode)
        image = open_image(source)
        assert image.shape == COFFEE.shape, mode
        if mode in ("CMYK", "YCbCr", "HSV", "RGBA"):
            assert np.abs(image.astype(int) - COFFEE).mean() < 4, mode
    for name, mode in (
        ("a.jpg", "CMYK"),
        ("a.gif", "P"),
        ("a.tif", "CMYK"),
        ("a.webp", "RGB"),
        ("a.bmp", "RGB"),
    ):
        Image.fromarray(COFFEE).convert(mode).save(tmp_path / name)
        image = open_image(tmp_path / name)
        assert image.shape == COFFEE.shape and np.abs(image.astype(int) - COFFEE).mean() < 16, name


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (16, 1))
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(ramp).save(path)
    image = open_image(path)
    assert image[0, 0, 0] == 0 and image[0, -1, 0] == 255
    assert np.abs(image[..., 0].astype(int) - np.rint(ramp / 257)).max() <= 1


@pytest.mark.parametrize(
    "values, low, high",
    [(np.linspace(0, 1, 256), 0, 255), (np.linspace(0, 255, 256), 0, 255), (np.linspace(-5, 5, 256), 0, 255)],
)
def test_float_images(values, low, high):
    image = open_image(Image.fromarray(np.tile(values.astype(np.float32), (10, 1))))
    assert (image.min(), image.max()) == (low, high)
    assert (np.diff(image[0, :, 0].astype(int)) >= 0).all()


def test_wide_integers_are_scaled():
    image = open_image(Image.fromarray(np.tile(np.linspace(0, 65535, 64).astype(np.int32), (16, 1))))
    assert image[0, 0, 0] == 0 and image[0, -1, 0] == 255 and 120 < image[0, 32, 0] < 136


def test_transparency_lies_over_white(tmp_path):
    rgba = np.zeros((12, 12, 4), np.uint8)
    rgba[:, 6:] = (200, 0, 0, 255)
    rgba[0, :] = (0, 0, 0, 128)
    image = open_image(Image.fromarray(rgba))
    assert (image[1:, :6] == 255).all() and (image[1:, 6:] == (200, 0, 0)).all()
    assert np.abs(image[0].astype(int) - 127).max() <= 1
    palette = Image.fromarray(np.repeat(np.arange(12, dtype=np.uint8)[None], 12, 0)).convert("P")
    palette.save(tmp_path / "p.png", transparency=0)
    assert (open_image(tmp_path / "p.png")[:, 0] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COFFEE).save(path, exif=exif)
    turns = {
        1: np.asarray,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    image = open_image(path)
    assert np.array_equal(image, turns[orientation](COFFEE))
    assert image_size(path) == image.shape[:2]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "white")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.abs(open_image(path).astype(int) - (255, 0, 0)).max() <= 3
    opened = Image.open(path)
    opened.seek(2)
    assert np.abs(open_image(opened).astype(int) - (255, 0, 0)).max() <= 3
    assert opened.tell() == 2


def test_what_is_no_image(tmp_path):
    cases = {
        "empty.png": (b"", "empty"),
        "text.jpg": (b"hello " * 50, "not an image"),
        "a.svg": (b'<?xml version="1.0"?>\n<!-- x --><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        "b.svg": (b"\xef\xbb\xbf <svg></svg>", "SVG"),
        "c.heic": (b"\0\0\0\x18ftypheic" + b"\0" * 50, "HEIC"),
        "d.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n", "not an image"),
    }
    for name, (content, word) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, name, word)
    refused(tmp_path / "none.png", "no image at")
    refused(tmp_path, "folder")
    refused("", "folder")
    refused("a\0b.png", "no image")
    refused("x" * 5000)
    refused(None, "NoneType")
    refused(b"abc", "bytes")
    with pytest.raises(BadInput, match="no image at"):
        image_size(tmp_path / "none.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(COFFEE).save(whole)
    content = whole.read_bytes()
    for share in (0.9, 0.5, 0.2):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(content[: int(len(content) * share)])
        refused(cut, f"cut.{suffix}")


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=8), st.integers(0, 400))
def test_damaged_bytes_never_raise_anything_else(tmp_path_factory, noise, place):
    path = tmp_path_factory.getbasetemp() / "noise.png"
    Image.fromarray(COFFEE[:16, :16]).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:place] + noise + content[place + len(noise) :])
    try:
        assert open_image(path).dtype == np.uint8
    except BadInput as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "width, height", [(10_000, 10_000), (8_001, 8_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_too_many_pixels_are_refused_from_the_header(tmp_path, width, height):
    path = tmp_path / "large.png"
    path.write_bytes(png_header(width, height))
    refused(path, "64,000,000", "large.png")
    with pytest.raises(BadInput, match="64,000,000"):
        image_size(path)


def test_the_limit_holds_for_pil_and_arrays_too():
    refused(Image.new("1", (8_001, 8_000)), "64,000,000")
    refused(np.broadcast_to(np.uint8(0), (8_001, 8_000)), "64,000,000")
    assert MAX_PIXELS == 64_000_000


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_too_small(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "small.png")
    refused(tmp_path / "small.png", "8 px")
    refused(np.zeros((*size, 3), np.uint8), "8 px")


def test_just_large_enough():
    assert open_image(np.zeros((8, 8, 3), np.uint8)).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3)),
        np.zeros((2, 9, 9, 3), np.uint8),
        np.zeros((3, 9, 9), np.uint8),
        np.zeros(9, np.uint8),
        np.zeros((9, 9), bool),
        np.zeros((9, 9, 3), np.uint16),
    ],
)
def test_arrays_of_another_kind(array):
    refused(array, "uint8", str(array.dtype))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_has_the_size_that_its_header_tells(tmp_path, orientation):
    path = tmp_path / "turned.tif"
    Image.fromarray(COFFEE).save(path, tiffinfo={0x0112: orientation})
    image = open_image(path)
    assert image_size(path) == image.shape[:2] == (COFFEE.shape[:2] if orientation < 5 else (150, 100))


def test_broken_exif_leaves_a_good_image_readable(tmp_path):
    path = tmp_path / "broken.jpg"
    Image.fromarray(COFFEE).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 40)
    assert open_image(path).shape[:2] == image_size(path) == COFFEE.shape[:2]


DEEP = {  # name: (values, lowest and highest of what they become)
    "8 bits in 16": (
        COFFEE[..., 0].astype(np.uint16),
        (int(COFFEE[..., 0].min()), int(COFFEE[..., 0].max())),
    ),
    "12 bits in 16": (COFFEE[..., 0].astype(np.uint16) * 16, (0, 255)),
    "kelvin": (290 + COFFEE[..., 0].astype(np.float32) / 10, (0, 255)),
    "centikelvin": (29_000 + COFFEE[..., 0].astype(np.uint16) * 5, (0, 255)),
    "celsius": (20 + COFFEE[..., 0].astype(np.float32) / 25, (0, 255)),
}


@pytest.mark.parametrize("name", DEEP)
def test_what_fills_a_part_of_its_range_is_stretched_and_said(tmp_path, name):
    values, (low, high) = DEEP[name]
    path = tmp_path / "deep.tif"
    for hot in (False, True):
        stored = values.copy()
        if hot:  # one dead pixel and one hot one change nothing
            stored[0, 0], stored[0, 1] = 0, 65_000
        Image.fromarray(stored).save(path)
        with collect_notes() as notes:
            image = open_image(path)
        assert len(notes) == 1 and "deep.tif has values from" in notes[0] and "stretched" in notes[0]
        assert abs(int(image.min()) - low) < 8 and abs(int(image.max()) - high) < 8
        likeness = np.corrcoef(image[1:, :, 0].ravel(), COFFEE[1:, :, 0].ravel())[0, 1]
        assert likeness > 0.99
    with pytest.warns(Note, match="stretched"):
        open_image(path)


def test_holes_without_a_number_are_black(tmp_path):
    values = 290 + COFFEE[..., 0].astype(np.float32) / 10
    values[:5] = np.nan
    image = open_image(Image.fromarray(values))
    assert not image[:5].any() and image[5:].std() > 20


def test_images_of_a_usual_range_say_nothing():
    full = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    unit = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
    with collect_notes() as notes:
        for source in (
            COFFEE,
            Image.fromarray(COFFEE),
            *map(Image.fromarray, (full, unit, full * 0, unit * 0)),
        ):
            open_image(source)
    assert notes == []
