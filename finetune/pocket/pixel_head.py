"""Phase 2 of `finetune semantic`: the pixel head learns which cells a target has.

    train_pixel_head(settings, out, pipeline, images)      # writes OUT/semantic.safetensors

It learns from the names of things in images that are kept aside, of which neither the map of names nor the
selector has learned, with all else as in use: the proposals, the map, and what the language model and the
selector say of a thing that is called by its name.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.images import open_image
from assistant.mllm.selector import select_proposals
from assistant.pocket.image_encoder import IMAGE_SIZE
from assistant.pocket.opening import PocketOpenedImage
from assistant.pocket.pipeline import PocketPipeline
from assistant.pocket.pixel_evidence import cell_evidence
from assistant.pocket.proposals import CELL_SIZE, LOGITS_SIDE
from assistant.pocket.semantic import PixelHead, SemanticSelector
from assistant.sam.mask_ops import Rle, decode_rle, encode_rle
from finetune.log import cosine_schedule
from finetune.pocket.semantic_head import LabelledImages
from finetune.pocket.settings import SemanticSettings
from finetune.region_cache import iou_of_union

FOLDS = 5  # of the images, each scored by a pixel head that has not seen it
CELLS_PER_TARGET = 2000  # drawn in a step
TARGETS_PER_STEP = 16
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
WARM_UP_STEPS = 20
CROSS_ENTROPY_WEIGHT = 0.3  # that of soft IoU is 1
INPUT_SAMPLE_STEP = 50  # every so-many-th cell gives the mean and the scale of the inputs


@dataclass
class TargetExample:
    """A thing in an image that is kept aside, on the grid of S x S cells.

    Attributes:
        image: The image's file.
        evidence: (S, S, EVIDENCE_DIM) float16.
        inside: (S, S) bool, the part that the image fills.
        truth: (S, S) bool, the target.
        masks: (N, S, S) bool, the proposals.
        rles: The N proposals.
        rle: The target.
        selector_iou: IoU of what the selector by itself selects.
        iou_before: IoU of what the pixel head before this training selects.
    """

    image: Path
    evidence: Tensor
    inside: Tensor
    truth: Tensor
    masks: Tensor
    rles: list[Rle]
    rle: Rle
    selector_iou: float
    iou_before: float


def on_grid(rles: Sequence[Rle]) -> Tensor:
    """Masks of one image -> (N, LOGITS_SIDE, LOGITS_SIDE) bool, their values at the centre of each cell."""
    height, width = rles[0]["size"]
    scale = max(height, width) / IMAGE_SIZE
    ys, xs = (
        (np.arange(CELL_SIZE / 2, round(side / scale), CELL_SIZE) * scale).astype(int)
        for side in (height, width)
    )
    cells = np.zeros((len(rles), LOGITS_SIDE, LOGITS_SIDE), bool)
    for of_mask, rle in zip(cells, rles, strict=True):
        of_mask[: len(ys), : len(xs)] = decode_rle(rle)[np.ix_(ys, xs)]
    return torch.from_numpy(cells)


def image_cells(size: tuple[int, int]) -> Tensor:
    """The cells (LOGITS_SIDE, LOGITS_SIDE) bool of the square that an image of `size` (H, W) px fills."""
    return on_grid([encode_rle(np.ones(size, bool))])[0]


@torch.inference_mode()
def read_targets(pipeline: PocketPipeline, images: LabelledImages, max_photos: int) -> list[TargetExample]:
    """The named things in images that are kept aside, each name of an image once.

    Args:
        pipeline: The pocket preset, with the map of names that the pixel head is for.
        images: The labelled images.
        max_photos: Number of images of one source at most, spread evenly.
    """
    targets: list[TargetExample] = []
    for image in tqdm(
        images_to_learn_from(images, max_photos), desc="images kept aside", unit="image", disable=None
    ):
        opened = pipeline.opener.open(open_image(image))
        things: dict[str, list[Rle]] = {}
        for name, rle in images.aside[image]:
            if pipeline.semantic_row_of(name) is not None:
                things.setdefault(name, []).append(rle)
        if things and len(opened.proposals):
            targets += _targets_of_image(pipeline, image, opened, things)
    return targets


def _targets_of_image(
    pipeline: PocketPipeline, image: Path, opened: PocketOpenedImage, things: dict[str, list[Rle]]
) -> list[TargetExample]:
    """The examples of an image, whose `things` are the instances of each name."""
    semantic = pipeline.semantic
    assert semantic is not None
    scores = pipeline.score_names(opened, list(things))
    masks = torch.from_numpy(opened.proposals.low_res_logits) > 0
    inside = image_cells(opened.size)
    targets = []
    for k, (name, instances) in enumerate(things.items()):
        row = pipeline.semantic_row_of(name)
        assert row is not None
        evidence = cell_evidence(
            scores,
            k,
            masks,
            pipeline.map_of(opened),
            row,
            semantic.head.rivals(row),
            pipeline.detected(opened, name),
        )
        rle = encode_rle(np.logical_or.reduce([decode_rle(rle) for rle in instances]))
        selector_iou, iou_before = (
            iou_of_union([opened.rles[i] for i in chosen], rle)
            for chosen in (
                select_proposals(scores, k),
                semantic.choose_by_evidence(evidence, masks, inside),
            )
        )
        truth = on_grid([rle])[0]
        targets.append(
            TargetExample(
                image,
                evidence.half(),
                inside,
                truth,
                masks,
                opened.rles,
                rle,
                selector_iou,
                iou_before,
            )
        )
    return targets


def images_to_learn_from(images: LabelledImages, max_photos: int) -> list[Path]:
    """The images kept aside, at most `max_photos` of each source, spread evenly."""
    spread: list[Path] = []
    for number in range(len(images.sets)):
        of_set = [image for image in images.aside if images.set_of[image] == number]
        step = max(1, len(of_set) / max_photos)
        spread += [of_set[int(k * step)] for k in range(min(len(of_set), max_photos))]
    return spread


def fit_pixel_head(settings: SemanticSettings, targets: Sequence[TargetExample]) -> PixelHead:
    """Train a pixel head; returns it in evaluation mode."""
    torch.manual_seed(settings.seed)
    head = PixelHead()
    rng = np.random.default_rng(settings.seed)
    sample = torch.cat([t.evidence[t.inside][::INPUT_SAMPLE_STEP].float() for t in targets])
    head.mean.copy_(sample.mean(0))
    head.scale.copy_(sample.std(0) + 1e-3)
    cells_of = [t.inside.nonzero() for t in targets]
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(settings.pixel_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine_schedule(step, settings.pixel_steps, WARM_UP_STEPS)
        loss = torch.zeros(())
        for k in rng.integers(len(targets), size=TARGETS_PER_STEP):
            cells = cells_of[k][torch.from_numpy(rng.integers(len(cells_of[k]), size=CELLS_PER_TARGET))]
            loss = loss + _target_loss(head, targets[k], cells)
        optimizer.zero_grad()
        (loss / TARGETS_PER_STEP).backward()
        optimizer.step()
    return head.eval()


def _target_loss(head: PixelHead, target: TargetExample, cells: Tensor) -> Tensor:
    """Soft IoU and cross-entropy on some cells (K, 2) of a target."""
    ys, xs = cells.unbind(1)
    logits = head(target.evidence[ys, xs].float())
    truth = target.truth[ys, xs].float()
    p = logits.sigmoid()
    intersection = (p * truth).sum()
    soft_iou = intersection / ((p + truth - p * truth).sum() + 1e-3)
    return 1 - soft_iou + CROSS_ENTROPY_WEIGHT * F.binary_cross_entropy_with_logits(logits, truth)


def train_pixel_head(
    settings: SemanticSettings, out: Path, pipeline: PocketPipeline, images: LabelledImages
) -> None:
    """Phase 2: write OUT/semantic.safetensors, and to OUT/aside.json what masks gain by it.

    Each mask that is measured was chosen by a pixel head that has not learned from its image.

    Args:
        settings: Of the stage.
        out: Folder of the run.
        pipeline: The pocket preset with the trained map of names, and the pixel head before.
        images: The labelled images.

    Raises:
        BadInput: No image that is kept aside shows a name of the map.
    """
    semantic = pipeline.semantic
    assert semantic is not None
    targets = read_targets(pipeline, images, settings.photos)
    if not targets:
        raise BadInput("no image that is kept aside shows a taught name: give more images with --data")
    after = cross_validate(settings, targets, semantic)
    before = np.array([target.iou_before for target in targets])
    gain = after - before
    line = json.dumps(
        {
            "targets": len(targets),
            "images": len({target.image for target in targets}),
            "selector alone": round(float(np.mean([target.selector_iou for target in targets])), 4),
            "before": round(before.mean(), 4),
            "after": round(after.mean(), 4),
            "gain": round(gain.mean(), 4),
            "standard error": round(gain.std() / len(gain) ** 0.5, 4),
        }
    )
    print(f"IoU of things in images kept aside: {line}", flush=True)
    with replace_whole(out / "aside.json") as path:
        path.write_text(line + "\n")
    semantic.pixel_head = fit_pixel_head(settings, targets)
    semantic.save(out / "semantic.safetensors")


def cross_validate(
    settings: SemanticSettings, targets: Sequence[TargetExample], semantic: SemanticSelector
) -> np.ndarray:
    """IoU (K,) of the masks of all targets, each by a pixel head that was not trained on its image."""
    images = sorted({target.image for target in targets})
    folds = min(FOLDS, len(images))
    fold_of = [images.index(target.image) % folds for target in targets]
    iou = np.zeros(len(targets))
    for fold in range(folds):
        others = [target for target, f in zip(targets, fold_of, strict=True) if f != fold]
        semantic.pixel_head = fit_pixel_head(
            settings, others or targets
        )  # with one image, there are no others
        for i, target in enumerate(targets):
            if fold_of[i] == fold:
                chosen = semantic.choose_by_evidence(target.evidence.float(), target.masks, target.inside)
                iou[i] = iou_of_union([target.rles[n] for n in chosen], target.rle)
    return iou
