"""Proposals and region features of every training picture, computed once and kept on disk.

What is outlined is also seen in other views of the picture (cut, mirrored, in other light): few pictures
are outlined, and a name learned from one view of a thing is soon forgotten in the next.

One `.npz` a picture under `<out>/regions`, named by the picture's path and the checksum of the SAM
weights: other weights mean other files, a stopped run goes on where it was, training never waits for SAM.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from pycocotools import mask as coco_mask
from torch import Tensor
from tqdm import tqdm

from assistant.files import replace_whole
from assistant.pocket.vision import REGION
from assistant.record import coco_rle

VIEWS = 4  # other views of each picture


@dataclass
class Regions:
    """Of one picture: `named` outlined things first, then proposals."""

    features: Tensor  # (N, R) float
    rles: list[dict]  # N
    names: list[str]  # of the outlined ones; the rest are proposals
    views: Tensor = field(default_factory=lambda: torch.zeros(0, REGION))  # (V, R) float, of outlined things seen otherwise
    view_names: list[str] = field(default_factory=list)  # V


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


def outlined_features(eyes, image: np.ndarray, embedding, named: list[tuple[str, np.ndarray]]) -> tuple[Tensor, list[int]]:
    """Features (K, R) of outlined things (name, (H, W) bool) as seen in `image`, and which of them they are: what covers
    less than two cells is left out."""
    from assistant.pocket.model import fast_math, shrink

    low = [eyes.segmenter.low_logits(embedding, mask) for _, mask in named]
    solid = [k for k, logits in enumerate(low) if (logits > 0).sum() >= 2]
    if not solid:
        return torch.zeros(0, REGION), []
    with fast_math():
        return eyes.features(shrink(image), embedding, torch.from_numpy(np.stack([low[k] for k in solid]))), solid


def other_view(image: np.ndarray, named: list[tuple[str, np.ndarray]], rng) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """The picture cut to a part, maybe mirrored, in other light; and what of the outlined things is left in it."""
    h, w = image.shape[:2]
    ch, cw = (max(16, int(side * rng.uniform(0.5, 1))) for side in (h, w))
    y, x = rng.integers(h - ch + 1), rng.integers(w - cw + 1)
    step = -1 if rng.random() < 0.5 else 1
    cut = lambda a: np.ascontiguousarray(a[y : y + ch, x : x + cw][:, ::step])
    left = [(name, cut(mask)) for name, mask in named]
    left = [(name, mask) for (name, mask), (_, whole) in zip(left, named) if mask.sum() > 0.6 * whole.sum()]
    picture = Image.fromarray(cut(image))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(rng.uniform(0.6, 1.4))
    return np.asarray(picture), left


def cached_regions(eyes, key: str, image_file: Path, named: list[tuple[str, dict]], folder: Path) -> Regions:
    """Read, or compute and keep, one picture's regions. `key` tells the weights apart."""
    kept = folder / (hashlib.sha256(f"{key} {image_file.resolve()} {len(named)} {VIEWS}".encode()).hexdigest()[:24] + ".npz")
    if not kept.exists():
        from assistant.images import open_image

        image = open_image(image_file)
        view = eyes.open(image)
        masks = [(name, coco_mask.decode(rle).astype(bool)) for name, rle in named]
        own, solid = outlined_features(eyes, image, view.embedding, masks)
        features, rles = torch.cat([own, view.features]), [named[k][1] for k in solid] + list(view.proposals.rles)
        rng = np.random.default_rng(int(hashlib.sha256(image_file.name.encode()).hexdigest()[:8], 16))
        views, view_names = [torch.zeros(0, REGION)], []
        for _ in range(VIEWS if named else 0):
            other, left = other_view(image, masks, rng)
            if left:
                found, which = outlined_features(eyes, other, eyes.segmenter.encode(other), left)
                views.append(found)
                view_names += [left[k][0] for k in which]
        with replace_whole(kept) as path, path.open("wb") as f:
            np.savez_compressed(f, features=features.half().numpy(), rles=json.dumps(rles), views=torch.cat(views).half().numpy(),
                                names=json.dumps([named[k][0] for k in solid]), view_names=json.dumps(view_names))
    with np.load(kept) as file:
        features, views = (torch.from_numpy(file[k].astype(np.float32)) for k in ("features", "views"))
        rles, names, view_names = (json.loads(str(file[k])) for k in ("rles", "names", "view_names"))
    return Regions(features, rles, names, views, view_names)


def all_regions(eyes, key: str, images: list[Path], named: dict[str, list], folder: Path) -> dict[Path, Regions]:
    folder.mkdir(parents=True, exist_ok=True)
    return {i: cached_regions(eyes, key, i, named.get(i.name, []), folder) for i in tqdm(images, desc="regions", disable=None)}


def overlaps(rles: list[dict], target: dict) -> tuple[np.ndarray, np.ndarray]:
    """IoU and IoP of N masks with one target -> (N,), (N,) float32."""
    iou = coco_mask.iou(rles, [target], [False])[:, 0]
    iop = coco_mask.iou(rles, [target], [True])[:, 0]  # "crowd" divides by the detection's own area
    return iou.astype(np.float32), iop.astype(np.float32)
