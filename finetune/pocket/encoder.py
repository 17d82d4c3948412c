"""Phase 1 of `finetune records`: the region encoder learns names, and which regions are objects.

encoded = train_encoders(EncoderSettings(), out, llm, records, regions)      # {image: EncodedRegions}
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.pocket.heads import tensors_under
from assistant.pocket.llm import PocketLLM
from assistant.pocket.region_encoder import EncodedRegions, RegionEncoder
from finetune.image_record import ImageRecord
from finetune.log import cosine_schedule
from finetune.pocket.examples import FOLDS
from finetune.pocket.settings import EncoderSettings
from finetune.region_cache import ImageRegions, iou_and_iop

UNNAMED = -1  # label of a region without a name
MIN_LABEL_IOU = 0.5  # of a region with an instance, above which it has the instance's name
BATCH_REGIONS = 192  # named regions in a step, and as many of all regions
WARM_UP_STEPS = 50
LABEL_SMOOTHING = 0.05
WEIGHT_DECAY = 0.05
OBJECTNESS_WEIGHT = 0.5  # of its loss; that of names is 1
EMBEDDING_WEIGHT = 5.0  # of the loss that keeps the embeddings of regions without a name where they were
# How much the phrase of an absent target counts; it is always the plain form, where others may be plurals.
ABSENT_PHRASE_COUNT = 1000


@dataclass
class TaughtNames:
    """The names that records teach.

    Attributes:
        categories: Names of the categories, sorted.
        phrases: What an answer calls each.
        category_of: {phrase or category in lower case: index of the category}.
    """

    categories: list[str]
    phrases: list[str]
    category_of: dict[str, int]


def taught_names(records: Sequence[ImageRecord], names: Sequence[str]) -> TaughtNames:
    """Collect the names to teach.

    A category is called by the phrase that answers use when it is absent, which is never a plural, else by
    any.

    Args:
        records: The records.
        names: Of all labelled instances, with repetitions.
    """
    categories = sorted(set(names))
    index = {category: i for i, category in enumerate(categories)}
    counts: dict[str, Counter[str]] = {category: Counter() for category in categories}
    category_of = {category.lower(): i for category, i in index.items()}
    for record in (r.record for r in records):
        if record.source.get("kind") in ("position", "followup"):
            continue
        for category, target in zip(record.source.get("categories", []), record.targets, strict=False):
            if category in index:
                counts[category][target.phrase] += 1 if target.rle else ABSENT_PHRASE_COUNT
                category_of[target.phrase.lower()] = index[category]
    phrases = [counts[c].most_common(1)[0][0] if counts[c] else c for c in categories]
    return TaughtNames(categories, phrases, category_of)


def label_regions(regions: ImageRegions, rows: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Label the regions of an image by its instances.

    Args:
        regions: The instances, then the proposals.
        rows: {name: row of the encoder}.

    Returns:
        (N,) int64 rows of the names, UNNAMED where no instance overlaps enough, and (N,) float32 IoU with the
        instance that overlaps most.
    """
    instances = regions.rles[: len(regions.names)]
    if not instances:
        return np.full(len(regions.rles), UNNAMED), np.zeros(len(regions.rles), np.float32)
    table = np.stack([iou_and_iop(regions.rles, rle)[0] for rle in instances])
    nearest = table.argmax(0)
    iou = table.max(0)
    labels = np.array([rows[regions.names[i]] for i in nearest])
    labels[: len(instances)] = [rows[name] for name in regions.names]
    return np.where(iou > MIN_LABEL_IOU, labels, UNNAMED), iou


@dataclass
class RegionLabels:
    """The regions of all training images with their labels.

    Attributes:
        features: (N, FEATURE_DIM) float32.
        labels: (N,) int64 rows of the encoder's names, or UNNAMED.
        objectness: (N,) float32 in [0, 1], IoU with the nearest instance.
        folds: (N,) int64, the fold of each region's image.
        is_instance: (N,) bool, whether it is a labelled instance itself.
        augmented: (V, FEATURE_DIM) float32 of instances in augmented copies.
        augmented_labels: (V,) int64, their rows.
        augmented_folds: (V,) int64, their folds.
    """

    features: Tensor
    labels: Tensor
    objectness: Tensor
    folds: Tensor
    is_instance: Tensor
    augmented: Tensor
    augmented_labels: Tensor
    augmented_folds: Tensor

    @classmethod
    def of(cls, regions: Sequence[ImageRegions], rows: Mapping[str, int]) -> "RegionLabels":
        """Label the regions of images, in order; `rows` is {name: row of the encoder}."""
        labelled = [label_regions(r, rows) for r in regions]
        augmented_rows = [rows[name] for r in regions for name in r.augmented_names]
        augmented_folds = [i % FOLDS for i, r in enumerate(regions) for _ in r.augmented_names]
        return cls(
            torch.cat([r.features for r in regions]),
            torch.from_numpy(np.concatenate([labels for labels, _ in labelled])),
            torch.from_numpy(np.concatenate([iou for _, iou in labelled])),
            torch.cat([torch.full((len(r.features),), i % FOLDS) for i, r in enumerate(regions)]),
            torch.cat([torch.arange(len(r.features)) < len(r.names) for r in regions]),
            torch.cat([r.augmented for r in regions]),
            torch.tensor(augmented_rows, dtype=torch.long),
            torch.tensor(augmented_folds, dtype=torch.long),
        )

    @property
    def has_names(self) -> bool:
        """Whether any region has a name."""
        return bool((self.labels >= 0).any()) or len(self.augmented_labels) > 0

    def without_fold(self, fold: int) -> "RegionLabels":
        """The regions of all images but those of one fold."""
        mine = self.folds != fold
        augmented = self.augmented_folds != fold
        return RegionLabels(
            self.features[mine],
            self.labels[mine],
            self.objectness[mine],
            self.folds[mine],
            self.is_instance[mine],
            self.augmented[augmented],
            self.augmented_labels[augmented],
            self.augmented_folds[augmented],
        )


