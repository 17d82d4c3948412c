"""Proposals and region features of every training picture, computed once and kept on disk.

One `.npz` a picture under `<out>/regions`, named by the picture's path and the checksum of the SAM
weights: other weights mean other files, a stopped run goes on where it was, training never waits for SAM.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from tqdm import tqdm

from assistant.files import replace_whole
from assistant.record import coco_rle


@dataclass
class Regions:
    """Of one picture: `named` outlined things first, then proposals."""

    features: Tensor  # (N, R) float
    rles: list[dict]  # N
    names: list[str]  # of the outlined ones; the rest are proposals


def named_regions(instances: Path) -> dict[str, list[tuple[str, dict]]]:
    """COCO `instances.json` -> {file name: [(category name, RLE)]}, crowds left out."""
    data = json.loads(instances.read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    images = {i["id"]: i for i in data["images"]}
    found: dict[str, list] = {i["file_name"]: [] for i in data["images"]}
    for a in data["annotations"]:
        image = images[a["image_id"]]
        if not a.get("iscrowd") and a["segmentation"]:
            rle = coco_rle(a["segmentation"], image["height"], image["width"])
            found[image["file_name"]].append((names[a["category_id"]], rle))
    return found


def cached_regions(eyes, key: str, image_file: Path, named: list[tuple[str, dict]], folder: Path) -> Regions:
    """Read, or compute and keep, one picture's regions. `key` tells the weights apart."""
    kept = folder / (hashlib.sha256(f"{key} {image_file.resolve()} {len(named)}".encode()).hexdigest()[:24] + ".npz")
    if not kept.exists():
        from assistant.images import open_image
        from assistant.pocket.model import fast_math, shrink

        image = open_image(image_file)
        view = eyes.open(image)
        features, rles, names = [view.features], list(view.proposals.rles), []
        if named:
            usable = [(n, r) for n, r in named if coco_mask.area(r) > 30]
            low = [eyes.segmenter.low_logits(view.embedding, coco_mask.decode(r).astype(bool)) for _, r in usable]
            solid = [(n, r, l) for (n, r), l in zip(usable, low) if (l > 0).sum() >= 2]
            if solid:
                with fast_math():
                    own = eyes.features(shrink(image), view.embedding, torch.from_numpy(np.stack([l for *_, l in solid])))
                features, rles = [own, *features], [r for _, r, _ in solid] + rles
                names = [n for n, *_ in solid]
        with replace_whole(kept) as path, path.open("wb") as f:
            np.savez_compressed(f, features=torch.cat(features).half().numpy(), rles=json.dumps(rles), names=json.dumps(names))
    with np.load(kept) as file:
        return Regions(torch.from_numpy(file["features"].astype(np.float32)), json.loads(str(file["rles"])),
                       json.loads(str(file["names"])))


def all_regions(eyes, key: str, images: list[Path], named: dict[str, list], folder: Path) -> dict[Path, Regions]:
    folder.mkdir(parents=True, exist_ok=True)
    return {i: cached_regions(eyes, key, i, named.get(i.name, []), folder) for i in tqdm(images, desc="regions", disable=None)}


def overlaps(rles: list[dict], target: dict) -> tuple[np.ndarray, np.ndarray]:
    """IoU and IoP of N masks with one target -> (N,), (N,) float32."""
    iou = coco_mask.iou(rles, [target], [False])[:, 0]
    iop = coco_mask.iou(rles, [target], [True])[:, 0]  # "crowd" divides by the detection's own area
    return iou.astype(np.float32), iop.astype(np.float32)
