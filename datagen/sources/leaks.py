"""Pictures that must not be trained on: those of an evaluation set, under their own name or another.

    known = fingerprints([Path("coco/dev/images")])
    why = leak(Path("photo.jpg"), known)        # None, or "called as an evaluation picture", "looks like ..."

Compared are file names without their suffix, and perceptual hashes (64 bits of a DCT, imagehash's `phash`),
which survive resizing and recompression; pictures whose hashes differ in at most NEAR bits count as one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.images import SUFFIXES, open_image

NEAR = 6  # of 64 bits


@dataclass(frozen=True)
class Known:
    names: frozenset[str]
    hashes: np.ndarray  # (N, 64) bool


def perceptual_hash(path: Path) -> np.ndarray:
    """(64,) bool. BadInput where there is no picture."""
    import imagehash
    from PIL import Image

    return imagehash.phash(Image.fromarray(open_image(path))).hash.ravel()


def fingerprints(places: Iterable[Path]) -> Known:
    """Of all pictures in folders, and of the names in text files (one a line; such a name has no hash)."""
    names, hashes = set(), []
    for place in map(Path, places):
        if place.is_dir():
            found = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
            names |= {p.stem for p in found}
            hashes += [perceptual_hash(p) for p in found]
        elif place.is_file():
            lines = place.read_text(encoding="utf-8").splitlines()
            names |= {Path(line.strip()).stem for line in lines if line.strip()}
        else:
            raise BadInput(f"no folder or list of names {place} to keep out")
    return Known(frozenset(names), np.array(hashes, bool).reshape(-1, 64))


def leak(path: Path, known: Known) -> str | None:
    """Why a picture must not be used, or None."""
    if Path(path).stem in known.names:
        return "called as an evaluation picture"
    if len(known.hashes) and (known.hashes ^ perceptual_hash(path)).sum(1).min() <= NEAR:
        return "looks like an evaluation picture"
    return None
