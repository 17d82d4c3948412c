"""Pack some of the pocket preset's own training pictures, so that a later tuning rehearses them: what was seen in them, and
their questions. The pictures themselves are not kept, so nobody needs them.

    python -m finetune rehearsal --data runs/q/{coco,camvid,clothing}/records.jsonl --named DATA/coco/train/instances.json \\
        --sam assistant/pocket/sam.safetensors --regions runs/reasoner/regions

    records, regions = rehearsed(PACK, sam)     # as `all_regions` gives them, under made-up names of pictures
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.record import Record, RecordTarget
from assistant.weights import sha256_of
from finetune.check import must_exist
from finetune.region_cache import ImageRegions

PACK = Path(__file__).with_name("rehearsal.npz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from finetune.pocket.records import add_sources

    add_sources(parser)
    parser.add_argument(
        "--photos", type=int, default=64, help="as many, of as many categories as they can show (default: 64)"
    )
    parser.add_argument("--out", type=Path, default=PACK)


def main(args: argparse.Namespace) -> None:
    from finetune.pocket.records import read_sources

    if args.regions is None:
        raise BadInput(
            "give --regions the folder of regions that the records stage kept (or one for them to be kept in)"
        )
    if args.photos < 1:
        raise BadInput("--photos must be at least 1")
    must_exist(*args.data, args.sam)
    records, regions = read_sources(args, args.regions)
    pack(records, regions, varied(records, args.photos), sha256_of(args.sam), args.out)
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


def varied(records: list[tuple[Record, Path]], count: int) -> list[Path]:
    """So many pictures, of as many categories as they can show: greedy, what few of the chosen show counts more."""
    shown: dict[Path, set[str]] = {image: set() for _, image in records}
    for record, image in records:
        shown[image] |= {c for c, t in zip(record.source.get("categories", []), record.targets) if t.rle}
    chosen, seen, left = [], Counter(), sorted(shown)
    while left and len(chosen) < count:
        best = max(left, key=lambda image: sum(0.5 ** seen[c] for c in shown[image]))
        left.remove(best)
        chosen.append(best)
        seen.update(shown[best])
    return chosen


def pack(
    records: list[tuple[Record, Path]],
    regions: dict[Path, ImageRegions],
    images: list[Path],
    sam: str,
    out: Path,
) -> None:
    """Features as whole numbers of 8 bits, between the least and the largest of each; masks once each, as RLE.

    sam: checksum of the pocket SAM whose proposals they are.
    """
    features = np.concatenate([regions[i].features.numpy() for i in images])
    low = features.min(0)
    step = np.maximum((features.max(0) - low) / 255, 1e-8)
    pictures = []
    for image in images:
        own, asked = regions[image], [r for r, i in records if i == image]
        masks = {t.rle["counts"]: t.rle for r in asked for t in r.targets if t.rle}
        row = {counts: k for k, counts in enumerate(masks)}
        pictures.append(
            {
                "rles": own.rles,
                "names": own.names,
                "masks": list(masks.values()),
                "size": [asked[0].width, asked[0].height],
                "asked": [
                    [
                        r.question,
                        r.answer,
                        [[t.phrase, row[t.rle["counts"]] if t.rle else None] for t in r.targets],
                        {k: v for k, v in r.source.items() if k in ("kind", "categories", "history")},
                    ]
                    for r in asked
                ],
            }
        )
    text = np.frombuffer(json.dumps({"sam": sam, "pictures": pictures}).encode(), np.uint8)
    with replace_whole(out) as path, path.open("wb") as file:
        np.savez_compressed(
            file, features=np.rint((features - low) / step).astype(np.uint8), low=low, step=step, text=text
        )


def rehearsed(file: Path, sam: str) -> tuple[list[tuple[Record, Path]], dict[Path, ImageRegions]]:
    """Records with their pictures, and what is seen in those. sam: checksum of the SAM that the pack must
    be of. BadInput: no pack there, a damaged one, or of another SAM."""
    if not file.is_file():
        raise BadInput(f"{file} is missing: restore it, or give --rehearsal 0 and tune without")
    try:
        with np.load(file) as kept:
            kept = {k: kept[k] for k in kept.files}
        told = json.loads(kept["text"].tobytes())
    except Exception as error:  # numpy, zipfile and json raise their own kinds
        raise BadInput(
            f"{file} cannot be read ({str(error).splitlines()[0]}): restore it, or give --rehearsal 0"
        ) from None
    if told["sam"] != sam:
        raise BadInput(
            f"{file} is of another SAM than the preset's; make it anew (python -m finetune rehearsal --help), or give "
            "--rehearsal 0"
        )
    features = torch.from_numpy(kept["features"] * kept["step"] + kept["low"]).float()
    records, regions, start = [], {}, 0
    for k, picture in enumerate(told["pictures"]):
        image, (width, height), masks = file.with_suffix("") / str(k), picture["size"], picture["masks"]
        end = start + len(picture["rles"])
        regions[image] = ImageRegions(features[start:end], picture["rles"], picture["names"])
        start = end
        for question, answer, targets, source in picture["asked"]:
            targets = [RecordTarget(phrase, None if m is None else masks[m]) for phrase, m in targets]
            records.append((Record(str(image), width, height, question, answer, targets, source), image))
    return records, regions
