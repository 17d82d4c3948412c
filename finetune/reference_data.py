"""The data of `finetune reference`: frozen features of views and inputs of episodes, computed once.

    files = cache_views(matcher, key, "images/1.jpg", [("mug", rle)], extra_views=2, folder=cache)
    views = [CachedView(file, 0, labels_in(file)) for file in files]
    episodes = cache_episodes(matcher, key, sample_episodes(views, seed=0, count=1000), cache / "episodes")
    inputs, targets = read_inputs(sample_batch(episodes, seed=0, step=0, count=8))

A cache file is named by what it is computed from, so that several runs can share a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from assistant.errors import BadInput
from assistant.few_shot.episode import Episode, ImageFeatures, MatchInputs, Reference, cell_coverage
from assistant.few_shot.match_inputs import match_inputs
from assistant.few_shot.matcher import WITH_LABEL, Matcher
from assistant.files import read_json, replace_whole
from assistant.images import open_image
from assistant.sam.mask_ops import Rle, decode_rle
from finetune.pocket.instances import read_instances
from finetune.pocket.regions import augment

FOLDS = 4
MIN_MASK_AREA = 400  # px of a view that a category must cover to be asked for
KEY_LENGTH = 24  # hexadecimal digits of a cache file's name
MAX_REFERENCES = 3
MULTI_REFERENCE_SHARE = 0.25  # of the episodes that have more than one reference
# What the fields of `MatchInputs` are called in the files of episodes; the others have their own names.
FILE_NAMES = {"query_coverage": "inside", "reference_coverage": "covered", "label_vectors": "names"}


@dataclass(frozen=True)
class CachedView:
    """One view of an image in the cache.

    Attributes:
        file: Its features and masks.
        image: Number of its image.
        labels: The categories that can be asked for in it, in the order of the file's masks.
    """

    file: Path
    image: int
    labels: tuple[str, ...]


class SampledEpisode(NamedTuple):
    """A category, a view that shows it and views of other images that show it too."""

    label: str
    query: CachedView
    references: list[CachedView]


@dataclass(frozen=True)
class CachedEpisode:
    """An episode whose frozen part is in the cache.

    Attributes:
        file: The inputs of the encoder that reads labels, and the target.
        label: The category's name.
        query: The view to segment.
        shots: Number of references.
    """

    file: Path
    label: str
    query: CachedView
    shots: int


def outlined_images(folders: Sequence[Path]) -> list[tuple[Path, list[tuple[str, Rle]]]]:
    """The images of COCO-format folders that show an instance, with (category, RLE) of each instance."""
    return [
        (folder / "images" / file, named)
        for folder in folders
        for file, named in read_instances(folder / "instances.json").items()
        if named
    ]


def training_labels(folders: Sequence[Path], fold: int | None) -> set[str]:
    """The categories to learn.

    Args:
        folders: COCO-format folders.
        fold: Leave out every fourth category from this one on, in the order of their ids, which is the rule
            of COCO-20i; None to learn all.
    """
    labels: set[str] = set()
    for folder in folders:
        data = read_json(folder / "instances.json")
        in_order = [c["name"] for c in sorted(data["categories"], key=lambda c: c["id"])]
        labels |= {name for k, name in enumerate(in_order) if fold is None or k % FOLDS != fold}
    return labels


# ---------------------------------------------------------------------------------- views


def cache_views(
    matcher: Matcher,
    key: str,
    image_file: Path,
    named: Sequence[tuple[str, Rle]],
    extra_views: int,
    folder: Path,
) -> list[Path]:
    """Compute the features and masks of an image and of other views of it (cropped, mirrored, in other
    light).

    Args:
        matcher: Its SAM and frozen features are used.
        key: Identifies these two.
        image_file: The image.
        named: (category, RLE) of its instances.
        extra_views: Number of other views.
        folder: The cache; what is there already is not computed again.

    Returns:
        The files of the views, that of the whole image first.

    Raises:
        BadInput: The image cannot be read.
    """
    stem = _digest(f"{key} {image_file.resolve()}")
    files = [folder / f"{stem}-{k}.safetensors" for k in range(1 + extra_views)]
    if all(file.exists() for file in files):
        return files
    image = open_image(image_file)
    masks: dict[str, np.ndarray] = {}
    for label, rle in named:
        masks[label] = masks.get(label, False) | decode_rle(rle)
    rng = np.random.default_rng(int(stem[:8], 16))
    for k, file in enumerate(files):
        view, labelled = image, list(masks.items())
        if k > 0:  # drawn even where the file exists, so that a view does not depend on which files do
            view, labelled = augment(image, labelled, rng)
        if not file.exists():
            _write_view(matcher, file, view, labelled)
    return files


def _write_view(
    matcher: Matcher, file: Path, view: np.ndarray, labelled: Sequence[tuple[str, np.ndarray]]
) -> None:
    """Write one view (H, W, 3) uint8 with the masks of its categories, [(category, (H, W) bool)]."""
    features = matcher.open(np.ascontiguousarray(view))
    side = matcher.segmenter.low_res_side
    labelled = [(label, mask) for label, mask in labelled if mask.sum() >= MIN_MASK_AREA]
    masks = torch.zeros(0, side, side).byte()
    if labelled:
        shares = [
            cell_coverage(matcher.segmenter, (mask.shape[0], mask.shape[1]), mask, (side, side))
            for _, mask in labelled
        ]
        masks = torch.stack(shares).mul(255).round().byte()
    state = {
        "patches": features.patches.half(),
        "joint": features.joint.half(),
        "inside": features.coverage,
        "features": features.embedding.features.half(),
        "masks": masks,
    }
    metadata = {
        "names": json.dumps([label for label, _ in labelled]),
        "size": json.dumps(list(view.shape[:2])),
    }
    with replace_whole(file) as path:
        save_file({name: value.contiguous() for name, value in state.items()}, path, metadata)


def labels_in(file: Path) -> tuple[str, ...]:
    """The categories of a cached view, in the order of its masks."""
    with safe_open(file, "pt") as opened:
        return tuple(json.loads(opened.metadata()["names"]))


def read_view(view: CachedView, matcher: Matcher, label: str) -> tuple[ImageFeatures, Tensor]:
    """Read a view and the mask of one of its categories.

    Args:
        view: The view.
        matcher: The matcher that computed it.
        label: One of `view.labels`.

    Returns:
        The features, and (l, l) float in [0, 1], the share of each cell of the low-resolution logits inside
        the mask.
    """
    with safe_open(view.file, "pt") as opened:
        mask = opened.get_slice("masks")[view.labels.index(label)].float() / 255
        size = json.loads(opened.metadata()["size"])
        embedding = matcher.segmenter.restore(opened.get_tensor("features").float(), size)
        features = ImageFeatures(
            opened.get_tensor("patches").float(),
            opened.get_tensor("joint").float(),
            opened.get_tensor("inside").float(),
            embedding,
        )
    return features, mask


# ---------------------------------------------------------------------------------- episodes


def sample_episodes(
    views: Sequence[CachedView], seed: int, count: int, max_references: int = MAX_REFERENCES
) -> list[SampledEpisode]:
    """Draw episodes.

    A category is drawn in proportion to the square root of the number of its images. Most episodes have one
    reference, every fourth has several.

    Args:
        views: Views to draw from.
        seed: Of the random numbers.
        count: Number of episodes.
        max_references: Number of references at most.

    Returns:
        The episodes; the query's image is never among the references.

    Raises:
        BadInput: No category is outlined in two images.
    """
    rng = np.random.default_rng(seed)
    showing: dict[str, list[CachedView]] = {}
    for view in views:
        for label in view.labels:
            showing.setdefault(label, []).append(view)
    images = {label: len({view.image for view in of_label}) for label, of_label in showing.items()}
    labels = sorted(label for label in images if images[label] > 1)
    if not labels:
        raise BadInput("no category is outlined in two images: there is nothing to learn a reference from")
    weights = np.sqrt([images[label] for label in labels])
    episodes = []
    for drawn in rng.choice(labels, count, p=weights / weights.sum()):
        label = str(drawn)
        query = showing[label][rng.integers(len(showing[label]))]
        others = [view for view in showing[label] if view.image != query.image]
        has_several = rng.random() < MULTI_REFERENCE_SHARE
        shots = int(rng.integers(2, max_references + 1)) if has_several else 1
        chosen = rng.choice(len(others), shots, len(others) < shots)
        episodes.append(SampledEpisode(label, query, [others[k] for k in chosen]))
    return episodes


def load_episodes(matcher: Matcher, episodes: Sequence[SampledEpisode]) -> tuple[list[Episode], Tensor]:
    """Read the views of episodes.

    Returns:
        The B episodes, and their targets, (B, l, l) float in [0, 1].
    """
    loaded = []
    targets = []
    for label, query, references in episodes:
        features, target = read_view(query, matcher, label)
        loaded.append(
            Episode(features, [_read_reference(view, matcher, label) for view in references], label)
        )
        targets.append(target)
    return loaded, torch.stack(targets)


def _read_reference(view: CachedView, matcher: Matcher, label: str) -> Reference:
    """A view as a reference for one of its categories."""
    features, mask = read_view(view, matcher, label)
    rows, columns = features.patches.shape[-2:]
    return Reference(features, F.adaptive_avg_pool2d(mask[None], (rows, columns))[0])


def cache_episodes(
    matcher: Matcher, key: str, episodes: Sequence[SampledEpisode], folder: Path
) -> list[CachedEpisode]:
    """Compute the frozen part of episodes, each once for all runs that draw it.

    Args:
        matcher: With an encoder that reads labels, which tells how patches are normalised.
        key: Identifies the matcher's SAM and frozen features.
        episodes: The episodes.
        folder: The cache; what is there already is not computed again.

    Returns:
        The episodes in the cache, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cached = []
    for episode in tqdm(episodes, desc="episodes", disable=None):
        label, query, references = episode
        names = [key, label, query.file.name, *(view.file.name for view in references)]
        file = folder / f"{_digest(' '.join(names))}.safetensors"
        if not file.exists():
            loaded, target = load_episodes(matcher, [episode])
            inputs = match_inputs(loaded, matcher.encoders[WITH_LABEL], matcher.extractor)
            _write_inputs(file, inputs, target)
        cached.append(CachedEpisode(file, label, query, len(references)))
    return cached


