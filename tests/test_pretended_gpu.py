"""The pretended GPU refuses what a GPU refuses, and computes what a CPU computes."""

import copy

import numpy as np
import pytest
import torch

from tests.helpers.pretended_gpu import GPU, GpuTensor, MixedDevices, PretendedGpu, on_gpu


@pytest.fixture(autouse=True)
def gpu():
    with PretendedGpu():
        yield


@pytest.mark.parametrize(
    "refused",
    [
        lambda x: x + torch.ones(3),
        lambda x: x @ torch.ones(3, 1),
        lambda x: torch.cat([x, torch.ones(1, 3)]),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: torch.ones(3)[torch.tensor([0], device="cuda")],
        lambda x: x.index_put_((torch.tensor([0]),), torch.ones(1, 3)),
    ],
)
def test_what_a_gpu_refuses_is_refused(refused):
    with pytest.raises(MixedDevices):
        refused(torch.ones(2, 3, device="cuda"))


def test_values_and_devices_are_those_of_a_gpu():
    x = torch.arange(6.0, device="cuda").view(2, 3)
    assert x.device == GPU and (x + torch.tensor(2.0)).device == GPU and x.cpu().device.type == "cpu"
    assert x[torch.tensor([1])].tolist() == [[3.0, 4.0, 5.0]] == x[[1]].tolist()
    assert torch.ones(2).to("cuda").device == GPU and torch.tensor([1], device="cuda").sum().item() == 1
    assert (torch.zeros_like(x).device, x.new_zeros(2).device, torch.zeros(2).device.type) == (
        GPU,
        GPU,
        "cpu",
    )


def test_gradients_modules_copies_and_inference_mode():
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    moved = on_gpu(copy.deepcopy(plain))
    x = torch.randn(4, 3)
    assert torch.allclose(moved(x.to("cuda")).cpu(), plain(x))
    moved(x.to("cuda")).square().sum().backward()
    assert isinstance(moved[0].weight.grad, GpuTensor) and copy.deepcopy(moved)[0].weight.device == GPU
    with torch.inference_mode():
        assert not moved(x.to("cuda")).requires_grad
    assert torch.nn.Linear(3, 2).to("cuda").weight.device == GPU