def train_encoder(
    encoder: RegionEncoder,
    data: RegionLabels,
    settings: EncoderSettings,
    start: RegionEncoder | None = None,
    competing: Tensor | None = None,
) -> None:
    """Train a region encoder.

    Args:
        encoder: The encoder, with its names filled in; afterwards frozen and in evaluation mode.
        data: What it learns.
        settings: Of the training.
        start: The encoder that it continues from. Regions without a name keep the embeddings that they have
            by it, and what was an object remains one, as few of the objects in new images are labelled.
        competing: (C, C) bool, the names that a region with each label is told from; None for all.
    """
    named = (data.labels >= 0).nonzero()[:, 0]
    features = torch.cat([data.features[named], data.augmented])
    labels = torch.cat([data.labels[named], data.augmented_labels])
    # Rare names are drawn more often than they occur.
    weight = labels.bincount(minlength=len(encoder.names)).float().clamp(min=1).rsqrt()[labels]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY)
    objectness = data.objectness
    old: EncodedRegions | None = None
    if start is not None:
        with torch.no_grad():
            old = start(data.features)
        at_least_old = torch.maximum(objectness, old.objectness.sigmoid())
        objectness = torch.where(data.labels >= 0, objectness, at_least_old)
    encoder.train()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_schedule(step, settings.steps, WARM_UP_STEPS) * settings.lr
        drawn = torch.multinomial(weight, BATCH_REGIONS, True)
        any_drawn = torch.randint(len(data.features), (BATCH_REGIONS,))
        encoded = encoder(torch.cat([features[drawn], data.features[any_drawn]]))
        logits = encoder.name_logits(encoded.embeddings[:BATCH_REGIONS], encoder.names)
        name_loss = _name_loss(logits, labels[drawn], competing)
        object_loss = F.binary_cross_entropy_with_logits(
            encoded.objectness[BATCH_REGIONS:], objectness[any_drawn]
        )
        loss = name_loss + OBJECTNESS_WEIGHT * object_loss
        if start is not None and old is not None:
            unnamed = data.labels[any_drawn] < 0
            loss = loss + _retention_loss(encoder, start, encoded, old.embeddings[any_drawn], unnamed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval().requires_grad_(False)


def _name_loss(logits: Tensor, labels: Tensor, competing: Tensor | None) -> Tensor:
    """Cross-entropy of logits (K, C) with labels (K,) among the names that compete with each label."""
    if competing is None:
        return F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
    is_rival = competing[labels]
    log_probabilities = logits.masked_fill(~is_rival, -torch.inf).log_softmax(1)
    smooth = log_probabilities.masked_fill(~is_rival, 0).sum(1) / is_rival.sum(1)
    right = log_probabilities.gather(1, labels[:, None])[:, 0]
    return -((1 - LABEL_SMOOTHING) * right + LABEL_SMOOTHING * smooth).mean()


def _retention_loss(
    encoder: RegionEncoder, start: RegionEncoder, encoded: EncodedRegions, old: Tensor, unnamed: Tensor
) -> Tensor:
    """How far regions without a name have moved from what they were by the encoder `start`.

    Such a region still has the names that it had, and none of the new ones (Li and Hoiem 2016); else whatever
    is not labelled would soon get the names of what is.

    encoded: the batch, whose last BATCH_REGIONS regions are meant; old: (BATCH_REGIONS, W), their embeddings
    by `start`; unnamed: (BATCH_REGIONS,) bool, which of them have no name.
    """
    # Sliced twice, because gradients are added in another order where one slice is used twice.
    distance = 1 - F.cosine_similarity(encoded.embeddings[BATCH_REGIONS:], old, dim=-1)
    old_names = start.name_logits(old, start.names).softmax(1)
    logits = encoder.name_logits(encoded.embeddings[BATCH_REGIONS:], encoder.names)
    new_names = logits.log_softmax(1)[:, : old_names.shape[1]]
    loss = EMBEDDING_WEIGHT * distance - (old_names * new_names).sum(1)
    return (loss * unnamed).sum() / unnamed.sum().clamp(min=1)


def train_encoders(
    settings: EncoderSettings,
    out: Path,
    llm: PocketLLM,
    records: Sequence[ImageRecord],
    regions: Mapping[Path, ImageRegions],
    start: RegionEncoder | None = None,
) -> dict[Path, EncodedRegions]:
    """Phase 1: train an encoder for use, and one for each fold that has not seen the images of the fold.

    They are stored in OUT/encoder.safetensors and read from there if they exist. How often the encoders name
    labelled instances of their fold rightly is printed.

    Args:
        settings: Of the training.
        out: Folder of the run.
        llm: Gets the encoder for use and its names.
        records: Their answers show how names are phrased.
        regions: {image: its regions}.
        start: The encoder to continue from; the rows of its names are `llm.phrase_rows`, and new names follow
            them.

    Returns:
        {image: its regions, encoded by the encoder that has not seen the image}.

    Raises:
        BadInput: No region has a name.
    """
    rows, names = _teach_names(llm, records, regions, start)
    data = RegionLabels.of(list(regions.values()), rows)
    if not data.has_names:
        raise BadInput("no target of the records is present in its image: there are no names to learn")
    encoders = _load_or_train(settings, out / "encoder.safetensors", names, data, start)
    llm.encoder = encoders[FOLDS]
    _print_accuracy(encoders[:FOLDS], data)
    with torch.no_grad():
        return {
            image: encoders[i % FOLDS](of_image.features)
            for i, (image, of_image) in enumerate(regions.items())
        }


def _teach_names(
    llm: PocketLLM,
    records: Sequence[ImageRecord],
    regions: Mapping[Path, ImageRegions],
    start: RegionEncoder | None,
) -> tuple[dict[str, int], Tensor]:
    """Give `llm` the rows of all phrases.

    Returns {category: row of the encoder}, and the embeddings (C, W) of the rows: those that `start` knows,
    then the new.
    """
    taught = taught_names(records, [name for of_image in regions.values() for name in of_image.names])
    old_rows = llm.phrase_rows if start is not None else {}
    old_names = start.names if start is not None else torch.zeros(0, len(llm.common_embedding))
    rows: dict[str, int] = {}
    new_names: list[Tensor] = []
    for category, phrase in zip(taught.categories, taught.phrases, strict=True):
        row = old_rows.get(category.lower(), old_rows.get(phrase.lower()))
        if row is None:
            row = len(old_names) + len(new_names)
            new_names.append(llm.mean_token_embedding(phrase)[None])
        rows[category] = row
    phrase_rows = {phrase: rows[taught.categories[i]] for phrase, i in taught.category_of.items()}
    llm.phrase_rows = phrase_rows | old_rows
    llm.unspoken -= phrase_rows.keys()
    return rows, torch.cat([old_names, *new_names])


def _load_or_train(
    settings: EncoderSettings,
    file: Path,
    names: Tensor,
    data: RegionLabels,
    start: RegionEncoder | None,
) -> list[RegionEncoder]:
    """The encoder of each fold and then the one for use, read from `file` or trained and stored there."""
    encoders = [RegionEncoder(names.shape[1], len(names)) for _ in range(FOLDS + 1)]
    if file.exists():
        state = load_file(file)
        for i, encoder in enumerate(encoders):
            encoder.load_state_dict(tensors_under(state, f"{i}."))
            encoder.eval().requires_grad_(False)
        return encoders
    for i, encoder in enumerate(encoders):
        if start is not None:
            old = {k: v for k, v in start.state_dict().items() if k != "names"}
            encoder.load_state_dict(old, strict=False)
        else:
            encoder.fit_inputs(data.features)
        encoder.names.copy_(names)
        others = data.without_fold(i)  # no image is of fold FOLDS
        # Where all named regions are in one fold, there is nothing else to learn names from.
        train_encoder(encoder, others if others.has_names else data, settings, start)
    state = {f"{i}.{k}": v for i, encoder in enumerate(encoders) for k, v in encoder.state_dict().items()}
    with replace_whole(file) as path:
        save_file(state, path)
    return encoders


@torch.no_grad()
def _print_accuracy(encoders: Sequence[RegionEncoder], data: RegionLabels) -> None:
    """Print how often the encoder of each fold names the labelled instances of the fold rightly."""
    is_right = []
    for fold, encoder in enumerate(encoders):
        instances = (data.folds == fold) & data.is_instance & (data.labels >= 0)
        if instances.any():
            embeddings = encoder(data.features[instances]).embeddings
            named = encoder.name_logits(embeddings, encoder.names).argmax(1)
            is_right.append((named == data.labels[instances]).float())
    if is_right:
        accuracy = torch.cat(is_right).mean()
        print(f"names of labelled instances in images not trained on: {accuracy:.3f} right", flush=True)
