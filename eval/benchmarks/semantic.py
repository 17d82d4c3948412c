"""Semantic segmentation by conversation (LaSagnA): a class list goes in, every class comes back present or
absent.

    python -m eval semantic --root camvid/dev --out runs/eval/semantic

ADE20K, COCO-Stuff, Cityscapes, or any folder of label PNGs with a names file (`eval.label_maps`). A list
longer than `--per-question` is split into several questions. The masks of the classes that are called present
become one label map; where they overlap, the answer with the higher confidence counts. mIoU is over classes,
from the pixel counts of the whole set: unlabelled pixels do not count, pixels that no answer covers are
errors.

A preset that finds things by their name (`--concepts`) is not asked: each class is looked for, in one pass,
and where instances overlap, the one with the higher score counts. A "query" of its result is a class.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assistant.dialogue.class_list import CLASSES_PER_QUESTION, ask_classes
from assistant.errors import BadInput
from assistant.images import open_image
from assistant.sam.mask_ops import Rle
from eval import models
from eval.annotated_images import open_sized
from eval.benchmarks.semantic_scores import Line, mean_iou, summary, total_counts
from eval.label_maps import LabelMaps, find_layout, read_label_map, save_label_map
from eval.metrics import class_counts, packed_counts
from eval.oracle import Atoms, oracle
from eval.report import Panel, Sample, presence_curves, write_report
from eval.result import print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings, eval_settings

if TYPE_CHECKING:  # torch is loaded when a model is
    from assistant.scene import Assistant

VERSION = 1
MAX_SAMPLES_PER_GROUP = 4
PRESENCE_TITLE = "Presence: decided by the confidence of a class"


@dataclass(frozen=True)
class SemanticOptions:
    """What the benchmark asks beside `EvalSettings`.

    Attributes:
        split: Part of the data set.
        per_question: Number of classes in one question.
        predictions: Folder of another model's label maps to score; None for the models of the settings.
    """

    split: str = "val"
    per_question: int = CLASSES_PER_QUESTION
    predictions: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's own options."""
    parser.add_argument("--split", default="val", help="part of the data set (default: val)")
    parser.add_argument(
        "--per-question",
        type=int,
        default=CLASSES_PER_QUESTION,
        help=f"classes asked for at once (default: {CLASSES_PER_QUESTION})",
    )
    parser.add_argument(
        "--predictions", type=Path, help="score the label maps of this folder, NAME.png, instead of a model"
    )


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    options = SemanticOptions(args.split, args.per_question, args.predictions)
    run(eval_settings(args), options)


def run(settings: EvalSettings, options: SemanticOptions) -> None:
    """Answer the class list of every image; write result.json, samples.jsonl, label maps, report.html."""
    if options.per_question < 1:
        raise BadInput("--per-question must be at least 1")
    data = find_layout(settings.root, options.split)
    images = [_LabelledImage(number, *pair) for number, pair in enumerate(data.pairs)][: settings.limit]
    scorer = _ImageScorer(settings, options, data)
    samples = Run(
        settings.out,
        {
            "benchmark": "semantic",
            "version": VERSION,
            "root": str(settings.root.resolve()),
            "split": options.split,
            "preset": scorer.preset,
            "weights": scorer.weights,
            "seed": settings.seed,
            "per_question": options.per_question,
        },
        settings.strict,
    )
    lines = samples.each(
        images,
        key=lambda image: image.labels.name,
        work=scorer.score,
        describe=lambda image: {"image": str(image.path)},
    )
    if lines is None:
        return
    result = summary(lines, data, settings, has_confidence=options.predictions is None)
    result.version = VERSION
    result.preset = scorer.preset
    result.weights = scorer.weights
    write_result(settings.out, result)
    good = [line for line in lines if "error" not in line]
    write_report(
        settings.out,
        result,
        presence_curves(result, PRESENCE_TITLE),
        report_samples(good, data, settings.out / "label_maps"),
    )
    print_table(
        f"semantic, version {VERSION}, {data.layout}, {result.n} images, {len(result.bad)} bad",
        result.figures
        | {"N_acc": result.N_acc, "T_acc": result.T_acc, "seconds_per_query": result.seconds_per_query},
    )
    print_table("IoU by class", {name: scores["IoU"] for name, scores in result.by.items()})


@dataclass(frozen=True)
class _LabelledImage:
    """One image of the set, by its number; `labels`: its true label map."""

    number: int
    path: Path
    labels: Path


