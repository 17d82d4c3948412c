"""SAM's own task on a COCO-format folder: a box, a click, click by click.

    python -m eval interactive --root ../shared/data/coco/dev --out runs/eval/interactive

Every object that is not a crowd is prompted with the tight box of its mask, and with clicks as a person
would set them: the first at the pixel farthest from the mask's edge, each next one in the middle of the
largest error (RITM, arXiv 2102.06583), up to five. Beside the scores stand two answers that need no
model: the box itself, and the ellipse inside it.
"""

import argparse
import contextlib
import time
from pathlib import Path

import numpy as np

from eval import models
from eval.annotated_images import SIZES, AnnotatedImage, open_sized, read_annotated_images, size_name
from eval.metrics import bootstrap_interval, counts, iou
from eval.report import Curve, write_report
from eval.result import Result, bad_inputs, print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings, eval_settings

VERSION = 1
CLICKS = 5
REACH = 0.80  # NoC@80: clicks until this IoU


def deepest_pixel(mask: np.ndarray) -> tuple[int, int, float]:
    """(x, y, distance) of the pixel of an (H, W) bool mask farthest from its edge; the picture's border is an edge.
    An empty mask gives (0, 0, 0)."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return 0, 0, 0.0
    x0, y0, x1, y1 = tight_box(mask).astype(int)  # beyond the ring around its box nothing is nearer
    distance = distance_transform_edt(np.pad(mask[y0:y1, x0:x1], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x0 + x), int(y0 + y), float(distance[y, x])


def next_click(mask: np.ndarray, target: np.ndarray) -> tuple[int, int, int] | None:
    """(x, y, label) in the middle of the deeper error: label 1 where target is missing, 0 where mask is too much."""
    x1, y1, missing = deepest_pixel(target & ~mask)
    x0, y0, extra = deepest_pixel(mask & ~target)
    if missing == extra == 0:
        return None
    return (x1, y1, 1) if missing >= extra else (x0, y0, 0)


def tight_box(mask: np.ndarray) -> np.ndarray:
    """(4,) float32 xyxy of a mask's pixels, the right and lower edge exclusive."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], dtype=np.float32)


def ellipse_in_box(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixels whose centre lies in the ellipse that touches the four sides of an xyxy box."""
    x0, y0, x1, y1 = box
    y, x = np.ogrid[: size[0], : size[1]]
    across = (2 * (x + 0.5) - x0 - x1) / (x1 - x0)
    down = (2 * (y + 0.5) - y0 - y1) / (y1 - y0)
    return across**2 + down**2 <= 1


def score_object(segmenter, embedding, target: np.ndarray) -> dict:
    """All prompts for one (H, W) bool object -> IoUs and the scores that the model gave itself."""

    def score(mask):
        return iou(*counts(mask, target))

    box = tight_box(target)
    masks, guess, _ = segmenter.predict(embedding, box=box, multimask=False)
    line = {"area": int(target.sum()), "box": score(masks[0]), "box_guess": float(guess[0])}
    whole = np.zeros(target.shape, dtype=bool)
    x0, y0, x1, y1 = box.astype(int)
    whole[y0:y1, x0:x1] = True
    line |= {"box_itself": score(whole), "ellipse": score(ellipse_in_box(box, target.shape))}

    x, y, _ = deepest_pixel(target)
    points, labels = [[x, y]], [1]
    masks, guess, low = segmenter.predict(
        embedding, points=np.array(points), labels=np.array(labels), multimask=True
    )
    readings = [score(m) for m in masks]
    best = int(np.argmax(guess))
    line |= {"click_best": max(readings), "click_by_score": readings[best], "click_guess": float(guess[best])}
    line["clicks"] = [readings[best]]
    mask, low = masks[best], low[best]
    for _ in range(CLICKS - 1):
        click = next_click(mask, target)
        if click is not None:
            points.append(click[:2])
            labels.append(click[2])
            masks, _, lows = segmenter.predict(
                embedding, points=np.array(points), labels=np.array(labels), mask=low, multimask=False
            )
            mask, low = masks[0], lows[0]
        line["clicks"].append(score(mask))
    return line


def calibration_error(guesses: list[float], truths: list[float], bins: int = 10) -> float | None:
    """Expected calibration error: mean |mean guess - mean truth| over equal bins of the guess, by bin size."""
    if not guesses:
        return None
    guesses, truths = np.asarray(guesses), np.asarray(truths)
    index = np.clip((guesses * bins).astype(int), 0, bins - 1)
    gaps = [abs((guesses - truths)[index == k].sum()) for k in range(bins)]
    return float(sum(gaps) / len(guesses))


def summary(objects: list[dict]) -> dict:
    """Means over objects, from the lines of `score_object`."""
    if not objects:
        return {"n": 0}
    names = ("box", "click_best", "click_by_score", "ellipse", "box_itself")
    figures = {"n": len(objects)} | {k: float(np.mean([o[k] for o in objects])) for k in names}
    clicks = np.array([o["clicks"] for o in objects])
    figures |= {f"after_{k + 1}_clicks": float(clicks[:, k].mean()) for k in range(1, CLICKS)}
    reached = clicks >= REACH
    needed = np.where(reached.any(1), reached.argmax(1) + 1, CLICKS)
    figures |= {"NoC@80": float(needed.mean()), "NoC@80_failed": float((~reached.any(1)).mean())}
    for prompt, truth in (("box", "box"), ("click", "click_by_score")):
        guesses, truths = [o[f"{prompt}_guess"] for o in objects], [o[truth] for o in objects]
        figures[f"{prompt}_calibration_error"] = calibration_error(guesses, truths)
    return figures


def autocast_to_bfloat16(on: bool):
    """Autocast to bfloat16 on the CPU where `on`."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16) if on else contextlib.nullcontext()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bf16", action="store_true", help="run the model in bfloat16 where torch's autocast allows"
    )


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    run(eval_settings(args), bf16=args.bf16)


