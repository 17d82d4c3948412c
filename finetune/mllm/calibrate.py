"""Calibrate the confidence of the selection "concepts" on records whose truth is known.

    python -m finetune calibrate --preset agent --val val.jsonl --out agent.json
    python -m assistant ask photo.jpg "is there a bench?" --preset agent --calibration agent.json

Every question is asked once, and a logistic regression is fitted to what the LLM and the segmenter say of
each target. ECE, printed before and after, is the mean difference between confidence and truth in ten bins;
that after it is of five folds, each judged by a fit to the other four.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.errors import BadInput

if TYPE_CHECKING:
    from assistant.mllm.calibration import Calibration, Evidence
    from assistant.record import RecordTarget
    from assistant.scene import Assistant
    from finetune.image_record import ImageRecord

FOLDS = 5
BINS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the stage to the command line."""
    from assistant.cli import add_model_arguments

    add_model_arguments(parser)
    parser.add_argument("--val", type=Path, required=True, metavar="FILE", help="records to calibrate on")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the calibration, JSON")
    parser.add_argument("--limit", type=int, help="records at most, evenly spaced over the file")


def main(args: argparse.Namespace) -> None:
    """Ask the records, fit, and write the calibration."""
    from assistant.cli import model_options, open_assistant
    from finetune.image_record import read_image_records
    from finetune.mllm.validation import evenly_spaced

    options = model_options(args)
    if options.calibration is not None:
        raise BadInput("leave out --calibration: it is what this command writes")
    records = [row for row in read_image_records(args.val) if row.record.targets]
    if args.limit is not None:
        records = evenly_spaced(records, args.limit)
    if not records:
        raise BadInput(f"{args.val} has no record with a target")
    calibration, figures = calibrate(open_assistant(options), records)
    calibration.save(args.out)
    for name, value in figures.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


@dataclass
class Observed:
    """What was known of targets, and the truth.

    Attributes:
        evidence: Of each target.
        present: Whether each is in its image.
        unmatched: Number of answered targets that no record has.
    """

    evidence: list[Evidence] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)
    unmatched: int = 0


def calibrate(
    assistant: Assistant, records: Sequence[ImageRecord]
) -> tuple[Calibration, dict[str, float | int]]:
    """Ask some records and fit a calibration to the answers.

    Args:
        assistant: Of the selection "concepts".
        records: At least one, with targets. Earlier turns that they bring are not asked.

    Returns:
        The calibration, and "targets", "unmatched targets", "ECE before" and "ECE after".

    Raises:
        BadInput: The assistant selects otherwise, or all targets are present, or none is.
    """
    from assistant.mllm.calibration import Calibration, geometric_mean

    observed = observe(assistant, records)
    calibration = Calibration.fit(observed.evidence, observed.present, assistant.weights)
    before = [geometric_mean(row) for row in observed.evidence]
    figures: dict[str, float | int] = {
        "targets": len(observed.present),
        "unmatched targets": observed.unmatched,
        "ECE before": calibration_error(before, observed.present),
        "ECE after": calibration_error(
            held_out_confidences(observed.evidence, observed.present), observed.present
        ),
    }
    return calibration, figures


def observe(assistant: Assistant, records: Sequence[ImageRecord]) -> Observed:
    """Ask records, and pair what was known of each answered target with the truth; see `calibrate`."""
    from tqdm import tqdm

    from assistant.images import open_image
    from assistant.mllm.calibration import geometric_mean
    from assistant.mllm.concept_pipeline import ConceptPipeline

    pipeline: Any = assistant.pipeline
    if not isinstance(pipeline, ConceptPipeline):
        raise BadInput(
            "only the selection concepts is calibrated: give --concepts, or a preset such as agent"
        )
    observed, seen = Observed(), []

    def recording(evidence: Evidence) -> float:
        seen.append(evidence)
        return geometric_mean(evidence)

    pipeline.confidence = recording
    try:
        for row in tqdm(records, desc="records", unit="record", disable=None):
            seen.clear()
            answer = assistant.open(open_image(row.image)).ask(row.record.question)
            if any(target.seen for target in answer.targets):  # which are told in another order
                observed.unmatched += len(answer.targets)
                continue
            phrases = [target.phrase for target in answer.targets]
            for evidence, truth in zip(seen, matched(phrases, row.record.targets), strict=False):
                if truth is None:
                    observed.unmatched += 1
                else:
                    observed.evidence.append(evidence)
                    observed.present.append(truth.rle is not None)
    finally:
        pipeline.confidence = geometric_mean
    return observed


def matched(phrases: Sequence[str], truths: Sequence[RecordTarget]) -> list[RecordTarget | None]:
    """For each phrase of an answer the target of the record that it names: by its words, else by its place.

    The place counts where there are as many of both. None where no target is named.
    """
    from assistant.dialogue.class_list import class_of

    named = {truth.phrase: truth for truth in truths}
    found: list[RecordTarget | None] = []
    for k, phrase in enumerate(phrases):
        name = class_of(phrase, list(named))
        in_place = truths[k] if len(phrases) == len(truths) else None
        found.append(in_place if name is None else named[name])
    return found


def held_out_confidences(evidence: Sequence[Evidence], present: Sequence[bool]) -> list[float]:
    """The confidence of each target by a calibration that was fitted to the other folds.

    Where the other folds are all present or all absent, it stays as it is without calibration.
    """
    from assistant.mllm.calibration import Calibration, geometric_mean

    confidences = [geometric_mean(row) for row in evidence]
    for fold in range(FOLDS):
        others = [k for k in range(len(evidence)) if k % FOLDS != fold]
        if len({present[k] for k in others}) == 2:
            fitted = Calibration.fit([evidence[k] for k in others], [present[k] for k in others])
            for k in range(fold, len(evidence), FOLDS):
                confidences[k] = fitted.confidence(evidence[k])
    return confidences


def calibration_error(confidence: Sequence[float], present: Sequence[bool], bins: int = BINS) -> float:
    """The expected calibration error (Naeini et al. 2015), in [0, 1].

    Args:
        confidence: (N,) in [0, 1], N above 0.
        present: (N,), the truth.
        bins: Of equal width.

    Returns:
        The mean over all, by bins, of the difference between mean confidence and share of the present.
    """
    values, truth = np.array(confidence, float), np.array(present, float)
    places = np.minimum((values * bins).astype(int), bins - 1)
    gaps = [
        (places == k).mean() * abs(values[places == k].mean() - truth[places == k].mean())
        for k in np.unique(places)
    ]
    return float(np.sum(gaps))
