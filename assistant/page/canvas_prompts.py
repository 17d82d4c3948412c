"""What the browser says is marked on the canvas, checked.

    prompts = read_prompts(event._data, scene.size)          # keyword arguments of `ManualPrompts.segment`

The browser sends {"points": [[x, y, label], ...], "box": [left, top, right, bottom] or null, "added",
"erased": a data URL of a PNG or null}. Coordinates are shares of the photo's width and height.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from assistant.errors import BadInput
from assistant.page.canvas import MAX_VIEW_SIDE

MAX_CLICKS = 100
MAX_PAINTED_LENGTH = 3_000_000  # characters of the data URL of what was painted
PNG_URL_PREFIX = "data:image/png;base64,"
OPAQUE = 127  # of 255: opacity above which a pixel counts as painted


def read_prompts(data: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Check what the browser says is marked.

    Args:
        data: What it sent, which may be anything.
        size: (height, width) of the photo in px.

    Returns:
        points: (N, 2) floats as lists, clicks as (x, y) in px; labels: (N,) of 1 (inside) or 0 (outside);
            and, where there
        are any, box: (left, top, right, bottom) in px, added and erased: (H, W) bool, what was painted and
            erased.

    Raises:
        BadInput: It is malformed, outside the photo or too much.
    """
    height, width = size
    rows = data.get("points") or []
    if not isinstance(rows, list) or len(rows) > MAX_CLICKS:
        raise BadInput(f"at most {MAX_CLICKS} clicks can be marked at once")
    clicks = [_read_shares(row, 3, "a click") for row in rows]
    prompts: dict[str, Any] = {
        "points": [[x * width, y * height] for x, y, _ in clicks],
        "labels": [int(label > 0.5) for *_, label in clicks],
    }
    if data.get("box") is not None:
        left, top, right, bottom = _read_shares(data["box"], 4, "the box")
        prompts["box"] = [left * width, top * height, right * width, bottom * height]
    for name in ("added", "erased"):
        if data.get(name) is not None:
            prompts[name] = _read_painted(data[name], size)
    return prompts


def _read_shares(row: object, count: int, what: str) -> list[float]:
    """`count` numbers in [0, 1]."""
    if not isinstance(row, list) or len(row) != count or not all(map(_is_share, row)):
        raise BadInput(f"{what} is not within the picture")
    return [float(value) for value in row]


def _is_share(value: object) -> bool:
    """Whether it is a number in [0, 1], which NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _read_painted(url: object, size: tuple[int, int]) -> np.ndarray:
    """A painted layer, the data URL of a PNG with transparency, as (H, W) bool."""
    if not isinstance(url, str) or not url.startswith(PNG_URL_PREFIX) or len(url) > MAX_PAINTED_LENGTH:
        raise BadInput("what was painted cannot be read: clear it and paint again")
    try:
        content = base64.b64decode(url.removeprefix(PNG_URL_PREFIX), validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if max(image.size) > 2 * MAX_VIEW_SIDE:
                raise ValueError("larger than a browser paints")
            alpha = image.convert("RGBA").getchannel("A")
    except Exception:  # what a broken PNG raises varies
        raise BadInput("what was painted cannot be read: clear it and paint again") from None
    return np.asarray(alpha.resize(size[::-1], Image.Resampling.BILINEAR)) > OPAQUE
