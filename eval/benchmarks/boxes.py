"""Referring expressions with a box each, some of which fit nothing in the image (RefCOCOs and the like).

    python -m eval boxes --root refcocos/dev --out runs/eval/boxes

--root holds `expressions.json`: [{"image", "width", "height", "expression", "box": [x0, y0, x1, y1] px |
null, "empty": bool, "hops": int, "type": [...]}], and `images/`. The expression is the question. What is
scored is the tight box of the answer's masks: right at IoU >= .5. Beside it stands the best box of a single
proposal, for the first K proposals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.answer import Answer
from assistant.errors import BadInput
from assistant.files import read_json
from assistant.images import open_image
from assistant.sam.mask_ops import tight_box
from eval.metrics import bootstrap_interval, box_iou, n_acc, presence_curve, t_acc
from eval.query_costs import query_costs
from eval.report import Panel, Sample, presence_curves, write_report
from eval.respondents import Respondent, open_respondent
from eval.result import Result, bad_inputs, print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings, eval_settings

VERSION = 1
MIN_RIGHT_IOU = 0.5  # from which an answered box is right
# How many proposals the oracle may choose from, in their order; None: all.
ORACLE_PREFIXES = {"10": 10, "50": 50, "all": None}
MAX_SAMPLES_PER_GROUP = 8
FRAME_WIDTH = 4  # px of a box that the report draws
EDGE_TOLERANCE = 1  # px by which a box may leave its image
PRESENCE_TITLE = "Presence: decided by the best confidence of an expression"

Line = dict[str, Any]


@dataclass(frozen=True)
class Expression:
    """One row of expressions.json, by its number from 0, as it stands there: it may lack anything."""

    number: int
    row: Any

    @property
    def image(self) -> str | None:
        """The file name of its image."""
        return self.row.get("image") if isinstance(self.row, dict) else None

    @property
    def name(self) -> str:
        """How the result lists it when it cannot be used."""
        return f"row {self.number + 1}, {self.image}"


def read_expressions(root: Path) -> list[Expression]:
    """The rows of ROOT/expressions.json, not checked. Raises BadInput where it is missing or no list."""
    file = root / "expressions.json"
    try:
        rows = read_json(file)
    except BadInput as error:
        raise BadInput(
            f"{file} cannot be read ({error}); --root must hold expressions.json and images/"
        ) from None
    if not isinstance(rows, list):
        raise BadInput(f"{file} must be a list of expressions")
    return [Expression(number, row) for number, row in enumerate(rows)]


def check_row(row: Any) -> None:
    """Raise BadInput where a row of expressions.json cannot be used."""
    try:
        height, width = row["height"], row["width"]
        box = row["box"]
        if not row["expression"].strip() or min(height, width) < 1:
            raise ValueError("the expression or the size is empty")
        if (box is None) != bool(row.get("empty", box is None)):
            raise ValueError("box and empty disagree")
        if box is not None:
            x0, y0, x1, y1 = box
            in_width = -EDGE_TOLERANCE <= x0 < x1 <= width + EDGE_TOLERANCE
            in_height = -EDGE_TOLERANCE <= y0 < y1 <= height + EDGE_TOLERANCE
            if not (in_width and in_height):
                raise ValueError(f"the box {box} is not xyxy inside an image of {width}x{height}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"not an expression with image, width, height, expression, box: {error}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's own option."""
    parser.add_argument(
        "--predictions",
        type=Path,
        help="score the masks of this folder, N.png by row from 0, instead of a model",
    )


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    run(eval_settings(args), args.predictions)


