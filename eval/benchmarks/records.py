"""The project's own benchmark: questions from a records file.

python -m eval records --root questions.jsonl --out runs/eval/records --preset pocket
"""

from __future__ import annotations

import argparse
from pathlib import Path

from assistant.errors import BadInput
from assistant.record import read_records
from eval.questions import run as question_run
from eval.questions.question import Question
from eval.questions.run import QuestionOptions, question_options, run_questions
from eval.questions.summary import words_group
from eval.settings import EvalSettings, eval_settings

VERSION = 2  # 2: Pr@K, cIoU by group, protocols


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's own options."""
    question_run.add_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    run(eval_settings(args), question_options(args))


def run(settings: EvalSettings, options: QuestionOptions) -> None:
    """Ask every question of the records file."""
    file = find_records(settings.root, options.split)
    questions = []
    for number, record in enumerate(read_records(file)):
        groups = [f"kind: {record.source.get('kind', '-')}", words_group(record.question)]
        questions.append(Question(number, record, file.parent / record.image, groups))
    run_questions(settings, options, "records", VERSION, questions)


def find_records(root: Path, split: str | None = None) -> Path:
    """Find a records file.

    Args:
        root: The file itself, or a folder with SPLIT.jsonl, records.jsonl, or a single *.jsonl.
        split: Part of the data set; None for all.

    Raises:
        BadInput: There is none, or several could be meant.
    """
    if root.is_file():
        return root
    name = f"{split}.jsonl" if split else "records.jsonl"
    files = [root / name] if (root / name).is_file() else []
    if not files and not split:
        files = sorted(root.glob("*.jsonl"))
    if len(files) != 1:
        raise BadInput(f"--root {root} must be a records file, or a folder with {name}")
    return files[0]
