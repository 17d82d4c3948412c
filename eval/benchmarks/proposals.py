"""Everything mode on a COCO-format folder: the most that choosing among its proposals can score.

    python -m eval proposals --root ../shared/data/coco/dev --out runs/eval/proposals

A target is the union of all instances of one category in a photo, crowds included: what a question about
that category asks for. Its oracle is the best subset of the first K proposals in their ranking order.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from eval.metrics import bootstrap_interval, c_iou
from eval.oracle import Atoms, oracle
from eval.photos import SIZES, Photo, open_sized, read_photos, size_name
from eval.report import Curve, write_report
from eval.result import Result, Run, print_table, write_result

VERSION = 1
FIRST = (10, 30, 60, None)  # K; None: all
LARGE = 96**2  # px of area, COCO's large objects


def first_name(k: int | None) -> str:
    return "all" if k is None else str(k)


def score_photo(photo: Photo, rles: list[dict]) -> dict:
    """One photo's line: the oracle of each category's union, and the best single proposal of each large object."""
    from pycocotools import mask as coco_mask

    categories: dict[str, list[dict]] = {}
    for outline in photo.objects:
        categories.setdefault(outline.category, []).append(outline.rle)
    unions = [coco_mask.merge(group) for group in categories.values()]
    large = [o.rle for o in photo.objects if not o.crowd and coco_mask.area(o.rle) >= LARGE]
    atoms = Atoms.of(rles, unions + large)
    targets = []
    for k, (name, union) in enumerate(zip(categories, unions)):
        found = {first_name(first): oracle(atoms, k, first) for first in FIRST}
        targets.append(
            {
                "category": name,
                "area": int(coco_mask.area(union)),
                "single": found["all"].single,
                "pair": [found["60"].intersection, found["60"].union],
                "oracle": {name: o.iou for name, o in found.items()},
            }
        )
    singles = [
        [oracle(atoms, len(unions) + k, first).single for first in (60, None)] for k in range(len(large))
    ]
    return {"proposals": len(rles), "targets": targets, "large": singles}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of everything mode, instead of the preset's: pred_iou_thresh=.7, fast=true, ...",
    )


def main(args: argparse.Namespace) -> None:
    """Score every photo under --root and write result.json, samples.jsonl and report.html."""
    from tqdm import tqdm

    photos = [p for p in read_photos(args.root, args.limit) if p.objects]
    propose, weights = args.open_proposals(args)
    run = Run(
        args.out,
        {
            "benchmark": "proposals",
            "version": VERSION,
            "root": str(Path(args.root).resolve()),
            "preset": args.preset,
            "weights": weights,
            "settings": sorted(args.setting),
        },
    )
    for photo in tqdm(run.mine(photos), desc="photos"):
        key = photo.path.name
        if key in run.done:
            continue
        try:
            image = open_sized(photo.path, photo.height, photo.width)
        except BadInput as error:
            if args.strict:
                raise
            run.add(key, {"error": str(error)})
            continue
        began = time.perf_counter()
        rles = propose(image).rles
        run.add(key, {"seconds": time.perf_counter() - began} | score_photo(photo, rles))
    lines = run.gather(p.path.name for p in photos)
    if lines is not None:
        finish(args, lines, weights)


def finish(args: argparse.Namespace, lines: list[dict], weights: dict[str, str]) -> None:
    good = [line for line in lines if "error" not in line]
    targets = [t for line in good for t in line["targets"]]
    large = [pair for line in good for pair in line["large"]]

    def means(group: list[dict]) -> dict:
        if not group:
            return {"n": 0}
        found = {
            f"oracle_gIoU@{k}": float(np.mean([t["oracle"][k] for t in group]))
            for k in map(first_name, FIRST)
        }
        return {"n": len(group)} | found | {"single_gIoU@all": float(np.mean([t["single"] for t in group]))}

    figures = means(targets) | {
        "proposals_per_photo": float(np.mean([line["proposals"] for line in good])) if good else None,
        "large_objects": len(large),
        "large_recall_50@60": float(np.mean([a >= 0.5 for a, _ in large])) if large else None,
        "large_recall_50@all": float(np.mean([b >= 0.5 for _, b in large])) if large else None,
    }
    result = Result(
        benchmark="proposals",
        version=VERSION,
        n=len(targets),
        preset=args.preset,
        weights=weights,
        figures=figures,
        oracle_gIoU=figures.get("oracle_gIoU@60"),
        cIoU=c_iou([t["pair"] for t in targets]),
        ci95={"oracle_gIoU": bootstrap_interval([t["oracle"]["60"] for t in targets], args.seed)},
        by={size: means([t for t in targets if size_name(t["area"]) == size]) for size in SIZES},
        seconds_per_image=float(np.median([line["seconds"] for line in good])) if good else None,
        bad=[{"name": line["key"], "error": line["error"]} for line in lines if "error" in line],
    )
    write_result(args.out, result)
    curves = [
        Curve(
            "Oracle gIoU over the number of proposals",
            "first K proposals",
            "gIoU",
            {
                size: [(k, figures_of[f"oracle_gIoU@{k}"]) for k in FIRST if k]
                for size, figures_of in {"all": figures, **result.by}.items()
                if figures_of["n"]
            },
        )
    ]
    write_report(args.out, result, curves)
    print_table(
        f"proposals, version {VERSION}, {len(targets)} targets on {len(good)} photos, {len(result.bad)} bad",
        figures | {"seconds_per_image": result.seconds_per_image},
    )
    for size in SIZES:
        print_table(size, {k: result.by[size].get(k) for k in ("n", "oracle_gIoU@60", "oracle_gIoU@all")})
