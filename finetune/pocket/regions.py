"""The regions of the pocket preset's training images: labelled instances, augmented copies, proposals.

    regions = load_regions(load_opener, key, images, instances, RegionCache(folder))
    regions[image].features, regions[image].names

Instances are also cropped, mirrored and relit: few images are labelled, and a name learned from one
appearance of an instance is soon forgotten at the next. Regions are stored on disk, as proposals are.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from assistant.errors import BadInput
from assistant.images import open_image
from assistant.pocket.region_features import FEATURE_DIM
from assistant.sam.mask_ops import decode_rle
from assistant.sam.segmenter import Embedding, Segmenter
from finetune.pocket.instances import NamedMask, NamedRle
from finetune.region_cache import ImageRegions, RegionCache, RegionOpener, cache_key, cached_regions

AUGMENTED_COPIES = 4  # of each image, where names are learned from nothing
MIN_REGION_CELLS = 2  # of the low-resolution mask; a smaller instance is left out
RELIGHTING = (0.6, 1.4)  # range of the factors of brightness, contrast and colour
MIN_CROP_SIDE = 16  # px


class FeatureOpener(RegionOpener, Protocol):
    """Opens images and computes the features of any region, as `PocketImageOpener` does."""

    @property
    def segmenter(self) -> Segmenter:
        """The SAM behind both."""

    def features(self, image: np.ndarray, embedding: Embedding, low_res_logits: Tensor) -> Tensor:
        """See `PocketImageOpener.features`."""


def augment(
    image: np.ndarray,
    instances: Sequence[NamedMask],
    rng: np.random.Generator,
    min_share_left: float = 0.6,
    min_side: float = 0.5,
) -> tuple[np.ndarray, list[NamedMask]]:
    """Crop an image at random, mirror it half of the time and change its light.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: Names and masks (H, W) bool.
        rng: Draws the changes.
        min_share_left: An instance of which no more than this share is left in the crop is dropped.
        min_side: Smallest share of each side that the crop has.

    Returns:
        The augmented image (h, w, 3) uint8 and its instances with their masks (h, w) bool.
    """
    height, width = image.shape[:2]
    crop_height, crop_width = (
        max(MIN_CROP_SIDE, int(side * rng.uniform(min_side, 1))) for side in (height, width)
    )
    y = rng.integers(height - crop_height + 1)
    x = rng.integers(width - crop_width + 1)
    step = -1 if rng.random() < 0.5 else 1

    def cut(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array[y : y + crop_height, x : x + crop_width][:, ::step])

    left = []
    for name, mask in instances:
        part = cut(mask)
        if part.sum() > min_share_left * mask.sum():
            left.append((name, part))
    relit = Image.fromarray(cut(image))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        relit = enhance(relit).enhance(rng.uniform(*RELIGHTING))
    return np.asarray(relit), left


def instance_features(
    opener: FeatureOpener, image: np.ndarray, instances: Sequence[NamedMask]
) -> tuple[Tensor, list[int]]:
    """The features of labelled instances.

    Args:
        opener: Encodes the image and computes the features.
        image: (H, W, 3) uint8 RGB.
        instances: Names and masks (H, W) bool.

    Returns:
        (K, FEATURE_DIM) float32, and the indices of the K instances that are large enough to have features.
    """
    embedding = opener.segmenter.encode(image)
    logits = [opener.segmenter.low_res_logits(embedding, mask) for _, mask in instances]
    large = [k for k, cells in enumerate(logits) if (cells > 0).sum() >= MIN_REGION_CELLS]
    if not large:
        return torch.zeros(0, FEATURE_DIM), []
    stacked = torch.from_numpy(np.stack([logits[k] for k in large]))
    return opener.features(image, embedding, stacked), large


def instance_cache_key(key: str, image_file: Path, instances: Sequence[NamedRle], copies: int) -> str:
    """The name under which a cache holds the instances of an image with so many augmented copies."""
    text = f"{key} {copies} {json.dumps(list(instances))}"
    return "outlined-" + cache_key(hashlib.sha256(text.encode()).hexdigest(), image_file)


def cached_instances(
    opener: FeatureOpener | None,
    key: str,
    image_file: Path,
    instances: Sequence[NamedRle],
    cache: RegionCache,
    copies: int,
) -> ImageRegions:
    """The labelled instances of an image with their augmented copies, without its proposals.

    Args:
        opener: Computes what the cache lacks; None where the cache is known to hold the instances.
        key: Names the weights and settings behind `opener`.
        image_file: The image.
        instances: Names and masks; [] for an image without.
        cache: Where regions are stored.
        copies: Number of augmented copies.
    """
    if not instances:
        return ImageRegions(torch.zeros(0, FEATURE_DIM), [])

    def compute() -> dict[str, np.ndarray]:
        assert opener is not None, f"the instances of {image_file} are not in the cache"
        return _compute_instances(opener, image_file, instances, copies)

    arrays = cache.load_or_compute(instance_cache_key(key, image_file, instances, copies), compute)
    return ImageRegions(
        torch.from_numpy(arrays["features"].astype(np.float32)),
        json.loads(str(arrays["rles"])),
        json.loads(str(arrays["names"])),
        torch.from_numpy(arrays["views"].astype(np.float32)),
        json.loads(str(arrays["view_names"])),
    )


def _compute_instances(
    opener: FeatureOpener, image_file: Path, instances: Sequence[NamedRle], copies: int
) -> dict[str, np.ndarray]:
    """The arrays of `cached_instances` under the names that its file has for them."""
    image = open_image(image_file)
    masks = [(name, decode_rle(rle)) for name, rle in instances]
    features, large = instance_features(opener, image, masks)
    # An image's copies depend on its name alone, not on which images were computed before it.
    rng = np.random.default_rng(int(hashlib.sha256(image_file.name.encode()).hexdigest()[:8], 16))
    copy_features = [torch.zeros(0, FEATURE_DIM)]
    copy_names: list[str] = []
    for _ in range(copies):
        copy, left = augment(image, masks, rng)
        if left:
            features_of_copy, large_in_copy = instance_features(opener, copy, left)
            copy_features.append(features_of_copy)
            copy_names += [left[k][0] for k in large_in_copy]
    return {
        "features": features.half().numpy(),
        "views": torch.cat(copy_features).half().numpy(),
        "rles": np.array(json.dumps([instances[k][1] for k in large])),
        "names": np.array(json.dumps([instances[k][0] for k in large])),
        "view_names": np.array(json.dumps(copy_names)),
    }


class _MissingRegions(Dataset):
    """Item k computes and stores the regions of the k-th image; it is "", or why they cannot be computed."""

    def __init__(
        self,
        load_opener: Callable[[], FeatureOpener],
        key: str,
        images: Sequence[Path],
        instances: Mapping[Path, Sequence[NamedRle]],
        folder: Path,
        copies: int,
    ):
        self.load_opener = load_opener
        self.key = key
        self.images = images
        self.instances = instances
        self.copies = copies
        self.opener: FeatureOpener | None = None  # loaded in the process that uses it
        self.cache = RegionCache(
            folder, float("inf")
        )  # its size is limited by the process that reads the items

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> str:
        image = self.images[k]
        self.opener = self.opener or self.load_opener()
        try:
            cached_regions(self.opener, self.key, image, self.cache)
            instances = self.instances.get(image, [])
            cached_instances(self.opener, self.key, image, instances, self.cache, self.copies)
        except BadInput as error:
            return str(error)
        return ""


def compute_missing_regions(
    load_opener: Callable[[], FeatureOpener],
    key: str,
    images: Sequence[Path],
    instances: Mapping[Path, Sequence[NamedRle]],
    cache: RegionCache,
    copies: int,
) -> None:
    """Compute the regions that the cache lacks.

    On a CPU as many processes as torch has threads share the work: two of one thread each open half as many
    images again as one of two threads. Arguments as of `load_regions`.
    """
    files = {image: [cache.file_of(cache_key(key, image))] for image in images}
    for image, own_instances in instances.items():
        if own_instances and image in files:
            files[image].append(cache.file_of(instance_cache_key(key, image, own_instances, copies)))
    cache.needed |= {file for of_image in files.values() for file in of_image}
    missing: dict[Path, list[Path]] = {}
    for image, of_image in files.items():
        if absent := [file for file in of_image if not file.exists()]:
            missing[image] = absent
    processes = 0 if torch.cuda.is_available() else min(torch.get_num_threads(), len(missing))
    troubles: Any = DataLoader(
        _MissingRegions(load_opener, key, list(missing), instances, cache.folder, copies),
        batch_size=None,
        num_workers=processes if processes > 1 else 0,
        generator=torch.Generator(),  # so that the random numbers of the run stay what they are
    )
    progress = tqdm(troubles, desc="regions", unit="image", disable=None)
    for absent, trouble in zip(missing.values(), progress, strict=True):
        if trouble:
            raise BadInput(trouble)
        cache.add_files(*absent)


def load_regions(
    load_opener: Callable[[], FeatureOpener],
    key: str,
    images: Sequence[Path],
    instances: Mapping[Path, Sequence[NamedRle]],
    cache: RegionCache,
    copies: int = AUGMENTED_COPIES,
) -> dict[Path, ImageRegions]:
    """The regions of images: their labelled instances, then their proposals.

    Args:
        load_opener: Loads what computes regions; called only if the cache lacks some.
        key: Names the weights and settings behind the opener.
        images: Image files.
        instances: {image: names and masks of its labelled instances}.
        cache: Where regions are stored.
        copies: Number of augmented copies of each image with instances.

    Returns:
        {image: its regions}, in the order of `images`.

    Raises:
        BadInput: An image cannot be read, or the cache is too small.
    """
    compute_missing_regions(load_opener, key, images, instances, cache, copies)
    regions = {}
    for image in tqdm(images, desc="instances", unit="image", disable=None):
        labelled = cached_instances(None, key, image, instances.get(image, []), cache, copies)
        proposals = cached_regions(None, key, image, cache)
        labelled.features = torch.cat([labelled.features, proposals.features])
        labelled.rles = labelled.rles + proposals.rles
        regions[image] = labelled
    return regions
