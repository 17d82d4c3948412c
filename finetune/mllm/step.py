"""One step of training, over the parts of a batch that this process computes.

    figures = training_step(step, seed, parts, model, optimizer, loss_weights, accelerator)

Every loss is divided by what the whole step holds, over all parts and processes, and each part has random
numbers of its own. The loss curve therefore does not depend on how many processes share the parts.
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assistant.mllm.selector import reachable
from finetune.mllm import deepspeed
from finetune.mllm.batches import Batch
from finetune.settings import LOSS_NAMES

if TYPE_CHECKING:
    from accelerate import Accelerator


def training_step(
    step: int,
    seed: int,
    parts: Sequence[Batch],
    model: Any,
    optimizer: Any,
    loss_weights: Tensor,
    accelerator: "Accelerator",
) -> dict[str, float]:
    """Compute the gradients of a step and let the optimiser follow them.

    Args:
        step: Number of the step, from 0; with `seed` it fixes dropout.
        seed: Of the run.
        parts: The parts of this process.
        model: A `finetune.mllm.model.LLMWithSelector` as `accelerator.prepare` gave it.
        optimizer: As `accelerator.prepare` gave it.
        loss_weights: (5,) weights of `finetune.settings.LOSS_NAMES`.
        accelerator: The accelerator of this run.

    Returns:
        The figures of the whole step, over all processes: "loss", each loss by name, "word_right" and
        "marker_right", which are shares in [0, 1], and "gradient", the norm before clipping.
    """
    processes, rank = accelerator.num_processes, accelerator.process_index
    parts = [{k: v.to(accelerator.device) for k, v in part.items()} for part in parts]
    totals = torch.tensor([_counts(part) for part in parts], dtype=torch.float32, device=loss_weights.device)
    totals = accelerator.reduce(totals.sum(0), "sum").clamp(min=1)
    sums = torch.zeros_like(loss_weights)
    correct = torch.zeros(2, device=loss_weights.device)
    for i, part in enumerate(parts):
        # Dropout is that of the part, whichever process computes it.
        torch.manual_seed(hash((seed, step, rank + i * processes)) % 2**63)
        with _synchronising(accelerator, model, is_last=i + 1 == len(parts)):
            output = model(part)
            # The processes' gradients are averaged, but their losses are meant to be added.
            accelerator.backward((output.sums * loss_weights / totals).sum() * processes)
        sums += output.sums.detach()
        correct += torch.stack([output.correct_words.float(), output.correct_markers.float()])
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = accelerator.clip_grad_norm_(trained, deepspeed.MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses = accelerator.reduce(sums, "sum") / totals
    correct = accelerator.reduce(correct, "sum")
    figures = {"loss": float((losses * loss_weights).sum())}
    figures |= dict(zip(LOSS_NAMES, losses.tolist(), strict=True))
    figures["word_right"] = float(correct[0] / totals[0])
    figures["marker_right"] = float(correct[1] / totals[2])
    figures["gradient"] = float(norm)
    return figures


def _counts(part: Batch) -> list[int]:
    """What each loss of a part is divided by, see `finetune.mllm.model.Output`."""
    words = int((part["labels"][:, 1:] != -100).sum())
    alignable = int(reachable(part["present"], part["iou"]).sum())
    targets = len(part["present"])
    return [words, alignable, targets, targets, targets]


def _synchronising(accelerator: "Accelerator", model: Any, is_last: bool) -> AbstractContextManager:
    """The context of a part's backward pass: gradients cross processes once a step, with the last part."""
    if deepspeed.is_enabled():
        accelerator.sync_gradients = is_last  # DeepSpeed steps in the backward pass of the last part
        return contextlib.nullcontext()
    return contextlib.nullcontext() if is_last else accelerator.no_sync(model)
