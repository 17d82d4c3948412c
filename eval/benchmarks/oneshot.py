"""Segmentation from attention: with all layers, with the ranked ones, and tuned on one image per category.

    python -m eval oneshot --root DATA/coco/dev --tuned runs/attention --out runs/eval/oneshot

This is the protocol of "The Power of One" (arXiv 2503.10779): every pixel gets one of the data set's classes
or the background. mIoU is over the classes and the background, from pixel counts of the whole set; pixels
without a label do not count. `finetune attention` draws its images from elsewhere and `rank-layers` ranks on
others, so that nothing here was trained on.

The arms are: all layers; the layers that the ranking uses; the best heads (`--heads`); each tuned run
(`--tuned`), whose mean and spread are given; refinements by ConvCRF and by votes of SAM's proposals; and each
of the first four "without match", which is attention alone, not weighted by how well a prompt matches the
image. Runs can be added to a result later: give the command again. It reads VOC's layout, COCO's, or a
COCO-format folder. Differences are paired, with 95 % bootstrap intervals over images.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.attention.labelled_images import LabelledImage, read_labelled
from assistant.attention.prompt_attention import Ranking
from assistant.errors import BadInput
from assistant.sam.mask_ops import Rle
from eval.benchmarks.oneshot_maps import AttentionArms
from eval.benchmarks.oneshot_scorer import ImageScorer, read_tuned
from eval.benchmarks.oneshot_scores import Line, OneShotScores, image_mean_iou, score_arms
from eval.label_maps import read_label_map
from eval.report import Sample, write_report
from eval.result import Result, bad_inputs, print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings, eval_settings

VERSION = 3  # 3: tuned maps are made as the others are, and without the match too
SAMPLES_PER_GROUP = 4  # in the report


@dataclass(frozen=True)
class OneShotOptions:
    """What the benchmark is asked for in addition to `EvalSettings`.

    Attributes:
        split: Part of the data set.
        ranking: File that `rank-layers` wrote; None for the model's own ranking.
        heads: How many heads the arm of heads averages.
        tuned: Folder that `finetune attention` wrote; None for the arms without tuning only.
        refinement: Whether to score ConvCRF and the proposals' votes.
        cache_folder: Folder of opened images; None for `EvalSettings.out`/views.
    """

    split: str
    ranking: Path | None
    heads: int
    tuned: Path | None
    refinement: bool
    cache_folder: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--split", default="val", help="part of the data set, in VOC's and COCO's layouts")
    parser.add_argument("--ranking", type=Path, help="what rank-layers wrote (default: the preset's own)")
    parser.add_argument(
        "--heads", type=int, default=16, help="how many heads the arm of heads averages (default: 16)"
    )
    parser.add_argument("--tuned", type=Path, help="folder that finetune attention wrote")
    parser.add_argument(
        "--no-refinement", action="store_true", help="leave ConvCRF and the proposals' votes out"
    )
    parser.add_argument("--keep", type=Path, help="folder of opened images (pocket; default: OUT/views)")


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    options = OneShotOptions(
        split=args.split,
        ranking=args.ranking,
        heads=args.heads,
        tuned=args.tuned,
        refinement=not args.no_refinement,
        cache_folder=args.keep,
    )
    run(eval_settings(args), options)


def run(settings: EvalSettings, options: OneShotOptions) -> None:
    """Score every image and write result.json, samples.jsonl and report.html."""
    from assistant.presets import load_attention_probe

    names, images = read_labelled(settings.root, options.split)
    images = images[: settings.limit]
    probe, weights = load_attention_probe(settings.models)
    ranking = Ranking.load(options.ranking) if options.ranking else probe.ranking
    if ranking is None:
        raise BadInput("give --ranking, what python -m assistant rank-layers wrote for this model")
    probe.ranking = ranking
    probe.restore({})  # training-free means the model's own attention
    tuned = read_tuned(options.tuned, ranking) if options.tuned else {}
    samples = Run(
        settings.out,
        {
            "benchmark": "oneshot",
            "version": VERSION,
            "root": str(settings.root.resolve()),
            "split": options.split,
            "preset": settings.models.describe(),
            "weights": weights,
            "use": ranking.use,
            "heads": options.heads,
            "refinement": options.refinement,
            "seed": settings.seed,
        },
        settings.strict,
    )
    scorer = ImageScorer(
        samples,
        probe,
        AttentionArms(probe, names, ranking, options.heads),
        tuned,
        _proposal_source(settings) if options.refinement else None,
        options.cache_folder or settings.out / "views",
    )
    lines = samples.each(
        images,
        lambda image: image.path.name,
        scorer.score,
        describe=lambda image: {"image": str(image.path)},
        is_finished=scorer.is_finished,
    )
    if lines is not None:
        weights = weights | {f"tuned {number}": run.checksum for number, run in tuned.items()}
        finish(settings, names, images, lines, sorted(tuned), weights)


def _proposal_source(settings: EvalSettings) -> Callable[[np.ndarray], list[Rle]]:
    """A function from an image (H, W, 3) uint8 to the masks of the preset's SAM, loaded at the first call."""
    from assistant.loading.sams import load_image_opener

    @functools.cache
    def load() -> Any:
        opener, _ = load_image_opener(settings.models.sam_or_preset, settings.models.device)
        return opener

    def propose(image: np.ndarray) -> list[Rle]:
        return load().propose(image)[1].rles

    return propose