class _ImageScorer:
    """Scores one image after the other, on the assistant or on another model's label maps.

    Attributes:
        preset: What results call the models that answer.
        weights: {part: sha256}.
    """

    def __init__(self, settings: EvalSettings, options: SemanticOptions, data: LabelMaps):
        """Open the models. Raises BadInput where they, or the folder of predictions, cannot be had."""
        self._settings = settings
        self._options = options
        self._data = data
        self._assistant: Assistant | None = None
        self.weights: dict[str, str] = {}
        if options.predictions is not None:
            if not options.predictions.is_dir():
                raise BadInput(f"no folder --predictions {options.predictions}")
            self.preset = f"predictions in {options.predictions.name}"
        else:
            self._assistant = models.open_assistant(settings)
            self.preset = settings.models.describe()
            self.weights = dict(self._assistant.weights)

    def score(self, image: _LabelledImage) -> Line:
        """The line of one image; its label map is saved as `--predictions` reads it."""
        truth = self._data.read(image.labels)
        label_map, line = self._answer(image, truth)
        counts = class_counts(label_map, truth, len(self._data.names))
        save_label_map(self._settings.out, image.labels.stem, label_map)
        return line | {
            "counts": packed_counts(counts),
            "uncovered": int((label_map[truth >= 0] < 0).sum()),
            "labelled": int((truth >= 0).sum()),
        }

    def _answer(self, image: _LabelledImage, truth: np.ndarray) -> tuple[np.ndarray, Line]:
        """The answered label map (H, W) int16, and the fields of the line that depend on who answers."""
        names = self._data.names
        if self._assistant is None:
            assert self._options.predictions is not None
            label_map = read_label_map(self._options.predictions, image.labels.stem, len(names))
            said = {names[k]: [True, 1.0] for k in np.unique(label_map[label_map >= 0])}
            return label_map, {"image": str(image.path), "said": said}
        import torch

        began = time.perf_counter()
        scene = self._assistant.open(open_sized(image.path, *truth.shape))
        open_seconds = time.perf_counter() - began
        torch.manual_seed(self._settings.seed + image.number)
        class_map = ask_classes(scene, names, self._options.per_question)
        present = [int(k) for k in np.unique(truth) if k >= 0]
        return class_map.label, {
            "image": str(image.path),
            "open_seconds": open_seconds,
            "said": {name: list(answer) for name, answer in class_map.answers.items()},
            "strange": class_map.unknown_phrases,
            "seconds": class_map.seconds,
            "tokens": class_map.tokens,
            "calls": class_map.calls,
            "passes": class_map.passes,
            "oracle": class_oracle(scene.proposals.rles, truth, present),
        }


def class_oracle(rles: list[Rle], truth: np.ndarray, present: list[int]) -> dict[str, list[int]]:
    """The best choice of proposals for each class, over labelled pixels only.

    Args:
        rles: The proposals.
        truth: (H, W) int, class numbers; negative: unlabelled.
        present: The classes that are in the image.

    Returns:
        {class number: [intersection, union]} in pixels.
    """
    if not present:
        return {}
    atoms = Atoms.of(rles, [truth == k for k in present] + [truth < 0])
    counted = Atoms(atoms.proposals, atoms.targets[:-1], atoms.size * ~atoms.targets[-1])
    best = [oracle(counted, n) for n in range(len(present))]
    return {str(k): [choice.intersection, choice.union] for k, choice in zip(present, best, strict=True)}


def report_samples(good: list[Line], data: LabelMaps, label_maps: Path) -> Iterator[Sample]:
    """The worst and the best images: truth and answer, each class in its own colour."""
    files = {labels.name: (image, labels) for image, labels in data.pairs}
    scores = {line["key"]: mean_iou(total_counts([line], len(data.names))) or 0.0 for line in good}
    ranked = sorted(good, key=lambda line: (scores[line["key"]], line["key"]))
    shown = min(MAX_SAMPLES_PER_GROUP, (len(ranked) + 1) // 2)
    for group, picked in (("Worst", ranked[:shown]), ("Best", ranked[::-1][:shown])):
        for line in picked:
            path, labels = files[line["key"]]
            answer = read_label_map(label_maps, labels.stem, len(data.names))
            image = open_image(path)
            numbers = sorted(int(k) for k in line["counts"])
            panels = [
                _panel("truth", image, data.read(labels), numbers, data.names),
                _panel("answer", image, answer, numbers, data.names),
            ]
            missing = [name for name in data.names if name not in line["said"]]
            words = [f"not answered: {', '.join(missing)}"] if missing and "seconds" in line else []
            yield Sample(group, f"mIoU {scores[line['key']]:.2f}   {labels.name}", words, panels)


def _panel(
    title: str, image: np.ndarray, label_map: np.ndarray, numbers: list[int], names: list[str]
) -> Panel:
    """The classes `numbers` of a label map on its image, with the names of those that it has."""
    present = [names[k] for k in numbers if (label_map == k).any()]
    return f"{title}: {', '.join(present) or 'nothing'}", image, [label_map == k for k in numbers]
