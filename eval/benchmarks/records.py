"""The project's own benchmark: questions from a records file.

python -m eval records --root questions.jsonl --out runs/eval/records --preset pocket
"""

import argparse
from pathlib import Path

from assistant.errors import BadInput
from assistant.record import read_records
from eval.question_run import Question, add_arguments, run_questions, words_group

__all__ = ["add_arguments", "main"]
VERSION = 2  # 2: Pr@K, cIoU by group, protocols


def find_records(root: Path, split: str | None = None) -> Path:
    """The records file: `root` itself, or in a folder SPLIT.jsonl, records.jsonl or the only *.jsonl."""
    if root.is_file():
        return root
    names = [f"{split}.jsonl"] if split else ["records.jsonl"]
    found = [root / n for n in names if (root / n).is_file()] or (
        [] if split else sorted(root.glob("*.jsonl"))
    )
    if len(found) != 1:
        raise BadInput(f"--root {root} must be a records file, or a folder with {names[0]}")
    return found[0]


def main(args: argparse.Namespace) -> None:
    file = find_records(args.root, args.split)
    records = read_records(file)
    run_questions(
        args,
        "records",
        VERSION,
        [
            Question(
                k, r, file.parent / r.image, [f"kind: {r.source.get('kind', '-')}", words_group(r.question)]
            )
            for k, r in enumerate(records)
        ],
    )
