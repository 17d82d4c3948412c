"""Phase 1 of `finetune semantic`: the semantic head learns which taught name every cell of an image has.

images = LabelledImages.read(sources)
head = train_semantic_head(settings, out, opener, images)
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from assistant.images import open_image
from assistant.pocket.detector import detector_pixels
from assistant.pocket.image_encoder import IMAGE_SIZE, PocketImageEncoder, resize_longest_side
from assistant.pocket.opening import PocketImageOpener
from assistant.pocket.precision import fast_math
from assistant.pocket.region_features import normalise
from assistant.pocket.sam import load_backbone
from assistant.pocket.semantic import MAP_SIDE, HeadInputs, SemanticHead, SemanticSelector
from assistant.pocket.wheels import backbone_state
from assistant.sam.mask_ops import Rle, decode_rle, pad_to_square
from finetune.averaged_training import AveragedTraining
from finetune.image_record import read_image_records
from finetune.log import TrainingLog, cosine_schedule
from finetune.pocket.examples import every_tenth
from finetune.pocket.instances import NamedMask, NamedRle, instances_of_images, read_instances
from finetune.pocket.named_images import NamedSet, NameRules, name_rules
from finetune.pocket.regions import augment
from finetune.pocket.settings import RecordSources, SemanticSettings

BACKGROUND = -1  # label of a cell without a name
OUTSIDE = -2  # label of a cell outside the image or of which nothing is known: nothing is learned there
UNLABELLED = ""  # stands for the name of a part of an image of which nothing is known
MAX_SET_IMAGES = 400  # images of one source beyond which more of them are not drawn more often
CELL_SIZE = IMAGE_SIZE // MAP_SIDE  # px
WHOLE_IMAGE_SHARE = 0.5  # of the augmented images that are not cropped: whole is how images are asked about
MIN_CROP_SHARE = 0.5  # of each side, of the others
WEIGHT_SAMPLE_IMAGES = 64  # whose cells are counted to weigh the names
INPUT_SAMPLE_IMAGES = 16  # whose inputs give the mean and the scale of the inputs
RARITY_POWER = 0.3  # a name with a tenth of the cells counts twice as much per cell
MIN_NAME_SHARE = 1e-3  # of the cells, below which a name counts no more
WARM_UP_STEPS = 50
WEIGHT_DECAY = 0.05
DEEP_RATE_SHARE = 0.1  # of the learning rate, for the deepest stages, which start from the backbone's
MAX_GRADIENT_NORM = 5.0
INCOMPLETE_SHARE = 0.5  # how often images in which one thing is labelled are drawn beside others
IMPOSSIBLE_LOGIT = -1e4  # of the names that do not compete in an image
LOG_EVERY = 50


@dataclass(frozen=True)
class ImageSet:
    """The images of one source.

    Attributes:
        names: The names that are labelled in them.
        group: Number of the group of names that compete with each other in these images.
        is_complete: Whether every instance of `names` is labelled.
    """

    names: set[str]
    group: int
    is_complete: bool = True


@dataclass
class LabelledImages:
    """The labelled images of several sources.

    Attributes:
        instances: {image: names and masks of its instances}, in the order in which the records stage counts
            images, those of named sets last. Nothing is learned from images that are kept aside.
        set_of: {image: number of its source}.
        names: All names, sorted.
        sets: The sources.
        unlabelled: {image: the part of it of which nothing is known}, where there is one.
        aside: The instances of the images that are kept aside: every tenth of those with questions, the same
            as in the records stage, and of each named set.
    """

    instances: dict[Path, list[NamedRle]]
    set_of: dict[Path, int]
    names: list[str]
    sets: list[ImageSet]
    unlabelled: dict[Path, Rle] = field(default_factory=dict)
    aside: dict[Path, list[NamedRle]] = field(default_factory=dict)

    @classmethod
    def read(cls, sources: RecordSources, named_sets: Sequence[NamedSet] = ()) -> "LabelledImages":
        """Read the instances of all images.

        Names of one records file compete with each other only, because what another file labels may be
        unlabelled in its images. Names of a named set join those of the records file with which the set
        shares most names.

        Raises BadInput where a file cannot be read.
        """
        by_file = {
            name: labelled for file in sources.annotations for name, labelled in read_instances(file).items()
        }
        instances: dict[Path, list[NamedRle]] = {}
        set_of: dict[Path, int] = {}
        sets: list[ImageSet] = []
        for number, file in enumerate(sources.data):
            of_file = instances_of_images(read_image_records(file), by_file, split_parts=False)
            instances |= of_file
            set_of |= dict.fromkeys(of_file, number)
            sets.append(ImageSet({name for of_image in of_file.values() for name, _ in of_image}, number))
        in_order = {image: instances[image] for image in sorted(instances)}
        aside = {image: in_order[image] for image in every_tenth(list(in_order))}
        groups = [of_set.names for of_set in sets]
        for named_set in named_sets:
            shared_names = [len(named_set.names & names) for names in groups]
            group = shared_names.index(max(shared_names))
            set_of |= dict.fromkeys([*named_set.instances, *named_set.aside], len(sets))
            in_order |= named_set.instances
            aside |= named_set.aside
            sets.append(ImageSet(named_set.names, group, named_set.is_complete))
        unlabelled = {image: rle for of_set in named_sets for image, rle in of_set.unlabelled.items()}
        names = sorted(set().union(*(of_set.names for of_set in sets)))
        return cls(in_order, set_of, names, sets, unlabelled, aside)

    def group_names(self, group: int) -> set[str]:
        """The names that compete with each other in the images of a group."""
        return set().union(*(of_set.names for of_set in self.sets if of_set.group == group))

    def competing(self, rules: NameRules) -> Tensor:
        """Which names may be told from each other where something is labelled.

        Args:
            rules: Says which names are ambiguous.

        Returns:
            (sets, C + 1, C + 1) bool: for each source and each label of a cell, the names of which it is one.
            The last label and the last name are the background.
        """
        rows = {name: k for k, name in enumerate(self.names)}
        background = len(rows)
        competing = torch.zeros(len(self.sets), len(rows) + 1, len(rows) + 1, dtype=torch.bool)
        competing[:, :, background] = True
        for number, of_set in enumerate(self.sets):
            group = self.group_names(of_set.group)
            for name in of_set.names:
                rivals = group - rules.ambiguous.get(name, set())
                competing[number, rows[name], [rows[rival] for rival in rivals | {name}]] = True
            # A set of few names is labelled for these alone; whatever else is in its images is unknown.
            elsewhere = group - of_set.names if len(of_set.names) > len(group) / 3 else set()
            absent = of_set.names | (elsewhere - rules.background)
            competing[number, background, [rows[name] for name in absent]] = True
        return competing


class AugmentedImages(Dataset[tuple[np.ndarray, np.ndarray, int]]):
    """Augmented images with labelled cells; the n-th depends on `seed` and n only.

    Items are (IMAGE_SIZE, IMAGE_SIZE, 3) uint8 pixels, (MAP_SIDE, MAP_SIDE) int64 labels, and the number of
    the image's source.

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
        if image in self.images.unlabelled:
            masks.append((UNLABELLED, decode_rle(self.images.unlabelled[image])))
        min_side = 1.0 if rng.random() < WHOLE_IMAGE_SHARE else MIN_CROP_SHARE
        pixels, masks = augment(open_image(image), masks, rng, min_share_left=0.0, min_side=min_side)
        square, labels = label_cells(pixels, masks, self.rows | {UNLABELLED: OUTSIDE})
        number = self.images.set_of[image]
        if not self.images.sets[number].is_complete:
            labels = np.where(labels == BACKGROUND, OUTSIDE, labels)
        return square, labels, number


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
    # What is unknown is drawn first, then the largest instance: a cell has the name of the smallest.
    in_order = sorted(masks, key=lambda named: (rows[named[0]] >= 0, -int(named[1].sum())))
    for name, mask in in_order:
        inside[mask[centres]] = rows[name]
    return pad_to_square(resized, IMAGE_SIZE), labels


