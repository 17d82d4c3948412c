"""Any picture as one plain array, or one clear line that says why not.

image = open_image("photo.jpg")            # (H, W, 3) uint8 RGB; also a PIL image or an array
height, width = picture_size("photo.jpg")  # from the header, nothing is decoded
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from assistant.errors import BadInput

MAX_PIXELS = 64_000_000
MIN_SIDE = 8
# Formats of photographs and pictures. Others that Pillow knows start programs of their own (EPS) or have no
# signature to tell them by (TGA), and are refused.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "TIFF", "BMP", "DIB", "PPM", "ICO", "JPEG2000", "AVIF", "PCX")
SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
}  # of what a folder of pictures is searched for
ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 turn the picture on its side


def open_image(source) -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB, contiguous and the caller's own.

    source: a path, a PIL image, or an array (H, W, 3) or (H, W) of uint8. EXIF orientation is applied, 16-bit and
    floating values are scaled to 0..255, transparency is laid over white, of an animation the first frame is taken.
    Raises BadInput for everything else, before decoding where the header shows it: sides below 8 px, more than
    64 million pixels.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the picture")
    name = _name(source)
    with _open(source) as image:
        return _decode(image, name)


def pictures_in(folder: Path) -> list[Path]:
    """Its pictures, by name."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def picture_size(path) -> tuple[int, int]:
    """(height, width) in px that `open_image(path)` would have, read from the header. Raises BadInput as it does."""
    with _open(path) as image:
        _check_size(*image.size, _name(path))
        width, height = image.size
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def _name(path) -> str:
    """The path for a message: one line of bounded length."""
    name = " ".join(str(path).split())
    return name if len(name) <= 200 else f"...{name[-197:]}"


def _open(path) -> Image.Image:
    if not isinstance(path, (str, Path)):
        raise BadInput(
            f"a picture is given as a path, a PIL image or a uint8 array, not as {type(path).__name__}"
        )
    name = _name(path)
    try:
        if Path(path).is_dir():
            raise BadInput(f"{name or '(an empty path)'} is a folder: give the path of one picture")
        if not Path(path).is_file():
            raise BadInput(f"no picture at {name}")
        with open(path, "rb") as file:
            head = file.read(512)
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        reason = getattr(error, "strerror", None) or "no valid path"
        raise BadInput(f"{name} cannot be read: {reason}") from None
    try:
        with warnings.catch_warnings():  # our own limit is below Pillow's, and is said in words
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.init()
            return Image.open(
                path, formats=[kind for kind in FORMATS if kind in Image.OPEN]
            )  # as Pillow was built
    except Image.DecompressionBombError:
        raise BadInput(
            f"{name} has more than {MAX_PIXELS:,} pixels, the limit: scale it down first"
        ) from None
    except Exception:  # what a broken header raises depends on the format
        raise BadInput(f"{name} {_why_not(head)}") from None


def _why_not(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is an empty file, not a picture"
    if text.startswith(b"<svg") or (
        text.startswith((b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in text
    ):
        return "is an SVG drawing: export it as PNG first"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "is a HEIC photo: save it as JPEG or PNG first"
    return "is not a picture that can be read: give a JPEG, PNG, WebP, TIFF, GIF or BMP file"


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise BadInput(
            f"{name} is {width}x{height} = {width * height:,} pixels, more than the limit of "
            f"{MAX_PIXELS:,}: scale it down first"
        )
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"{name} is {width}x{height}: both sides must have at least {MIN_SIDE} px")


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise BadInput(
            f"a picture as an array is (H, W, 3) or (H, W) of uint8, not {array.shape} of {array.dtype}"
        )
    _check_size(array.shape[1], array.shape[0], "the picture")
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    return np.array(array, order="C")


def _decode(image: Image.Image, name: str) -> np.ndarray:
    _check_size(*image.size, name)
    try:
        if getattr(image, "is_animated", False) and image.tell() != 0:
            frame = image.tell()
            image.seek(0)
            first = image.copy()
            image.seek(frame)  # the caller's image is left as it was
            image = first
        image.load()
        upright = ImageOps.exif_transpose(image)
        pixels = np.array(_to_rgb(upright), dtype=np.uint8)
    except MemoryError:
        raise BadInput(f"{name} is too large for this machine's memory: scale it down first") from None
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error ...: by format
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise BadInput(f"{name} is damaged or cut short ({reason}): get a whole copy of it") from None
    _check_size(pixels.shape[1], pixels.shape[0], name)  # an icon's size is known only now
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _scaled(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Modes I;16*, I and F -> L. 16-bit values keep their range 0..65535; what lies outside is stretched min..max."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    top = 1.0 if image.mode == "F" and high <= 1 else 255.0 if image.mode == "F" and high <= 255 else 65535.0
    if low < 0 or high > top:
        values, top = values - low, max(high - low, 1e-12)
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
