"""The proposals of every training image with their features, computed once and stored on disk.

    cache = RegionCache(folder, gigabytes=20)
    fill_cache(RegionSource(key, load_opener), images, cache)    # opens the images that are missing
    regions = cached_regions(None, key, image_file, cache)       # .features (N, R), .rles

There is one `.npz` file per image, named by the image's bytes and by the weights and settings that made it
(`key`). Other weights therefore mean other files, a stopped run continues where it was, and training never
waits for SAM.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from assistant.errors import BadInput
from assistant.files import make_folder, replace_whole
from assistant.pocket.region_features import FEATURE_DIM
from assistant.sam.mask_ops import Rle, merge_rles, rle_containment, rle_iou
from assistant.sam.proposals import Proposals

DEFAULT_GIGABYTES = 20.0  # of a cache folder


class OpenedWithFeatures(Protocol):
    """An opened image with the features of its proposals."""

    @property
    def proposals(self) -> Proposals:
        """The N proposals."""

    @property
    def features(self) -> Tensor:
        """(N, R) float features of the proposals."""


class RegionOpener(Protocol):
    """Opens an image and computes the features of its proposals."""

    def open(self, image: np.ndarray) -> OpenedWithFeatures:
        """Open an image (H, W, 3) uint8 RGB."""


class PhraseOpener(Protocol):
    """Opens an image and computes the features of what is found in it by its name."""

    def open_for(self, image: np.ndarray, phrases: Sequence[str]) -> OpenedWithFeatures:
        """Open an image (H, W, 3) uint8 RGB, with what is found for some phrases as its proposals."""


@dataclass(frozen=True)
class _BoundOpener:
    """Opens an image for the phrases that are looked for in it."""

    opener: PhraseOpener
    phrases: tuple[str, ...]

    def open(self, image: np.ndarray) -> OpenedWithFeatures:
        return self.opener.open_for(image, self.phrases)


class RegionSource:
    """How the regions of each image come about, and under which name they are stored.

    Args:
        key: Names the weights and settings that make them.
        load_opener: Loads what makes them; called once, and only if an image is missing in the cache.
        phrases: {image: what is looked for in it}, for a `PhraseOpener`; None for a `RegionOpener`.
    """

    def __init__(
        self,
        key: str,
        load_opener: Callable[[], Any],
        phrases: Mapping[Path, Collection[str]] | None = None,
    ):
        self.key = key
        self.phrases = phrases
        self._load_opener = functools.cache(load_opener)

    def key_of(self, image: Path) -> str:
        """Names the weights, settings and phrases that make the regions of an image."""
        if self.phrases is None:
            return self.key
        return f"{self.key} phrases {json.dumps(self._phrases_of(image))}"

    def opener_for(self, image: Path) -> RegionOpener:
        """What opens an image."""
        opener = self._load_opener()
        return opener if self.phrases is None else _BoundOpener(opener, self._phrases_of(image))

    def _phrases_of(self, image: Path) -> tuple[str, ...]:
        """The phrases that are looked for in an image, sorted."""
        return tuple(sorted((self.phrases or {}).get(image, ())))


@dataclass
class ImageRegions:
    """The regions of one image: labelled instances (in the pocket preset's training only), then proposals.

    Attributes:
        features: (N, R) float32.
        rles: The N masks.
        names: Names of the labelled instances, which are the first `len(names)` regions.
        augmented: (V, R) float32 features of labelled instances in augmented copies of the image.
        augmented_names: Their V names.
    """

    features: Tensor
    rles: list[Rle]
    names: list[str] = field(default_factory=list)
    augmented: Tensor = field(default_factory=lambda: torch.zeros(0, FEATURE_DIM))
    augmented_names: list[str] = field(default_factory=list)


class RegionCache:
    """A folder of named sets of arrays, limited in size.

    When the folder grows beyond its limit, the files that this run does not use are deleted, oldest first.

    Args:
        folder: The folder, made if it does not exist.
        gigabytes: Size at most.

    Attributes:
        needed: The files that this run uses, which are never deleted.
        size: Bytes in the folder.
    """

    def __init__(self, folder: Path, gigabytes: float = DEFAULT_GIGABYTES):
        self.folder = Path(folder)
        self.limit = gigabytes * 1e9
        self.needed: set[Path] = set()
        make_folder(self.folder)
        self.size = sum(f.stat().st_size for f in self.folder.glob("*.npz"))

    def file_of(self, name: str) -> Path:
        """The file that holds, or will hold, the arrays called `name`."""
        return self.folder / f"{name}.npz"

    def load_or_compute(
        self, name: str, compute: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays called `name`, read from their file; where there is none, computed and stored.

        Raises BadInput when the files that this run needs exceed the limit.
        """
        file = self.file_of(name)
        self.needed.add(file)
        if file.exists():
            os.utime(file)
        else:
            arrays: dict[str, np.ndarray] = compute()
            with replace_whole(file) as path, path.open("wb") as f:
                np.savez_compressed(f, **arrays)  # type: ignore[arg-type]  # numpy types `allow_pickle` into **kwds
            self.add_files(file)
        with np.load(file) as loaded:
            return {k: loaded[k] for k in loaded.files}

    def add_files(self, *files: Path) -> None:
        """Count files that this or another process has written, and delete old ones if there is no room.

        Raises BadInput when the files that this run needs exceed the limit.
        """
        self.size += sum(file.stat().st_size for file in files)
        if self.size > self.limit:
            self._make_room()

    def _make_room(self) -> None:
        """Delete files that this run does not use, oldest first, until the rest fits."""
        for old in sorted(set(self.folder.glob("*.npz")) - self.needed, key=lambda f: f.stat().st_mtime):
            self.size -= old.stat().st_size
            old.unlink(missing_ok=True)
            if self.size <= self.limit:
                return
        raise BadInput(
            f"the regions of the images take more than {self.limit / 1e9:g} GB in {self.folder}; give a "
            "larger --cache-gb, or fewer images"
        )


def cache_key(key: str, image_file: Path) -> str:
    """The name under which a cache holds the regions of an image, wherever the image is stored.

    Args:
        key: Names the weights and settings that made the regions.
        image_file: The image.
    """
    return hashlib.sha256(key.encode() + b"\n" + image_file.read_bytes()).hexdigest()[:32]


def cached_regions(
    opener: RegionOpener | None, key: str, image_file: Path, cache: RegionCache
) -> ImageRegions:
    """The proposals of an image with their features, read from the cache or computed and stored there.

    Args:
        opener: Opens the image where the cache lacks it; None where the cache is known to hold it.
        key: Names the weights and settings behind `opener`.
        image_file: The image.
        cache: Where regions are stored.

    Returns:
        The regions; features in half precision's accuracy, as float32.
    """

    def compute() -> dict[str, np.ndarray]:
        from assistant.images import open_image

        assert opener is not None, f"{image_file} is not in the cache"
        opened = opener.open(open_image(image_file))
        return {
            "features": opened.features.cpu().half().numpy(),
            "rles": np.array(json.dumps(list(opened.proposals.rles))),
        }

    arrays = cache.load_or_compute(cache_key(key, image_file), compute)
    features = torch.from_numpy(arrays["features"].astype(np.float32))
    return ImageRegions(features, json.loads(str(arrays["rles"])))


def fill_cache(source: RegionSource, images: Iterable[Path], cache: RegionCache) -> None:
    """Compute the regions of all images that the cache lacks.

    Args:
        source: Makes them.
        images: Image files.
        cache: Where regions are stored.
    """
    from tqdm import tqdm

    files = {image: cache.file_of(cache_key(source.key_of(image), image)) for image in images}
    missing = [image for image, file in files.items() if not file.exists()]
    cache.needed |= set(files.values())
    for image in tqdm(missing, desc="regions", unit="image", disable=None if missing else True):
        cached_regions(source.opener_for(image), source.key_of(image), image, cache)


def iou_of_union(rles: list[Rle], target: Rle) -> float:
    """IoU, in [0, 1], of the union of one or more masks with a target mask."""
    return float(rle_iou([merge_rles(rles)], [target])[0, 0])


def iou_and_iop(rles: list[Rle], target: Rle) -> tuple[np.ndarray, np.ndarray]:
    """How N masks overlap a target mask.

    Args:
        rles: The masks, N of them.
        target: A mask of the same size.

    Returns:
        IoU (N,) float32, and IoP (N,) float32: the share of each mask that lies inside the target.
    """
    iou = rle_iou(rles, [target])[:, 0]
    iop = rle_containment(rles, [target])[:, 0]
    return iou.astype(np.float32), iop.astype(np.float32)
