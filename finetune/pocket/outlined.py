"""Outlined things of the pocket preset's training pictures, whose names its region encoder learns.

What is outlined is also seen in other views of the picture (cut, mirrored, in other light): few pictures are outlined,
and a name learned from one view of a thing is soon forgotten in the next. Kept on disk as proposals are.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from tqdm import tqdm

from assistant.errors import BadInput
from assistant.pocket.region_features import REGION
from assistant.record import Record
from assistant.sam.mask_ops import decode_rle, encode_rle, rle_of_segmentation
from finetune.check import must_exist
from finetune.region_cache import ImageRegions, RegionCache, cache_key, cached_regions

VIEWS = 4  # other views of each picture, where names are learned from nothing
PART = 0.2  # of a target's area: what is connected and covers as much is a thing of its own (both wheels of a car)


def named_regions(instances: Path) -> dict[str, list[tuple[str, dict]]]:
    """COCO `instances.json` -> {file name: [(category name, RLE)]}, crowds left out."""
    must_exist(instances)
    data = json.loads(instances.read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    images = {i["id"]: i for i in data["images"]}
    found: dict[str, list] = {i["file_name"]: [] for i in data["images"]}
    for a in data["annotations"]:
        image = images[a["image_id"]]
        if not a.get("iscrowd") and a["segmentation"]:
            rle = rle_of_segmentation(a["segmentation"], image["height"], image["width"])
            found[image["file_name"]].append((names[a["category_id"]], rle))
    return found


def named_in_records(
    records: list[tuple[Record, Path]], apart: bool = True
) -> dict[Path, list[tuple[str, dict]]]:
    """What the targets of records outline, by picture: (name, RLE), every thing once. The name is the category where the
    record tells it, else the phrase. apart: each connected part of a target for itself."""
    from scipy import ndimage

    found: dict[Path, dict] = {}
    for record, image in records:
        categories = record.source.get("categories", [])
        for k, target in enumerate(record.targets):
            if target.rle is None:
                continue
            name = categories[k] if len(categories) == len(record.targets) else target.phrase.lower()
            found.setdefault(image, {}).setdefault((name, target.rle["counts"]), target.rle)
    named: dict[Path, list] = {image: [] for _, image in records}
    for image, things in found.items():
        seen = set()
        for (name, _), rle in things.items():
            mask = decode_rle(rle)
            parts, count = ndimage.label(mask)
            sizes = np.bincount(parts.ravel())[1:]
            whole = [k + 1 for k in range(count) if sizes[k] >= PART * mask.sum()]
            for rle in [rle] if len(whole) < 2 or not apart else [encode_rle(parts == k) for k in whole]:
                if (name, rle["counts"]) not in seen:
                    seen.add((name, rle["counts"]))
                    named[image].append((name, rle))
    return named


def outlined(
    records: list[tuple[Record, Path]], by_name: dict[str, list[tuple[str, dict]]], apart: bool = True
) -> dict[Path, list[tuple[str, dict]]]:
    """Every picture's outlined things (name, RLE): as `by_name` lists them by file name, else as its records do."""
    told = named_in_records([(r, image) for r, image in records if image.name not in by_name], apart)
    return {
        image: by_name[image.name] if image.name in by_name else told[image]
        for image in sorted({i for _, i in records})
    }


def outlined_features(
    opener, image: np.ndarray, embedding, named: list[tuple[str, np.ndarray]]
) -> tuple[Tensor, list[int]]:
    """Features (K, R) of outlined things (name, (H, W) bool) as seen in `image`, and which of them they are: what covers
    less than two cells is left out."""
    from assistant.pocket.opening import fast_math, shrink

    low = [opener.segmenter.low_res_logits(embedding, mask) for _, mask in named]
    solid = [k for k, logits in enumerate(low) if (logits > 0).sum() >= 2]
    if not solid:
        return torch.zeros(0, REGION), []
    with fast_math():
        return opener.features(
            shrink(image), embedding, torch.from_numpy(np.stack([low[k] for k in solid]))
        ), solid


