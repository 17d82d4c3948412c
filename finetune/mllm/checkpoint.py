"""The state from which the same command continues a run: `state.pt` in its folder.

It holds whole weights and moments however the run shards them, so that a run continues on any number of
processes.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from assistant.files import replace_whole
from finetune.mllm import deepspeed

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.checkpoint.state_dict import StateDictOptions

STATE_FILE = "state.pt"


def state_dict_options() -> "StateDictOptions":
    """Whole tensors on the CPU, of the trained weights only."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)


def save_state(
    file: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    best: float | None,
    accelerator: "Accelerator",
) -> None:
    """Store the state of a run. Every process must call this.

    Args:
        file: Replaced as a whole.
        model: As `accelerator.prepare` gave it.
        optimizer: As `accelerator.prepare` gave it.
        step: Number of steps so far.
        best: Best validation score so far; None without validation.
        accelerator: The accelerator of this run.
    """
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights: Mapping[str, Any]
    if deepspeed.is_enabled():
        weights, moments = deepspeed.gather_state(accelerator.unwrap_model(model), optimizer)
    else:
        weights, moments = get_state_dict(model, _unwrapped(optimizer), options=state_dict_options())
    if accelerator.is_main_process:
        with replace_whole(file) as path:
            torch.save({"model": weights, "optimizer": moments, "step": step, "best": best}, path)
    accelerator.wait_for_everyone()


def restore_state(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: "Accelerator"
) -> tuple[int, float | None]:
    """Put a stored state into the model and the optimiser.

    Returns:
        The step to continue at and the best validation score so far; (0, None) where there is no file.
    """
    if not file.exists():
        return 0, None
    from torch.distributed.checkpoint.state_dict import set_state_dict

    state = torch.load(file, weights_only=True, map_location="cpu")
    if deepspeed.is_enabled():
        deepspeed.scatter_state(state, accelerator.unwrap_model(model), optimizer)
    else:
        set_state_dict(
            model,
            _unwrapped(optimizer),
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=dataclasses.replace(
                state_dict_options(), broadcast_from_rank0=accelerator.num_processes > 1
            ),
        )
    return state["step"], state["best"]


def load_weights(file: Path, model: nn.Module) -> None:
    """Put the weights of a stored state, if there is one, into a model that is not sharded yet."""
    if file.exists():
        weights = model.state_dict()
        for name, stored in torch.load(file, weights_only=True, map_location="cpu")["model"].items():
            weights[name].data.copy_(stored)


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser without accelerate's wrapper."""
    from accelerate.optimizer import AcceleratedOptimizer

    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
