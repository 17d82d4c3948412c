"""ReasonSeg (Lai et al. 2024, LISA): one implicit question per image, NAME.jpg beside NAME.json.

    python -m eval reasonseg --root ReasonSeg --split val --protocol both --out runs/eval/reasonseg

Scores under the "lisa" and the "seg-zero" protocol differ by points on the same masks: `--protocol both`
prints them side by side. `is_sentence` separates short phrases from long sentences.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from assistant.errors import BadInput
from assistant.export.converters import from_reasonseg
from eval.questions import run as question_run
from eval.questions.question import Question
from eval.questions.run import QuestionOptions, question_options, run_questions
from eval.settings import EvalSettings, eval_settings

VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's own options."""
    question_run.add_arguments(parser, default_split="val")


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    run(eval_settings(args), question_options(args))


def run(settings: EvalSettings, options: QuestionOptions) -> None:
    """Ask every question of the split."""
    folder = settings.root / str(options.split)
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}: --root is ReasonSeg's, with train, val and test in it")
    bad: list[tuple[str, str]] = []
    questions = []
    for record in from_reasonseg(folder, bad=bad):
        length = "long" if record.source["is_sentence"] else "short"
        key = Path(record.source["file"]).stem
        questions.append(Question(key, record, folder / record.image, [f"length: {length}"]))
    run_questions(settings, options, "reasonseg", VERSION, questions, bad)
