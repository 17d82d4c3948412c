"""Phase 3 of `finetune records`: the selector learns to select proposals, from the states of the tuned LLM.

train_selector(SelectorSettings(), out, llm, training, held_out)       # writes OUT/heads.safetensors
"""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.mllm.selector import Scores, Selector, select_proposals, selection_losses
from assistant.pocket.heads import Heads
from assistant.pocket.llm import PocketLLM
from assistant.pocket.region_encoder import SHAPE_DIM, EncodedRegions
from finetune.log import TrainingLog, cosine_schedule
from finetune.mllm.validation import score_targets
from finetune.pocket.examples import Example, RecordData
from finetune.pocket.language import MarkerStates, marker_states, pull_back
from finetune.pocket.settings import SelectorSettings
from finetune.region_cache import iou_and_iop, iou_of_union

FIRST_EXAMPLE = 10**7  # number of the selector's first example; the LLM was trained on those from 0
FIRST_HELD_OUT_EXAMPLE = 2 * 10**7
BATCH_EXAMPLES = 10
DROPOUT = 0.2
MAX_GRADIENT_NORM = 1.0
# Noise on states and embeddings, in units of their size: without it, 300 images are soon known by heart.
STATE_NOISE, EMBEDDING_NOISE = 0.5, 1.0

# Is called at each validation with the number of steps, the selector and its figures.
Validate = Callable[[int, Selector, dict[str, float]], None]


@dataclass
class SelectionBatch:
    """The M targets of some examples and the regions of their images, padded to N.

    Attributes:
        embeddings: (M, N, W) float32.
        shapes: (M, N, SHAPE_DIM) float32.
        ignored: (M, N) bool, True for padding.
        match: (M, N, 2) float32, see `RegionEncoder.match`.
        iou, iop: (M, N) float32, see `TrainingQuestion`.
        present: (M,) bool.
    """

    embeddings: Tensor
    shapes: Tensor
    ignored: Tensor
    match: Tensor
    iou: Tensor
    iop: Tensor
    present: Tensor


def collate(llm: PocketLLM, examples: Sequence[Example]) -> SelectionBatch:
    """Put the targets of examples into one batch, in their order."""
    sizes = [len(example.regions.embeddings) for example in examples]
    longest = max(sizes)
    owner = torch.tensor([i for i, example in enumerate(examples) for _ in example.present])

    def pad_rows(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, longest - len(x)))

    def pad_table(table: np.ndarray) -> Tensor:
        return F.pad(torch.from_numpy(table), (0, longest - table.shape[1]))

    with torch.no_grad():
        matches = []
        for example in examples:
            phrases = torch.stack([llm.name_embedding(phrase) for phrase in example.phrases])
            match = llm.encoder.match(example.regions.embeddings, phrases)
            matches.append(F.pad(match, (0, 0, 0, longest - match.shape[1])))
    questions = [question for example in examples for question in example.questions]
    return SelectionBatch(
        torch.stack([pad_rows(example.regions.embeddings) for example in examples])[owner],
        torch.stack([pad_rows(example.regions.shapes) for example in examples])[owner],
        torch.stack([torch.arange(longest) >= size for size in sizes])[owner],
        torch.cat(matches),
        torch.cat([pad_table(question.iou) for question in questions]),
        torch.cat([pad_table(question.iop) for question in questions]),
        torch.tensor([is_present for example in examples for is_present in example.present]),
    )


def score(selector: Selector, batch: SelectionBatch, states: Tensor, margins: Tensor) -> Scores:
    """The selector's scores of a batch; states (M, W) and margins (M,) of its targets."""
    objectness = EncodedRegions(batch.embeddings, batch.shapes).objectness
    return selector(states, batch.embeddings, batch.shapes, batch.match, margins, batch.ignored, objectness)


