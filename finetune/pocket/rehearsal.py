"""Pack some of the pocket preset's training images, so that a later tuning rehearses them.

    python -m finetune rehearsal --data runs/q/{coco,camvid,clothing}/records.jsonl \\
        --named DATA/coco/train/instances.json --sam assistant/pocket/sam.safetensors \\
        --regions runs/reasoner/regions

A pack holds the regions of the images and the questions about them, but not the images themselves, so that
nobody needs the training data.

    records, regions = read_pack(PACK, sam_checksum)     # as `read_sources`, but without image files
"""

import argparse
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.record import Record, RecordTarget
from assistant.weights import sha256_of
from finetune.check import must_exist
from finetune.image_record import ImageRecord
from finetune.pocket.settings import RecordSources
from finetune.pocket.sources import add_source_arguments, read_sources
from finetune.region_cache import ImageRegions

PACK = Path(__file__).with_name("rehearsal.npz")  # the committed pack
PACKED_SOURCE_KEYS = ("kind", "categories", "history")  # of a record's `source`
LEVELS = 255  # a feature is stored as one of 0 to 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage to the command line."""
    add_source_arguments(parser)
    add = parser.add_argument
    add(
        "--photos",
        type=int,
        default=64,
        help="number of images, of as many categories as possible (default: 64)",
    )
    add("--out", type=Path, default=PACK, help="file to write (default: the pack that tuning reads)")


def main(args: argparse.Namespace) -> None:
    """Select images and pack them."""
    if args.regions is None:
        raise BadInput("give --regions: the region cache of the records stage, or a folder for a new one")
    if args.photos < 1:
        raise BadInput("--photos must be at least 1")
    must_exist(*args.data, args.sam)
    select = functools.partial(select_varied, count=args.photos)
    sources = RecordSources(tuple(args.data), tuple(args.named), args.sam, args.regions)
    records, regions = read_sources(sources, select)
    # Among the selected images alone the same ones are selected, in the same order.
    write_pack(args.out, records, regions, select(records), sha256_of(args.sam))
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


def select_varied(records: Sequence[ImageRecord], count: int) -> list[Path]:
    """Select at most `count` images with as many categories as possible.

    Greedy: a category counts half as much with each image that shows it already.
    """
    shown: dict[Path, set[str]] = {record.image: set() for record in records}
    for record in records:
        categories = record.record.source.get("categories", [])
        pairs = zip(categories, record.record.targets, strict=False)
        shown[record.image] |= {category for category, target in pairs if target.rle}
    chosen: list[Path] = []
    times_shown: Counter[str] = Counter()
    left = sorted(shown)

    def gain(image: Path) -> float:
        return sum(0.5 ** times_shown[category] for category in shown[image])

    while left and len(chosen) < count:
        best = max(left, key=gain)
        left.remove(best)
        chosen.append(best)
        times_shown.update(shown[best])
    return chosen


def write_pack(
    out: Path,
    records: Sequence[ImageRecord],
    regions: Mapping[Path, ImageRegions],
    images: Sequence[Path],
    sam_checksum: str,
) -> None:
    """Write a pack: features in 8 bits between the lowest and the highest of each, every mask once.

    Args:
        out: The .npz file.
        records: Records, of which those of `images` are packed.
        regions: {image: its regions}.
        images: The images to pack.
        sam_checksum: sha256 of the pocket SAM that made the proposals.
    """
    features = np.concatenate([regions[image].features.numpy() for image in images])
    lowest = features.min(0)
    step = np.maximum((features.max(0) - lowest) / LEVELS, 1e-8)
    packed = [
        _packed_image(regions[image], [r.record for r in records if r.image == image]) for image in images
    ]
    text = np.frombuffer(json.dumps({"sam": sam_checksum, "pictures": packed}).encode(), np.uint8)
    levels = np.rint((features - lowest) / step).astype(np.uint8)
    with replace_whole(out) as path, path.open("wb") as file:
        np.savez_compressed(file, features=levels, low=lowest, step=step, text=text)


def _packed_image(regions: ImageRegions, records: Sequence[Record]) -> dict[str, Any]:
    """The regions of an image without their features, and its records."""
    masks = {
        target.rle["counts"]: target.rle for record in records for target in record.targets if target.rle
    }
    row = {counts: k for k, counts in enumerate(masks)}
    return {
        "rles": regions.rles,
        "names": regions.names,
        "masks": list(masks.values()),
        "size": [records[0].width, records[0].height],
        "asked": [
            [
                record.question,
                record.answer,
                [[t.phrase, row[t.rle["counts"]] if t.rle else None] for t in record.targets],
                {key: value for key, value in record.source.items() if key in PACKED_SOURCE_KEYS},
            ]
            for record in records
        ],
    }


def read_pack(file: Path, sam_checksum: str) -> tuple[list[ImageRecord], dict[Path, ImageRegions]]:
    """Read a pack.

    Args:
        file: The .npz file.
        sam_checksum: sha256 of the pocket SAM that must have made the proposals.

    Returns:
        The records, and {image: its regions}. There are no files behind the images' paths.

    Raises:
        BadInput: There is no pack, or it is damaged or of another SAM.
    """
    arrays, packed = _load_pack(file)
    if packed["sam"] != sam_checksum:
        raise BadInput(
            f"{file} is of another SAM than the preset's; make a new one "
            "(python -m finetune rehearsal --help), or give --rehearsal 0"
        )
    features = torch.from_numpy(arrays["features"] * arrays["step"] + arrays["low"]).float()
    records: list[ImageRecord] = []
    regions: dict[Path, ImageRegions] = {}
    start = 0
    for k, of_image in enumerate(packed["pictures"]):
        image = file.with_suffix("") / str(k)
        end = start + len(of_image["rles"])
        regions[image] = ImageRegions(features[start:end], of_image["rles"], of_image["names"])
        start = end
        records += [ImageRecord(record, image) for record in _unpacked_records(of_image, image)]
    return records, regions


def _load_pack(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a pack, and what its text holds."""
    if not file.is_file():
        raise BadInput(f"{file} is missing: restore it, or give --rehearsal 0 and tune without")
    try:
        with np.load(file) as opened:
            arrays = {name: opened[name] for name in opened.files}
        return arrays, json.loads(arrays["text"].tobytes())
    except Exception as error:  # of numpy, zipfile or json
        raise BadInput(
            f"{file} cannot be read ({str(error).splitlines()[0]}): restore it, or give --rehearsal 0"
        ) from None


def _unpacked_records(packed: dict[str, Any], image: Path) -> list[Record]:
    """The records that `_packed_image` packed."""
    width, height = packed["size"]
    records = []
    for question, answer, packed_targets, source in packed["asked"]:
        targets = [
            RecordTarget(phrase, None if mask is None else packed["masks"][mask])
            for phrase, mask in packed_targets
        ]
        records.append(Record(str(image), width, height, question, answer, targets, source))
    return records
