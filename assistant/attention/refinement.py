"""Coarse maps of classes, refined: by the picture's colours, or by votes of SAM's proposals.

fine = ConvCRF()(probabilities, image)                 # (C, h, w) of a picture (h, w, 3)
fine = vote(probabilities, proposals.masks)            # (C, H, W), (N, H, W) bool
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvCRF(nn.Module):
    """Mean-field inference of a CRF whose pixels only know their neighbourhood (Teichmann and Cipolla 2018, arXiv
    1805.04777): all pixels and classes at once, one shift of the picture after the other.

    window: side of the neighbourhood, odd. near: px over which a plain neighbour counts; far, colour: px and grey
    levels over which one of the same colour does. smooth, bright: weights of the two.
    """

    def __init__(
        self,
        window: int = 11,
        near: float = 3.0,
        far: float = 20.0,
        colour: float = 13.0,
        smooth: float = 1.0,
        bright: float = 3.0,
        iterations: int = 10,
    ):
        super().__init__()
        self.window, self.near, self.far, self.colour = window, near, far, colour
        self.smooth, self.bright, self.iterations = smooth, bright, iterations
        reach = torch.arange(window) - window // 2
        shifts = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), -1).reshape(-1, 2)
        self.register_buffer("shifts", shifts[(shifts != 0).any(1)])

    def neighbours(self, x: Tensor, filled: float = 0.0) -> Tensor:
        """(C, h, w) -> (S, C, h, w): at each pixel the value of its S neighbours, `filled` outside of the picture."""
        r, (h, w) = self.window // 2, x.shape[1:]
        wide = F.pad(x, (r, r, r, r), value=filled)
        return torch.stack(
            [wide[:, r + y : r + y + h, r + x0 : r + x0 + w] for y, x0 in self.shifts.tolist()]
        )

    def kernel(self, image: Tensor) -> Tensor:
        """(3, h, w) in grey levels -> (S, h, w): how much each pixel believes each neighbour."""
        distance = self.shifts.square().sum(1).float()[:, None, None]
        difference = (self.neighbours(image, 1e4) - image).square().sum(1)  # outside: as unlike as can be
        inside = (difference < 1e6).float()
        plain = torch.exp(-distance / (2 * self.near**2)) * inside
        alike = torch.exp(-distance / (2 * self.far**2) - difference / (2 * self.colour**2)) * inside
        share = lambda kernel: kernel / kernel.sum(0).clamp(min=1e-6)
        return self.smooth * share(plain) + self.bright * share(alike)

    @torch.inference_mode()
    def forward(self, probabilities: Tensor, image: Tensor | np.ndarray) -> Tensor:
        """(C, h, w), summing to 1 over classes, and the picture (h, w, 3) uint8 of the same size -> (C, h, w)
        likewise."""
        image = torch.as_tensor(np.array(image)).permute(2, 0, 1).float()
        kernel, unary = self.kernel(image), probabilities.clamp(min=1e-6).log()
        found = probabilities
        r, (h, w) = self.window // 2, probabilities.shape[1:]
        for _ in range(self.iterations):
            wide, message = F.pad(found, (r, r, r, r)), torch.zeros_like(found)
            for weight, (y, x) in zip(kernel, self.shifts.tolist()):
                message += weight * wide[:, r + y : r + y + h, r + x : r + x + w]
            found = (unary + message).softmax(0)
        return found


def vote(probabilities: Tensor, masks: Tensor, sure: float = 0.0) -> Tensor:
    """Each mask of masks (N, H, W) bool takes the mean of probabilities (C, H, W) over its pixels; a pixel follows the
    mask that holds it and is surest, and keeps its own where no mask is surer than `sure` -> (C, H, W)."""
    if not len(masks):
        return probabilities
    flat = masks.flatten(1).to(probabilities.dtype)
    mean = flat @ probabilities.flatten(1).T / flat.sum(1, keepdim=True).clamp(min=1)  # (N, C)
    best = mean.amax(1)
    surest = (flat * best[:, None]).max(0)
    return torch.where(surest.values > sure, mean[surest.indices].T, probabilities.flatten(1)).view(
        probabilities.shape
    )
