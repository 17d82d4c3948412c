"""SAM's own task on a COCO-format folder: a box, a click, click by click.

    python -m eval interactive --root ../shared/data/coco/dev --out runs/eval/interactive

Every instance that is not a crowd is prompted with the tight box of its mask, and with clicks as a person
would set them: the first at the pixel farthest from the mask's edge, each next one in the middle of the
largest error (RITM, arXiv 2102.06583), up to five. Beside the scores stand two answers that need no model:
the box itself, and the ellipse inside it.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.sam.mask_ops import tight_box
from eval import models
from eval.annotated_images import SIZES, AnnotatedImage, open_annotated, read_annotated_images, size_name
from eval.metrics import bootstrap_interval, counts, iou
from eval.report import Curve, write_report
from eval.result import Result, bad_inputs, print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings, eval_settings

if TYPE_CHECKING:  # torch is loaded when a model is, so that every --help is instant
    from assistant.sam.segmenter import Embedding, Segmenter

VERSION = 1
MAX_CLICKS = 5
CLICK_GOAL_IOU = 0.80  # NoC@80 is the number of clicks until this IoU
TINY_AREA = 32**2  # px, COCO's small instances; figures are also given without them
CALIBRATION_BINS = 10
SCORES = ("box", "click_best", "click_by_score", "ellipse", "box_itself")  # of a line of `score_instance`
SCORES_WITH_INTERVAL = ("box", "click_best", "click_by_score")

# The scores of one instance, or means over instances.
Figures = dict[str, Any]


def deepest_pixel(mask: np.ndarray) -> tuple[int, int, float]:
    """Find the pixel of a mask that is farthest from its edge; the border of the image is an edge.

    Args:
        mask: (H, W) bool.

    Returns:
        x, y and the distance in px; 0, 0, 0.0 for an empty mask.
    """
    from scipy.ndimage import distance_transform_edt

    box = tight_box(mask)
    if box is None:
        return 0, 0, 0.0
    x0, y0, x1, y1 = box  # beyond the ring around its box nothing is nearer
    distance = distance_transform_edt(np.pad(mask[y0:y1, x0:x1], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x0 + x), int(y0 + y), float(distance[y, x])


def next_click(mask: np.ndarray, target: np.ndarray) -> tuple[int, int, int] | None:
    """Where a person would click next.

    Args:
        mask: (H, W) bool, the answer so far.
        target: (H, W) bool.

    Returns:
        x, y and the label of a click in the middle of the deeper error: 1 where the target is missing, 0
        where the mask is too much. None where there is no error.
    """
    missing_x, missing_y, missing = deepest_pixel(target & ~mask)
    extra_x, extra_y, extra = deepest_pixel(mask & ~target)
    if missing == extra == 0:
        return None
    return (missing_x, missing_y, 1) if missing >= extra else (extra_x, extra_y, 0)


def ellipse_in_box(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centre lies in the ellipse that touches the four sides of a box.

    Args:
        box: Half-open xyxy px.
        size: (H, W) of the image, px.

    Returns:
        (H, W) bool.
    """
    x0, y0, x1, y1 = box
    y, x = np.ogrid[: size[0], : size[1]]
    across = (2 * (x + 0.5) - x0 - x1) / (x1 - x0)
    down = (2 * (y + 0.5) - y0 - y1) / (y1 - y0)
    return across**2 + down**2 <= 1


def score_instance(segmenter: Segmenter, embedding: Embedding, target: np.ndarray) -> Figures:
    """Score all prompts for one instance.

    Args:
        segmenter: Any SAM.
        embedding: The image.
        target: (H, W) bool, the instance's mask, not empty.

    Returns:
        IoUs with the target, and the IoUs that the model predicted ("..._guess").
    """
    box = tight_box(target)
    assert box is not None
    masks, predicted_iou, _ = segmenter.predict(embedding, box=box, multimask=False)
    box_mask = np.zeros(target.shape, dtype=bool)
    x0, y0, x1, y1 = box
    box_mask[y0:y1, x0:x1] = True
    line = {
        "area": int(target.sum()),
        "box": iou(*counts(masks[0], target)),
        "box_guess": float(predicted_iou[0]),
        "box_itself": iou(*counts(box_mask, target)),
        "ellipse": iou(*counts(ellipse_in_box(box, target.shape), target)),
    }
    return line | score_clicks(segmenter, embedding, target)


def score_clicks(segmenter: Segmenter, embedding: Embedding, target: np.ndarray) -> Figures:
    """Score up to `MAX_CLICKS` clicks on one instance; arguments and result as `score_instance`."""
    x, y, _ = deepest_pixel(target)
    points, labels = [(x, y)], [1]
    masks, predicted_iou, logits = segmenter.predict(
        embedding, points=np.array(points), labels=np.array(labels), multimask=True
    )
    scores = [iou(*counts(mask, target)) for mask in masks]
    best = int(np.argmax(predicted_iou))
    mask, mask_logits, clicks = masks[best], logits[best], [scores[best]]
    for _ in range(MAX_CLICKS - 1):
        click = next_click(mask, target)
        if click is not None:
            points.append(click[:2])
            labels.append(click[2])
            masks, _, logits = segmenter.predict(
                embedding, np.array(points), np.array(labels), mask=mask_logits, multimask=False
            )
            mask, mask_logits = masks[0], logits[0]
        clicks.append(iou(*counts(mask, target)))
    return {
        "click_best": max(scores),
        "click_by_score": scores[best],
        "click_guess": float(predicted_iou[best]),
        "clicks": clicks,
    }


