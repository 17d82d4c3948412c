"""Where models compute: the device that was asked for, and whether a model may take others beside it."""

import os

from assistant.errors import BadInput


def pick_device(device: str | None) -> str:
    """The device that was asked for.

    Args:
        device: "cpu", "cuda", "cuda:1"; None for the GPU if there is one. Of several processes on one machine
            each takes its own GPU.

    Returns:
        A name that torch takes.

    Raises:
        BadInput: There is no such device here.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise BadInput(f"there is no device {device!r}: cpu, cuda or cuda:1") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"there is no GPU for device {device}; use --device cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device


def may_spread(device: str | None) -> bool:
    """Whether a model may take other GPUs, and the CPU, beside the device that `pick_device` names.

    Args:
        device: What was asked for. A numbered GPU is meant alone, and so is that of one of several processes.
    """
    return device in (None, "cuda") and "LOCAL_RANK" not in os.environ
