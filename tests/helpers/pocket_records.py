"""Regions and records of made-up images, from which the stages of the pocket preset learn in seconds."""

import argparse
from pathlib import Path

import numpy as np
import torch

from assistant.pocket.region_features import FEATURE_DIM
from assistant.record import Record, RecordTarget
from assistant.sam.mask_ops import encode_rle
from finetune.pocket import records
from finetune.region_cache import ImageRegions

NAMES = ["cat", "cup", "dog"]
IMAGE_COUNT = 12
WIDTH, HEIGHT = 60, 40


def random_regions(rng: np.random.Generator) -> ImageRegions:
    """Regions of one image: each instance twice, once under its name and once as a proposal."""
    features, rles, names = [], [], []
    for k in rng.permutation(3)[: rng.integers(1, 4)]:
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[5:20, 5 + 18 * k : 18 + 18 * k] = True
        of_region = rng.normal(0, 0.3, FEATURE_DIM).astype(np.float32)
        of_region[300 * k : 300 * k + 300] += 1
        features.append(of_region)
        rles.append(encode_rle(mask))
        names.append(NAMES[k])
    return ImageRegions(torch.from_numpy(np.stack(features * 2)), rles * 2, names)


def regions_of_images(folder: Path) -> dict[Path, ImageRegions]:
    """The regions of IMAGE_COUNT images in `folder`, the same at each call."""
    rng = np.random.default_rng(0)
    return {(folder / f"{i}.jpg").resolve(): random_regions(rng) for i in range(IMAGE_COUNT)}


def records_of_images(regions: dict[Path, ImageRegions]) -> list[Record]:
    """For each image one question about each of NAMES."""
    rows = []
    for image, of_image in regions.items():
        for name in NAMES:
            rle = of_image.rles[of_image.names.index(name)] if name in of_image.names else None
            rows.append(
                Record(
                    image.name,
                    WIDTH,
                    HEIGHT,
                    f"where is the {name}?",
                    f"{name} {'[SEG]' if rle else '[ABS]'}.",
                    [RecordTarget(name, rle)],
                    {"kind": "named" if rle else "absent", "categories": [name]},
                )
            )
    return rows


def records_arguments(folder: Path, out: Path) -> argparse.Namespace:
    """The command line of `finetune records` on records.jsonl of `folder`."""
    parser = argparse.ArgumentParser()
    records.add_arguments(parser)
    words = {
        "data": folder / "records.jsonl",
        "named": "none",
        "sam": folder / "records.jsonl",  # any file: nothing is opened
        "out": out,
        "steps": 4,
        "batch": 4,
        "encoder-steps": 150,
        "states": 40,
        "selector-steps": 60,
        "save-every": 0,
        "rank": 2,
    }
    return parser.parse_args([word for name, value in words.items() for word in (f"--{name}", str(value))])
