"""Tunes a model's attention on labelled images: the images, the loss and the loop of `finetune attention`.

    supports = draw_supports(names, label_maps, np.random.default_rng(0))
    examples = [(opened[image], support_map(label_maps[image], category)) for category, image in supports]
    tuned = tune(probe, examples, names, TuneAttentionSettings(5, 0, batch=2, lr=1e-3), seed=0)
    probe.restore(tuned)

The loss is the negative logarithm of the true class's share of each labelled pixel. The match is left out of
it: it knows already what a labelled image shows, so that little would be left to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.attention.maps import class_maps, shares, with_background
from assistant.attention.prompt_attention import LayerChoice
from assistant.files import replace_whole
from assistant.pipeline import AttentionProbe
from finetune.log import TrainingLog, cosine_schedule

MIN_INSTANCE_SHARE = 0.01  # of an image that its category covers, where the category has such an image
MAX_OTHER_CATEGORIES = 2  # of an image: two others are as bad as more
BACKGROUND_WEIGHT = 0.1  # of background pixels in the loss
STEPS_PER_CHECKPOINT = 40
STEPS_PER_LOG_LINE = 100
LOSS_GRID = 128  # cells of the longer side that the loss is counted on
WEIGHT_DECAY = 0.05
WARMUP_STEPS = 5
WORD_LR_FACTOR = 0.5  # of the learning rate while the words are trained as well


@dataclass(frozen=True)
class TuneAttentionSettings:
    """How one run is tuned.

    Attributes:
        passes: Over the labelled images, training the attention alone.
        word_passes: Over the labelled images afterwards, training the words' embeddings as well.
        batch: Images per step.
        lr: Learning rate at its peak.
    """

    passes: int
    word_passes: int
    batch: int
    lr: float


def draw_supports(
    names: Sequence[str], label_maps: Sequence[np.ndarray], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw one image for every category.

    Images where the category is no smaller than `MIN_INSTANCE_SHARE` come first, then those that show few
    other categories; among the best one is drawn at random.

    Args:
        names: Of the categories, which are numbered from 1.
        label_maps: (H, W) int of each image, with the number of the category at each pixel.
        rng: Random numbers.

    Returns:
        (category, index of its image) for every category that an image shows.
    """
    image_shares = [
        np.bincount(label_map[label_map > 0], minlength=len(names) + 1) / label_map.size
        for label_map in label_maps
    ]
    drawn = []
    for category in range(1, len(names) + 1):
        showing = [k for k, of_image in enumerate(image_shares) if of_image[category] > 0]
        if not showing:
            continue
        order = {}
        for k in showing:
            is_small = image_shares[k][category] < MIN_INSTANCE_SHARE
            others = min(MAX_OTHER_CATEGORIES, int((image_shares[k] > 0).sum()) - 1)
            order[k] = (is_small, others, rng.random())
        drawn.append((category, min(showing, key=order.__getitem__)))
    return drawn


def support_map(label_map: np.ndarray, category: int) -> Tensor:
    """The label map that one category is learned from.

    Args:
        label_map: (H, W) int, the number of the category at each pixel.
        category: The one to keep.

    Returns:
        (H, W) int64: the category and the background keep their numbers, other categories become -1.
    """
    return torch.from_numpy(np.where((label_map == category) | (label_map <= 0), label_map, -1))