def run(settings: EvalSettings, bf16: bool = False) -> None:
    """Score every instance of the images and write result.json, samples.jsonl and report.html."""
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

    def score(annotated: AnnotatedImage) -> dict:
        return score_image(segmenter, annotated, bf16)

    lines = samples.each(images, lambda annotated: annotated.path.name, score)
    if lines is not None:
        finish(settings, lines, weights)


def score_image(segmenter, annotated: AnnotatedImage, bf16: bool) -> dict:
    """The line of one image: the seconds that SAM's encoder took, and the scores of every instance but crowds."""
    image = open_sized(annotated.path, annotated.height, annotated.width)
    with autocast_to_bfloat16(bf16):
        began = time.perf_counter()
        embedding = segmenter.encode(image)
        seconds = time.perf_counter() - began
        lines = []
        for instance in annotated.instances:
            target = instance.mask()
            if not instance.crowd and target.any():
                line = score_object(segmenter, embedding, target)
                lines.append({"id": instance.id, "category": instance.category} | line)
    return {"seconds": seconds, "objects": lines}


def finish(settings: EvalSettings, lines: list[dict], weights: dict[str, str]) -> None:
    good = [line for line in lines if "objects" in line]
    objects = [o for line in good for o in line["objects"]]
    seen = [o for o in objects if o["area"] > 32**2]
    figures = {"all": summary(objects), "above_32x32": summary(seen)}
    names = ("box", "click_best", "click_by_score")
    result = Result(
        benchmark="interactive",
        version=VERSION,
        n=len(objects),
        preset=settings.models.describe(),
        weights=weights,
        figures=figures,
        ci95={f"{k}_above_32x32": bootstrap_interval([o[k] for o in seen], settings.seed) for k in names},
        by={size: summary([o for o in objects if size_name(o["area"]) == size]) for size in SIZES},
        seconds_per_image=float(np.median([line["seconds"] for line in good])) if good else None,
        bad=bad_inputs(lines),
    )
    write_result(settings.out, result)
    curve = Curve(
        "Click by click",
        "clicks",
        "mean IoU",
        {
            name: [(1, f["click_by_score"])] + [(k, f[f"after_{k}_clicks"]) for k in range(2, CLICKS + 1)]
            for name, f in (figures | result.by).items()
            if f["n"]
        },
    )
    write_report(settings.out, result, [curve])
    title = (
        f"interactive, version {VERSION}, {len(objects)} objects on {len(good)} photos, {len(result.bad)} bad"
    )
    print_table(title + "; all objects", figures["all"])
    print_table("objects above 32x32 px", figures["above_32x32"])
    for size in SIZES:
        print_table(size, {k: result.by[size].get(k) for k in ("n", "box", "click_best", "ellipse")})
