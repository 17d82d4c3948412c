"""Questions whose truth is masks: asked of the free-running model, and scored on what it says.

    questions = [Question("a12", record, Path("a.jpg"), ["length: short"]), ...]
    run_questions(settings, QuestionOptions(protocol="both"), "reasonseg", VERSION, questions, bad)

A question whose targets are all absent scores 1 where the model says so, and 0 where it outlines anything.
Every question starts a new conversation; where it follows others (`Record.history`), those are asked first,
and the model reads its own answers to them.

Beside the score stands its bound: the best choice among the same proposals (`eval.oracle`). Another model's
answers are scored alike from a folder of masks: `--predictions` (`eval.predictions`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.errors import BadInput
from eval.metrics import PROTOCOLS, iou
from eval.questions.question import Question
from eval.questions.samples import report_samples
from eval.questions.scoring import Truth, score_answer, score_oracle
from eval.questions.summary import BOTH_PROTOCOLS, summary
from eval.report import presence_curves, write_report
from eval.respondents import Respondent, open_respondent
from eval.result import Result, print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings

PRESENCE_TITLE = "Presence: decided by the best confidence of a question"
PRINTED_FIELDS = (
    "protocol",
    "gIoU",
    "cIoU",
    "ncIoU",
    "N_acc",
    "T_acc",
    "oracle_gIoU",
    "seconds_per_image",
    "seconds_per_query",
    "tokens_per_query",
    "image_tokens_per_query",
    "calls_per_query",
    "passes_per_query",
)


@dataclass(frozen=True)
class QuestionOptions:
    """What these benchmarks ask beside `EvalSettings`.

    Attributes:
        split: Part of the data set; None for all.
        protocol: One of `eval.metrics.PROTOCOLS`, or "both".
        predictions: Folder of another model's masks to score; None for the models of the settings.
    """

    split: str | None = None
    protocol: str = "lisa"
    predictions: Path | None = None


def add_arguments(parser: argparse.ArgumentParser, default_split: str | None = None) -> None:
    """Add the options of these benchmarks; `question_options` reads them."""
    parser.add_argument(
        "--split", default=default_split, help=f"part of the data set (default: {default_split or 'all'})"
    )
    parser.add_argument(
        "--protocol",
        default="lisa",
        choices=[*PROTOCOLS, BOTH_PROTOCOLS],
        help="how ignored and empty masks count (eval/metrics.py); both: side by side (default: lisa)",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        help="score the masks of this folder, KEY.png or predictions.json, instead of a model",
    )


def question_options(args: argparse.Namespace) -> QuestionOptions:
    """The options that `add_arguments` added, as they were given."""
    return QuestionOptions(split=args.split, protocol=args.protocol, predictions=args.predictions)


def run_questions(
    settings: EvalSettings,
    options: QuestionOptions,
    benchmark: str,
    version: int,
    questions: list[Question],
    bad: Sequence[tuple[str, str]] = (),
    figures: Callable[[list[dict[str, Any]], list[Question]], dict[str, Any]] | None = None,
) -> None:
    """Ask every question and write result.json, samples.jsonl and report.html.

    Args:
        settings: What every benchmark has.
        options: What these benchmarks have.
        benchmark: Name of the benchmark.
        version: Its version.
        questions: Its questions, in an order that does not change.
        bad: (name, reason) of items that could not even be read as questions.
        figures: Computes further figures from the lines and their questions; None for none.

    Raises:
        BadInput: There is nothing to ask, two questions have one name, or in a strict run an item cannot be
            used.
    """
    if bad and settings.strict:
        raise BadInput(f"{bad[0][0]}: {bad[0][1]}")
    # Of all questions, so that a larger --limit goes on in the same folder.
    checksum = _checksum(questions)
    questions = questions[: settings.limit]
    if not questions:
        raise BadInput(f"nothing to ask in {settings.root}" + (f": {bad[0][1]}" if bad else ""))
    if len({question.key for question in questions}) < len(questions):
        raise BadInput(f"two questions in {settings.root} have the same name")
    respondent = open_respondent(settings, options.predictions)
    run = Run(
        settings.out,
        {
            "benchmark": benchmark,
            "version": version,
            "preset": respondent.name,
            "weights": respondent.weights,
            "questions": checksum,
            "seed": settings.seed,
        },
        settings.strict,
    )

    def ask(numbered: tuple[int, Question]) -> dict[str, Any]:
        number, question = numbered
        return ask_question(respondent, question, settings.seed + number, settings.strict)

    lines = run.each(
        list(enumerate(questions)),
        key=lambda numbered: numbered[1].key,
        work=ask,
        describe=lambda numbered: _about(numbered[1]),
        group=lambda numbered: numbered[1].image,
        noun="questions",
    )
    if lines is None:
        return
    result = summary(lines, options.protocol, settings.seed)
    if figures is not None:
        result.figures |= figures(lines, questions)
    result.benchmark = benchmark
    result.version = version
    result.preset = respondent.name
    result.weights = respondent.weights
    result.bad = [{"name": name, "error": reason} for name, reason in bad] + result.bad
    if options.predictions:
        result.curve = []  # masks on disk have no confidence
    write_result(settings.out, result)
    write_report(
        settings.out,
        result,
        presence_curves(result, PRESENCE_TITLE),
        report_samples(lines, questions),
        [iou(*line["pair"]) for line in lines if "error" not in line and line["targets"]],
    )
    _print(result)


def ask_question(respondent: Respondent, question: Question, seed: int, strict: bool) -> dict[str, Any]:
    """Ask one question and score the answer.

    Args:
        respondent: Who answers.
        question: The question.
        seed: Seed of sampling.
        strict: Whether a question whose record has a known trouble is refused.

    Returns:
        The line of the question in samples.jsonl; its fields are those of `eval.questions.scoring`, `seconds`
        of the question, and `open_seconds` of its image where it was opened for this question.

    Raises:
        BadInput: The image or the record cannot be used, or the model refuses the question.
    """
    record = question.record
    trouble = record.source.get("trouble", "")
    if strict and trouble:
        raise BadInput(trouble)
    truth = Truth.of(record)
    asked = [*(turn.question for turn in record.history), record.question]
    timed = respondent.ask(question.key, question.image, truth.size, asked, seed)
    line = _about(question)
    if timed.seconds is not None:
        line |= {"seconds": timed.seconds, "tokens": timed.answer.tokens}
        line |= timed.cost_fields()
    line |= score_answer(timed.answer, truth)
    line |= {
        "targets": len(truth.masks),
        "absent": len(record.targets) - len(truth.masks),
        "trouble": trouble,
        "oracle": {},
        "chosen": [],
        "used": [],
    }
    if timed.proposals is not None:
        rles = timed.proposals.rles
        line["used"] = [[rles[k] for k in target["proposals"]] for target in line["answered"]]
        line |= score_oracle(rles, truth)
    if timed.open_seconds is not None:
        line["open_seconds"] = timed.open_seconds
    return line


def _about(question: Question) -> dict[str, Any]:
    """The fields that tell which question a line belongs to."""
    return {
        "image": question.record.image,
        "question": question.record.question,
        "groups": question.groups,
        "name": question.name,
    }


def _checksum(questions: list[Question]) -> str:
    """The sha256 of all that is asked and of its truth."""
    rows = [
        (
            question.key,
            question.record.question,
            [target.rle for target in question.record.targets],
            *(turn.question for turn in question.record.history),
        )
        for question in questions
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _print(result: Result) -> None:
    """Print the scores, those of each protocol, and those by the length of the question where it is known."""
    single = {name: value for name, value in result.figures.items() if not isinstance(value, dict)}
    print_table(
        f"{result.benchmark}, version {result.version}, {result.n} questions, {len(result.bad)} bad",
        {name: getattr(result, name) for name in PRINTED_FIELDS} | single,
    )
    for protocol, figures in result.figures.get("protocols", {}).items():
        print_table(f"protocol {protocol}", figures)
    for group, figures in result.by.items():
        if group.startswith("length"):
            print_table(group, {name: figures[name] for name in ("n", "gIoU", "cIoU", "oracle_gIoU")})
