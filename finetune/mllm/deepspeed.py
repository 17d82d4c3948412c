"""DeepSpeed's ZeRO 3: weights, gradients and Adam's moments are sharded over the processes.

    accelerate launch --config_file finetune/configs/zero3.yaml -m finetune --preset large ...

DeepSpeed's own checkpoints are pickled and can be read by the same number of processes only. Here a run
stores the same `state.pt` however it is sharded, so that it continues with or without DeepSpeed, on any
number of processes.
"""

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.errors import BadInput

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.mllm.model import LLMWithSelector

MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps of each weight
MAX_GRADIENT_NORM = 1.0


def is_enabled() -> bool:
    """Whether `accelerate launch` was told to use DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def configure(accelerator: "Accelerator", dtype: torch.dtype, four_bit: bool) -> None:
    """Tell DeepSpeed and transformers what they must know before a model is loaded.

    Args:
        accelerator: The accelerator of this run, whose DeepSpeed settings are completed.
        dtype: Precision of the LLM.
        four_bit: Whether the LLM is to be kept in 4 bits.

    Raises:
        BadInput: Settings that cannot be followed.
    """
    from transformers.integrations import unset_hf_deepspeed_config

    if accelerator.distributed_type != "DEEPSPEED":
        raise BadInput(
            "accelerate turns DeepSpeed on for GPUs only; on CPUs use accelerate launch --cpu "
            "--num_processes N"
        )
    settings = _settings_of(accelerator)
    zero = settings["zero_optimization"]
    if zero["stage"] != 3:
        raise BadInput(
            f"ZeRO stage {zero['stage']} keeps all of the LLM in every process: use stage 3 "
            "(finetune/configs/zero3.yaml), or accelerate launch --multi_gpu without DeepSpeed"
        )
    if four_bit:
        raise BadInput(
            "DeepSpeed cannot shard weights of 4 bits: leave --four-bit out, "
            "or use accelerate launch --multi_gpu"
        )
    if any(zero.get(f"offload_{part}", {}).get("device") == "nvme" for part in ("optimizer", "param")):
        raise BadInput("weights and moments cannot be offloaded to nvme here: use cpu")
    # --micro already cuts a step into parts.
    settings["train_micro_batch_size_per_gpu"] = 1
    settings["gradient_accumulation_steps"] = 1
    settings["gradient_clipping"] = MAX_GRADIENT_NORM
    settings["bf16"] = {"enabled": dtype == torch.bfloat16}
    # Otherwise transformers would shard the weights while it loads them, before the rows of [SEG] and [ABS]
    # exist.
    unset_hf_deepspeed_config()


def _settings_of(accelerator: "Accelerator") -> dict[str, Any]:
    return accelerator.state.deepspeed_plugin.deepspeed_config


def shard_weights(accelerator: "Accelerator", model: nn.Module) -> None:
    """Leave each process its share of a model's weights.

    The weights lie on the CPU and are sharded one after the other, so that no GPU ever holds all of them.
    """
    import deepspeed

    settings = _settings_of(accelerator)
    if settings["bf16"]["enabled"]:
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    used = ("train_micro_batch_size_per_gpu", "zero_optimization", "bf16")
    deepspeed.zero.Init(module=model, config_dict_or_path={name: settings[name] for name in used})
    for buffer in model.buffers():
        buffer.data = buffer.data.to(accelerator.device)


def gather_weights(model: "LLMWithSelector") -> dict[str, Tensor]:
    """The whole trained weights in float32, and the buffers, on the CPU. Every process must call this."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {name: safe_get_full_fp32_param(p) for name, p in model.trained_parameters().items()}
    stored = model.state_dict()
    weights |= {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def gather_state(
    model: "LLMWithSelector", optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trained weights and Adam's moments, whole. Every process must call this.

    Returns:
        The weights, see `gather_weights`, and the optimiser's state in the form of
        torch.distributed.checkpoint's `get_state_dict`.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    parameters = model.trained_parameters()
    step = next(iter(inner_optimizer(optimizer).state.values()))["step"]
    moments: dict[str, Any] = {}
    for name, parameter in parameters.items():
        moments[name] = {"step": torch.tensor(float(step))}
        for key in MOMENTS:
            whole = safe_get_full_optimizer_state(parameter, key)
            moments[name][key] = whole.detach().cpu().clone()
    groups = [
        group | {"params": [n for n in parameters if n.startswith("selector.") == of_selector]}
        for of_selector, group in zip((False, True), optimizer.param_groups, strict=True)
    ]
    return gather_weights(model), {"state": moments, "param_groups": groups}


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's wrapper and DeepSpeed's."""
    return optimizer.optimizer.optimizer


def scatter_state(state: dict[str, Any], model: "LLMWithSelector", optimizer: Any) -> None:
    """Give this process its share of a stored state.

    Args:
        state: What `state.pt` holds.
        model: Its sharded weights must be those of `state` already; this adds the digits that bfloat16 lacks.
        optimizer: Gets its share of Adam's moments.
    """
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    adam = inner_optimizer(optimizer)
    stored_moments = state["optimizer"]["state"]
    step = next(iter(stored_moments.values()))["step"]
    # Adam makes its moments in its first step, which is later than this.
    for flat in optimizer.optimizer.fp32_partitioned_groups_flat:
        adam.state[flat] = {"step": step.clone() if isinstance(adam, torch.optim.AdamW) else int(step)}
        adam.state[flat] |= {key: torch.zeros_like(flat) for key in MOMENTS}
    for name, parameter in model.trained_parameters().items():
        safe_set_local_fp32_param(parameter, local_shard(state["model"][name], parameter))
        for key in MOMENTS:
            safe_set_local_optimizer_state(parameter, local_shard(stored_moments[name][key], parameter), key)


def local_shard(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """This process's share of a whole weight, flat; the last shares are padded with zeros."""
    import torch.distributed as dist

    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # set by DeepSpeed
    flat = F.pad(whole.flatten(), (0, size * dist.get_world_size() - whole.numel()))
    return flat[size * dist.get_rank() : size * (dist.get_rank() + 1)]
