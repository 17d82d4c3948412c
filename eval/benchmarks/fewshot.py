"""Few-shot segmentation on PASCAL-5i, COCO-20i and COCO-format folders, with and without a label.

    python -m eval fewshot --benchmark coco-format --root DATA/coco/dev --references DATA/coco/train \\
        --fold 0 1 2 3 --shots 1 --weights "runs/reference-{fold}" --out runs/eval/fewshot-1
    python -m eval fewshot --benchmark pascal5i --root VOC2012 --fold 0 --shots 5 \\
        --weights runs/pascal-0 --out runs/eval/pascal-5

Three arms segment the same episodes: "prototype", prototype matching, which is not trained; "plain", the
encoder that reads no label (VRP-SAM); and "text", the encoder that reads it (VLP-SAM). The weights must not
have learned the categories of the fold, which `finetune reference --fold` leaves out. An episode is a
category of the fold, a query that shows it, and references in other images, drawn by --seed alone. Weights
are selected before, on images that finetune holds out.

How this differs from others: PFENet and HSNet take their queries from published lists, which --list reads.
Each draws other episodes from them (1,000 to 20,000), with more of the categories that are frequent; here
every category is equally likely. PFENet leaves out images in which a category covers less than 2,048 px; here
it is 1,024 without a list. Compare scores on the same lists and draws only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assistant.errors import BadInput
from eval import models
from eval.benchmarks.fewshot_data import FOLDS, LAYOUTS, EpisodeImages, EpisodePlan, draw_episodes
from eval.benchmarks.fewshot_lists import keep_listed
from eval.benchmarks.fewshot_scores import ARMS, Line, score_arms, summarise
from eval.report import Sample, write_report
from eval.result import Result, bad_inputs, print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings, eval_settings

if TYPE_CHECKING:  # torch is loaded when a model is, so that --help is instant
    from assistant.export.html_report import Panel
    from assistant.few_shot.matcher import Matcher
    from assistant.sam.segmenter import Segmenter

VERSION = 1
SAMPLES_PER_GROUP = 6  # in the report
MAX_REFERENCES_SHOWN = 2  # of an episode in the report


@dataclass(frozen=True)
class FewShotOptions:
    """What the benchmark is asked for in addition to `EvalSettings`.

    Attributes:
        layout: A name of `LAYOUTS`.
        references: Folder of the same layout that references are drawn from; None for `EvalSettings.root`.
        folds: The folds to score.
        shots: References per episode.
        episodes: Episodes per fold.
        weights: What `finetune reference` wrote, "{fold}" standing for the fold; None for the preset's own.
        lists: Published lists of queries, see `fewshot_lists`; () for every image that shows enough.
    """

    layout: str
    references: Path | None
    folds: tuple[int, ...]
    shots: int
    episodes: int
    weights: str | None
    lists: tuple[Path, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument(
        "--benchmark",
        dest="layout",
        choices=LAYOUTS,
        required=True,
        help="the layout of --root and its folds",
    )
    parser.add_argument(
        "--references",
        type=Path,
        help="take references from this folder of the same layout (default: --root)",
    )
    parser.add_argument(
        "--fold", type=int, nargs="+", choices=range(FOLDS), default=list(range(FOLDS)), help="default: all"
    )
    parser.add_argument("--shots", type=int, default=1, help="references per episode (default: 1)")
    parser.add_argument("--episodes", type=int, default=1000, help="per fold (default: 1000)")
    parser.add_argument(
        "--weights",
        help="what finetune reference wrote; {fold} stands for the fold. Default: the preset's own, which "
        "learned every category of COCO",
    )
    parser.add_argument(
        "--list",
        dest="lists",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="draw queries, and references from the same folder, from these lists of PFENet or HSNet only",
    )


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    options = FewShotOptions(
        layout=args.layout,
        references=args.references,
        folds=tuple(sorted(set(args.fold))),
        shots=args.shots,
        episodes=args.episodes,
        weights=args.weights,
        lists=tuple(args.lists),
    )
    run(eval_settings(args), options)


def run(settings: EvalSettings, options: FewShotOptions) -> None:
    """Segment every episode and write result.json, samples.jsonl and report.html."""
    from eval.benchmarks.fewshot_arms import OpenedImages, segment_episode

    if options.shots < 1 or options.episodes < 1:
        raise BadInput("--shots and --episodes must be at least 1")
    queries = LAYOUTS[options.layout](settings.root)
    if options.lists:
        keep_listed(queries, options.lists)
    sources = LAYOUTS[options.layout](options.references) if options.references else queries
    if sources.names != queries.names:
        raise BadInput(f"{options.references} and {settings.root} have different categories")
    segmenter, weights = models.open_segmenter(settings)
    matchers, matcher_weights = load_matchers(options, segmenter)
    weights |= matcher_weights
    episodes = [
        episode
        for fold in options.folds
        for episode in draw_episodes(
            options.layout, queries, sources, fold, options.shots, options.episodes, settings.seed
        )
    ][: settings.limit]
    samples = Run(
        settings.out,
        {
            "benchmark": "fewshot",
            "version": VERSION,
            "layout": options.layout,
            "root": str(settings.root.resolve()),
            "references": str((options.references or settings.root).resolve()),
            "fold": list(options.folds),
            "shots": options.shots,
            "episodes": options.episodes,
            "seed": settings.seed,
            "weights": weights,
            "preset": settings.models.describe(),
            **({"lists": [file.name for file in options.lists]} if options.lists else {}),
        },
        settings.strict,
    )
    opened = OpenedImages(matchers[options.folds[0]])  # the frozen features are the same in all folds

    def segment(episode: EpisodePlan) -> Line:
        return segment_episode(matchers[episode.fold], opened, queries, sources, episode)

    lines = samples.each(
        episodes,
        lambda episode: episode.key,
        segment,
        noun="episodes",
        describe=lambda episode: {"name": str(queries.paths[episode.query])},
    )
    if lines is not None:
        result = result_of(settings, options, lines, weights)
        write_result(settings.out, result)
        write_report(settings.out, result, samples=report_samples(lines, episodes, queries, sources))
        print_result(result, options)


def load_matchers(options: FewShotOptions, segmenter: Segmenter) -> tuple[dict[int, Matcher], dict[str, str]]:
    """The matcher of each fold, and {part: sha256} of their weights. Raises BadInput where there are none."""
    from assistant.few_shot.matcher import WEIGHT_FILE, Matcher, pocket_matcher
    from assistant.weights import pocket_file, sha256_of

    matchers = {}
    weights = {}
    for fold in options.folds:
        if options.weights:
            file = Path(options.weights.replace("{fold}", str(fold)))
            file = file / WEIGHT_FILE if file.is_dir() else file
            matchers[fold] = Matcher.load(file, segmenter)
        else:
            file = pocket_file(WEIGHT_FILE)
            matchers[fold] = pocket_matcher(segmenter)
        name = f"reference of fold {fold}" if len(options.folds) > 1 else "reference"
        weights[name] = sha256_of(file)
    return matchers, weights


def result_of(
    settings: EvalSettings, options: FewShotOptions, lines: Sequence[Line], weights: dict[str, str]
) -> Result:
    """The result of all lines. Raises BadInput where no episode could be used."""
    good = [line for line in lines if "error" not in line]
    if not good:
        raise BadInput(f"no episode can be used: {lines[0]['error']}")
    figures, ci95, by = summarise(good, score_arms(good, settings.seed))
    about = {
        "layout": options.layout,
        "shots": options.shots,
        "queries": len({line["query"] for line in good}),
        "episodes with fewer references": sum(len(line["references"]) < options.shots for line in good),
    }
    if options.lists:
        about["lists"] = ", ".join(file.name for file in options.lists)
    return Result(
        benchmark="fewshot",
        version=VERSION,
        protocol=f"{options.layout}, {options.shots}-shot",
        n=len(good),
        preset=settings.models.describe(),
        weights=weights,
        figures=figures | about,
        ci95=ci95,
        by=by,
        seconds_per_image=float(np.median([line["open_seconds"] for line in good])),
        seconds_per_query=float(np.median([line["arms"]["text"]["seconds"] for line in good])),
        bad=bad_inputs(list(lines), "name"),
    )


def print_result(result: Result, options: FewShotOptions) -> None:
    """Print the scores with their intervals, and those of each fold."""
    rows: dict[str, float | int | str | None] = {}
    figures = result.figures | {
        "seconds to open a reference": result.seconds_per_image,
        "seconds to segment a query": result.seconds_per_query,
    }
    for name, value in figures.items():
        interval = result.ci95.get(name)
        rows[name] = f"{value:.4f}  [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else value
    folds = [name for name in result.by if name.startswith("fold ")]
    scored = [int(name.removeprefix("fold ")) for name in folds]
    print_table(
        f"fewshot, version {VERSION}, {options.layout}, {options.shots}-shot, folds {scored}, "
        f"{result.n} episodes, {len(result.bad)} bad",
        rows,
    )
    for name in folds:
        print_table(name, result.by[name])


def report_samples(
    lines: Sequence[Line],
    episodes: Sequence[EpisodePlan],
    queries: EpisodeImages,
    sources: EpisodeImages,
) -> Iterator[Sample]:
    """Episodes where the label helped, where it hurt, and some others: references, truth and every arm."""
    good = [pair for pair in zip(episodes, lines, strict=True) if "error" not in pair[1]]
    ranked = sorted(good, key=lambda pair: _iou(pair[1], "text") - _iou(pair[1], "plain"))
    shown = min(SAMPLES_PER_GROUP, len(ranked) // 3 or 1)
    step = max(1, len(good) // (2 * shown))
    for group, chosen in (
        ("As drawn", good[::step][: 2 * shown]),
        ("The label helped most", ranked[::-1][:shown]),
        ("The label hurt most", ranked[:shown]),
    ):
        for episode, line in chosen:
            title = f"{line['category']}   {line['query']}"
            yield Sample(group, title, [], _panels(episode, line, queries, sources))


def _iou(line: Line, arm: str) -> float:
    """The IoU of one arm in one episode, in [0, 1]."""
    intersection, union = line["arms"][arm]["pair"]
    return intersection / max(1, union)


def _panels(episode: EpisodePlan, line: Line, queries: EpisodeImages, sources: EpisodeImages) -> list[Panel]:
    """The images of one episode in the report."""
    from assistant.images import open_image
    from assistant.sam.mask_ops import decode_rle

    image = open_image(queries.paths[episode.query])
    panels: list[Panel] = [
        ("reference", open_image(sources.paths[number]), [sources.read(number, episode.category)[0]])
        for number in episode.references[:MAX_REFERENCES_SHOWN]
    ]
    panels.append(("truth", image, [queries.read(episode.query, episode.category)[0]]))
    for arm in ARMS:
        panels.append((f"{arm} {_iou(line, arm):.2f}", image, [decode_rle(line["arms"][arm]["rle"])]))
    return panels
