"""Trains the prompt encoders of `finetune reference` on cached episodes.

    trainer = ReferenceTrainer(matcher, settings, out)
    trainer.run(episodes)                              # resumes from OUT/state.pt
    validate(matcher, held_out, views, labels, seed=0)

Two encoders learn from the same episodes, one that reads the label and one that does not. The loss is BCE and
Dice in equal parts. What is kept is a moving average of the weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from assistant.few_shot.episode import ImageFeatures, MatchInputs
from assistant.few_shot.match_inputs import match_inputs
from assistant.few_shot.matcher import WITH_LABEL, WITHOUT_LABEL, Matcher
from assistant.few_shot.prompt_encoder import PromptEncoder, decode_prompts
from assistant.few_shot.similarity import MapChannel
from assistant.files import replace_whole
from finetune.averaged_training import copy_of, update_average
from finetune.log import TrainingLog, cosine_schedule
from finetune.reference_data import (
    CachedEpisode,
    CachedView,
    SampledEpisode,
    load_episodes,
    read_inputs,
    read_view,
    sample_batch,
)

COARSE_LOSS_WEIGHT = 0.5  # of the coarse map's loss beside that of SAM's mask
COARSE_LR_FACTOR = 8  # the small network that draws the coarse map learns this much faster than the rest
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
MAX_AVERAGE_DECAY = 0.99  # of the moving average of the weights
MAX_WARMUP_STEPS = 50
STEPS_PER_LOG_LINE = 25
DROPOUT_SEED_STRIDE = 1_000_003  # between the seeds of two runs, so that their steps never share one
# The stride-16 map comes first among the pocket's patches. It counts half, being large and carrying little
# meaning.
FINE_CHANNELS = 120
MAX_VALIDATION_EPISODES = 200


@dataclass(frozen=True)
class ReferenceTrainingSettings:
    """How the prompt encoders are trained.

    Attributes:
        steps: Number of steps.
        coarse_steps: Number of first steps that train the coarse map without SAM, at a fifth of the cost.
        batch: Episodes per step.
        lr: Learning rate at its peak.
        save_every: Minutes between checkpoints.
        seed: Of the batches and of dropout.
    """

    steps: int
    coarse_steps: int
    batch: int
    lr: float
    save_every: float
    seed: int


class ReferenceTrainer:
    """A training run, resumable.

    Args:
        matcher: With the encoders to train.
        settings: How they are trained.
        out: Folder of the checkpoint `state.pt`, of `log.jsonl` and of the result, `reference.safetensors`.
    """

    def __init__(self, matcher: Matcher, settings: ReferenceTrainingSettings, out: Path):
        self.matcher = matcher
        self.settings = settings
        self.out = out
        self.optimizers = {
            name: torch.optim.AdamW(parameter_groups(encoder, settings.lr), weight_decay=WEIGHT_DECAY)
            for name, encoder in matcher.encoders.items()
        }
        self.average = {name: copy_of(encoder.state_dict()) for name, encoder in matcher.encoders.items()}

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted run goes on from."""
        return self.out / "state.pt"

    def run(self, episodes: Sequence[CachedEpisode]) -> None:
        """Train on episodes, write the result, and leave the averaged weights in the matcher's encoders."""
        settings = self.settings
        start = self._resume()
        log = TrainingLog(self.out / "log.jsonl")
        saved = time.time()
        for step in range(start, settings.steps):
            batch = sample_batch(episodes, settings.seed, step, settings.batch)
            log.add(step, self._step(step, batch), every=STEPS_PER_LOG_LINE)
            is_last = step + 1 == settings.steps
            if time.time() - saved > 60 * settings.save_every or is_last:
                self._save(step + 1)
                saved = time.time()
        for name, encoder in self.matcher.encoders.items():
            encoder.load_state_dict(self.average[name])
            encoder.eval()
        self.matcher.save(self.out / "reference.safetensors")

    def _step(self, step: int, batch: Sequence[CachedEpisode]) -> dict[str, float]:
        """Train both encoders on one batch; the figures for the log."""
        with_label, targets = read_inputs(batch)
        inputs = {WITHOUT_LABEL: with_label.without_labels(), WITH_LABEL: with_label}
        queries = None
        if step >= self.settings.coarse_steps:
            queries = [read_view(episode.query, self.matcher, episode.label)[0] for episode in batch]
        figures = {}
        for name, encoder in self.matcher.encoders.items():
            torch.manual_seed(self.settings.seed * DROPOUT_SEED_STRIDE + step)  # of the dropout
            self._set_learning_rates(self.optimizers[name], step)
            encoder.train()
            loss, iou = step_loss(self.matcher, encoder, inputs[name], queries, targets)
            self.optimizers[name].zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), MAX_GRADIENT_NORM)
            self.optimizers[name].step()
            update_average(self.average[name], encoder.state_dict(), step, MAX_AVERAGE_DECAY)
            figures[f"{name}_loss"] = loss.item()
            figures[f"{name}_iou"] = iou
        return figures

    def _set_learning_rates(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the rates of a step: the coarse map learns from the start, the rest once SAM takes part."""
        begin = self.settings.coarse_steps
        spans = [(begin, self.settings.steps - begin), (0, self.settings.steps)]
        for group, (first, length) in zip(optimizer.param_groups, spans, strict=False):
            warmup = min(MAX_WARMUP_STEPS, length // 10 + 1)
            group["lr"] = group["full"] * cosine_schedule(max(0, step - first), max(1, length), warmup)

    def _resume(self) -> int:
        """Load the checkpoint if there is one; the step to go on with."""
        if not self.checkpoint.exists():
            return 0
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        for name, encoder in self.matcher.encoders.items():
            encoder.load_state_dict(state["encoders"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
            for key, value in state["average"][name].items():
                self.average[name][key].copy_(value)
        print(f"resuming at step {state['step']}", flush=True)
        return state["step"]

    def _save(self, step: int) -> None:
        """Write a checkpoint that goes on with `step`."""
        encoders = self.matcher.encoders
        state = {
            "encoders": {name: encoder.state_dict() for name, encoder in encoders.items()},
            "average": self.average,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "step": step,
        }
        with replace_whole(self.checkpoint) as path:
            torch.save(state, path)


def parameter_groups(encoder: PromptEncoder, lr: float) -> list[dict[str, Any]]:
    """The optimizer's groups: the part that reads tokens, then the coarse map, if there is one."""
    coarse = [p for name, p in encoder.named_parameters() if name.startswith("coarse.")]
    rest = [p for name, p in encoder.named_parameters() if not name.startswith("coarse.")]
    groups = [(rest, lr), (coarse, COARSE_LR_FACTOR * lr)]
    return [{"params": parameters, "lr": full, "full": full} for parameters, full in groups if parameters]


def channel_statistics(views: Sequence[CachedView]) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of the pocket's patches by channel, from every second view.

    Returns:
        (C,) and (C,) float.
    """
    patches = [load_file(view.file)["patches"].float().flatten(1)[:, ::7] for view in views[::2]]
    cells = torch.cat(patches, 1)
    scale = cells.std(1) + 1e-3
    scale[:FINE_CHANNELS] *= 2
    return cells.mean(1), scale


def mask_loss(logits: Tensor, target: Tensor, coverage: Tensor) -> Tensor:
    """BCE plus Dice over what the image covers, the mean over the batch.

    Args:
        logits: (B, l, l) float.
        target: (B, l, l) float in [0, 1].
        coverage: (B, l, l) float in [0, 1], the share of each cell that the image covers.

    Returns:
        A scalar. Dice has 1 cell added above and below the line, so that an empty target is no exception.
    """
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    bce = (bce * coverage).sum((1, 2)) / coverage.sum((1, 2))
    probability = logits.sigmoid() * coverage
    overlap = 2 * (probability * target).sum((1, 2)) + 1
    dice = 1 - overlap / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)
    return (bce + dice).mean()


def step_loss(
    matcher: Matcher,
    encoder: PromptEncoder,
    inputs: MatchInputs,
    queries: Sequence[ImageFeatures] | None,
    targets: Tensor,
) -> tuple[Tensor, float]:
    """The loss of one encoder on a batch.

    Args:
        matcher: Its SAM decodes the prompts.
        encoder: The encoder.
        inputs: Of B episodes, on any device, as are the targets.
        queries: Their B queries; None for the loss of the coarse map alone, which needs no SAM.
        targets: (B, l, l) float in [0, 1].

    Returns:
        The loss, and the mean IoU of the episodes in [0, 1].
    """
    inputs, targets = inputs.to(encoder.mean.device), targets.to(encoder.mean.device)
    coverage = _resized(inputs.maps[:, MapChannel.COVERAGE], targets)
    with matcher.extractor.autocast():
        coarse = encoder.coarse_logits(inputs)
        decoded = None
        if queries is not None:
            decoded, _ = decode_prompts(matcher.segmenter, queries, encoder(inputs), coarse)
    losses = []
    if coarse is not None:
        weight = 1.0 if decoded is None else COARSE_LOSS_WEIGHT
        losses.append(weight * mask_loss(_resized(coarse, targets), targets, coverage))
    logits = coarse if decoded is None else decoded
    if logits is None:
        raise ValueError("an encoder that draws no coarse map cannot be trained without queries")
    logits = _resized(logits, targets)
    if decoded is not None:
        losses.append(mask_loss(logits, targets, coverage))
    with torch.no_grad():
        predicted = (logits > 0) & (coverage > 0.5)
        wanted = targets > 0.5
        union = (predicted | wanted).sum((1, 2)).clamp(min=1)
        iou = (predicted & wanted).sum((1, 2)) / union
    return torch.stack(losses).sum(), float(iou.mean())


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (B, h, w) -> (B, l, l) float, the grid of `like`."""
    sides = (int(like.shape[-2]), int(like.shape[-1]))
    return F.interpolate(maps[:, None].float(), sides, mode="bilinear", align_corners=False)[:, 0]


@torch.no_grad()
def validate(
    matcher: Matcher,
    held_out: Sequence[CachedView],
    views: Sequence[CachedView],
    labels: set[str],
    seed: int,
    count: int = MAX_VALIDATION_EPISODES,
) -> dict[str, float | int | None]:
    """Score the encoders on images that were not trained on, with one reference each.

    Args:
        matcher: The trained matcher.
        held_out: Views to segment.
        views: Views to take references from; only whole images are used.
        labels: The categories to ask for.
        seed: Of the choice of episodes.
        count: Number of episodes at most.

    Returns:
        {encoder: mean IoU in [0, 1], or None without an episode}, and "n", the number of episodes.
    """
    ious: dict[str, list[float]] = {name: [] for name in matcher.encoders}
    pairs = [(view, label) for view in held_out for label in view.labels if label in labels]
    rng = np.random.default_rng(seed)
    for k in rng.permutation(len(pairs))[:count]:
        query, label = pairs[k]
        others = [view for view in views if label in view.labels and view.file.stem.endswith("-0")]
        if not others:
            continue
        sampled = SampledEpisode(label, query, [others[rng.integers(len(others))]])
        loaded, targets = load_episodes(matcher, [sampled])
        with_label = match_inputs(loaded, matcher.encoders[WITH_LABEL], matcher.extractor)
        inputs = {WITHOUT_LABEL: with_label.without_labels(), WITH_LABEL: with_label}
        for name, encoder in matcher.encoders.items():
            _, iou = step_loss(matcher, encoder, inputs[name], [loaded[0].query], targets)
            ious[name].append(iou)
    means: dict[str, float | int | None] = {
        name: round(float(np.mean(values)), 4) if values else None for name, values in ious.items()
    }
    return means | {"n": len(next(iter(ious.values())))}
