"""Reads masks and label maps from image files: the one place that says which pixels of a file are meant.

mask = open_mask("mug-mask.png")         # (H, W) bool: what is not black, or not transparent
labels = open_label_map("street.png")    # (H, W) of whole numbers: the class of each pixel, as it is stored

A file that can be read in two ways is refused in one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from assistant.errors import BadInput
from assistant.images import has_transparency, load_upright, open_upright

LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")  # those that blur edges and values
OPAQUE = 128  # of 255: a pixel whose alpha is lower may be meant to be transparent
MIN_WHITE, MAX_BLACK_NOISE = (
    64,
    8,
)  # of 255: the highest value of a mask in a lossy format, and of a black one
# A blurred edge takes less than this share of a mask of everyday objects; more is a photo.
MAX_BLURRED_SHARE = 0.1
MAX_COLOURS = 4096  # of a mask in colour: one an instance, and the blends along their edges; photos have more

WHAT_A_MASK_IS = "give a PNG that is black outside and white inside"
WHAT_A_LABEL_MAP_IS = "give a grey or palette PNG whose values are the classes' numbers"


def open_mask(source: Any) -> np.ndarray:
    """Read a mask.

    A pixel is inside unless it is black. A palette counts by its colours. Transparency says nothing where
    it is the same everywhere; a cut-out, in which all that can be seen is not black, is read by it alone.

    Args:
        source: A path, a PIL image, or an array (H, W), (H, W, 3) RGB or (H, W, 4) RGBA of bool or whole
            numbers.

    Returns:
        (H, W) bool.

    Raises:
        BadInput: It is no image, or what is inside cannot be told.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, "the mask")
    if isinstance(source, Image.Image):
        return _from_image(load_upright(source, "the mask", min_side=1), source.format or "", "the mask")
    try:
        image, kind = open_upright(source)
    except BadInput as error:
        raise BadInput(f"no mask can be read: {error}") from None
    return _from_image(image, kind, f"the mask {source}")


def open_label_map(path: str | Path) -> np.ndarray:
    """Read a label map.

    The numbers are those that are stored: of a palette the indices, whatever their colours. A grey image
    that was saved in colour has its grey values.

    Args:
        path: An image file.

    Returns:
        (H, W) of an integer type.

    Raises:
        BadInput: It is no image, or its values are no numbers of classes.
    """
    image, kind = open_upright(path)
    if kind in LOSSY_FORMATS:
        raise BadInput(f"{path} is not a label map: {kind} changes its numbers; {WHAT_A_LABEL_MAP_IS}")
    if image.mode in ("LA", "La", "PA"):
        _check_opaque(image, path)
        image = image.getchannel(0)
    elif image.mode in ("RGB", "RGBA"):
        _check_opaque(image, path)
        image = _grey_of(image, path)
    stored = np.asarray(image)
    if stored.ndim != 2:
        raise BadInput(f"{path} is not a label map: it is in colour ({image.mode}); {WHAT_A_LABEL_MAP_IS}")
    if stored.dtype.kind == "f":
        if not (np.isfinite(stored).all() and (stored == np.rint(stored)).all()):
            raise BadInput(f"{path} is not a label map: its values are not whole; {WHAT_A_LABEL_MAP_IS}")
        return stored.astype(np.int64)
    return stored.astype(np.uint8) if stored.dtype == bool else stored


def _check_opaque(image: Image.Image, path: str | Path) -> None:
    """Raise BadInput where a label map has transparent pixels: whether they have a class cannot be told."""
    if image.mode != "RGB" and np.asarray(image.getchannel(image.getbands()[-1])).min() < 255:
        raise BadInput(f"{path} is not a label map: it is transparent in parts; {WHAT_A_LABEL_MAP_IS}")


