"""The moving average of weights, and a training that goes on from its checkpoint."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from finetune.averaged_training import AveragedTraining, copy_of, update_average


def training_of(seed: int, frozen: str | None = None) -> AveragedTraining:
    torch.manual_seed(seed)
    model = nn.ModuleDict({"own": nn.Linear(3, 1), "kept": nn.BatchNorm1d(1)})
    optimizer = torch.optim.AdamW(model["own"].parameters(), lr=0.1)
    return AveragedTraining(model, optimizer, max_gradient_norm=0.5, frozen=frozen)


def take_steps(training: AveragedTraining, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        training.step((training.model["own"](x) - x.sum(1, keepdim=True)).square().mean(), step)


def test_the_average_follows_the_weights_ever_more_slowly():
    average = copy_of({"w": torch.zeros(1), "count": torch.tensor(0)})
    moved = []
    for step in range(40):
        before = float(average["w"])
        update_average(average, {"w": torch.full((1,), before + 1), "count": torch.tensor(step)}, step, 0.9)
        moved.append(float(average["w"]) - before)
    assert moved[0] == pytest.approx(0.9) and moved == sorted(moved, reverse=True)
    assert moved[-1] == pytest.approx(0.184, abs=1e-3)  # the decay is 40 / 49, below its limit
    assert average["count"] == 39


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    whole = training_of(1)
    take_steps(whole, 0, 12)
    first = training_of(1)
    take_steps(first, 0, 5)
    first.save(tmp_path / "state.pt", 5)
    second = training_of(2)
    assert second.resume(tmp_path / "state.pt") == 5
    take_steps(second, 5, 12)
    assert all(torch.equal(second.average[k], v) for k, v in whole.average.items())
    assert all(torch.equal(second.state()[k], v) for k, v in whole.state().items())
    assert training_of(3).resume(tmp_path / "nothing.pt") == 0


def test_frozen_weights_are_not_stored(tmp_path):
    training = training_of(1, frozen="kept.")
    take_steps(training, 0, 2)
    training.save(tmp_path / "state.pt", 2)
    training.save_average(tmp_path / "weights.safetensors")
    assert set(load_file(tmp_path / "weights.safetensors")) == {"own.weight", "own.bias"}
    assert training_of(2, frozen="kept.").resume(tmp_path / "state.pt") == 2
