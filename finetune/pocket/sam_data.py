"""Photos with masks -> prompts and targets for training the pocket SAM.

Reads the folders of a data root, each in its public layout (COCO `instances.json`, label PNGs, region
PNGs, one mask PNG a frame); what is missing is left out. Every sample depends on (seed, index) alone, so
a resumed run sees the data that an uninterrupted one would have seen.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance
from pycocotools import mask as rle
from scipy import ndimage

from assistant.errors import BadInput
from assistant.sam.mask_ops import rle_of_segmentation

# Share of samples from each folder. COCO and people are what users photograph; BSDS teaches whole images.
SHARES = {
    "coco": 0.42,
    "people": 0.15,
    "bsds": 0.18,
    "carparts": 0.07,
    "clothing": 0.08,
    "davis": 0.05,
    "camvid": 0.05,
}
POINTS = 4  # tokens a prompt may hold
SMALLEST = 40  # px of area at training size below which a mask is not prompted


class Photo(NamedTuple):
    folder: str
    image: Path
    masks: list  # RLEs of the instances, or paths of index PNGs of which one is drawn


class Sample(NamedTuple):
    image: torch.Tensor  # (3, S, S) uint8, padded right and below with 127
    targets: torch.Tensor  # (P, S / 4, S / 4) uint8, 255 x covered share of the cell
    points: torch.Tensor  # (P, POINTS, 2) float, px of the square
    labels: torch.Tensor  # (P, POINTS) long, -1 none, 0 negative, 1 positive, 2 and 3 box corners
    kind: torch.Tensor  # (P,) long: 0 box or several clicks, 1 single click, 2 click on nothing outlined


def coco_photos(folder: str, root: Path) -> list[Photo]:
    """Photos of a COCO-format folder (`instances.json`, `images/`), crowds left out."""
    data = json.loads((root / "instances.json").read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in data["images"]}
    masks = {i: [] for i in sizes}
    for a in data["annotations"]:
        if not a.get("iscrowd") and a["segmentation"]:
            masks[a["image_id"]].append(rle_of_segmentation(a["segmentation"], *sizes[a["image_id"]]))
    return [
        Photo(folder, root / "images" / i["file_name"], masks[i["id"]])
        for i in data["images"]
        if masks[i["id"]]
    ]


def all_photos(root: Path) -> dict[str, list[Photo]]:
    """Every training photo under a data root, by folder."""
    found = {}
    for name in ("coco", "people", "carparts"):
        if (root / name / "train/instances.json").exists():
            found[name] = coco_photos(name, root / name / "train")
    for name, sub in (("clothing", "labels"), ("camvid", "labels"), ("davis", "masks")):
        images = sorted((root / name / "train/images").glob("*.jpg"))
        found[name] = [Photo(name, i, [root / name / "train" / sub / f"{i.stem}.png"]) for i in images]
    regions: dict[str, list[Path]] = {}
    for path in sorted((root / "bsds/train/regions").glob("*.png")):
        regions.setdefault(path.stem.split("_")[0], []).append(path)
    found["bsds"] = [
        Photo("bsds", root / f"bsds/train/images/{k}.jpg", v) for k, v in sorted(regions.items())
    ]
    return {k: v for k, v in found.items() if v}


def index_masks(folder: str, index: np.ndarray) -> list[np.ndarray]:
    """The regions of an index map, as bool masks; label maps of things are cut into connected parts."""
    nothing = {"clothing": (0,), "davis": (0,), "camvid": (11,)}.get(folder, ())
    masks = []
    for value in np.unique(index):
        if value in nothing:
            continue
        mask = index == value
        if folder in ("camvid", "clothing"):
            parts, n = ndimage.label(mask)
            sizes = np.bincount(parts.ravel())[1:]
            masks += [parts == k + 1 for k in np.argsort(-sizes)[:4] if sizes[k] >= SMALLEST]
            if n == 1:
                continue
        masks.append(mask)
    return masks


class PromptData(torch.utils.data.Dataset):
    """`size` px samples with `prompts` prompts each; item k of a run is fixed by (seed, k)."""

    def __init__(self, root: Path, size: int, prompts: int, seed: int, length: int):
        self.photos = all_photos(root)
        if not self.photos:
            raise BadInput(
                f"no training photos under {root}; its folders are listed in finetune/pocket/sam_data.py"
            )
        self.size, self.prompts, self.seed, self.length = size, prompts, seed, length
        shares = np.array([SHARES[k] for k in self.photos])
        self.folders, self.shares = list(self.photos), shares / shares.sum()
        captions = root / "cutouts/captions.json"
        self.cutouts = (
            [root / "cutouts" / c["file"] for c in json.loads(captions.read_text())]
            if captions.exists()
            else []
        )

    def __len__(self):
        return self.length

    def __getitem__(self, k: int) -> Sample:
        rng = np.random.default_rng((self.seed, k))
        while True:
            folder = rng.choice(self.folders, p=self.shares)
            photo = self.photos[folder][rng.integers(len(self.photos[folder]))]
            sample = self.make(photo, rng)
            if sample is not None:
                return sample

    def make(self, photo: Photo, rng) -> Sample | None:
        image = Image.open(photo.image).convert("RGB")
        w, h = image.size
        if isinstance(photo.masks[0], Path):
            index = np.asarray(Image.open(photo.masks[rng.integers(len(photo.masks))]))
            masks = index_masks(photo.folder, index > 127 if photo.folder == "davis" else index)
        else:
            chosen = rng.permutation(len(photo.masks))[:24]
            masks = list(rle.decode([photo.masks[i] for i in chosen]).astype(bool).transpose(2, 0, 1))
        if rng.random() < 0.5:  # a crop, so that objects come at every size
            cw, ch = int(w * rng.uniform(0.4, 1)), int(h * rng.uniform(0.4, 1))
            x0, y0 = rng.integers(w - cw + 1), rng.integers(h - ch + 1)
        else:
            cw, ch, x0, y0 = w, h, 0, 0
        scale = self.size / max(cw, ch) * (1 if rng.random() < 0.7 else rng.uniform(0.5, 1))
        nw, nh = max(16, round(cw * scale)), max(16, round(ch * scale))
        flip = rng.random() < 0.5
        box = (x0, y0, x0 + cw, y0 + ch)
        image = image.resize((nw, nh), Image.BILINEAR, box=box)
        resize = lambda m: np.asarray(Image.fromarray(m).resize((nw, nh), Image.NEAREST, box=box))
        masks = [resize(m) for m in masks]
        if flip:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
            masks = [m[:, ::-1] for m in masks]
        if rng.random() < 0.5:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(rng.uniform(0.6, 1.4))
        if self.cutouts and rng.random() < 0.25:
            image, masks = self.paste(image, masks, rng)
        masks = [m for m in masks if m.sum() >= SMALLEST]
        if not masks:
            return None
        square = np.full((self.size, self.size, 3), 127, np.uint8)
        square[:nh, :nw] = np.asarray(image)
        full = np.zeros((len(masks), self.size, self.size), bool)
        for full_mask, m in zip(full, masks):
            full_mask[:nh, :nw] = m
        return self.prompt(photo.folder, square, full, (nh, nw), rng)

    def paste(self, image: Image.Image, masks: list, rng) -> tuple[Image.Image, list]:
        """One to three cut-outs laid on the photo: exact masks, and occlusion for what lies under them."""
        w, h = image.size
        masks = list(masks)
        for _ in range(rng.integers(1, 4)):
            cutout = Image.open(self.cutouts[rng.integers(len(self.cutouts))]).convert("RGBA")
            side = max(w, h) * rng.uniform(0.12, 0.55)
            k = side / max(cutout.size)
            cutout = cutout.resize(
                (max(4, int(cutout.width * k)), max(4, int(cutout.height * k))), Image.BILINEAR
            )
            if rng.random() < 0.5:
                cutout = cutout.transpose(Image.FLIP_LEFT_RIGHT)
            x, y = int(rng.uniform(-0.2, 0.9) * w), int(rng.uniform(-0.2, 0.9) * h)
            alpha = Image.new("L", (w, h))
            alpha.paste(cutout.getchannel("A"), (x, y))
            image = image.copy()
            image.paste(cutout.convert("RGB"), (x, y), cutout.getchannel("A"))
            cover = np.asarray(alpha) > 127
            masks = [m & ~cover for m in masks] + [cover]
        return image, masks

    def prompt(self, folder: str, image: np.ndarray, masks: np.ndarray, inside: tuple, rng) -> Sample:
        """Draw the prompts: boxes, single clicks, several clicks, and clicks on nothing outlined."""
        weights = masks.sum((1, 2)) ** 0.2
        which = rng.choice(len(masks), self.prompts, p=weights / weights.sum())
        points = np.zeros((self.prompts, POINTS, 2), np.float32)
        labels = np.full((self.prompts, POINTS), -1)
        kind = np.zeros(self.prompts, int)
        edges: dict[int, np.ndarray] = {}
        outside = ~masks.any(0)
        outside[inside[0] :], outside[:, inside[1] :] = False, False
        for p, m in enumerate(which):
            mask, r = masks[m], rng.random()
            if r < 0.08 and folder == "coco" and outside.sum() > 500:
                kind[p], labels[p, 0] = 2, 1
                points[p, 0] = pick(outside, rng)
                continue
            if r < 0.5:
                ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32)
                wide = np.tile(box[2:] - box[:2], 2)
                if rng.random() < 0.8:
                    box += np.clip(rng.normal(0, 0.04, 4), -0.1, 0.1) * wide
                points[p, :2] = box.reshape(2, 2).clip(0, self.size) - 0.5
                labels[p, :2] = 2, 3
                if rng.random() < 0.1:
                    points[p, 2], labels[p, 2] = pick(mask, rng), 1
                continue
            if m not in edges:
                edges[m] = ndimage.distance_transform_edt(np.pad(mask[::4, ::4], 1))[1:-1, 1:-1]
            deep = edges[m]
            if rng.random() < 0.5 and deep.max() > 0:  # a person clicks near the middle
                y, x = np.unravel_index(rng.choice(np.flatnonzero(deep >= 0.8 * deep.max())), deep.shape)
                points[p, 0] = x * 4, y * 4
            else:
                points[p, 0] = pick(mask, rng)
            labels[p, 0] = 1
            if r < 0.85:
                kind[p] = 1
                continue
            n = rng.integers(1, POINTS)
            near = ndimage.binary_dilation(mask[::4, ::4], iterations=8) & ~mask[::4, ::4]
            near[inside[0] // 4 :], near[:, inside[1] // 4 :] = False, False
            for j in range(1, n + 1):
                positive = rng.random() < 0.5 or not near.any()
                points[p, j] = pick(mask, rng) if positive else pick(near, rng) * 4
                labels[p, j] = int(positive)
        low = torch.from_numpy(masks[which]).float().unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
        return Sample(
            torch.from_numpy(image).permute(2, 0, 1),
            (low * 255).byte(),
            torch.from_numpy(points),
            torch.from_numpy(labels),
            torch.from_numpy(kind),
        )


def pick(mask: np.ndarray, rng) -> np.ndarray:
    """A random (x, y) of a mask."""
    y, x = np.unravel_index(rng.choice(np.flatnonzero(mask)), mask.shape)
    return np.array([x, y], np.float32)