def calibration_error(predicted: Sequence[float], true: Sequence[float]) -> float | None:
    """The expected calibration error of predicted IoUs.

    Args:
        predicted: (N,) in [0, 1].
        true: (N,) the IoUs that they predict.

    Returns:
        The mean of |mean predicted - mean true| over equal bins of the prediction, weighted by the bins'
        sizes; None without values.
    """
    if not len(predicted):
        return None
    predicted_array, true_array = np.asarray(predicted), np.asarray(true)
    index = np.clip((predicted_array * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    differences = predicted_array - true_array
    gaps = [abs(differences[index == k].sum()) for k in range(CALIBRATION_BINS)]
    return float(sum(gaps) / len(predicted))


def summary(instances: list[Figures]) -> Figures:
    """Means over instances, from the lines of `score_instance`."""
    if not instances:
        return {"n": 0}
    figures: Figures = {"n": len(instances)}
    figures |= {name: float(np.mean([line[name] for line in instances])) for name in SCORES}
    clicks = np.array([line["clicks"] for line in instances])
    figures |= {f"after_{k + 1}_clicks": float(clicks[:, k].mean()) for k in range(1, MAX_CLICKS)}
    reached = clicks >= CLICK_GOAL_IOU
    needed = np.where(reached.any(1), reached.argmax(1) + 1, MAX_CLICKS)
    figures |= {"NoC@80": float(needed.mean()), "NoC@80_failed": float((~reached.any(1)).mean())}
    for prompt, score in (("box", "box"), ("click", "click_by_score")):
        predicted = [line[f"{prompt}_guess"] for line in instances]
        figures[f"{prompt}_calibration_error"] = calibration_error(
            predicted, [line[score] for line in instances]
        )
    return figures


def autocast_to_bfloat16(on: bool) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 on the CPU where `on`."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16) if on else contextlib.nullcontext()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this benchmark has."""
    parser.add_argument(
        "--bf16", action="store_true", help="run the model in bfloat16 where torch's autocast allows"
    )


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    run(eval_settings(args), bf16=args.bf16)


def run(settings: EvalSettings, bf16: bool = False) -> None:
    """Score every instance of the images and write result.json, samples.jsonl and report.html.

    Args:
        settings: What every benchmark has.
        bf16: Whether the model runs in bfloat16 where torch's autocast allows.
    """
    images = read_annotated_images(settings.root, settings.limit)
    segmenter, weights = models.open_segmenter(settings)
    samples = Run(
        settings.out,
        {
            "benchmark": "interactive",
            "version": VERSION,
            "root": str(settings.root.resolve()),
            "preset": settings.models.describe(),
            "weights": weights,
            "bf16": bf16,
        },
        settings.strict,
    )

    def score(annotated: AnnotatedImage) -> Figures:
        return score_image(segmenter, annotated, bf16)

    lines = samples.each(images, lambda annotated: annotated.path.name, score)
    if lines is not None:
        finish(settings, lines, weights)


def score_image(segmenter: Segmenter, annotated: AnnotatedImage, bf16: bool) -> Figures:
    """The line of one image: the seconds of its encoding, and the scores of every instance but crowds."""
    image = open_annotated(annotated)
    with autocast_to_bfloat16(bf16):
        began = time.perf_counter()
        embedding = segmenter.encode(image)
        seconds = time.perf_counter() - began
        lines = []
        for instance in annotated.instances:
            target = instance.mask()
            if not instance.crowd and target.any():
                line = score_instance(segmenter, embedding, target)
                lines.append({"id": instance.id, "category": instance.category} | line)
    return {"seconds": seconds, "objects": lines}


def finish(settings: EvalSettings, lines: list[Figures], weights: dict[str, str]) -> None:
    """Write result.json and report.html of all lines, and print the figures."""
    good = [line for line in lines if "objects" in line]
    instances = [instance for line in good for instance in line["objects"]]
    larger = [instance for instance in instances if instance["area"] > TINY_AREA]
    figures = {"all": summary(instances), "above_32x32": summary(larger)}
    result = Result(
        benchmark="interactive",
        version=VERSION,
        n=len(instances),
        preset=settings.models.describe(),
        weights=weights,
        figures=figures,
        ci95={
            f"{name}_above_32x32": bootstrap_interval([line[name] for line in larger], settings.seed)
            for name in SCORES_WITH_INTERVAL
        },
        by={size: summary([line for line in instances if size_name(line["area"]) == size]) for size in SIZES},
        seconds_per_image=float(np.median([line["seconds"] for line in good])) if good else None,
        bad=bad_inputs(lines),
    )
    write_result(settings.out, result)
    write_report(settings.out, result, [click_curve(figures | result.by)])
    title = f"interactive, version {VERSION}, {len(instances)} instances on {len(good)} images, "
    print_table(f"{title}{len(result.bad)} bad; all instances", figures["all"])
    print_table("instances above 32x32 px", figures["above_32x32"])
    for size in SIZES:
        print_table(size, {k: result.by[size].get(k) for k in ("n", "box", "click_best", "ellipse")})


def click_curve(groups: dict[str, Figures]) -> Curve:
    """Mean IoU over the number of clicks, a line for each group that has instances."""
    lines: dict[str, list[tuple[float, float | None]]] = {}
    for name, figures in groups.items():
        if figures["n"]:
            later = [(k, figures[f"after_{k}_clicks"]) for k in range(2, MAX_CLICKS + 1)]
            lines[name] = [(1, figures["click_by_score"]), *later]
    return Curve("Click by click", "clicks", "mean IoU", lines)
