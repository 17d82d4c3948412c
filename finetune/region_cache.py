"""Proposals and what is known of them, for every training picture, computed once and kept on disk.

    kept = Kept(folder, gigabytes=20)
    regions = proposals_of(eyes, key, image_file, kept)     # .features (N, R), .rles

One `.npz` a picture, named by the picture's bytes and by the weights and settings that made it (`key`): other weights
mean other files, a stopped run goes on where it was, training never waits for SAM.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from assistant.errors import BadInput
from assistant.files import make_folder, replace_whole
from assistant.pocket.region_features import REGION


@dataclass
class Regions:
    """Of one picture: `named` outlined things first (the pocket preset's training only), then proposals."""

    features: Tensor  # (N, R) float
    rles: list[dict]  # N
    names: list[str] = field(default_factory=list)  # of the outlined ones; the rest are proposals
    views: Tensor = field(
        default_factory=lambda: torch.zeros(0, REGION)
    )  # (V, R) float, of outlined things seen otherwise
    view_names: list[str] = field(default_factory=list)  # V


class RegionCache:
    """Arrays by name in one folder, of at most so many gigabytes: what this run does not need goes first, oldest first."""

    def __init__(self, folder: Path, gigabytes: float = 20):
        self.folder, self.limit, self.needed = Path(folder), gigabytes * 1e9, set()
        make_folder(self.folder)
        self.size = sum(f.stat().st_size for f in self.folder.glob("*.npz"))

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def get(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays `name`, made if they are not there. BadInput when what this run needs does not fit."""
        file = self.file(name)
        self.needed.add(file)
        if file.exists():
            os.utime(file)
        else:
            arrays = make()
            with replace_whole(file) as path, path.open("wb") as f:
                np.savez_compressed(f, **arrays)
            self.grew(file)
        with np.load(file) as loaded:
            return {k: loaded[k] for k in loaded.files}

    def grew(self, *files: Path) -> None:
        """These were written, here or by another process: room is made for them."""
        self.size += sum(file.stat().st_size for file in files)
        if self.size > self.limit:
            self._make_room()

    def _make_room(self) -> None:
        for old in sorted(set(self.folder.glob("*.npz")) - self.needed, key=lambda f: f.stat().st_mtime):
            self.size -= old.stat().st_size
            old.unlink(missing_ok=True)
            if self.size <= self.limit:
                return
        raise BadInput(
            f"the pictures' regions take more than {self.limit / 1e9:g} GB in {self.folder}; give a larger "
            "--cache-gb, or fewer pictures"
        )


def picture_key(key: str, image_file: Path) -> str:
    """The name of what `key` (weights and settings) makes of a picture, wherever it lies."""
    return hashlib.sha256(key.encode() + b"\n" + image_file.read_bytes()).hexdigest()[:32]


def proposals_of(opener, key: str, image_file: Path, kept: RegionCache) -> Regions:
    """A picture's proposals as `eyes` see them, read or computed. eyes.open(image): a view with `proposals`, `features`."""

    def make():
        from assistant.images import open_image

        view = opener.open(open_image(image_file))
        return {
            "features": view.features.cpu().half().numpy(),
            "rles": np.array(json.dumps(list(view.proposals.rles))),
        }

    found = kept.get(picture_key(key, image_file), make)
    return Regions(torch.from_numpy(found["features"].astype(np.float32)), json.loads(str(found["rles"])))


def prepare(opener, key: str, images: Iterable[Path], kept: RegionCache) -> None:
    """Compute what is missing. eyes: a function that loads them, called only if something is."""
    from tqdm import tqdm

    names = {image: kept.file(picture_key(key, image)) for image in images}
    missing = [image for image, file in names.items() if not file.exists()]
    kept.needed |= set(names.values())
    if missing:
        loaded = opener()
        for image in tqdm(missing, desc="regions", unit="photo", disable=None):
            proposals_of(loaded, key, image, kept)


def union_iou(rles: list[dict], target: dict) -> float:
    """IoU of the union of masks with one target."""
    return float(coco_mask.iou([coco_mask.merge(rles)], [target], [False])[0, 0])


def overlaps(rles: list[dict], target: dict) -> tuple[np.ndarray, np.ndarray]:
    """IoU and IoP of N masks with one target -> (N,), (N,) float32."""
    if not rles:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    iou = coco_mask.iou(rles, [target], [False])[:, 0]
    iop = coco_mask.iou(rles, [target], [True])[:, 0]  # "crowd" divides by the detection's own area
    return iou.astype(np.float32), iop.astype(np.float32)