def finish(
    settings: EvalSettings,
    names: list[str],
    images: Sequence[LabelledImage],
    lines: list[Line],
    runs: list[int],
    weights: dict[str, str],
) -> None:
    """Write result.json and report.html, and print the scores. Raises BadInput where no image is usable."""
    good = [line for line in lines if "error" not in line]
    if not good:
        raise BadInput(f"no image of {settings.root} can be used: {lines[0]['key']}: {lines[0]['error']}")
    scores = score_arms(good, len(names) + 1, runs, settings.seed)
    result = result_of(settings, names, lines, scores, weights)
    write_result(settings.out, result)
    by_name = {image.path.name: image for image in images}
    shown_arms = ["ranked layers", *(f"tuned {run}" for run in runs[:1])]
    write_report(settings.out, result, samples=report_samples(good, names, settings.out, by_name, shown_arms))
    print_scores(result, scores)


def result_of(
    settings: EvalSettings,
    names: list[str],
    lines: list[Line],
    scores: OneShotScores,
    weights: dict[str, str],
) -> Result:
    """The result of all lines."""
    good = [line for line in lines if "error" not in line]
    differences = scores.differences()
    figures: dict[str, Any] = {
        "mIoU": scores.measured["tuned" if scores.runs else "ranked layers"],
        "classes": scores.classes_that_occur(),
        "arms": scores.measured,
        "differences": {name: [round(value, 4) for value in row] for name, row in differences.items()},
    }
    if scores.runs:
        of_runs = scores.of_runs()
        figures["tuned_runs"] = [round(value, 4) for value in of_runs]
        figures["tuned_std"] = float(np.std(of_runs))
    shown = [group for group in ("all layers", "ranked layers", "tuned") if group in scores.groups]
    by_class = {group: scores.by_class(group) for group in shown}
    return Result(
        benchmark="oneshot",
        version=VERSION,
        n=len(good),
        preset=settings.models.describe(),
        weights=weights,
        figures=figures,
        ci95={group: scores.interval(group) for group in scores.groups},
        by={
            name: {group: _number(ious[k]) for group, ious in by_class.items()}
            for k, name in enumerate(["background", *names])
        },
        seconds_per_image=float(np.median([line["seconds"] for line in good])),
        bad=bad_inputs(lines),
    )


def _number(value: float) -> float | None:
    """A number as JSON holds it: None for nan."""
    return None if np.isnan(value) else float(value)


def print_scores(result: Result, scores: OneShotScores) -> None:
    """Print the score of every arm and the differences between them."""
    rows = {}
    for group, score in scores.measured.items():
        low, high = scores.interval(group)
        rows[group] = f"{score:.4f} [{low:.4f}, {high:.4f}]"
    print_table(
        f"oneshot, version {VERSION}, {result.n} images, {result.figures['classes']} classes with "
        "background: mIoU",
        rows,
    )
    if scores.runs:
        of_runs = scores.of_runs()
        print(f"  tuned, {len(of_runs)} runs: {np.mean(of_runs):.4f} +- {np.std(of_runs):.4f}")
    print_table(
        "paired differences with 95 % intervals",
        {
            name: f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"
            for name, (difference, low, high) in scores.differences().items()
        },
    )


def report_samples(
    lines: Sequence[Line],
    names: list[str],
    out: Path,
    images: Mapping[str, LabelledImage],
    arms: Sequence[str],
) -> Iterator[Sample]:
    """The worst and the best images by the last of some arms, each class in its own colour."""
    classes = len(names) + 1
    scores = {line["key"]: image_mean_iou(line, arms[-1], classes) for line in lines}
    ranked = sorted(scores, key=lambda key: (scores[key], key))
    shown = min(SAMPLES_PER_GROUP, (len(ranked) + 1) // 2)
    for group, keys in (("Worst", ranked[:shown]), ("Best", ranked[::-1][:shown])):
        for key in keys:
            image = images[key]
            label_maps = {"truth": image.read()}
            for arm in arms:
                label_maps[arm] = read_label_map(out / arm / "label_maps", image.path.stem, classes)
            panels = _panels(image, label_maps, names)
            yield Sample(group, f"mIoU {scores[key]:.2f}   {key}", [], panels)


def _panels(
    image: LabelledImage, label_maps: Mapping[str, np.ndarray], names: list[str]
) -> list[tuple[str, np.ndarray, list[np.ndarray]]]:
    """One panel per label map (H, W), each class in the same colour in all of them."""
    from assistant.images import open_image

    pixels = open_image(image.path)
    numbers = sorted({int(k) for label_map in label_maps.values() for k in np.unique(label_map) if k > 0})
    panels = []
    for title, label_map in label_maps.items():
        masks = [label_map == k for k in numbers]
        present = [names[k - 1] for k, mask in zip(numbers, masks, strict=True) if mask.any()]
        panels.append((f"{title}: {', '.join(present) or 'nothing'}", pixels, masks))
    return panels
