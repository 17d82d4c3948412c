"""Tiles of an image: parts that are encoded by themselves, on which small things are found and named.

    tiles = encode_tiles(segmenter, detector, embedding)
    logits = on_image(tile_logits, tiles[0], embedding.size, elsewhere=-20)    # over the image's square

On the whole image a thing of 20 px has five cells of the mask decoder's output; on a tile it has nine. SAM's
everything mode does so with `crop_n_layers` (Kirillov et al. 2023, arXiv 2304.02643).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.pocket.detector import Detections, Detector, distinct_detections
from assistant.pocket.image_encoder import IMAGE_SIZE
from assistant.sam.close_up import encode_part, part_pixels
from assistant.sam.segmenter import Embedding, Segmenter

TILE_SIDE = 288  # px of the 512 square; two along a side overlap by 64 px
MARGIN = 4  # px of a tile's square from an edge inside the image; what is nearer may go on beyond it


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        embedding: Its encoding; the size is that of the part in px of the image.
        window: (left, top, right, bottom), whole px of the image.
        detector_maps: What the detector sees in it.
        detections: What it finds in it, on the tile's square.
    """

    embedding: Embedding
    window: tuple[int, int, int, int]
    detector_maps: tuple[Tensor, ...]
    detections: Detections


def tile_windows(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """The tiles of an image of `size` (H, W) px, row by row: (left, top, right, bottom) px each."""
    unit = max(size) / IMAGE_SIZE
    side = TILE_SIDE * unit
    tops, lefts = ([0.0] if length <= side else [0.0, length - side] for length in size)
    height, width = size
    return [
        (round(left), round(top), round(min(left + side, width)), round(min(top + side, height)))
        for top in tops
        for left in lefts
    ]


def encode_tiles(segmenter: Segmenter, detector: Detector, embedding: Embedding) -> list[Tile]:
    """Encode the tiles of an image; none where its encoding does not hold its pixels."""
    if embedding.pixels is None:
        return []
    tiles = []
    for window in tile_windows(embedding.size):
        part = encode_part(segmenter, embedding, window)
        part.features = part.features.float()
        maps = detector.maps_of(part_pixels(embedding, window))
        tiles.append(Tile(part, window, maps, detector.detect(maps, *part.input_size)))
    return tiles


def whole_small_boxes(boxes: Tensor, tile: Tile, size: tuple[int, int], below: float) -> Tensor:
    """Which boxes of a tile show a small thing that does not go on beyond the tile.

    Args:
        boxes: (N, 4) xyxy px of the tile's square.
        tile: The tile.
        size: (H, W) px of the image.
        below: Longest side of a small thing, px of the image's square.

    Returns:
        (N,) bool.
    """
    left, top, right, bottom = tile.window
    used_height, used_width = tile.embedding.input_size
    scale = max(right - left, bottom - top) / max(size)  # px of the image's square to one of the tile's
    inside = (boxes[:, 2:] - boxes[:, :2]).amax(1) * scale < below
    if left > 0:
        inside &= boxes[:, 0] >= MARGIN
    if top > 0:
        inside &= boxes[:, 1] >= MARGIN
    if right < size[1]:
        inside &= boxes[:, 2] <= used_width - MARGIN
    if bottom < size[0]:
        inside &= boxes[:, 3] <= used_height - MARGIN
    return inside


def detections_on_image(
    on_whole: Detections, tiles: Sequence[Tile], size: tuple[int, int], below: float
) -> Detections:
    """What is detected in an image and, of small things, on its tiles; each thing once.

    Args:
        on_whole: What is detected in the image as a whole.
        tiles: Its tiles.
        size: (H, W) px of the image.
        below: Longest side of a small thing, px of the image's square.

    Returns:
        The detections on the image's square.
    """
    found = [on_whole]
    unit = max(size) / IMAGE_SIZE
    for tile in tiles:
        boxes, scores, categories = tile.detections
        small = whole_small_boxes(boxes, tile, size, below)
        left, top, right, bottom = tile.window
        scale = max(right - left, bottom - top) / max(size)
        corner = torch.tensor([left, top, left, top]) / unit
        found.append(Detections(boxes[small] * scale + corner, scores[small], categories[small]))
    return distinct_detections(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def on_image(values: Tensor, tile: Tile, size: tuple[int, int], elsewhere: float) -> Tensor:
    """Lay values over a tile on the square of the whole image.

    Args:
        values: (N, l, l) float32 over the tile's square.
        tile: The tile.
        size: (H, W) px of the image.
        elsewhere: What the cells outside of the tile get.

    Returns:
        (N, l, l) float32 over the image's square.
    """
    side = values.shape[-1]
    left, top, right, bottom = tile.window
    pixels = (torch.arange(side) + 0.5) * max(size) / side  # middles of the image's cells
    unit = max(right - left, bottom - top) / 2  # px of the image to one of grid_sample's units
    x, y = ((pixels - corner) / unit - 1 for corner in (left, top))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    return F.grid_sample((values - elsewhere)[None], grid, align_corners=False)[0] + elsewhere