@torch.no_grad()
def batch_figures(scores: Scores, batch: SelectionBatch) -> dict[str, float]:
    """How well a batch is scored: IoU of the first choice, and how often presence and IoP are right."""
    present = batch.present
    best = torch.tensor([select_proposals(scores, m)[0] for m in range(len(batch.iou))])
    inside = (scores.iop.sigmoid() > 0.5) & ~batch.ignored & present[:, None]
    is_inside = (batch.iop > 0.5) & present[:, None]
    hits = (inside & is_inside).sum()
    return {
        "top_iou": batch.iou.gather(1, best[:, None])[present].mean().item(),
        "presence_right": ((scores.presence > 0) == present).float().mean().item(),
        "inside_f1": (2 * hits / (inside.sum() + is_inside.sum()).clamp(min=1)).item(),
    }


@dataclass
class Checkpoint:
    """The selector at a validation.

    Attributes:
        figures: Of the validation.
        calibration: (2,) float32, the scale and shift of presence fitted to it.
        weights: The state dict of the selector.
    """

    figures: dict[str, float]
    calibration: Tensor
    weights: dict[str, Tensor]


def train_selector(
    settings: SelectorSettings,
    out: Path,
    llm: PocketLLM,
    training: RecordData,
    held_out: RecordData,
    start: Selector | None = None,
    validate: Validate | None = None,
) -> None:
    """Phase 3: compute the states of the training examples once, then take cheap steps on varied regions.

    Writes OUT/heads.safetensors, and OUT/aside.json with the figures on `held_out`, to which presence is
    calibrated.

    Args:
        settings: Of the training.
        out: Folder of the run.
        llm: The tuned LLM with its region encoder.
        training: Draws the training examples.
        held_out: Draws the examples of the validation; without records there is none.
        start: The selector to continue from; None for a new one.
        validate: Called at each validation, of which the best checkpoint is used; None to validate at the end
            only.
    """
    numbers = range(FIRST_EXAMPLE, FIRST_EXAMPLE + settings.examples)
    file = out / f"states-{settings.llm_steps}-{settings.examples}.safetensors"
    known = marker_states(llm, training, numbers, file)
    torch.manual_seed(settings.seed)
    width = known.states.shape[1]
    selector = start or Selector(width, width, SHAPE_DIM, dropout=DROPOUT)
    best = _take_steps(settings, out, llm, selector, known, training, held_out, validate)
    if best:
        selector.load_state_dict(best.weights)
    selector.eval()
    if held_out.records:
        figures, calibration = (
            (best.figures, best.calibration) if best else evaluate(settings, out, llm, selector, held_out)
        )
        _calibrate(selector, calibration)
        line = json.dumps({name: round(value, 4) for name, value in figures.items()})
        print(f"held-out images: {line}", flush=True)
        (out / "aside.json").write_text(line + "\n")
    Heads(llm.encoder, selector, llm.phrase_rows, llm.unspoken).save(out / "heads.safetensors")