def train_semantic_head(
    settings: SemanticSettings, out: Path, opener: PocketImageOpener, images: LabelledImages
) -> SemanticHead:
    """Phase 1: train the semantic head, or continue from OUT/head.pt.

    Args:
        settings: Of the stage.
        out: Folder of the run.
        opener: Its SAM computes the inputs.
        images: The labelled images.

    Returns:
        The head in evaluation mode.
    """
    torch.manual_seed(settings.seed)
    groups = sorted({of_set.group for of_set in images.sets})
    head = SemanticHead(len(images.names), len(groups), detector=True)
    for group in groups:
        names = images.group_names(group)
        head.together[group, :-1] = torch.tensor([name in names for name in images.names])
    competing = images.competing(name_rules())
    data = AugmentedImages(images, _draw_order(settings, images), settings.seed)
    sample = [data[n] for n in range(min(WEIGHT_SAMPLE_IMAGES, len(data)))]
    weight = label_weights([labels for _, labels, _ in sample], len(images.names))
    if settings.init:
        head.load_state_dict(torch.load(settings.init, weights_only=True)["average"])
    else:
        squares = np.stack([pixels for pixels, _, _ in sample[:INPUT_SAMPLE_IMAGES]])
        inputs = head_inputs(opener, torch.from_numpy(squares))
        if settings.start:
            head.start_detector(inputs)
            continue_from(head, images.names, SemanticSelector.load(settings.start))
        else:
            encoder = PocketImageEncoder()  # the opener's has no batch normalisations left
            load_backbone(encoder, backbone_state())
            head.start_from(encoder.backbone, inputs)
    training = AveragedTraining(head, _optimizer(head), MAX_GRADIENT_NORM)
    first_step = training.resume(out / "head.pt")
    log = TrainingLog(out / "head.jsonl", first_step)
    saved = time.time()
    rest = Subset(data, range(first_step * settings.batch, len(data)))
    loader = DataLoader(rest, settings.batch, num_workers=settings.workers)
    head.train()
    for step, (pixels, labels, set_numbers) in enumerate(loader, first_step):
        for parameters in training.optimizer.param_groups:
            rate = settings.lr * parameters["share"]
            parameters["lr"] = rate * cosine_schedule(step, settings.steps, WARM_UP_STEPS)
        torch.manual_seed(settings.seed + step)  # so that dropout is the same in a run that continues
        with fast_math():
            logits = head(head_inputs(opener, pixels)).float()
        loss, figures = _loss(logits, labels, competing[set_numbers], weight)
        training.step(loss, step)
        log.add(step, figures, every=LOG_EVERY)
        if time.time() - saved > 60 * settings.save_minutes or step + 1 == settings.steps:
            training.save(out / "head.pt", step + 1)
            saved = time.time()
    head.load_state_dict(training.average)
    return head.eval()


