"""Runs of `python -m finetune` on the images of `tests.helpers.rectangles`.

with pytest.MonkeyPatch.context() as patch:
    propose_rectangles(patch)
    assert finetune.main(command_line(mllm, data, out, "--max-steps", "4")) == 0
weights = tensors(out)
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from assistant.loading import sams
from finetune.mllm import train
from tests.helpers import rectangles


def propose_rectangles(patch: pytest.MonkeyPatch) -> None:
    """Let every SAM be the one that proposes the rectangles, and answers in reports be short."""
    patch.setattr(sams, "load_image_opener", lambda sam, device: (rectangles.RectangleOpener(), "rectangles"))
    patch.setattr(sams, "opener_key", lambda sam: "rectangles")
    patch.setattr(sams, "sam_checksum", lambda sam: "rectangles")
    patch.setattr(train, "MAX_ANSWER_TOKENS", 6)  # a random model does not stop by itself


def command_line(mllm: Path | str, data: Path, out: Path | str, *more: str) -> list[str]:
    """The command line of a run on a CPU; options in `more` replace earlier ones."""
    options = {
        "--mllm": mllm,
        "--sam": "none",
        "--data": data,
        "--out": out,
        "--device": "cpu",
        "--batch": 4,
        "--micro": 2,
        "--lr": 5e-3,
        "--selector-lr": 3e-3,
    }
    return [str(word) for option in options.items() for word in option] + list(more)


def four_steps(val: Path) -> tuple[str, ...]:
    """Options of a run of four steps with a checkpoint in the middle."""
    return ("--val", str(val), "--max-steps", "4", "--save-every", "2", "--log-every", "1")


def tensors(out: Path) -> dict[str, Tensor]:
    """The weights of the adapter that a run wrote."""
    return load_file(out / "heads.safetensors") | load_file(out / "lora/adapter_model.safetensors")


def lines(file: Path) -> list[dict]:
    """The lines of a JSON lines file, without their times."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
