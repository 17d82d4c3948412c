"""Reads any image as one plain array, or says in one line why it cannot be read.

image = open_image("photo.jpg")          # (H, W, 3) uint8 RGB; also from a PIL image or an array
height, width = image_size("photo.jpg")  # from the header, without decoding
with collect_notes() as notes:           # what was done to it that its owner should know, one line each
    open_image("thermal.tif")
"""

import contextlib
import contextvars
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from assistant.errors import BadInput, Note

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

ORIENTATION_TAG = 0x0112  # of EXIF and of TIFF
WIDTH_TAG, HEIGHT_TAG = 256, 257  # of TIFF
TURNS = {  # that set an image upright, by its orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS_ORIENTATIONS = (5, 6, 7, 8)  # those that swap width and height

SIGNATURE_BYTES = 512  # of a file, by which `_why_not` recognises what is no image
HEIC_SIGNATURES = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")
MAX_NAME_LENGTH = 200  # characters of a path in a message
MAX_REASON_LENGTH = 100  # characters of Pillow's message that are shown

MAX_16_BIT_VALUE = 65535
# The values that an image holds, but for this share at either end: a camera's dead and hot pixels.
OUTLIER_PERCENT = 0.1
# Values that fill less than this share of their range are stretched: what is left would be 64 grey levels.
MIN_RANGE_SHARE = 0.25


_collected_notes: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("notes", default=None)


@contextlib.contextmanager
def collect_notes() -> Iterator[list[str]]:
    """Gather the notes about the images that this thread opens meanwhile, which are warnings otherwise.

    Yields:
        A list that the notes are added to.
    """
    notes: list[str] = []
    token = _collected_notes.set(notes)
    try:
        yield notes
    finally:
        _collected_notes.reset(token)


def _note(message: str) -> None:
    """Tell the owner of an image something: to `collect_notes`, or as a warning."""
    notes = _collected_notes.get()
    if notes is None:
        warnings.warn(message, Note, stacklevel=2)
    else:
        notes.append(message)


def open_image(source: Any) -> np.ndarray:
    """Read an image.

    EXIF and TIFF orientation is applied, transparency is laid over white, and of an animation the first frame
    is taken. 16-bit and floating-point values are scaled to 0 to 255; where they fill only a part of their
    range, as those of 12-bit and thermal cameras do, they are stretched, which is noted (`collect_notes`).

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


def images_under(folder: Path) -> list[Path]:
    """The image files of a folder and of the folders in it, sorted by path; hidden ones are left out."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    return sorted(
        file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )


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
    name = _display_name(path)
    with _open(path) as image, _decoding(name):
        _check_size(*image.size, name)
        is_sideways = _orientation(image) in SIDEWAYS_ORIENTATIONS
        width, height = image.size
        if image.format == "TIFF":  # Pillow turns the size as it opens the file, from its version 11 on
            width, height = image.tag_v2[WIDTH_TAG], image.tag_v2[HEIGHT_TAG]  # type: ignore[attr-defined]
    return (width, height) if is_sideways else (height, width)


def _orientation(image: Image.Image) -> int:
    """The orientation by EXIF, XMP or TIFF, 1 to 8; 1 where there is none, or none that can be read.

    Of a TIFF only before its pixels are loaded, which turns it upright.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Corrupt EXIF data")
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # what broken EXIF raises varies; the pixels may be good
        return 1
    return orientation if orientation in TURNS else 1


def _display_name(path: Any) -> str:
    """The path for a message: one line of bounded length."""
    name = " ".join(str(path).split())
    return name if len(name) <= MAX_NAME_LENGTH else f"...{name[3 - MAX_NAME_LENGTH :]}"


def _open(path: Any) -> Image.Image:
    """A PIL image whose header was read. Raises BadInput where there is none."""
    signature = _read_signature(path)
    name = _display_name(path)
    try:
        with warnings.catch_warnings():  # our own limit of size is below Pillow's; EXIF may be cut short
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "Corrupt EXIF data")
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


def _check_size(width: int, height: int, name: str, min_side: int = MIN_SIDE) -> None:
    if width * height > MAX_PIXELS:
        raise BadInput(
            f"{name} is {width}x{height} = {width * height:,} pixels, more than the limit of "
            f"{MAX_PIXELS:,}: scale it down first"
        )
    if min(width, height) < min_side:
        raise BadInput(f"{name} is {width}x{height}: both sides must have at least {min_side} px")


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
    pixels = np.array(_to_rgb(load_upright(image, name), name), dtype=np.uint8)
    _check_size(pixels.shape[1], pixels.shape[0], name)  # the size of an icon is known only now
    return pixels


def open_upright(path: str | Path) -> tuple[Image.Image, str]:
    """Read a file of one image of any size as it is stored: its mode, its palette and its depth.

    Args:
        path: An image file.

    Returns:
        The PIL image, upright, and its format, such as "PNG".

    Raises:
        BadInput: As of `open_image`, or there are several images in it.
    """
    name = _display_name(path)
    with _open(path) as image:
        if getattr(image, "is_animated", False):
            raise BadInput(f"{name} holds several images: save the one that is meant")
        return load_upright(image, name, min_side=1), image.format or ""


def load_upright(image: Image.Image, name: str, min_side: int = MIN_SIDE) -> Image.Image:
    """The first frame of a PIL image, decoded and upright.

    Args:
        image: The PIL image; it stays as it is.
        name: What a message calls it.
        min_side: Both sides must have this many px at least.

    Raises:
        BadInput: It is too large, too small, or damaged.
    """
    _check_size(*image.size, name, min_side)
    with _decoding(name):
        # Only some of Pillow's classes have the attribute.
        if getattr(image, "is_animated", False) and image.tell() != 0:
            image = _first_frame(image)
        image.load()
        turn = TURNS.get(_orientation(image))  # a TIFF is upright by now, and says so
        return image.transpose(turn) if turn is not None else image.copy()


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn what Pillow raises of a damaged image into BadInput; `name` is for messages."""
    try:
        yield
    except BadInput:
        raise
    except MemoryError:
        raise BadInput(f"{name} is too large for this machine's memory: scale it down first") from None
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error ...: by format
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH] or type(error).__name__
        raise BadInput(f"{name} is damaged or cut short ({reason}): get a whole copy of it") from None


