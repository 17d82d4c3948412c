"""Everything mode on a COCO-format folder: the most that choosing among its proposals can score.

    python -m eval proposals --root ../shared/data/coco/dev --out runs/eval/proposals

A target is the union of all instances of one category in an image, crowds included: what a question about
that category asks for. Its oracle is the best subset of the first K proposals in their order.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from assistant.sam.mask_ops import Rle, merge_rles, rle_area
from eval import models
from eval.annotated_images import SIZES, AnnotatedImage, open_annotated, read_annotated_images, size_name
from eval.metrics import bootstrap_interval, c_iou
from eval.oracle import Atoms, oracle
from eval.report import Curve, write_report
from eval.result import Result, bad_inputs, print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings, eval_settings

VERSION = 1
FIRST = (10, 30, 60, None)  # the oracle chooses among the first K proposals; None: all
LARGE_AREA = 96**2  # px, from which an instance is large (COCO)
RECALL_IOU = 0.5  # from which a proposal counts as finding an instance

Line = dict[str, Any]  # of one image, or one target of it


def first_name(k: int | None) -> str:
    """What "the first K proposals" are called in keys."""
    return "all" if k is None else str(k)


def score_image(annotated: AnnotatedImage, rles: Sequence[Rle]) -> Line:
    """Score the proposals of one image.

    Args:
        annotated: The image, with its instances.
        rles: The proposals, in their order.

    Returns:
        The oracle of each category's union, and the IoU of the best single proposal, among the first 60 and
        among all, of each large instance.
    """
    categories: dict[str, list[Rle]] = {}
    for instance in annotated.instances:
        categories.setdefault(instance.category, []).append(instance.rle)
    unions = [merge_rles(group) for group in categories.values()]
    large = [
        instance.rle
        for instance in annotated.instances
        if not instance.crowd and rle_area(instance.rle) >= LARGE_AREA
    ]
    atoms = Atoms.of(rles, unions + large)
    targets = []
    for k, (category, union) in enumerate(zip(categories, unions, strict=True)):
        best = {first_name(first): oracle(atoms, k, first) for first in FIRST}
        targets.append(
            {
                "category": category,
                "area": rle_area(union),
                "single": best["all"].single,
                "pair": [best["60"].intersection, best["60"].union],
                "oracle": {name: choice.iou for name, choice in best.items()},
            }
        )
    singles = [
        [oracle(atoms, len(unions) + k, first).single for first in (60, None)] for k in range(len(large))
    ]
    return {"proposals": len(rles), "targets": targets, "large": singles}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this benchmark has."""
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
        everything_settings: Settings of everything mode as NAME=VALUE; [] for the preset's own everything
            mode.
    """
    annotated = read_annotated_images(settings.root, settings.limit)
    images = [image for image in annotated if image.instances or image.fault]
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

    def score(annotated: AnnotatedImage) -> Line:
        image = open_annotated(annotated)
        began = time.perf_counter()
        rles = propose(image).rles
        return {"seconds": time.perf_counter() - began} | score_image(annotated, rles)

    lines = samples.each(images, lambda annotated: annotated.path.name, score)
    if lines is not None:
        finish(settings, lines, weights)


def summary(targets: list[Line]) -> dict[str, Any]:
    """Mean oracles over targets, from the lines of `score_image`."""
    if not targets:
        return {"n": 0}
    figures: dict[str, Any] = {"n": len(targets)}
    for name in map(first_name, FIRST):
        figures[f"oracle_gIoU@{name}"] = float(np.mean([target["oracle"][name] for target in targets]))
    figures["single_gIoU@all"] = float(np.mean([target["single"] for target in targets]))
    return figures


def finish(settings: EvalSettings, lines: list[Line], weights: dict[str, str]) -> None:
    """Write result.json and report.html of all lines, and print the figures."""
    good = [line for line in lines if "error" not in line]
    targets = [target for line in good for target in line["targets"]]
    large = np.array([pair for line in good for pair in line["large"]]).reshape(-1, 2)
    recall = (large >= RECALL_IOU).mean(0).tolist() if len(large) else [None, None]
    figures = summary(targets) | {
        "proposals_per_photo": float(np.mean([line["proposals"] for line in good])) if good else None,
        "large_objects": len(large),
        "large_recall_50@60": recall[0],
        "large_recall_50@all": recall[1],
    }
    result = Result(
        benchmark="proposals",
        version=VERSION,
        n=len(targets),
        preset=settings.models.describe(),
        weights=weights,
        figures=figures,
        oracle_gIoU=figures.get("oracle_gIoU@60"),
        cIoU=c_iou([target["pair"] for target in targets]),
        ci95={
            "oracle_gIoU": bootstrap_interval([target["oracle"]["60"] for target in targets], settings.seed)
        },
        by={size: summary([t for t in targets if size_name(t["area"]) == size]) for size in SIZES},
        seconds_per_image=float(np.median([line["seconds"] for line in good])) if good else None,
        bad=bad_inputs(lines),
    )
    write_result(settings.out, result)
    write_report(settings.out, result, [oracle_curve({"all": figures, **result.by})])
    print_table(
        f"proposals, version {VERSION}, {len(targets)} targets on {len(good)} images, {len(result.bad)} bad",
        figures | {"seconds_per_image": result.seconds_per_image},
    )
    for size in SIZES:
        print_table(size, {k: result.by[size].get(k) for k in ("n", "oracle_gIoU@60", "oracle_gIoU@all")})


def oracle_curve(groups: dict[str, dict[str, Any]]) -> Curve:
    """The oracle over the number of proposals, a line for each group that has targets."""
    lines: dict[str, list[tuple[float, float | None]]] = {
        name: [(k, figures[f"oracle_gIoU@{k}"]) for k in FIRST if k]
        for name, figures in groups.items()
        if figures["n"]
    }
    return Curve("Oracle gIoU over the number of proposals", "first K proposals", "gIoU", lines)
