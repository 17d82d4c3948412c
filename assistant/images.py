"""Reads any image as one plain array, or says in one line why it cannot be read.

image = open_image("photo.jpg")          # (H, W, 3) uint8 RGB; also from a PIL image or an array
height, width = image_size("photo.jpg")  # from the header, without decoding
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from assistant.errors import BadInput

MAX_PIXELS = 64_000_000  # of an image or mask: the largest cameras, and 192 MB as an array
MIN_SIDE = 8  # px

# Formats of photographs and drawings. Others that Pillow knows start programs of their own (EPS) or have no
# signature to recognise them by (TGA), and are refused.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "TIFF", "BMP", "DIB", "PPM", "ICO", "JPEG2000", "AVIF", "PCX")
IMAGE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
}  # that are looked for in a folder

EXIF_ORIENTATION_TAG = 0x0112
SIDEWAYS_ORIENTATIONS = (5, 6, 7, 8)  # those that swap width and height

SIGNATURE_BYTES = 512  # of a file, by which `_why_not` recognises what is no image
HEIC_SIGNATURES = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")
MAX_NAME_LENGTH = 200  # characters of a path in a message
MAX_REASON_LENGTH = 100  # characters of Pillow's message that are shown
MAX_16_BIT_VALUE = 65535.0


def open_image(source: Any) -> np.ndarray:
    """Read an image.

    EXIF orientation is applied, 16-bit and floating-point values are scaled to 0 to 255, transparency is laid
    over white, and of an animation the first frame is taken.

    Args:
        source: A path, a PIL image, or an array (H, W, 3) or (H, W) of uint8.

    Returns:
        (H, W, 3) uint8 RGB, contiguous, not shared with `source`.

    Raises:
        BadInput: It is none of these, cannot be read, has a side below 8 px or more than 64 million pixels.
            Where the header tells, nothing is decoded.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the image")
    name = _display_name(source)
    with _open(source) as image:
        return _decode(image, name)


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their names without suffix; of two with one stem, the first by name."""
    return {file.stem: file for file in reversed(images_in(folder))} if folder.is_dir() else {}


def image_size(path: str | Path) -> tuple[int, int]:
    """The size that an image will have, from its header.

    Args:
        path: An image file.

    Returns:
        (height, width) in px, as of `open_image(path)`.

    Raises:
        BadInput: As of `open_image`, as far as the header tells.
    """
    with _open(path) as image:
        width, height = image.size
        _check_size(width, height, _display_name(path))
        is_sideways = image.getexif().get(EXIF_ORIENTATION_TAG, 1) in SIDEWAYS_ORIENTATIONS
    return (width, height) if is_sideways else (height, width)


def _display_name(path: Any) -> str:
    """The path for a message: one line of bounded length."""
    name = " ".join(str(path).split())
    return name if len(name) <= MAX_NAME_LENGTH else f"...{name[3 - MAX_NAME_LENGTH :]}"


def _open(path: Any) -> Image.Image:
    """A PIL image whose header was read. Raises BadInput where there is none."""
    signature = _read_signature(path)
    name = _display_name(path)
    try:
        with warnings.catch_warnings():  # our own limit is below Pillow's
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.init()
            known = [
                kind for kind in FORMATS if kind in Image.OPEN
            ]  # Pillow may have been built without some
            return Image.open(path, formats=known)
    except Image.DecompressionBombError:
        raise BadInput(
            f"{name} has more than {MAX_PIXELS:,} pixels, the limit: scale it down first"
        ) from None
    except Exception:  # what a broken header raises depends on the format
        raise BadInput(f"{name} {_why_not(signature)}") from None


def _read_signature(path: Any) -> bytes:
    """The first bytes of a file. Raises BadInput where there is no file that can be read."""
    if not isinstance(path, (str, Path)):
        raise BadInput(
            f"an image is given as a path, a PIL image or a uint8 array, not as {type(path).__name__}"
        )
    name = _display_name(path)
    try:
        if Path(path).is_dir():
            raise BadInput(f"{name or '(an empty path)'} is a folder: give the path of one image")
        if not Path(path).is_file():
            raise BadInput(f"no image at {name}")
        with open(path, "rb") as file:
            return file.read(SIGNATURE_BYTES)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{name} cannot be read: {error.strerror or 'no valid path'}") from None
    except ValueError:  # a path that no file system takes
        raise BadInput(f"{name} cannot be read: no valid path") from None


def _why_not(signature: bytes) -> str:
    """What is said of a file that Pillow cannot open, by its first bytes."""
    text = signature.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not signature:
        return "is an empty file, not an image"
    is_xml = text.startswith((b"<?xml", b"<!doctype svg", b"<!--"))
    if text.startswith(b"<svg") or (is_xml and b"<svg" in text):
        return "is an SVG drawing: export it as PNG first"
    if signature[4:12] in HEIC_SIGNATURES:
        return "is a HEIC photo: save it as JPEG or PNG first"
    return "is not an image that can be read: give a JPEG, PNG, WebP, TIFF, GIF or BMP file"


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise BadInput(
            f"{name} is {width}x{height} = {width * height:,} pixels, more than the limit of "
            f"{MAX_PIXELS:,}: scale it down first"
        )
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"{name} is {width}x{height}: both sides must have at least {MIN_SIDE} px")


def _from_array(array: np.ndarray) -> np.ndarray:
    has_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not has_shape:
        raise BadInput(
            f"an image as an array is (H, W, 3) or (H, W) of uint8, not {array.shape} of {array.dtype}"
        )
    _check_size(array.shape[1], array.shape[0], "the image")
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    return np.array(array, order="C")


def _decode(image: Image.Image, name: str) -> np.ndarray:
    """The pixels of a PIL image, see `open_image`; `name` is for messages."""
    _check_size(*image.size, name)
    try:
        if (
            getattr(image, "is_animated", False) and image.tell() != 0
        ):  # only some of Pillow's classes have it
            image = _first_frame(image)
        image.load()
        upright = ImageOps.exif_transpose(image)
        pixels = np.array(_to_rgb(upright), dtype=np.uint8)
    except MemoryError:
        raise BadInput(f"{name} is too large for this machine's memory: scale it down first") from None
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error ...: by format
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH] or type(error).__name__
        raise BadInput(f"{name} is damaged or cut short ({reason}): get a whole copy of it") from None
    _check_size(pixels.shape[1], pixels.shape[0], name)  # the size of an icon is known only now
    return pixels


def _first_frame(image: Image.Image) -> Image.Image:
    """A copy of an animation's first frame; the caller's image stays where it was."""
    frame = image.tell()
    image.seek(0)
    first = image.copy()
    image.seek(frame)
    return first


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, over white where it is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Convert the modes I;16*, I and F to L.

    Integers keep the range 0 to 65535, floating-point values that of 0 to 1 or 0 to 255 where they lie in it;
    values outside of the range are stretched from their minimum to their maximum.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    top = MAX_16_BIT_VALUE
    if image.mode == "F" and high <= 1:
        top = 1.0
    elif image.mode == "F" and high <= 255:
        top = 255.0
    if low < 0 or high > top:
        values = values - low
        top = max(high - low, 1e-12)
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