def loss_of(
    probe: AttentionProbe,
    opened: Any,
    label_map: Tensor,
    prompts: list[str],
    class_of_prompt: Tensor,
    use: list[LayerChoice],
    classes: int,
) -> Tensor:
    """The loss of one labelled image.

    Args:
        probe: Reads the model's attention.
        opened: The image, as the probe opens it.
        label_map: (H, W) int64, the class of each pixel, -1 where it does not count.
        prompts: P prompts.
        class_of_prompt: (P,) int64.
        use: The layers or heads to average.
        classes: Number of classes with the background.

    Returns:
        A scalar: the mean of -log of the true class's share over the pixels of the instance, plus
        `BACKGROUND_WEIGHT` times the mean over the background's. An instance is small beside its background;
        counted pixel by pixel, "all is background" would be learned first.
    """
    attention = probe.attention(opened, prompts, sorted({layer for layer, _ in use}))
    maps = class_maps(shares(attention, use, match=False), class_of_prompt, classes)
    height, width = label_map.shape
    longest = max(height, width)
    size = (max(1, round(height * LOSS_GRID / longest)), max(1, round(width * LOSS_GRID / longest)))
    small = F.interpolate(label_map[None, None].float(), size, mode="nearest")[0, 0].long()
    # Only the maps of the classes that are there are drawn, and the sum of all, which tells what regions
    # cover.
    present, row = small.clamp(min=0).unique(return_inverse=True)
    total = maps.sum(0, keepdim=True).detach()
    *drawn, covered = attention.places.to_pixels(torch.cat([maps[present], total]), size)
    counted = (small >= 0) & (covered > 0.5)
    if not counted.any():
        return maps.sum() * 0
    true_share = torch.stack(drawn).gather(0, row[None])[0][counted]
    loss = -true_share.clamp(min=1e-6).log()
    is_instance = small[counted] > 0
    return _mean_where(loss, is_instance) + BACKGROUND_WEIGHT * _mean_where(loss, ~is_instance)


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean of values (N,) where a mask (N,) is True; 0 where it is True nowhere."""
    return (values * where).sum() / where.sum().clamp(min=1)


def tune(
    probe: AttentionProbe,
    examples: Sequence[tuple[Any, Tensor]],
    names: list[str],
    settings: TuneAttentionSettings,
    seed: int,
    state_file: Path | None = None,
    log: TrainingLog | None = None,
) -> dict[str, Tensor]:
    """Tune a model on labelled images: first the attention alone, then the words as well.

    Args:
        probe: Of the model, with a ranking. In the pocket preset the attention alone reads what layers read
            in the first pass over an image, which does not change.
        examples: Opened images with their label maps, (H, W) int64.
        names: Of the classes.
        settings: How to tune.
        seed: Of the order of the images.
        state_file: Where the run stands; it is resumed from there if the file exists. None to store nothing.
        log: Records the loss.

    Returns:
        What `probe.restore` takes.
    """
    if probe.ranking is None:
        raise ValueError("tuning needs the ranking of layers")
    prompts, class_of_prompt = with_background(names)
    use = probe.ranking.use
    probe.restore({})
    state: dict[str, Any] = {"phase": 0, "step": 0}
    if state_file and state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location="cpu")
    trained: dict[str, nn.Parameter] = dict(probe.tunable_attention(probe.ranking.used_layers))
    for phase, passes in enumerate((settings.passes, settings.word_passes)):
        if phase:
            trained |= probe.tunable_words(prompts)
        if phase < state["phase"] or not passes:
            continue
        optimizer = torch.optim.AdamW(trained.values(), lr=settings.lr, weight_decay=WEIGHT_DECAY)
        if state["phase"] == phase:
            _load_state(state, trained, optimizer)
        steps = _steps(len(examples), passes, settings.batch, seed, phase)
        peak = settings.lr * WORD_LR_FACTOR**phase
        for step in range(state["step"], len(steps)):
            for group in optimizer.param_groups:
                group["lr"] = peak * cosine_schedule(step, len(steps), WARMUP_STEPS)
            optimizer.zero_grad(set_to_none=True)
            losses = []
            for k in steps[step]:
                loss = loss_of(probe, *examples[k], prompts, class_of_prompt, use, len(names) + 1)
                (loss / len(steps[step])).backward()
                losses.append(loss.item())
            optimizer.step()
            if log:
                log.add(step, {"loss": float(np.mean(losses))}, every=STEPS_PER_LOG_LINE)
            is_last = step + 1 == len(steps)
            if state_file and (step % STEPS_PER_CHECKPOINT == STEPS_PER_CHECKPOINT - 1 or is_last):
                _save_state(state_file, trained, optimizer, phase, step + 1)
        state = {"phase": phase + 1, "step": 0}
    return {name: parameter.detach().clone() for name, parameter in trained.items()}


def _steps(count: int, passes: int, batch: int, seed: int, phase: int) -> list[list[int]]:
    """The indices of the images of each step: every pass goes over all `count` images in another order."""
    orders = []
    for number in range(passes):
        generator = torch.Generator().manual_seed(10000 * seed + 1000 * phase + number)
        orders.append(torch.randperm(count, generator=generator))
    return [step.tolist() for step in torch.cat(orders).split(batch)]


def _load_state(
    state: dict[str, Any], trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Go on from a state that `_save_state` wrote; nothing to do for the state of a new phase."""
    if "model" not in state:
        return
    for name, parameter in trained.items():
        parameter.data.copy_(state["model"][name])
    if state["step"]:
        optimizer.load_state_dict(state["optimizer"])


def _save_state(
    file: Path,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    phase: int,
    step: int,
) -> None:
    """Write where a run stands: `step` is the next one of the phase."""
    state = {
        "model": {name: parameter.data for name, parameter in trained.items()},
        "optimizer": optimizer.state_dict(),
        "step": step,
        "phase": phase,
    }
    with replace_whole(file) as path:
        torch.save(state, path)
