"""Stores the regions of opened images: what attention needs of an image, without what answers need.

regions = cached_regions(opener, key, "photo.jpg", Path("runs/views"))    # opened once, then read
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assistant.files import replace_whole
from assistant.images import open_image
from assistant.pocket.opening import AttendedImage, PocketImageOpener

KEY_LENGTH = 24  # hexadecimal digits of a file's name


def cached_regions(opener: PocketImageOpener, key: str, image: Any, folder: Path | None) -> AttendedImage:
    """The regions of an image, read from a cache folder or computed and stored there.

    Args:
        opener: Opens images that are not in the folder.
        key: Names the weights that make the regions, see `opening.region_key`.
        image: A path; without a folder anything that `open_image` takes.
        folder: The cache; None to store nothing.

    Returns:
        The regions.

    Raises:
        BadInput: There is no image.
    """
    if folder is None:
        return opener.open(open_image(image)).regions
    file = cache_file(key, image, folder)
    if file.exists():
        return read_regions(file)
    regions = opener.open(open_image(image)).regions
    write_regions(file, regions)
    return regions


def cache_file(key: str, image: str | Path, folder: Path) -> Path:
    """Where the regions of an image are stored of the weights that `key` names."""
    digest = hashlib.sha256(f"{key} {Path(image).resolve()}".encode()).hexdigest()
    return folder / f"{digest[:KEY_LENGTH]}.npz"


def read_regions(file: Path) -> AttendedImage:
    """Read what `write_regions` wrote. Files of earlier versions hold more arrays, which are ignored."""
    with np.load(file) as stored:
        features = torch.from_numpy(stored["features"].astype(np.float32))
        height, width = (int(side) for side in stored["size"])
        return AttendedImage(json.loads(str(stored["rles"])), (height, width), features)


def write_regions(file: Path, regions: AttendedImage) -> None:
    """Write regions whole, their features in half precision."""
    with replace_whole(file) as path, path.open("wb") as out:
        np.savez_compressed(
            out,
            features=regions.features.half().numpy(),
            rles=np.array(json.dumps(regions.rles)),
            size=np.array(regions.size),
        )
