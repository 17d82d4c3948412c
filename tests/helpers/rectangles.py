"""A data set that a tiny model learns: images of coloured squares, records about them, and an opener.

train = write_dataset(folder, 6)                    # folder/train.jsonl with its images
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from assistant.record import Record, RecordTarget, write_records
from assistant.sam.concepts import Instances, KeptFinds
from assistant.sam.mask_ops import encode_rle
from assistant.sam.proposals import Proposals

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}
CORNERS = [(4, 4), (4, 36), (36, 4), (36, 36)]  # upper left (y, x) of the squares
SQUARE_SIDE = 24
IMAGE_SIDE = 64


def square(k: int) -> np.ndarray:
    """(IMAGE_SIDE, IMAGE_SIDE) bool, the square at corner k."""
    mask = np.zeros((IMAGE_SIDE, IMAGE_SIDE), bool)
    y, x = CORNERS[k]
    mask[y : y + SQUARE_SIDE, x : x + SQUARE_SIDE] = True
    return mask


def low_res(mask: np.ndarray) -> np.ndarray:
    """Low-resolution logits (16, 16) float32 of a mask (IMAGE_SIDE, IMAGE_SIDE)."""
    return np.where(mask[::4, ::4], 5.0, -5.0).astype(np.float32)


class RectangleOpener:
    """Proposes the four squares; the embedding is the image itself, made smaller."""

    segmenter = SimpleNamespace(
        threshold=0.0,
        close_up_below=0.0,
        side=IMAGE_SIDE,
        low_res_side=16,
        feature_width=3,
        low_res_logits=lambda embedding, mask: low_res(mask),
    )

    def open(self, image: np.ndarray, progress: Any = None) -> Any:
        masks = [square(k) for k in range(len(CORNERS))]
        low_res_logits = np.stack([low_res(m) for m in masks])
        last = SQUARE_SIDE - 1
        boxes = np.array([(x, y, x + last, y + last) for y, x in CORNERS], np.float32)
        ones = np.ones(len(masks), np.float32)
        areas = np.array([m.sum() for m in masks])
        size = (IMAGE_SIDE, IMAGE_SIDE)
        proposals = Proposals(
            [encode_rle(m) for m in masks], boxes, ones, ones, areas, boxes[:, :2], low_res_logits, size
        )
        features = torch.from_numpy(image[::4, ::4].astype(np.float32) / 255).movedim(-1, 0)[None]
        embedding = SimpleNamespace(features=features, size=size, input_size=size)
        return SimpleNamespace(embedding=embedding, proposals=proposals, image=image, cache={})


def write_dataset(folder: Path, count: int, seed: int = 0, name: str = "train") -> Path:
    """Write `count` images, each with a question about every colour, one of which is absent.

    Returns:
        The records file.
    """
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        colours = rng.permutation(list(COLOURS))[:2]
        corners = rng.permutation(len(CORNERS))[:2]
        image = np.full((IMAGE_SIDE, IMAGE_SIDE, 3), 200, np.uint8)
        for colour, corner in zip(colours, corners, strict=True):
            image[square(corner)] = COLOURS[colour]
        file = f"{name}{i}.png"
        Image.fromarray(image).save(folder / file)
        corner_of = dict(zip(colours, corners, strict=True))
        for colour in COLOURS:
            rle = encode_rle(square(corner_of[colour])) if colour in corner_of else None
            marker = "[SEG]" if rle else "[ABS]"
            records.append(
                Record(
                    file,
                    IMAGE_SIDE,
                    IMAGE_SIDE,
                    f"where is the {colour} one?",
                    f"{colour} {marker}.",
                    [RecordTarget(colour, rle)],
                )
            )
    write_records(folder / f"{name}.jsonl", records)
    return folder / f"{name}.jsonl"


class RectangleFinder(KeptFinds):
    """Finds the squares of a colour by its name, and takes grey corners for them where there is none."""

    def networks(self) -> dict[str, torch.nn.Module]:
        return {}

    def _fits(self, phrase: str) -> bool:
        return True

    def _find(self, opened: Any, phrase: str) -> Instances:
        masks = [square(k) for k in range(len(CORNERS))]
        colours = [tuple(int(v) for v in opened.image[mask][0]) for mask in masks]
        wanted = COLOURS.get(phrase, (200, 200, 200))
        found = [mask for mask, colour in zip(masks, colours, strict=True) if colour == wanted]
        is_there = bool(found) and phrase in COLOURS
        found = found or [mask for mask, colour in zip(masks, colours, strict=True) if len(set(colour)) == 1]
        scores = np.full(len(found), 0.9 if is_there else 0.35, np.float32)
        boxes = np.zeros((len(found), 4), np.float32)
        size = (IMAGE_SIDE, IMAGE_SIDE)
        return Instances([encode_rle(m) for m in found], boxes, scores, 0.9 if is_there else 0.3, size)
