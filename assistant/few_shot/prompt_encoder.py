"""The trained part of VLP-SAM: turns a query, its references and a label into prompts for a frozen SAM.

logits, iou = decode_prompts(segmenter, [query], encoder(inputs), encoder.coarse_logits(inputs))
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.few_shot.episode import ImageFeatures, MatchInputs
from assistant.few_shot.similarity import IMAGE_MAPS, LABEL_MAPS
from assistant.sam.segmenter import Segmenter

MAP_SCALE = 10.0  # of similarity maps beside features of about unit size, as in the paper
ATTENTION_LAYERS = 4  # to the references, among the prompts, to the query image, among the prompts
DROPOUT = 0.5  # of whole channels of the reduced features
COARSE_WIDTH = 32  # channels of the convolutions that draw the coarse map
PROTOTYPE_EPSILON = 5e-4  # cells; keeps the mean over an empty mask finite
SINE_TEMPERATURE = 10000  # of the position encoding, as in DETR


class _MergeParts(NamedTuple):
    """The layer `PromptEncoder.merge`, applied in parts.

    Attributes:
        of_cells: (width, width) float, the weights of a cell's own features.
        shared: (B, 1, width) float, the output for what all cells share.
        of_maps: (width, 1 or 2) float, the weights of the maps.
    """

    of_cells: Tensor
    shared: Tensor
    of_maps: Tensor

    def __call__(self, cells: Tensor, maps: Tensor) -> Tensor:
        """Features (B, N, width) and maps (B, ..., 1 or 2), N values each -> (B, N, width)."""
        batch, count, _ = cells.shape
        scaled_maps = maps.reshape(batch, count, -1) * MAP_SCALE
        merged = F.linear(cells, self.of_cells) + self.shared + F.linear(scaled_maps, self.of_maps)
        return merged.relu()


class PromptEncoder(nn.Module):
    """Embeds prompts for SAM from what a query has in common with references and a label.

    Args:
        patches: Channels of the features that images are compared by.
        joint: Channels of the features that labels are compared with.
        prompt: Channels of SAM's embedded prompts.
        text: Whether it reads a label (VLP-SAM) or not (VRP-SAM).
        coarse: Whether it also draws a mask prompt, from the similarity maps alone. How similar two objects
            are means the same for categories that were never trained on; what they look like does not.
        width: Channels of the reduced features.
        queries: Number of prompts.
        heads: Number of attention heads.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        patches: int,
        joint: int,
        prompt: int,
        text: bool = True,
        coarse: bool = True,
        width: int = 256,
        queries: int = 50,
        heads: int = 4,
    ):
        super().__init__()
        self.settings: dict[str, Any] = {
            "patches": patches,
            "joint": joint,
            "prompt": prompt,
            "text": text,
            "coarse": coarse,
            "width": width,
            "queries": queries,
            "heads": heads,
        }
        self.register_buffer("mean", torch.zeros(patches))
        self.register_buffer("scale", torch.ones(patches))
        self.shrink = nn.Linear(patches, width, bias=False)
        if text and joint != patches:
            self.shrink_text = nn.Linear(joint, width, bias=False)
        common = 2 if text else 1  # vectors that all cells share: the prototype and the label; each has a map
        self.merge = nn.Linear((1 + common) * width + common, width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(ATTENTION_LAYERS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(ATTENTION_LAYERS))
        self.out = nn.Linear(width, prompt)
        if coarse:
            self.coarse = nn.Sequential(
                _convolution(IMAGE_MAPS + LABEL_MAPS * text, dilation=1),
                nn.ReLU(),
                _convolution(COARSE_WIDTH, dilation=2),
                nn.ReLU(),
                _convolution(COARSE_WIDTH, dilation=1),
                nn.ReLU(),
                nn.Conv2d(COARSE_WIDTH, 1, 1),
            )

    def normalised(self, patches: Tensor) -> Tensor:
        """Patches (..., C, h, w), standardised by channel and scaled to unit length."""
        return F.normalize((patches - self.mean[:, None, None]) / self.scale[:, None, None], dim=-3)

    def coarse_logits(self, inputs: MatchInputs) -> Tensor | None:
        """Mask logits (B, h, w) of the queries, on the grid of the maps; None if this encoder draws none."""
        return self.coarse(inputs.maps)[:, 0] if self.settings["coarse"] else None

    def forward(self, inputs: MatchInputs) -> Tensor:
        """Embed the prompts of B episodes.

        Args:
            inputs: Of the episodes, with label vectors if this encoder reads labels.

        Returns:
            (B, number of prompts, channels of a prompt) float.

        Raises:
            ValueError: This encoder reads labels, and there are none.
        """
        batch, shots = inputs.masks.shape[:2]
        query = self._dropped(self.shrink(inputs.query.flatten(2).transpose(1, 2)).relu())  # (B, n, width)
        references = self.shrink(inputs.references.flatten(3).transpose(2, 3)).relu()
        references = self._dropped(references.flatten(1, 2))  # (B, K * n, width)
        merge = self._merge_parts(self._common(inputs, references))
        query = merge(query, inputs.query_maps)
        references = merge(references, inputs.reference_maps)
        rows, columns = inputs.masks.shape[-2:]
        positions = sine_positions(rows, columns, query.shape[-1], query)
        reference_keys = references + positions.repeat(shots, 1)
        reference_ignored = inputs.reference_coverage.flatten(1) <= 0
        query_keys = query + positions
        query_ignored = inputs.query_coverage.flatten(1) <= 0
        prompts = self.queries.expand(batch, -1, -1)
        prompts = self._attend(0, prompts, reference_keys, references, reference_ignored)
        prompts = self._attend(1, prompts, prompts, prompts, None)
        prompts = self._attend(2, prompts, query_keys, query, query_ignored)
        prompts = self._attend(3, prompts, prompts, prompts, None)
        return self.out(prompts)

    def _dropped(self, features: Tensor) -> Tensor:
        """Features (B, N, width) with whole channels dropped while training."""
        return F.dropout1d(features.transpose(-1, -2), DROPOUT, self.training).transpose(-1, -2)

    def _common(self, inputs: MatchInputs, references: Tensor) -> Tensor:
        """What all cells share: the mean inside the masks, and the label -> (B, 1, width or 2 * width)."""
        weights = inputs.masks.flatten(1)[..., None]
        prototype = (references * weights).sum(1, keepdim=True)
        prototype = prototype / (weights.sum(1, keepdim=True) + PROTOTYPE_EPSILON)
        if not self.settings["text"]:
            return prototype
        if inputs.label_vectors is None:
            raise ValueError("this encoder reads labels: compute its inputs with labels")
        shrink_text = self.shrink_text if self.settings["joint"] != self.settings["patches"] else self.shrink
        label = shrink_text(inputs.label_vectors).relu()[:, None]
        return torch.cat([prototype, label], -1)

    def _merge_parts(self, common: Tensor) -> _MergeParts:
        """Split `merge` of [cell, common, maps] into parts, so that `common` is multiplied only once.

        Args:
            common: (B, 1, width or 2 * width) float, what all cells share.
        """
        width = self.settings["width"]
        maps = common.shape[-1] // width
        of_cells, of_common, of_maps = self.merge.weight.split([width, maps * width, maps], 1)
        return _MergeParts(of_cells, F.linear(common, of_common, self.merge.bias), of_maps)

    def _attend(
        self, layer: int, prompts: Tensor, keys: Tensor, values: Tensor, ignored: Tensor | None
    ) -> Tensor:
        """One layer of attention: prompts (B, T, width) read values (B, N, width) that are not `ignored`."""
        read, _ = self.attention[layer](prompts, keys, values, key_padding_mask=ignored, need_weights=False)
        return self.norms[layer](prompts + read)


def _convolution(channels: int, dilation: int) -> nn.Conv2d:
    """A 3 x 3 convolution of the coarse map that keeps the size."""
    return nn.Conv2d(channels, COARSE_WIDTH, 3, padding=dilation, dilation=dilation)


def sine_positions(rows: int, columns: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of each cell's row and column, as in DETR (Carion et al. 2020, arXiv 2005.12872).

    Args:
        rows: Of the grid.
        columns: Of the grid.
        width: Number of channels, a multiple of 4.
        like: A tensor whose device and dtype the result gets.

    Returns:
        (rows * columns, width), row by row.
    """
    wave = SINE_TEMPERATURE ** (-torch.arange(width // 4, device=like.device) / (width // 4))
    of_rows = _sine_codes(rows, wave)
    of_columns = _sine_codes(columns, wave)
    codes = torch.cat(
        [of_rows[:, None].expand(-1, columns, -1), of_columns[None].expand(rows, -1, -1)],
        2,
    )
    return codes.flatten(0, 1).to(like.dtype)


def _sine_codes(count: int, wave: Tensor) -> Tensor:
    """Codes (count, 2 * waves) of the middles of `count` cells, at the frequencies of `wave` (waves,)."""
    angles = (torch.arange(count, device=wave.device) + 0.5) / count * 2 * torch.pi
    return torch.cat([(angles[:, None] * wave).sin(), (angles[:, None] * wave).cos()], 1)


def decode_prompts(
    segmenter: Segmenter, queries: Sequence[ImageFeatures], prompts: Tensor, coarse: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Let SAM answer embedded prompts. Gradients reach the prompts and the mask prompt.

    Args:
        segmenter: The SAM.
        queries: B images.
        prompts: (B, T, P) float, of each image.
        coarse: (B, h, w) float mask logits on any grid over SAM's square; None for no mask prompt.

    Returns:
        Low-resolution logits (B, l, l) and SAM's predicted IoU (B,), both float.
    """
    if coarse is not None:
        sides = (segmenter.low_res_side, segmenter.low_res_side)
        coarse = F.interpolate(coarse[:, None], sides, mode="bilinear", align_corners=False)[:, 0]
    logits = []
    scores = []
    for k, query in enumerate(queries):
        mask_prompt = None if coarse is None else coarse[k : k + 1]
        query_logits, query_scores = segmenter.prompted(query.embedding, prompts[k : k + 1], mask_prompt)
        logits.append(query_logits)
        scores.append(query_scores)
    return torch.cat(logits), torch.cat(scores)
