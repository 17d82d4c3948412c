"""Keeps images of evaluation sets out of training, under their own name or another.

    excluded = excluded_images([Path("coco/dev/images")])
    reason = leak(Path("photo.jpg"), excluded)        # None, or "looks like an evaluation image"

Compared are file names without their suffix, and perceptual hashes (64 bits of a DCT, imagehash's `phash`),
which survive resizing and recompression.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.files import read_text
from assistant.images import IMAGE_SUFFIXES, open_image

HASH_BITS = 64
MAX_DIFFERENT_BITS = 6  # of the 64: images whose hashes differ in no more count as one


@dataclass(frozen=True)
class ExcludedImages:
    """Images that no question may be made about.

    Attributes:
        names: File names without their suffix.
        hashes: (N, 64) bool, perceptual hashes.
    """

    names: frozenset[str]
    hashes: np.ndarray


def perceptual_hash(path: Path) -> np.ndarray:
    """Return the hash of an image file, (64,) bool.

    Raises:
        BadInput: The file is not an image.
    """
    import imagehash
    from PIL import Image

    return imagehash.phash(Image.fromarray(open_image(path))).hash.ravel()


def excluded_images(sources: Iterable[Path]) -> ExcludedImages:
    """Read what to exclude.

    Args:
        sources: Folders of images, and text files with a name a line; such a name has no hash.

    Raises:
        BadInput: One of them is neither.
    """
    names: set[str] = set()
    hashes: list[np.ndarray] = []
    for source in sources:
        if source.is_dir():
            files = sorted(file for file in source.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            names |= {file.stem for file in files}
            hashes += [perceptual_hash(file) for file in files]
        elif source.is_file():
            lines = read_text(source).splitlines()
            names |= {Path(line.strip()).stem for line in lines if line.strip()}
        else:
            raise BadInput(f"--exclude: there is no folder or list of names {source}")
    return ExcludedImages(frozenset(names), np.array(hashes, bool).reshape(-1, HASH_BITS))


def leak(path: Path, excluded: ExcludedImages) -> str | None:
    """Return why an image file must not be used, or None.

    Raises:
        BadInput: The file is not an image.
    """
    if path.stem in excluded.names:
        return "has the name of an evaluation image"
    if len(excluded.hashes):
        differences = (excluded.hashes ^ perceptual_hash(path)).sum(1)
        if differences.min() <= MAX_DIFFERENT_BITS:
            return "looks like an evaluation image"
    return None
