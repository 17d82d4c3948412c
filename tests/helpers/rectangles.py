"""Pictures of coloured rectangles, records about them, and eyes that propose every rectangle: a world that a tiny model
learns."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from assistant.record import Record, RecordTarget, write_records
from assistant.sam.mask_ops import encode_rle
from assistant.sam.proposals import Proposals

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}
PLACES = [(4, 4), (4, 36), (36, 4), (36, 36)]  # top left corners (y, x) of 24 px squares in 64 px
SIDE = 64


def square(k: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    y, x = PLACES[k]
    mask[y : y + 24, x : x + 24] = True
    return mask


class RectangleOpener:
    """Proposes the four places; the embedding is the picture itself, small."""

    segmenter = SimpleNamespace(threshold=0.0, side=SIDE, low_res_side=16)

    def __init__(self):
        self.opened = 0

    def open(self, image, progress=None):
        import torch

        self.opened += 1
        masks = [square(k) for k in range(len(PLACES))]
        low = np.stack([np.where(m[::4, ::4], 5.0, -5.0) for m in masks]).astype(np.float32)
        boxes = np.array([(x, y, x + 23, y + 23) for y, x in PLACES], np.float32)
        ones = np.ones(len(masks), np.float32)
        areas = np.array([m.sum() for m in masks])
        proposals = Proposals(
            [encode_rle(m) for m in masks], boxes, ones, ones, areas, boxes[:, :2], low, (SIDE, SIDE)
        )
        features = torch.from_numpy(image[::4, ::4].astype(np.float32) / 255).movedim(-1, 0)[None]
        return SimpleNamespace(
            embedding=SimpleNamespace(features=features, size=(SIDE, SIDE), input_size=(SIDE, SIDE)),
            proposals=proposals,
        )


def write_world(folder: Path, pictures: int, seed: int = 0, name: str = "train") -> Path:
    """`pictures` pictures, each with a question about every colour. Two colours are there, one is not."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(pictures):
        colours, places = rng.permutation(list(COLOURS))[:2], rng.permutation(len(PLACES))[:2]
        image = np.full((SIDE, SIDE, 3), 200, np.uint8)
        for colour, place in zip(colours, places):
            image[square(place)] = COLOURS[colour]
        Image.fromarray(image).save(folder / f"{name}{i}.png")
        at = dict(zip(colours, places))
        for colour in COLOURS:
            rle = encode_rle(square(at[colour])) if colour in at else None
            rows.append(
                Record(
                    f"{name}{i}.png",
                    SIDE,
                    SIDE,
                    f"where is the {colour} one?",
                    f"{colour} {'[SEG]' if rle else '[ABS]'}.",
                    [RecordTarget(colour, rle)],
                )
            )
    write_records(folder / f"{name}.jsonl", rows)
    return folder / f"{name}.jsonl"
