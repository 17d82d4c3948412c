"""Which questions of a run a person should look at, drawn for the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.record import RecordTarget
from assistant.sam.mask_ops import Rle, decode_rle
from eval.metrics import iou
from eval.questions.question import Question
from eval.questions.summary import groups_of
from eval.report import Panel, Sample

MAX_SAMPLES_PER_GROUP = 8
MISSING_IMAGE_GREY = 127


def pick(lines: list[dict[str, Any]], most: int = MAX_SAMPLES_PER_GROUP) -> dict[str, list[dict[str, Any]]]:
    """Choose the lines to show.

    Args:
        lines: The lines of a run; those with an error are left out.
        most: Lines per group.

    Returns:
        {group: lines}: of the questions about something present the worst answers, the typical ones (nearest
        the median) and the best; then the two kinds of presence errors.
    """
    good = [line for line in lines if "error" not in line]
    present = [line for line in good if line["targets"]]
    score = {line["key"]: iou(*line["pair"]) for line in present}
    worst_first = sorted(present, key=lambda line: (score[line["key"]], line["key"]))
    median = float(np.median(list(score.values()))) if present else 0.0
    typical_first = sorted(worst_first, key=lambda line: (abs(score[line["key"]] - median), line["key"]))
    groups = {
        "Worst of the outlined": [line for line in worst_first if line["said"]],
        "Typical": typical_first,
        "Best": worst_first[::-1],
        "Present, but called absent": [line for line in worst_first if not line["said"]],
        "Absent, but outlined": [line for line in good if not line["targets"] and line["said"]],
    }
    return {name: members[:most] for name, members in groups.items()}


def report_samples(lines: list[dict[str, Any]], questions: list[Question]) -> Iterator[Sample]:
    """The picked questions, one at a time.

    Each shows the truth, the answer by target, the proposals that it chose, and those that a perfect choice
    would have taken: what separates a poor choice from poor proposals.
    """
    by_key = {question.key: question for question in questions}
    for group, picked in pick(lines).items():
        for line in picked:
            question = by_key[line["key"]]
            groups = ", ".join(line["groups"])
            title = f"IoU {iou(*line['pair']):.2f}   {groups}   {Path(question.record.image).name}"
            yield Sample(group, title, _words(line), _panels(line, question), groups_of(line))


def _words(line: dict[str, Any]) -> list[str]:
    """What is written above the panels."""
    words = [f"asked: {line['question']}", f"answered: {line['answer']}"]
    if line["trouble"]:
        words.append(f"note: {line['trouble']}")
    for target in line["answered"]:
        presence = "present" if target["present"] else "absent"
        words.append(
            f"{target['phrase']}: {presence}, confidence {target['confidence']:.2f}, "
            f"proposals {target['proposals']}"
        )
    if line["oracle"]:
        bounds = ", ".join(f"{bound:.2f} of {first}" for first, bound in line["oracle"].items())
        words.append(f"best choice possible: {bounds}; with proposals {line['chosen']}")
    return words


def _panels(line: dict[str, Any], question: Question) -> list[Panel]:
    image = _image(question)
    targets = question.record.targets
    present = [target for target in line["answered"] if target["present"]]
    answered = ", ".join(target["phrase"] for target in present) or "nothing present"
    panels: list[Panel] = [
        (
            f"truth: {', '.join(_label(target) for target in targets)}",
            image,
            _masks([target.rle for target in targets if target.rle is not None]),
        ),
        (f"answer: {answered}", image, _masks([target["rle"] for target in present])),
    ]
    used = [rle for rles in line["used"] for rle in rles]
    if used:
        panels.append(("proposals that it chose", image, _masks(used)))
    if line["chosen"]:
        panels.append(("the best choice of proposals", image, _masks(line["best"])))
    return panels


def _image(question: Question) -> np.ndarray:
    """The image, (H, W, 3) uint8; grey where it was removed since it was scored."""
    from assistant.images import open_image

    try:
        return open_image(question.image)
    except BadInput:
        size = (question.record.height, question.record.width, 3)
        return np.full(size, MISSING_IMAGE_GREY, np.uint8)


def _label(target: RecordTarget) -> str:
    return target.phrase if target.rle is not None else f"{target.phrase} (absent)"


def _masks(rles: list[Rle]) -> list[np.ndarray]:
    return [decode_rle(rle) for rle in rles]