def _optimizer(head: SemanticHead) -> torch.optim.Optimizer:
    """AdamW; the `share` of a group is that of the learning rate."""
    deep = list(head.deep.parameters())
    own = [value for name, value in head.named_parameters() if not name.startswith("deep.")]
    groups = [{"params": own, "share": 1.0}, {"params": deep, "share": DEEP_RATE_SHARE}]
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)


def continue_from(head: SemanticHead, names: Sequence[str], start: SemanticSelector) -> None:
    """Give a head the weights of a published one; rows of names that it lacks keep their first values.

    Args:
        head: The head to train.
        names: Its names, in its order.
        start: What was published.
    """
    state = start.head.state_dict()
    row_of = {name: k for k, name in enumerate(start.categories)}
    known = [k for k, name in enumerate(names) if name in row_of]
    old = [row_of[names[k]] for k in known]
    for key in ("out.weight", "out.bias"):
        rows = head.state_dict()[key].clone()
        rows[[*known, -1]] = state[key][[*old, -1]]
        state[key] = rows
    state["together"] = head.together
    head.load_state_dict(head.state_dict() | state)  # it may read the detector, of which `start` knew nothing


def _draw_order(settings: SemanticSettings, images: LabelledImages) -> list[Path]:
    """The image of each item of the training; those that are kept aside are never drawn.

    A source with four times as many names, or images, is drawn twice as often, up to MAX_SET_IMAGES.
    """
    set_of = images.set_of
    training = [image for image in images.instances if image not in images.aside]
    counts = Counter(set_of[image] for image in training)
    set_shares = [_set_share(of_set, counts[number]) for number, of_set in enumerate(images.sets)]
    share = np.array([set_shares[set_of[image]] for image in training])
    rng = np.random.default_rng(settings.seed)
    drawn = rng.choice(len(training), settings.steps * settings.batch, p=share / share.sum())
    return [training[i] for i in drawn]


def _set_share(of_set: ImageSet, count: int) -> float:
    """How often each of the `count` images of a source is drawn, relative to others."""
    share = len(of_set.names) ** 0.5 * min(count, MAX_SET_IMAGES) ** 0.5 / max(count, 1)
    return share if of_set.is_complete else INCOMPLETE_SHARE * share


def _loss(
    logits: Tensor, labels: Tensor, competing: Tensor, weight: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss of logits on labelled cells, with figures.

    Args:
        logits: (B, C + 1, MAP_SIDE, MAP_SIDE) float32.
        labels: (B, MAP_SIDE, MAP_SIDE) int64.
        competing: (B, C + 1, C + 1) bool, see `LabelledImages.competing`.
        weight: (C + 1,) float32 of the labels.
    """
    is_known = labels != OUTSIDE
    target = torch.where(labels == BACKGROUND, logits.shape[1] - 1, labels)[is_known]
    cells = logits.movedim(1, -1)[is_known]
    image = torch.arange(len(labels))[:, None, None].expand_as(labels)[is_known]
    cells = cells.masked_fill(~competing[image, target], IMPOSSIBLE_LOGIT)
    loss = F.cross_entropy(cells, target, weight)
    right = (cells.argmax(1) == target)[labels[is_known] >= 0].float().mean()
    return loss, {"names": loss.item(), "right": right.item()}


@torch.no_grad()
def head_inputs(opener: PocketImageOpener, pixels: Tensor) -> HeadInputs:
    """What the semantic head reads of (B, IMAGE_SIZE, IMAGE_SIZE, 3) uint8 pixels."""
    encoder = opener.segmenter.model.image_encoder
    with fast_math():
        normalised = normalise(pixels.numpy(), "cpu").contiguous(memory_format=torch.channels_last)
        maps = encoder.backbone(normalised)
        detector_maps = opener.detector(detector_pixels(pixels.numpy()))
        return SemanticHead.inputs(maps, encoder.neck(*maps), detector_maps)


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
