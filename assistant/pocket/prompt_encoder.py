"""The prompt encoder of the pocket SAM, which also draws clicks and boxes as maps.

sparse, dense = encoder.encode(points, labels, None)      # (B, T, 128), (B, 128, 32, 32)
maps = draw_prompts(points / 512, labels, 32)             # (B, 32, 32, PROMPT_MAP_CHANNELS)
"""

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from assistant.pocket.image_encoder import GRID_SIDE, IMAGE_SIZE, WIDTH

# Labels of points, as in segment-anything.
NO_PROMPT, NEGATIVE_CLICK, POSITIVE_CLICK, BOX_START, BOX_END = -1, 0, 1, 2, 3
PROMPT_MAP_CHANNELS = 13  # of `draw_prompts`
MIN_BOX_SIDE = 1e-3  # in units of the square, so that no distance is divided by 0
EDGE_SLOPE = 8  # the inside map of a box reaches 1 at 1/8 of a side from the edge
OFFSET_SCALE = 4  # of the offsets to a click, which are mostly below 1/4
CLICK_SIGMAS = (0.02, 0.1)  # of the bumps around a positive click, in units of the square
NEGATIVE_CLICK_SIGMA = 0.03


def draw_prompts(points: Tensor, labels: Tensor, size: int) -> Tensor:
    """Draw clicks and boxes as maps.

    Args:
        points: (B, N, 2) float, x and y in [0, 1] of the padded square.
        labels: (B, N) int64: -1 none, 0 negative click, 1 positive click, 2 and 3 the corners of a box.
        size: Cells along a side of the maps.

    Returns:
        (B, size, size, PROMPT_MAP_CHANNELS) float: four distances to the sides of the box in units of the
        box, whether a cell is inside it, whether there is a box; offsets (2), distance and two bumps for the
        nearest positive click; distance and bump for the nearest negative one.
    """
    line = (torch.arange(size, device=points.device, dtype=torch.float32) + 0.5) / size
    x = line.view(1, 1, size, 1)
    y = line.view(1, size, 1, 1)
    box = _draw_boxes(points, labels, x, y)
    square, offset, exists = _nearest_click(points, labels == POSITIVE_CLICK, x, y)
    narrow, wide = CLICK_SIGMAS
    click = torch.cat(
        [
            offset * OFFSET_SCALE,
            square.sqrt().clamp(max=1) * exists,
            (-square / (2 * narrow**2)).exp(),
            (-square / (2 * wide**2)).exp(),
        ],
        -1,
    )
    square, _, exists = _nearest_click(points, labels == NEGATIVE_CLICK, x, y)
    bump = (-square / (2 * NEGATIVE_CLICK_SIGMA**2)).exp()
    click = torch.cat([click, square.sqrt().clamp(max=1) * exists, bump], -1)
    return torch.cat([box, click], -1)


def _draw_boxes(points: Tensor, labels: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The six maps of a box, all 0 where there is none -> (B, size, size, 6)."""
    batch, size = len(labels), y.shape[1]
    start, end = (
        (points * (labels == corner)[..., None]).sum(1).view(batch, 1, 1, 2)
        for corner in (BOX_START, BOX_END)
    )
    exists = (labels == BOX_START).any(1).view(batch, 1, 1, 1)
    extent = (end - start).clamp(min=MIN_BOX_SIDE)
    zero = torch.zeros(batch, size, size, 1, device=points.device)
    distances = [
        (x - start[..., :1]) / extent[..., :1],
        (end[..., :1] - x) / extent[..., :1],
        (y - start[..., 1:]) / extent[..., 1:],
        (end[..., 1:] - y) / extent[..., 1:],
    ]
    sides = torch.cat([distance.clamp(-1, 1) + zero for distance in distances], -1)
    inside = (sides.amin(-1, keepdim=True) * EDGE_SLOPE).clamp(-1, 1)
    return torch.cat([sides, inside, zero + 1], -1) * exists


def _nearest_click(points: Tensor, is_kind: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest of the clicks for which `is_kind` (B, N) is True, relative to each cell.

    Returns its squared distance (B, size, size, 1), 1e4 where there is none; its offset (B, size, size, 2), 0
    where there is none; and whether there is one (B, 1, 1, 1) bool.
    """
    (batch, count), size = is_kind.shape, y.shape[1]
    mask = is_kind.view(batch, 1, 1, count)
    dx = points[:, None, None, :, 0] - x
    dy = points[:, None, None, :, 1] - y
    square, which = (dx.square() + dy.square()).masked_fill(~mask, 1e4).min(-1, keepdim=True)
    nearest = [d.expand(batch, size, size, count).gather(-1, which) for d in (dx, dy)]
    exists = mask.any(-1, keepdim=True)
    return square, torch.cat(nearest, -1) * exists, exists


class PocketPromptEncoder(PromptEncoder):
    """SAM's prompt encoder, whose dense embedding also carries the drawn prompts."""

    def __init__(self) -> None:
        super().__init__(WIDTH, (GRID_SIDE, GRID_SIDE), (IMAGE_SIZE, IMAGE_SIZE), mask_in_chans=16)
        self.draw = nn.Sequential(nn.Linear(PROMPT_MAP_CHANNELS, 64), nn.ReLU(), nn.Linear(64, WIDTH))

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As SAM's.

        Args:
            points: (B, N, 2) px of the 512 square with labels (B, N), or None.
            boxes: (B, 4) xyxy px of the 512 square, or None.
            masks: (B, 1, 128, 128) logits, or None.

        Returns:
            Sparse (B, T, 128) and dense (B, 128, 32, 32) embeddings.
        """
        coords: list[Tensor] = []
        labels: list[Tensor] = []
        if points is not None:
            coords.append(points[0].float())
            labels.append(points[1])
        if boxes is not None:
            coords.append(boxes.reshape(-1, 2, 2).float())
            corners = torch.tensor([[BOX_START, BOX_END]], device=boxes.device)
            labels.append(corners.expand(len(coords[-1]), 2))
        if not coords:
            batch = 1 if masks is None else len(masks)
            coords.append(torch.zeros(batch, 1, 2, device=self._get_device()))
            labels.append(torch.full((batch, 1), NO_PROMPT))
        all_labels = torch.cat([part.long().to(coords[0].device) for part in labels], 1)
        return self.encode(torch.cat(coords, 1), all_labels, masks)

    def encode(
        self, coords: Tensor, labels: Tensor, masks: Tensor | None, grid: int = GRID_SIDE
    ) -> tuple[Tensor, Tensor]:
        """Encode prompts of mixed kinds and one length.

        Args:
            coords: (B, N, 2) px of the square.
            labels: (B, N) int64: -1 padding, 0 negative click, 1 positive click, 2 and 3 box corners.
            masks: (B, 1, 4 * grid, 4 * grid) logits, or None.
            grid: Cells along a side of the embedding; training also runs on squares below 512 px.

        Returns:
            Sparse (B, N, 128) and dense (B, 128, grid, grid) embeddings.
        """
        unit = (coords + 0.5) / (16 * grid)
        sparse = self.pe_layer._pe_encoding(unit) * (labels >= 0)[..., None]
        kinds = torch.cat([self.not_a_point_embed.weight] + [e.weight for e in self.point_embeddings])
        sparse = sparse + kinds[labels + 1]
        if masks is None:
            dense = self.no_mask_embed.weight.view(1, 1, 1, -1)
        else:
            dense = self._embed_masks(masks.float()).permute(0, 2, 3, 1)
        return sparse, (dense + self.draw(draw_prompts(unit, labels, grid))).permute(0, 3, 1, 2)
