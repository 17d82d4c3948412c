"""The pixels of a polygon."""

import numpy as np
from PIL import Image, ImageDraw


def filled_polygon(points, size):
    """The pixels whose centres lie in a polygon, by 8 times oversampling."""
    layer = Image.new("1", (size[1] * 8, size[0] * 8))
    ImageDraw.Draw(layer).polygon([tuple(p) for p in (np.asarray(points) * 8 - 0.5).tolist()], fill=1)
    return np.asarray(layer).reshape(size[0], 8, size[1], 8).mean((1, 3)) > 0.5
