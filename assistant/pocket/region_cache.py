"""The regions of opened pictures kept on disk: what attention needs, without what answers need.

regions = kept_regions(eyes, key, "photo.jpg", Path("runs/views"))       # opened once; read from there afterwards
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from assistant.files import replace_whole
from assistant.images import open_image
from assistant.pocket.opening import ImageRegions, PocketImageOpener


def kept_file(key: str, image: Path, folder: Path) -> Path:
    """Where the picture lies once opened with the SAM weights of checksum `key`."""
    return folder / (hashlib.sha256(f"{key} {Path(image).resolve()}".encode()).hexdigest()[:24] + ".npz")


def kept_regions(opener: PocketImageOpener, key: str, image, folder: Path | None) -> ImageRegions:
    """The regions of a picture (a path, or what `open_image` takes); without `folder` nothing is kept. BadInput: no picture."""
    file = kept_file(key, image, folder) if folder else None
    if file is None or not file.exists():
        regions = opener.open(open_image(image)).regions
        if file:
            write_regions(file, regions)
        return regions
    with np.load(file) as kept:
        features = torch.from_numpy(kept["features"].astype(np.float32))
        return ImageRegions(json.loads(str(kept["rles"])), tuple(int(s) for s in kept["size"]), features)


def write_regions(file: Path, regions: ImageRegions) -> None:
    with replace_whole(file) as path, path.open("wb") as out:
        np.savez_compressed(
            out, features=regions.features.half().numpy(), rles=json.dumps(regions.rles), size=regions.size
        )