def run(settings: EvalSettings, predictions: Path | None = None) -> None:
    """Ask every expression and write result.json, samples.jsonl and report.html.

    Args:
        settings: What every benchmark has.
        predictions: Folder of another model's masks to score; None for the models of the settings.
    """
    expressions = read_expressions(settings.root)[: settings.limit]
    respondent = open_respondent(settings, predictions)
    samples = Run(
        settings.out,
        {
            "benchmark": "boxes",
            "version": VERSION,
            "root": str(settings.root.resolve()),
            "preset": respondent.name,
            "weights": respondent.weights,
            "seed": settings.seed,
        },
        settings.strict,
    )
    lines = samples.each(
        expressions,
        key=lambda expression: expression.number,
        work=_scorer(respondent, settings),
        describe=lambda expression: {"name": expression.name},
        group=lambda expression: expression.image,
        noun="expressions",
    )
    if lines is None:
        return
    result = summary(lines, settings, has_confidence=predictions is None)
    result.preset = respondent.name
    result.weights = respondent.weights
    write_result(settings.out, result)
    good = [line for line in lines if "error" not in line]
    write_report(
        settings.out, result, presence_curves(result, PRESENCE_TITLE), report_samples(good, settings.root)
    )
    seconds = {"seconds_per_image": result.seconds_per_image, "seconds_per_query": result.seconds_per_query}
    print_table(
        f"boxes, version {VERSION}, {result.n} expressions, {len(result.bad)} bad",
        {"N_acc": result.N_acc, "T_acc": result.T_acc} | result.figures | seconds,
    )


def _scorer(respondent: Respondent, settings: EvalSettings) -> Callable[[Expression], Line]:
    """The function that asks and scores one expression."""

    def score(expression: Expression) -> Line:
        row = expression.row
        check_row(row)
        line = {
            "image": expression.image,
            "question": row["expression"],
            "box": row["box"],
            "groups": [
                f"hops: {row.get('hops', '-')}",
                *(f"type: {kind}" for kind in row.get("type") or ["-"]),
            ],
        }
        timed = respondent.ask(
            expression.number,
            settings.root / "images" / str(expression.image),
            (row["height"], row["width"]),
            [row["expression"]],
            settings.seed + expression.number,
        )
        if timed.open_seconds is not None:
            line["open_seconds"] = timed.open_seconds
        if timed.seconds is not None and timed.proposals is not None:
            line |= {
                "seconds": timed.seconds,
                "tokens": timed.answer.tokens,
                **timed.cost_fields(),
                "oracle": proposal_ious(timed.proposals.boxes, row["box"]),
            }
        return line | score_answer(timed.answer, row["box"])

    return score


def proposal_ious(boxes: np.ndarray, box: Sequence[float] | None) -> dict[str, float]:
    """The best IoU of a single proposal's box with `box`, for each of `ORACLE_PREFIXES`; {} without a box."""
    if box is None:
        return {}
    ious = [box_iou(proposal_box, box) for proposal_box in boxes]
    return {name: max(ious[:first], default=0.0) for name, first in ORACLE_PREFIXES.items()}


def score_answer(answer: Answer, box: Sequence[float] | None) -> Line:
    """Score the tight box of an answer's masks.

    Args:
        answer: The answer.
        box: The true box, xyxy in px; None where the expression fits nothing.

    Returns:
        `said`: whether the answer claims anything present; `there`: whether there is a box; `answered`: the
        answer's box, half-open xyxy, or None; `iou`: of the two boxes; `confidence`: of the answer's surest
        target.
    """
    answered = tight_box(answer.mask)
    return {
        "said": bool(answer.present),
        "there": box is not None,
        "answered": answered,
        "answer": answer.text,
        "iou": box_iou(answered, box) if answered and box is not None else 0.0,
        "confidence": max((float(target.confidence) for target in answer.targets), default=0.0),
    }


