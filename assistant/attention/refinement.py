"""Refines coarse maps of classes: by the colours of the image, or by votes of SAM's proposals.

fine = ConvCRF()(probabilities, image)                     # (C, h, w) of an image (h, w, 3)
fine = vote(probabilities, proposal_masks)                 # (C, H, W), (N, H, W) bool
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

OUTSIDE_COLOUR = 1e4  # in place of a colour beyond the border: as different from any grey level as can be
OUTSIDE_DIFFERENCE = 1e6  # a squared difference above this can only come from it


class ConvCRF(nn.Module):
    """Mean-field inference of a convolutional CRF (Teichmann and Cipolla 2018, arXiv 1805.04777).

    Each pixel is connected only with its neighbourhood. All pixels and classes are updated at once, one shift
    of the image after the other.

    Args:
        window: Side of the neighbourhood in px, odd.
        smoothness_sigma: px over which a neighbour counts whatever its colour.
        appearance_sigma: px over which a neighbour of the same colour counts.
        colour_sigma: Grey levels over which two colours are the same.
        smoothness_weight: Of the neighbours whatever their colour.
        appearance_weight: Of the neighbours of the same colour.
        iterations: Number of updates.
    """

    shifts: Tensor

    def __init__(
        self,
        window: int = 11,
        smoothness_sigma: float = 3.0,
        appearance_sigma: float = 20.0,
        colour_sigma: float = 13.0,
        smoothness_weight: float = 1.0,
        appearance_weight: float = 3.0,
        iterations: int = 10,
    ):
        super().__init__()
        self.window = window
        self.smoothness_sigma = smoothness_sigma
        self.appearance_sigma = appearance_sigma
        self.colour_sigma = colour_sigma
        self.smoothness_weight = smoothness_weight
        self.appearance_weight = appearance_weight
        self.iterations = iterations
        reach = torch.arange(window) - window // 2
        shifts = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), -1).reshape(-1, 2)
        self.register_buffer("shifts", shifts[(shifts != 0).any(1)])

    @torch.inference_mode()
    def forward(self, probabilities: Tensor, image: Tensor | np.ndarray) -> Tensor:
        """Refine a map.

        Args:
            probabilities: (C, h, w) float, summing to 1 over the classes.
            image: (h, w, 3) uint8 RGB.

        Returns:
            (C, h, w) float, summing to 1 over the classes.
        """
        colours = torch.as_tensor(np.array(image)).permute(2, 0, 1).float()
        kernel = self._kernel(colours)
        unary = probabilities.clamp(min=1e-6).log()
        refined = probabilities
        reach = self.window // 2
        height, width = probabilities.shape[1:]
        for _ in range(self.iterations):
            padded = F.pad(refined, (reach, reach, reach, reach))
            message = torch.zeros_like(refined)
            for weight, (y, x) in zip(kernel, self.shifts.tolist(), strict=True):
                top, left = reach + y, reach + x
                message += weight * padded[:, top : top + height, left : left + width]
            refined = (unary + message).softmax(0)
        return refined

    def _kernel(self, colours: Tensor) -> Tensor:
        """Colours (3, h, w) in grey levels -> (S, h, w), the weight of each of a pixel's S neighbours."""
        distance = self.shifts.square().sum(1).float()[:, None, None]
        difference = (self._neighbours(colours, OUTSIDE_COLOUR) - colours).square().sum(1)
        inside = (difference < OUTSIDE_DIFFERENCE).float()
        smoothness = torch.exp(-distance / (2 * self.smoothness_sigma**2)) * inside
        appearance = torch.exp(
            -distance / (2 * self.appearance_sigma**2) - difference / (2 * self.colour_sigma**2)
        )
        appearance = appearance * inside
        return self.smoothness_weight * _shares(smoothness) + self.appearance_weight * _shares(appearance)

    def _neighbours(self, maps: Tensor, outside: float) -> Tensor:
        """Each pixel's neighbours in maps (C, h, w) -> (S, C, h, w); `outside` stands beyond the border."""
        reach = self.window // 2
        height, width = maps.shape[1:]
        padded = F.pad(maps, (reach, reach, reach, reach), value=outside)
        return torch.stack(
            [
                padded[:, reach + y : reach + y + height, reach + x : reach + x + width]
                for y, x in self.shifts.tolist()
            ]
        )


def _shares(kernel: Tensor) -> Tensor:
    """A kernel (S, h, w) whose weights sum to 1 over the neighbours."""
    return kernel / kernel.sum(0).clamp(min=1e-6)


def vote(probabilities: Tensor, masks: Tensor, min_confidence: float = 0.0) -> Tensor:
    """Let masks vote on a map: each takes the mean over its pixels, and a pixel follows its most confident
    mask.

    Args:
        probabilities: (C, H, W) float.
        masks: (N, H, W) bool.
        min_confidence: A pixel keeps its own probabilities where no mask that holds it is more confident than
            this.

    Returns:
        (C, H, W) float.
    """
    if not len(masks):
        return probabilities
    flat = masks.flatten(1).to(probabilities.dtype)
    mean = flat @ probabilities.flatten(1).T / flat.sum(1, keepdim=True).clamp(min=1)  # (N, C)
    confidence, followed = (flat * mean.amax(1)[:, None]).max(0)
    voted = torch.where(confidence > min_confidence, mean[followed].T, probabilities.flatten(1))
    return voted.view(probabilities.shape)
