"""ReasonSeg (Lai et al. 2024, LISA): one implicit question a picture, NAME.jpg beside NAME.json.

    python -m eval reasonseg --root ReasonSeg --split val --protocol both --out runs/eval/reasonseg

Scores under the "lisa" and the "seg-zero" protocol differ by points on the same masks: `--protocol both`
prints them side by side. Short phrases and long sentences are told apart by `is_sentence`.
"""

import argparse
from pathlib import Path

from assistant.errors import BadInput
from assistant.export.converters import from_reasonseg
from eval import question_run as masks

VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    masks.add_arguments(parser, default_split="val")


def main(args: argparse.Namespace) -> None:
    folder = args.root / args.split
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}: --root is ReasonSeg's, with train, val and test in it")
    bad: list = []
    questions = []
    for record in from_reasonseg(folder, bad=bad):
        length = "long" if record.source["is_sentence"] else "short"
        questions.append(
            masks.Question(
                Path(record.source["file"]).stem, record, folder / record.image, [f"length: {length}"]
            )
        )
    masks.run_questions(args, "reasonseg", VERSION, questions, bad)
