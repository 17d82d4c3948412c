"""Finds the tokens of an image and of a phrase in what a chat model reads.

    positions, places = image_positions(ids, model.config, tokenizer, inputs, count=1, image_share=(1.0, 1.0))
    phrase_positions(tokenizer, ids, mask, int(positions.max()) + 1, "mug")

Chat models write the tokens of an image into the text, each family in its own way: LLaVA as one square grid,
Qwen-VL as one grid in the image's own shape, SmolVLM as square tiles followed by the whole image. Of InternVL
the whole image is read, without its tiles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from assistant.attention.transformers_probe import PatchGrid, PatchPlaces
from assistant.errors import BadInput

TILE_MARK = re.compile(r"row_(\d+)_col_(\d+)")  # what SmolVLM writes before the tokens of a tile
TILE_MARK_TOKENS = 3  # before a tile's first token, among which that mark stands


def image_positions(
    ids: Tensor,
    config: Any,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    count: int,
    image_share: tuple[float, float],
) -> tuple[Tensor, PatchPlaces]:
    """Find the tokens of the last of several images, by the model's own token ids.

    Args:
        ids: (T,) int64, what the model reads.
        config: Of the model, from transformers.
        tokenizer: Of the model.
        inputs: What the processor returned for the batch.
        count: Number of images in the conversation.
        image_share: The shares of the height and width of what the model is shown that the image fills, in
            its middle.

    Returns:
        The positions (N,) int64 in `ids`, and where these N places lie in the image.

    Raises:
        BadInput: The model does not write images as tokens, or on no grid that is known here.
    """
    token: Any = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    positions = (ids == token).nonzero()[:, 0]
    if not len(positions):
        raise BadInput(
            "this model does not show its images as tokens of the text; attention maps need one that does"
        )
    if "image_grid_thw" in inputs:
        sizes = inputs["image_grid_thw"][:count].tolist()
        return _last_of_qwen(positions, sizes, config.vision_config.spatial_merge_size, image_share)
    breaks = (positions.diff() > 1).nonzero()[:, 0] + 1
    runs = list(torch.tensor_split(positions, breaks.cpu()))
    if tile_length := getattr(config, "image_seq_length", None):
        # InternVL writes the tiles and then the whole image in one run.
        runs = [run[-tile_length:] for run in runs]
    whole, tiles = _last_image(ids, tokenizer, runs)
    return _square_grids(whole, tiles, image_share)


def _last_of_qwen(
    positions: Tensor, sizes: list[list[int]], merge: int, image_share: tuple[float, float]
) -> tuple[Tensor, PatchPlaces]:
    """The last image of Qwen-VL, which has one run of tokens per image.

    Args:
        positions: (M,) int64, the tokens of all images.
        sizes: (frames, rows, columns) in patches, of each image.
        merge: Patches along the side of a token.
        image_share: See `image_positions`.
    """
    grids = [(rows // merge, columns // merge) for _, rows, columns in sizes]
    rows, columns = grids[-1]
    last = positions[sum(high * wide for high, wide in grids[:-1]) :]
    index = torch.arange(rows * columns).view(rows, columns)
    return _checked(last, rows * columns), PatchPlaces([PatchGrid(index, image_share)])


def _last_image(
    ids: Tensor, tokenizer: Any, runs: list[Tensor]
) -> tuple[Tensor | None, dict[tuple[int, int], Tensor]]:
    """The last image among runs of image tokens: the run of the whole image, and the runs of its tiles.

    An image is written as its tiles, row by row, and then as a whole.

    Args:
        ids: (T,) int64, what the model reads.
        tokenizer: Of the model.
        runs: Successive positions in `ids`, of all images.

    Returns:
        The run of the whole image, if it has one, and {(row, column) from 0: run} of its tiles.
    """
    whole: Tensor | None = None
    tiles: dict[tuple[int, int], Tensor] = {}
    is_complete = True
    for run in runs:
        if is_complete:  # the next image begins
            whole = None
            tiles = {}
        first = int(run[0])
        marks = TILE_MARK.findall(tokenizer.decode(ids[max(0, first - TILE_MARK_TOKENS) : first]))
        if marks:
            row, column = marks[-1]
            tiles[int(row) - 1, int(column) - 1] = run
        else:
            whole = run
        is_complete = not marks
    return whole, tiles


def _square_grids(
    whole: Tensor | None, tiles: dict[tuple[int, int], Tensor], image_share: tuple[float, float]
) -> tuple[Tensor, PatchPlaces]:
    """Positions and places of an image whose whole is one square grid and whose tiles make another grid."""
    positions: list[Tensor] = []
    grids = []
    count = 0
    if whole is not None:
        side = _square_side(whole)
        grids.append(PatchGrid(torch.arange(side * side).view(side, side), image_share))
        positions.append(whole)
        count = side * side
    if tiles:
        side = _square_side(next(iter(tiles.values())))
        rows = max(row for row, _ in tiles) + 1
        columns = max(column for _, column in tiles) + 1
        index = torch.empty(rows * side, columns * side, dtype=torch.long)
        for (row, column), run in sorted(tiles.items(), key=lambda item: item[0]):
            numbers = count + torch.arange(side * side).view(side, side)
            index[row * side : (row + 1) * side, column * side : (column + 1) * side] = numbers
            positions.append(run)
            count += side * side
        grids.append(PatchGrid(index, image_share))
    return torch.cat(positions), PatchPlaces(grids)


def _square_side(run: Tensor) -> int:
    """The side of the square grid whose tokens a run holds. Raises BadInput where it is not square."""
    side = round(len(run) ** 0.5)
    _checked(run, side * side)
    return side


def _checked(run: Tensor, expected: int) -> Tensor:
    """The run, if it has the expected length. Raises BadInput where it has not."""
    if len(run) != expected:
        raise BadInput(
            f"the image takes {len(run)} tokens, which is no grid that is known here: attention maps need "
            "LLaVA 1.5, Qwen-VL, SmolVLM, InternVL or Gemma 3"
        )
    return run


def phrase_positions(tokenizer: Any, ids: Tensor, mask: Tensor, start: int, phrase: str) -> Tensor:
    """Find the first mention of a phrase: the tokens through which the decoded text grows over it.

    Args:
        tokenizer: Of the model.
        ids: (T,) int64, what the model reads.
        mask: (T,) bool, False for padding.
        start: The first position to look at.
        phrase: The phrase.

    Returns:
        (K,) int64, positions in `ids`.

    Raises:
        BadInput: The tokenizer cannot write the phrase.
    """
    positions = [position for position in mask.nonzero()[:, 0].tolist() if position >= start]
    texts = [
        tokenizer.decode(ids[positions[:k]], clean_up_tokenization_spaces=False)
        for k in range(len(positions) + 1)
    ]
    begin = texts[-1].find(phrase)
    if begin < 0:
        raise BadInput(f'this model\'s tokenizer cannot write "{phrase}": use other words')
    end = begin + len(phrase)
    of_phrase = [
        position
        for position, before, after in zip(positions, texts, texts[1:], strict=False)
        if len(after) > begin and len(before) < end
    ]
    return torch.tensor(of_phrase, device=ids.device)