def _grey_of(image: Image.Image, path: str | Path) -> Image.Image:
    """The grey values of an RGB image. Raises BadInput where it has colours."""
    red, green, blue = (np.asarray(image.getchannel(band)) for band in "RGB")
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        raise BadInput(f"{path} is not a label map: it is in colour; {WHAT_A_LABEL_MAP_IS}")
    return Image.fromarray(red)


def _from_image(image: Image.Image, kind: str, name: str) -> np.ndarray:
    """The mask in a PIL image of the format `kind`; `name` is for messages."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_array(np.asarray(image), name)
    if has_transparency(image):
        return _from_array(np.asarray(image.convert("RGBA")), name)
    if kind in LOSSY_FORMATS:
        return _from_blurred(np.asarray(image.convert("RGB")).max(2), name)
    return _from_array(np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")), name)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    """The mask in an array, see `open_mask`; `name` is for messages."""
    if array.ndim == 3 and array.shape[2] == 4:
        return _from_transparent(array[..., :3], array[..., 3], name)
    if array.ndim == 3 and array.shape[2] == 3:
        if array.dtype == np.uint8 and _has_many_colours(array):
            raise BadInput(f"{name} looks like a photo: {WHAT_A_MASK_IS}")
        array = np.where(array[..., 0] == 0, array[..., 1:].max(2), array[..., 0])
    if array.ndim != 2 or array.dtype.kind not in "buif":
        raise BadInput(f"{name} is (H, W) of bool or whole numbers, not {array.shape} of {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(f"{name} has values that are no numbers: {WHAT_A_MASK_IS}")
    if array.dtype.kind in "if" and array.size and array.min() < 0:
        raise BadInput(f"{name} has values below 0, which may be scores: {WHAT_A_MASK_IS}")
    if array.dtype.kind == "f" and len(np.unique(array)) > 2:
        raise BadInput(f"{name} has values in between, which may be scores: {WHAT_A_MASK_IS}")
    inside = array != 0
    if inside.all() and array.size and array.min() != array.max():
        raise BadInput(f"{name} has no black pixel, so that what is outside cannot be told: {WHAT_A_MASK_IS}")
    return inside


def _from_transparent(colours: np.ndarray, alpha: np.ndarray, name: str) -> np.ndarray:
    """The mask in an image with transparency.

    Args:
        colours: (H, W, 3) of whole numbers.
        alpha: (H, W) uint8, 255 = opaque.
        name: For messages.

    Returns:
        (H, W) bool.

    Raises:
        BadInput: Colours and transparency each tell another mask.
    """
    least, most = int(alpha.min()), int(alpha.max())
    if most == 0 and (colours != colours[:1, :1]).any():
        raise BadInput(f"{name} is wholly transparent: {WHAT_A_MASK_IS}")
    if 0 < least == most or least >= OPAQUE:
        return _from_array(colours, name)
    seen = alpha > most / 2
    if not colours[seen].any(-1).all():
        raise BadInput(f"{name} is black in some parts and transparent in others: {WHAT_A_MASK_IS}")
    return seen


def _from_blurred(grey: np.ndarray, name: str) -> np.ndarray:
    """The mask in an image (H, W) uint8 whose format blurs: what is nearer to white than to black.

    White is the highest value, which is 100 in the masks that LISA writes.
    """
    top = int(grey.max())
    if top < MIN_WHITE:
        if top > MAX_BLACK_NOISE:
            raise BadInput(f"{name} is so dark that what is inside cannot be told: {WHAT_A_MASK_IS}")
        return np.zeros(grey.shape, bool)
    between = (grey > top / 4) & (grey < 3 * top / 4)
    if between.mean() > MAX_BLURRED_SHARE:
        raise BadInput(f"{name} looks like a photo: {WHAT_A_MASK_IS}")
    return grey > top / 2


def _has_many_colours(array: np.ndarray) -> bool:
    """Whether (H, W, 3) uint8 has more colours than a mask has."""
    red, green, blue = (array[..., band].astype(np.uint32) for band in range(3))
    return len(np.unique(red << 16 | green << 8 | blue)) > MAX_COLOURS
