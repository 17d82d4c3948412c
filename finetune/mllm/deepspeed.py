"""DeepSpeed's ZeRO 3 under `accelerate launch --config_file finetune/configs/zero3.yaml`: weights, gradients and Adam's
moments spread over processes.

DeepSpeed would keep checkpoints of its own, pickled, that only as many processes could read. A run here keeps the same
`state.pt` however it is spread, so it goes on with DeepSpeed or without, on any number of processes.
"""

import os

import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.errors import BadInput

MOMENTS = ("exp_avg", "exp_avg_sq")


def asked_for() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def configure(accelerator, dtype: torch.dtype, four_bit: bool) -> None:
    """What DeepSpeed and transformers must know before a model is loaded. BadInput: what could not be done."""
    from transformers.integrations import unset_hf_deepspeed_config

    if accelerator.distributed_type != "DEEPSPEED":
        raise BadInput(
            "accelerate turns DeepSpeed on for GPUs only; on CPUs use accelerate launch --cpu --num_processes N"
        )
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    stage = settings["zero_optimization"]["stage"]
    if stage != 3:
        raise BadInput(
            f"ZeRO stage {stage} keeps all of the LLM in every process: use stage 3 "
            "(finetune/configs/zero3.yaml), or accelerate launch --multi_gpu without DeepSpeed"
        )
    if four_bit:
        raise BadInput(
            "DeepSpeed cannot spread weights of 4 bits: leave --four-bit out, or use accelerate launch --multi_gpu"
        )
    if any(
        settings["zero_optimization"].get(f"offload_{part}", {}).get("device") == "nvme"
        for part in ("optimizer", "param")
    ):
        raise BadInput("weights and moments cannot be offloaded to nvme here: use cpu")
    settings["train_micro_batch_size_per_gpu"] = settings["gradient_accumulation_steps"] = (
        1  # parts are cut here (--micro)
    )
    settings["gradient_clipping"] = 1.0
    settings["bf16"] = {"enabled": dtype == torch.bfloat16}
    unset_hf_deepspeed_config()  # or transformers would spread the weights while it loads them, before there are markers


def spread(accelerator, student) -> None:
    """Leave each process its share of the student's weights, which lie on the CPU, one after the other: so no GPU ever
    holds them all."""
    import deepspeed

    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    if settings["bf16"]["enabled"]:
        for parameter in student.parameters():
            parameter.data = parameter.data.bfloat16()
    deepspeed.zero.Init(
        module=student,
        config_dict_or_path={
            k: settings[k] for k in ("train_micro_batch_size_per_gpu", "zero_optimization", "bf16")
        },
    )
    for buffer in student.buffers():
        buffer.data = buffer.data.to(accelerator.device)


def weights(student) -> dict[str, Tensor]:
    """The trained weights, whole and in float32, and the buffers, on the CPU. Every process must ask."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole, kept = (
        {name: safe_get_full_fp32_param(p) for name, p in student.trained().items()},
        student.state_dict(),
    )
    whole |= {name: buffer for name, buffer in student.named_buffers() if name in kept}
    return {name: tensor.detach().cpu().clone() for name, tensor in whole.items()}


def state_of(student, optimizer) -> tuple[dict[str, Tensor], dict]:
    """The trained weights, and Adam's moments as torch.distributed.checkpoint's get_state_dict gives them. Every process
    must ask."""
    from deepspeed.utils import safe_get_full_optimizer_state

    parameters = student.trained()
    step = next(iter(adam_of(optimizer).state.values()))["step"]
    moments = {
        name: {"step": torch.tensor(float(step))}
        | {key: safe_get_full_optimizer_state(p, key).detach().cpu().clone() for key in MOMENTS}
        for name, p in parameters.items()
    }
    groups = [
        group | {"params": [n for n in parameters if n.startswith("selector.") == mine]}
        for mine, group in zip((False, True), optimizer.param_groups, strict=True)
    ]
    return weights(student), {"state": moments, "param_groups": groups}


def adam_of(optimizer):
    """What steps, within accelerate's wrapper and DeepSpeed's."""
    return optimizer.optimizer.optimizer


def put(state: dict, student, optimizer) -> None:
    """Give every process its share of a `state.pt`. The student must hold its weights already."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    adam, parameters = adam_of(optimizer), student.trained()
    step = next(iter(state["optimizer"]["state"].values()))["step"]
    for flat in (
        optimizer.optimizer.fp32_partitioned_groups_flat
    ):  # Adam makes them in its first step, later than this
        adam.state[flat] = {"step": step.clone() if isinstance(adam, torch.optim.AdamW) else int(step)} | {
            key: torch.zeros_like(flat) for key in MOMENTS
        }
    for name, p in parameters.items():
        safe_set_local_fp32_param(
            p, share(state["model"][name], p)
        )  # of bfloat16 weights: with all their digits
        for key in MOMENTS:
            safe_set_local_optimizer_state(p, share(state["optimizer"]["state"][name][key], p), key)


def share(whole: Tensor, parameter) -> Tensor:
    """This process's part of a weight, flat; the last parts are filled up with zeros."""
    import torch.distributed as dist

    size = parameter.ds_tensor.numel()
    flat = F.pad(whole.flatten(), (0, size * dist.get_world_size() - whole.numel()))
    return flat[size * dist.get_rank() : size * (dist.get_rank() + 1)]