def _write_inputs(file: Path, inputs: MatchInputs, target: Tensor) -> None:
    """Write the inputs of one episode and its target (1, l, l) in [0, 1]."""
    fields: dict[str, Any] = inputs._asdict()
    state = {FILE_NAMES.get(name, name): value.half().contiguous() for name, value in fields.items()}
    state["target"] = (target * 255).round().byte()
    with replace_whole(file) as path:
        save_file(state, path)


def read_inputs(batch: Sequence[CachedEpisode]) -> tuple[MatchInputs, Tensor]:
    """Read what the encoder that reads labels is given for B episodes of equally many references.

    Returns:
        The inputs, and the targets, (B, l, l) float in [0, 1].
    """
    states = [load_file(episode.file) for episode in batch]
    fields = {
        name: torch.cat([state[FILE_NAMES.get(name, name)] for state in states]).float()
        for name in MatchInputs._fields
    }
    targets = torch.cat([state["target"] for state in states]).float() / 255
    return MatchInputs(**fields), targets


def sample_batch(episodes: Sequence[CachedEpisode], seed: int, step: int, count: int) -> list[CachedEpisode]:
    """Draw `count` episodes of equally many references; the same for the same seed and step."""
    rng = np.random.default_rng((seed, step))
    shots = episodes[int(rng.integers(len(episodes)))].shots
    alike = [episode for episode in episodes if episode.shots == shots]
    return [alike[int(k)] for k in rng.choice(len(alike), count, len(alike) < count)]


def _digest(text: str) -> str:
    """The name of a cache file of what `text` describes."""
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
