"""Everything mode on a COCO-format folder: the most that choosing among its proposals can score.

    python -m eval proposals --root ../shared/data/coco/dev --out runs/eval/proposals

A target is the union of all instances of one category in a photo, crowds included: what a question about
that category asks for. Its oracle is the best subset of the first K proposals in their ranking order.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from eval import models
from eval.annotated_images import SIZES, AnnotatedImage, open_sized, read_annotated_images, size_name
from eval.metrics import bootstrap_interval, c_iou
from eval.oracle import Atoms, oracle
from eval.report import Curve, write_report
from eval.result import Result, bad_inputs, print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings, eval_settings

VERSION = 1
FIRST = (10, 30, 60, None)  # K; None: all
LARGE = 96**2  # px of area, COCO's large objects


def first_name(k: int | None) -> str:
    return "all" if k is None else str(k)


def score_photo(photo: AnnotatedImage, rles: list[dict]) -> dict:
    """One photo's line: the oracle of each category's union, and the best single proposal of each large object."""
    from pycocotools import mask as coco_mask

    categories: dict[str, list[dict]] = {}
    for outline in photo.instances:
        categories.setdefault(outline.category, []).append(outline.rle)
    unions = [coco_mask.merge(group) for group in categories.values()]
    large = [o.rle for o in photo.instances if not o.crowd and coco_mask.area(o.rle) >= LARGE]
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
    """Read the options and run the benchmark."""
    run(eval_settings(args), args.setting)


def run(settings: EvalSettings, everything_settings: list[str]) -> None:
    """Score every image and write result.json, samples.jsonl and report.html.

    Args:
        settings: What every benchmark has.
        everything_settings: Settings of everything mode as NAME=VALUE; [] for the preset's own everything mode.
    """
    images = [image for image in read_annotated_images(settings.root, settings.limit) if image.instances]
    propose, weights = models.open_everything_mode(
        settings, models.parse_everything_settings(everything_settings)
    )
    samples = Run(
        settings.out,
        {
            "benchmark": "proposals",
            "version": VERSION,
            "root": str(settings.root.resolve()),
            "preset": settings.models.describe(),
            "weights": weights,
            "settings": sorted(everything_settings),
        },
        settings.strict,
    )

    def score(annotated: AnnotatedImage) -> dict:
        image = open_sized(annotated.path, annotated.height, annotated.width)
        began = time.perf_counter()
        rles = propose(image).rles
        return {"seconds": time.perf_counter() - began} | score_photo(annotated, rles)

    lines = samples.each(images, lambda annotated: annotated.path.name, score)
    if lines is not None:
        finish(settings, lines, weights)


def finish(settings: EvalSettings, lines: list[dict], weights: dict[str, str]) -> None:
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
        preset=settings.models.describe(),
        weights=weights,
        figures=figures,
        oracle_gIoU=figures.get("oracle_gIoU@60"),
        cIoU=c_iou([t["pair"] for t in targets]),
        ci95={"oracle_gIoU": bootstrap_interval([t["oracle"]["60"] for t in targets], settings.seed)},
        by={size: means([t for t in targets if size_name(t["area"]) == size]) for size in SIZES},
        seconds_per_image=float(np.median([line["seconds"] for line in good])) if good else None,
        bad=bad_inputs(lines),
    )
    write_result(settings.out, result)
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
    write_report(settings.out, result, curves)
    print_table(
        f"proposals, version {VERSION}, {len(targets)} targets on {len(good)} photos, {len(result.bad)} bad",
        figures | {"seconds_per_image": result.seconds_per_image},
    )
    for size in SIZES:
        print_table(size, {k: result.by[size].get(k) for k in ("n", "oracle_gIoU@60", "oracle_gIoU@all")})