def _first_frame(image: Image.Image) -> Image.Image:
    """A copy of an animation's first frame; the caller's image stays where it was."""
    frame = image.tell()
    image.seek(0)
    first = image.copy()
    image.seek(frame)
    return first


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to RGB, over white where it is transparent; `name` is for messages."""
    if image.mode.startswith("I") or image.mode == "F":
        values, note = _to_8_bits(np.asarray(image))
        if note:
            _note(f"{Path(name).name} {note}")
        image = Image.fromarray(values)
    if has_transparency(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def has_transparency(image: Image.Image) -> bool:
    """Whether a PIL image has an alpha channel, or a colour that is transparent."""
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def _to_8_bits(stored: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Scale whole numbers or floating-point values to 8 bits.

    Whole numbers have the range of the fewest bits that hold them (0 to 4095 of a 12-bit camera), and
    floating-point values that of 0 to 1 or 0 to 255 where they lie in it. Values below 0 or above 65535, and
    those that fill a small part of their range only, are stretched from the lowest to the highest.

    Args:
        stored: (H, W) of any number type.

    Returns:
        (H, W) uint8, and what is to be said of it, None where the values fill a usual range.
    """
    values = stored.astype(np.float32)
    finite = np.isfinite(values)
    held = values if finite.all() else values[finite]
    if not held.size:
        return np.zeros(stored.shape, np.uint8), "holds no number: it is shown black"
    low, high = map(float, np.percentile(held, [OUTLIER_PERCENT, 100 - OUTLIER_PERCENT]))
    if low == high:  # a drawing of a few pixels, or all of one value
        low, high = float(held.min()), float(held.max())
    is_whole = stored.dtype.kind in "iu"
    usual = MAX_16_BIT_VALUE if is_whole else 1 if high <= 1 else 255
    top = 2 ** int(high).bit_length() - 1 if is_whole and 0 < high <= usual else usual
    is_narrow = high - low < MIN_RANGE_SHARE * top
    if low == high or (low >= 0 and high <= top and not is_narrow):
        low, high = min(low, 0.0), max(top, high)
    is_stretched = (low, high) != (0, usual) and held.any()
    note = f"has values from {low:.6g} to {high:.6g}: they are stretched to black and white"
    shifted = np.where(finite, values, low).clip(low, high) - low
    return np.rint(shifted * (255 / (high - low))).astype(np.uint8), note if is_stretched else None


def resize_within(
    image: np.ndarray, max_side: int, multiple: int = 1, max_pixels: int | None = None
) -> np.ndarray:
    """An image made small enough for a model; only sides below the smallest multiple are enlarged.

    Args:
        image: (H, W, 3) uint8 RGB.
        max_side: px of the longer side, at most.
        multiple: Both sides become multiples of it, and at least twice it where it is not 1.
        max_pixels: px of the whole image, at most; None for any number.

    Returns:
        (h, w, 3) uint8 RGB; the image itself where nothing changes.
    """
    height, width = image.shape[:2]
    area_scale = (max_pixels / (height * width)) ** 0.5 if max_pixels else 1.0
    scale = min(1.0, max_side / max(height, width), area_scale)
    smallest = 2 * multiple if multiple > 1 else 1

    def rounded(side: int, rounding: float) -> int:
        return max(smallest, int(side * scale / multiple + rounding) * multiple)

    new_height, new_width = rounded(height, 0.5), rounded(width, 0.5)
    if max_pixels is not None and (scale < 1 or new_height * new_width > max_pixels):
        new_height, new_width = rounded(height, 0), rounded(width, 0)
    if (new_height, new_width) == (height, width):
        return image
    size = (new_width, new_height)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
