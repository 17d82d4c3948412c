"""A model in training whose weights are averaged over the steps: what the loops of the small models share.

training = AveragedTraining(head, optimizer, max_gradient_norm=1.0)
first_step = training.resume(out / "state.pt")          # 0 where there is no checkpoint
training.step(loss, step)
training.save(out / "state.pt", step + 1)
training.save_average(out / "weights.safetensors")      # what is published

The average is exponential (Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv 1703.01780).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from assistant.files import replace_whole

MAX_DECAY = 0.998  # of the average, which rises to it with the steps, so that the first weights are forgotten


def copy_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The average before the first step: a copy of the weights."""
    return {name: value.detach().clone() for name, value in state.items()}


def update_average(
    average: Mapping[str, Tensor], state: Mapping[str, Tensor], step: int, max_decay: float = MAX_DECAY
) -> None:
    """Move an average towards the weights, in place; tensors of integers and booleans are copied.

    Args:
        average: The average, by name.
        state: The weights, under the same names.
        step: The step that was taken, from 0.
        max_decay: Limit of the decay, in [0, 1].
    """
    decay = min(max_decay, (step + 1) / (step + 10))
    for name, value in state.items():
        if value.is_floating_point():
            average[name].lerp_(value.detach(), 1 - decay)
        else:
            average[name].copy_(value)


class AveragedTraining:
    """A model, its optimizer and the moving average of its weights.

    Args:
        model: The model; the average starts from its weights.
        optimizer: Of its trained parameters.
        max_gradient_norm: To which gradients are clipped.
        frozen: What the names of tensors that are neither trained nor stored start with.

    Attributes:
        average: {name: averaged tensor}.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        max_gradient_norm: float,
        frozen: str | None = None,
    ):
        self.model = model
        self.optimizer = optimizer
        self.max_gradient_norm = max_gradient_norm
        self.frozen = frozen
        self.average = copy_of(self.state())

    def state(self) -> dict[str, Tensor]:
        """The tensors of the model that training changes, by name."""
        state = self.model.state_dict()
        return {k: v for k, v in state.items() if self.frozen is None or not k.startswith(self.frozen)}

    def step(self, loss: Tensor, step: int) -> None:
        """Take a step down the gradient of a loss, which is clipped, and move the average.

        Args:
            loss: A scalar.
            step: Number of the step, from 0.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm)
        self.optimizer.step()
        update_average(self.average, self.state(), step)

    def resume(self, file: Path) -> int:
        """Continue from a checkpoint; returns the step to go on with, 0 where there is no file."""
        if not file.exists():
            return 0
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"], strict=self.frozen is None)
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        print(f"resuming at step {state['step']}", flush=True)
        return state["step"]

    def save(self, file: Path, step: int) -> None:
        """Store the state after `step` steps, whole or not at all."""
        state = {
            "model": self.state(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": step,
        }
        with replace_whole(file) as path:
            torch.save(state, path)

    def save_average(self, file: Path) -> None:
        """Store the averaged weights as safetensors, whole or not at all."""
        with replace_whole(file) as path:
            save_file({name: value.contiguous() for name, value in self.average.items()}, path)