def other_view(
    image: np.ndarray, named: list[tuple[str, np.ndarray]], rng, least: float = 0.6, smallest: float = 0.5
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """The picture cut to a part, `smallest` of its sides or more, maybe mirrored, in other light; and the outlined things of
    which more than the share `least` is left in it."""
    h, w = image.shape[:2]
    ch, cw = (max(16, int(side * rng.uniform(smallest, 1))) for side in (h, w))
    y, x = rng.integers(h - ch + 1), rng.integers(w - cw + 1)
    step = -1 if rng.random() < 0.5 else 1
    cut = lambda a: np.ascontiguousarray(a[y : y + ch, x : x + cw][:, ::step])
    left = [(name, cut(mask)) for name, mask in named]
    left = [(name, mask) for (name, mask), (_, whole) in zip(left, named) if mask.sum() > least * whole.sum()]
    picture = Image.fromarray(cut(image))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(rng.uniform(0.6, 1.4))
    return np.asarray(picture), left


def outlined_name(key: str, image_file: Path, named: list[tuple[str, dict]], count: int) -> str:
    """Under which name what is outlined in a picture, with `count` other views, is kept."""
    return "outlined-" + cache_key(
        hashlib.sha256(f"{key} {count} {json.dumps(named)}".encode()).hexdigest(), image_file
    )


def outlined_of(
    opener, key: str, image_file: Path, named: list[tuple[str, dict]], kept: RegionCache, count: int
) -> dict:
    """One picture's outlined things and their `count` other views, read or computed: features, views (V, REGION); rles, names,
    view_names."""

    def make():
        from assistant.images import open_image

        image = open_image(image_file)
        masks = [(name, decode_rle(rle)) for name, rle in named]
        own, solid = outlined_features(opener, image, opener.segmenter.encode(image), masks)
        rng = np.random.default_rng(int(hashlib.sha256(image_file.name.encode()).hexdigest()[:8], 16))
        views, view_names = [torch.zeros(0, REGION)], []
        for _ in range(count):
            other, left = other_view(image, masks, rng)
            if left:
                found, which = outlined_features(opener, other, opener.segmenter.encode(other), left)
                views.append(found)
                view_names += [left[k][0] for k in which]
        words = {
            "rles": [named[k][1] for k in solid],
            "names": [named[k][0] for k in solid],
            "view_names": view_names,
        }
        return {
            "features": own.half().numpy(),
            "views": torch.cat(views).half().numpy(),
            **{k: np.array(json.dumps(v)) for k, v in words.items()},
        }

    if not named:
        return {
            "features": torch.zeros(0, REGION),
            "views": torch.zeros(0, REGION),
            "rles": [],
            "names": [],
            "view_names": [],
        }
    found = kept.load_or_compute(outlined_name(key, image_file, named, count), make)
    return {
        k: torch.from_numpy(v.astype(np.float32)) if k in ("features", "views") else json.loads(str(v))
        for k, v in found.items()
    }


class LookedAt(torch.utils.data.Dataset):
    """Item k: what is seen in the k-th picture is computed and kept; "", or why it could not be."""

    def __init__(
        self,
        load_opener: Callable,
        key: str,
        images: list[Path],
        named: dict[Path, list],
        folder: Path,
        views: int,
    ):
        self.load_opener, self.key, self.images, self.named, self.views = (
            load_opener,
            key,
            images,
            named,
            views,
        )
        self.opener, self.kept = None, RegionCache(folder, float("inf"))  # whose limit is kept by who asks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> str:
        image, self.opener = self.images[k], self.opener or self.load_opener()
        try:
            cached_regions(self.opener, self.key, image, self.kept)
            outlined_of(self.opener, self.key, image, self.named.get(image, []), self.kept, self.views)
        except BadInput as error:
            return str(error)
        return ""


def look(
    load_opener: Callable,
    key: str,
    images: list[Path],
    named: dict[Path, list],
    kept: RegionCache,
    views: int,
) -> None:
    """Compute what is missing. On a CPU in as many processes as torch would take threads: two of one thread look at half as
    many pictures again as one of two threads."""
    files = {i: [kept.file_of(cache_key(key, i))] for i in images}
    for image, things in named.items():
        if things and image in files:
            files[image].append(kept.file_of(outlined_name(key, image, things, views)))
    kept.needed |= {file for own in files.values() for file in own}
    missing = {i: new for i, own in files.items() if (new := [file for file in own if not file.exists()])}
    processes = 0 if torch.cuda.is_available() else min(torch.get_num_threads(), len(missing))
    looked_at = torch.utils.data.DataLoader(
        LookedAt(load_opener, key, list(missing), named, kept.folder, views),
        batch_size=None,
        num_workers=processes if processes > 1 else 0,
        generator=torch.Generator(),
    )  # not the run's own random numbers
    for new, trouble in zip(missing.values(), tqdm(looked_at, desc="regions", unit="photo", disable=None)):
        if trouble:
            raise BadInput(trouble)
        kept.add_files(*new)


def all_regions(
    load_opener: Callable,
    key: str,
    images: list[Path],
    named: dict[Path, list],
    kept: RegionCache,
    views: int = VIEWS,
) -> dict[Path, ImageRegions]:
    """Every picture's outlined things and proposals. load_eyes: called only if something is not kept yet."""
    look(load_opener, key, images, named, kept, views)
    regions = {}
    for image in tqdm(images, desc="outlined", unit="photo", disable=None):
        own, found = (
            outlined_of(None, key, image, named.get(image, []), kept, views),
            cached_regions(None, key, image, kept),
        )
        regions[image] = ImageRegions(
            torch.cat([own["features"], found.features]),
            own["rles"] + found.rles,
            own["names"],
            own["views"],
            own["view_names"],
        )
    return regions
