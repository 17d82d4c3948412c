"""Phase 1 of `finetune semantic`: the semantic head learns which taught name every cell of an image has.

images = LabelledImages.read(sources)
head = train_semantic_head(settings, out, opener, images)
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from assistant.files import replace_whole
from assistant.images import open_image
from assistant.pocket.image_encoder import IMAGE_SIZE
from assistant.pocket.opening import PocketImageOpener, resize_longest_side
from assistant.pocket.precision import fast_math
from assistant.pocket.region_features import normalise
from assistant.pocket.semantic import MAP_SIDE, SemanticHead
from assistant.sam.mask_ops import decode_rle, pad_to_square
from finetune.image_record import read_image_records
from finetune.log import TrainingLog, cosine_schedule
from finetune.pocket.examples import every_tenth
from finetune.pocket.instances import NamedMask, NamedRle, instances_of_images, read_instances
from finetune.pocket.regions import augment
from finetune.pocket.settings import RecordSources, SemanticSettings

BACKGROUND = -1  # label of a cell without a name
OUTSIDE = -2  # label of a cell outside the image, of which nothing is learned
CELL_SIZE = IMAGE_SIZE // MAP_SIDE  # px
WHOLE_IMAGE_SHARE = 0.5  # of the augmented images that are not cropped: whole is how images are asked about
MIN_CROP_SHARE = 0.5  # of each side, of the others
WEIGHT_SAMPLE_IMAGES = 64  # whose cells are counted to weigh the names
INPUT_SAMPLE_IMAGES = 16  # whose inputs give the mean and the scale of the inputs
RARITY_POWER = 0.3  # a name with a tenth of the cells counts twice as much per cell
MIN_NAME_SHARE = 1e-3  # of the cells, below which a name counts no more
WARM_UP_STEPS = 50
WEIGHT_DECAY = 0.05
IMPOSSIBLE_LOGIT = -1e4  # of the names that do not compete in an image
LOG_EVERY = 50


@dataclass
class LabelledImages:
    """The labelled images of several records files.

    Attributes:
        instances: {image: names and masks of its instances}, in the order in which the records stage counts
            images.
        file_of: {image: number of its records file}.
        names: All names, sorted.
        names_of_file: The names of each file.
    """

    instances: dict[Path, list[NamedRle]]
    file_of: dict[Path, int]
    names: list[str]
    names_of_file: list[set[str]]

    @classmethod
    def read(cls, sources: RecordSources) -> "LabelledImages":
        """Read the instances of all images. Raises BadInput where a file cannot be read."""
        by_file = {
            name: labelled for file in sources.annotations for name, labelled in read_instances(file).items()
        }
        instances: dict[Path, list[NamedRle]] = {}
        file_of: dict[Path, int] = {}
        names_of_file = []
        for number, file in enumerate(sources.data):
            of_file = instances_of_images(read_image_records(file), by_file, split_parts=False)
            instances |= of_file
            file_of |= dict.fromkeys(of_file, number)
            names_of_file.append({name for of_image in of_file.values() for name, _ in of_image})
        in_order = {image: instances[image] for image in sorted(instances)}
        return cls(in_order, file_of, sorted(set().union(*names_of_file)), names_of_file)


class AugmentedImages(Dataset[tuple[np.ndarray, np.ndarray, int]]):
    """Augmented images with labelled cells; the n-th depends on `seed` and n only.

    Items are (IMAGE_SIZE, IMAGE_SIZE, 3) uint8 pixels, (MAP_SIDE, MAP_SIDE) int64 labels, and the number of
    the image's records file.

    Args:
        images: The labelled images.
        order: The image of each item.
        seed: Of the augmentation.
    """

    def __init__(self, images: LabelledImages, order: Sequence[Path], seed: int):
        self.images = images
        self.order = order
        self.seed = seed
        self.rows = {name: k for k, name in enumerate(images.names)}

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, n: int) -> tuple[np.ndarray, np.ndarray, int]:
        rng = np.random.default_rng((self.seed, n))
        image = self.order[n]
        masks = [(name, decode_rle(rle)) for name, rle in self.images.instances[image]]
        min_side = 1.0 if rng.random() < WHOLE_IMAGE_SHARE else MIN_CROP_SHARE
        pixels, masks = augment(open_image(image), masks, rng, min_share_left=0.0, min_side=min_side)
        return *label_cells(pixels, masks, self.rows), self.images.file_of[image]


def label_cells(
    image: np.ndarray, masks: Sequence[NamedMask], rows: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Label the cells of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: Names and masks (H, W) bool; where two share a cell, it has the smaller one's name.
        rows: {name: label}.

    Returns:
        The image in the padded square, (IMAGE_SIZE, IMAGE_SIZE, 3) uint8, and (MAP_SIDE, MAP_SIDE) int64
        labels: rows, BACKGROUND or OUTSIDE.
    """
    resized = resize_longest_side(image)
    height, width = resized.shape[:2]
    labels = np.full((MAP_SIDE, MAP_SIDE), OUTSIDE, np.int64)
    ys, xs = (np.arange(CELL_SIZE // 2, size, CELL_SIZE) for size in (height, width))  # centres of the cells
    inside = labels[: len(ys), : len(xs)]
    inside[:] = BACKGROUND
    rows_of_pixels = (ys * image.shape[0] / height).astype(int)
    columns_of_pixels = (xs * image.shape[1] / width).astype(int)
    centres = np.ix_(rows_of_pixels, columns_of_pixels)
    for name, mask in sorted(masks, key=lambda named: -int(named[1].sum())):
        inside[mask[centres]] = rows[name]
    return pad_to_square(resized, IMAGE_SIZE), labels


def train_semantic_head(
    settings: SemanticSettings, out: Path, opener: PocketImageOpener, images: LabelledImages
) -> SemanticHead:
    """Phase 1: train the semantic head, or continue from OUT/head.pt.

    Every tenth image is held out, the same ones as in the records stage.

    Args:
        settings: Of the stage.
        out: Folder of the run.
        opener: Its SAM computes the inputs.
        images: The labelled images.

    Returns:
        The head in evaluation mode.
    """
    torch.manual_seed(settings.seed)
    head = SemanticHead(len(images.names), len(images.names_of_file))
    for group, names in enumerate(images.names_of_file):
        head.together[group, :-1] = torch.tensor([name in names for name in images.names])
    data = AugmentedImages(images, _draw_order(settings, images), settings.seed)
    sample = [data[n] for n in range(min(WEIGHT_SAMPLE_IMAGES, len(data)))]
    weight = label_weights([labels for _, labels, _ in sample], len(images.names))
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY)
    first_step = 0
    if (out / "head.pt").exists():
        first_step = _restore(out / "head.pt", head, optimizer)
    elif settings.init:
        head.load_state_dict(torch.load(settings.init, weights_only=True)["model"])
    else:
        squares = np.stack([pixels for pixels, _, _ in sample[:INPUT_SAMPLE_IMAGES]])
        head.fit_inputs(head_inputs(opener, torch.from_numpy(squares)))
    log = TrainingLog(out / "head.jsonl", first_step)
    saved = time.time()
    rest = Subset(data, range(first_step * settings.batch, len(data)))
    loader = DataLoader(rest, settings.batch, num_workers=settings.workers)
    head.train()
    for step, (pixels, labels, file_numbers) in enumerate(loader, first_step):
        for parameters in optimizer.param_groups:
            parameters["lr"] = settings.lr * cosine_schedule(step, settings.steps, WARM_UP_STEPS)
        torch.manual_seed(settings.seed + step)  # so that dropout is the same in a run that continues
        with fast_math():
            logits = head(head_inputs(opener, pixels)).float()
        loss, figures = _loss(head, logits, labels, file_numbers, weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        log.add(step, figures, every=LOG_EVERY)
        if time.time() - saved > 60 * settings.save_minutes or step + 1 == settings.steps:
            _save(out / "head.pt", head, optimizer, step + 1)
            saved = time.time()
    return head.eval()


def _draw_order(settings: SemanticSettings, images: LabelledImages) -> list[Path]:
    """The image of each item of the training.

    The images of a file with twice as many names are drawn half as often again, as there is more to learn
    from them.
    """
    held_out = set(every_tenth(list(images.instances)))
    training = [image for image in images.instances if image not in held_out]
    share = np.array([len(images.names_of_file[images.file_of[image]]) ** 0.5 for image in training])
    rng = np.random.default_rng(settings.seed)
    drawn = rng.choice(len(training), settings.steps * settings.batch, p=share / share.sum())
    return [training[i] for i in drawn]


def _loss(
    head: SemanticHead, logits: Tensor, labels: Tensor, file_numbers: Tensor, weight: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss of logits (B, C + 1, MAP_SIDE, MAP_SIDE) on labels (B, MAP_SIDE, MAP_SIDE), with figures."""
    logits = logits.masked_fill(~head.together[file_numbers][:, :, None, None], IMPOSSIBLE_LOGIT)
    target = torch.where(labels == BACKGROUND, logits.shape[1] - 1, labels)
    loss = F.cross_entropy(logits, target, weight, ignore_index=OUTSIDE)
    right = (logits.argmax(1) == target)[labels >= 0].float().mean()
    return loss, {"names": loss.item(), "right": right.item()}


def _restore(file: Path, head: SemanticHead, optimizer: torch.optim.Optimizer) -> int:
    """Read a checkpoint; returns the step to continue at."""
    state = torch.load(file, weights_only=True)
    head.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"resuming the semantic head at step {state['step']}", flush=True)
    return state["step"]


def _save(file: Path, head: SemanticHead, optimizer: torch.optim.Optimizer, step: int) -> None:
    with replace_whole(file) as path:
        torch.save({"model": head.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)


@torch.no_grad()
def head_inputs(opener: PocketImageOpener, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the semantic head reads of (B, IMAGE_SIZE, IMAGE_SIZE, 3) uint8 pixels."""
    encoder = opener.segmenter.model.image_encoder
    with fast_math():
        normalised = normalise(pixels.numpy(), "cpu").contiguous(memory_format=torch.channels_last)
        maps = encoder.backbone(normalised)
        return SemanticHead.inputs(maps, encoder.neck(*maps))


def label_weights(labels: Sequence[np.ndarray], names: int) -> Tensor:
    """What a cell of each name, and of the background, counts: the rarer, the more; 1 on average over cells.

    Args:
        labels: Of sample images, (MAP_SIDE, MAP_SIDE) each.
        names: Number of names, C.

    Returns:
        (C + 1,) float32.
    """
    count = np.zeros(names + 1)
    for of_image in labels:
        with_background = np.where(of_image == BACKGROUND, names, of_image)
        count += np.bincount(with_background[with_background >= 0], minlength=names + 1)
    weight = np.maximum(count, count.sum() * MIN_NAME_SHARE) ** -RARITY_POWER
    return torch.from_numpy(weight * count.sum() / (weight * count).sum()).float()