def _take_steps(
    settings: SelectorSettings,
    out: Path,
    llm: PocketLLM,
    selector: Selector,
    known: MarkerStates,
    training: RecordData,
    held_out: RecordData,
    validate: Validate | None,
) -> Checkpoint | None:
    """Train `selector` in place; returns the best validated checkpoint, None where none was validated."""
    optimizer = torch.optim.AdamW(selector.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    trained = dict(selector.named_parameters())
    initial = {name: p.detach().clone() for name, p in trained.items()}
    log = TrainingLog(out / "selector.jsonl", 0)
    batches = _NoisyBatches(training, known, settings.seed)
    warm_up = min(100, settings.steps // 5 + 1)
    best: Checkpoint | None = None
    selector.train()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * cosine_schedule(step, settings.steps, warm_up)
        examples, states, margins = batches.draw()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            batch = collate(llm, examples)
            scores = score(selector, batch, states, margins)
            losses = selection_losses(
                scores, batch.iou, batch.iop, batch.present, batch.ignored, settings.hard_negatives
            )
            figures = {name: loss.item() for name, loss in losses.items()} | batch_figures(scores, batch)
            weighted = [settings.loss_weights[name] * loss for name, loss in losses.items()]
            total = torch.stack(weighted).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(selector.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        pull_back(trained, initial, settings.anchor)
        log.add(step, figures, every=settings.log_every)
        is_last = step + 1 == settings.steps
        is_due = settings.validate_every and (step + 1) % settings.validate_every == 0
        if validate and held_out.records and (is_last or is_due):
            figures, calibration = evaluate(settings, out, llm, selector.eval(), held_out)
            # Random numbers that it draws, for instance when it loads a model, must not change the training.
            with torch.random.fork_rng(devices=[]):
                validate(step + 1, selector, figures)
            if best is None or figures["score"] > best.figures["score"]:
                best = Checkpoint(figures, calibration, copy.deepcopy(selector.state_dict()))
            selector.train()
    return best


class _NoisyBatches:
    """Draws the batches of the selector: the same questions each time with other regions and other noise."""

    def __init__(self, data: RecordData, known: MarkerStates, seed: int):
        self.data = data
        self.known = known
        self.rng = np.random.default_rng(seed)
        self.noise = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[list[Example], Tensor, Tensor]:
        """Some examples, with the states (M, W) and the margins (M,) of their targets."""
        count = len(self.known.counts)
        drawn = [int(k) for k in self.rng.choice(count, min(BATCH_EXAMPLES, count), replace=False)]
        examples = [
            self.data.example(FIRST_EXAMPLE + k, variant=int(self.rng.integers(2**31))) for k in drawn
        ]
        states = torch.cat([self.known.states[self.known.rows(k)] for k in drawn])
        margins = torch.cat([self.known.margins[self.known.rows(k)] for k in drawn])
        states = states + STATE_NOISE * states.std() * torch.randn(states.shape, generator=self.noise)
        for example in examples:
            embeddings, shapes = example.regions
            noise = torch.randn(embeddings.shape, generator=self.noise) / embeddings.shape[1] ** 0.5
            noisy = F.normalize(embeddings + EMBEDDING_NOISE * noise, dim=-1)
            example.regions = EncodedRegions(noisy, shapes)
        return examples, states, margins


def _calibrate(selector: Selector, calibration: Tensor) -> None:
    """Apply the scale and shift `calibration` (2,) of presence after those that the selector has."""
    scale, shift = selector.calibration.tolist()
    new_scale, new_shift = calibration
    selector.calibration.copy_(torch.stack([scale * new_scale, shift * new_scale + new_shift]))


@torch.no_grad()
def evaluate(
    settings: SelectorSettings,
    out: Path,
    llm: PocketLLM,
    selector: Selector,
    held_out: RecordData,
    llm_steps: int | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Score the selector on the questions of held-out images, with the right names as phrases.

    Args:
        settings: Of the training.
        out: Folder of the run, where the states are stored.
        llm: The LLM with its region encoder.
        selector: In evaluation mode.
        held_out: Draws the examples.
        llm_steps: Steps that the LLM has taken; None for those of `settings`.

    Returns:
        The figures, after presence was calibrated to these questions; and that calibration, (2,) float32
        scale and shift.
    """
    numbers = range(FIRST_HELD_OUT_EXAMPLE, FIRST_HELD_OUT_EXAMPLE + settings.held_out_examples)
    file = out / f"aside-{settings.llm_steps if llm_steps is None else llm_steps}.safetensors"
    known = marker_states(llm, held_out, numbers, file, as_in_use=True)
    presence: list[Tensor] = []
    present: list[bool] = []
    chosen_iou: list[float] = []
    best_iou: list[np.float32] = []  # of the one proposal that fits best
    for k, number in enumerate(numbers):
        example = held_out.example(number, as_in_use=True)
        rows = known.rows(k)
        scores = score(selector, collate(llm, [example]), known.states[rows], known.margins[rows])
        presence.append(scores.presence)
        present += example.present
        for m, target in enumerate(example.target_rles):
            chosen_iou.append(0.0)
            if target and example.rles:
                chosen = [example.rles[i] for i in select_proposals(scores, m)]
                chosen_iou[-1] = iou_of_union(chosen, target)
                best_iou.append(iou_and_iop(example.rles, target)[0].max())
    figures, calibration = score_targets(torch.cat(presence), torch.tensor(present), torch.tensor(chosen_iou))
    return figures | {
        "best_single": float(np.mean(best_iou)) if best_iou else math.nan,
        "targets": len(present),
        "scale": calibration[0].item(),
        "shift": calibration[1].item(),
    }, calibration