def summary(lines: list[Line], settings: EvalSettings, has_confidence: bool) -> Result:
    """The result of a whole run, without its models.

    Args:
        lines: The lines of all expressions, those with an error too.
        settings: The settings of the run.
        has_confidence: Whether the answers have a confidence, as a model's have.

    Raises:
        BadInput: No expression can be used.
    """
    good = [line for line in lines if "error" not in line]
    if not good:
        raise BadInput(
            f"no expression of {settings.root} can be used: {lines[0]['error'] if lines else 'there is none'}"
        )
    present = [line for line in good if line["there"]]
    absent = [line for line in good if not line["there"]]
    groups: dict[str, list[Line]] = {}
    for line in good:
        for name in [*line["groups"], "there" if line["there"] else "not there"]:
            groups.setdefault(name, []).append(line)
    whole = scores(good)
    confidence = [line["confidence"] for line in good]
    return Result(
        benchmark="boxes",
        version=VERSION,
        n=len(good),
        N_acc=whole["N_acc"],
        T_acc=whole["T_acc"],
        figures={name: value for name, value in whole.items() if name not in ("n", "N_acc", "T_acc")},
        ci95={
            "acc@50": bootstrap_interval([line["iou"] >= MIN_RIGHT_IOU for line in present], settings.seed),
            "N_acc": bootstrap_interval([not line["said"] for line in absent], settings.seed),
            "T_acc": bootstrap_interval([line["said"] for line in present], settings.seed),
        },
        by={name: scores(members) for name, members in sorted(groups.items())},
        seconds_per_image=_median(_values(good, "open_seconds")),
        **query_costs(good),
        curve=presence_curve(confidence, [line["there"] for line in good]) if has_confidence else [],
        bad=bad_inputs(lines, "name"),
    )


def scores(lines: list[Line]) -> dict[str, Any]:
    """The scores of a group of lines without errors."""
    present = [line for line in lines if line["there"]]
    answered_present = [line["said"] for line in lines]
    is_present = [line["there"] for line in lines]
    right = [line["iou"] >= MIN_RIGHT_IOU if line["there"] else not line["said"] for line in lines]
    table = {
        "n": len(lines),
        "acc@50": _mean([line["iou"] >= MIN_RIGHT_IOU for line in present]),
        "mean_box_iou": _mean([line["iou"] for line in present]),
        "right": _mean(right),
        "N_acc": n_acc(answered_present, is_present),
        "T_acc": t_acc(answered_present, is_present),
    }
    bounds = [line["oracle"] for line in present if "oracle" in line]
    if bounds:
        table |= {
            f"oracle_acc@50, {first} proposals": _mean([ious[first] >= MIN_RIGHT_IOU for ious in bounds])
            for first in ORACLE_PREFIXES
        }
    return table


def _values(lines: list[Line], name: str) -> list[float]:
    """The values of a field in the lines that have it."""
    return [line[name] for line in lines if line.get(name) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def report_samples(good: list[Line], root: Path) -> Iterator[Sample]:
    """Wrong, right, and both presence errors: the true box and the answered one, drawn as frames."""
    present = sorted((line for line in good if line["there"]), key=lambda line: (line["iou"], line["key"]))
    groups = {
        "Wrong place": [line for line in present if line["said"] and line["iou"] < MIN_RIGHT_IOU],
        "Right": [line for line in present if line["iou"] >= MIN_RIGHT_IOU][::-1],
        "Present, but called absent": [line for line in present if not line["said"]],
        "Absent, but outlined": [line for line in good if not line["there"] and line["said"]],
    }
    for group, members in groups.items():
        for line in members[:MAX_SAMPLES_PER_GROUP]:
            image = open_image(root / "images" / line["image"])
            size = (image.shape[0], image.shape[1])
            panels: list[Panel] = []
            for name, box in (("truth", line["box"]), ("answer", line["answered"])):
                panels.append((name, image, [frame(box, size)] if box else []))
            title = f"box IoU {line['iou']:.2f}   {', '.join(line['groups'])}   {line['image']}"
            words = [f"asked: {line['question']}", f"answered: {line['answer']}"]
            yield Sample(group, title, words, panels)


def frame(box: Sequence[float], size: tuple[int, int], width: int = FRAME_WIDTH) -> np.ndarray:
    """The border of a box xyxy, `width` px wide, as a mask (H, W) bool."""
    mask = np.zeros(size, bool)
    x0, y0, x1, y1 = (max(0, round(v)) for v in box)
    mask[y0:y1, x0:x1] = True
    mask[y0 + width : max(y0 + width, y1 - width), x0 + width : max(x0 + width, x1 - width)] = False
    return mask
