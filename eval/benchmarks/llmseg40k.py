"""LLM-Seg40K (Wang and Ke 2024): {file name: {"from_dataset", "qa_pairs": [{"question", "answer",
"rle_seg"}]}}.

    python -m eval llmseg40k --root LLM-Seg40K --split val --out runs/eval/llmseg40k

--root holds SPLIT.json, and the images under coco/train2017 and ego_objects/images; or it is a json file in
this form, with `--images` the folder of its images. An empty mask counts as an absent target.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from assistant.errors import BadInput
from assistant.export.converters import LLMSEG_FOLDERS, from_llmseg40k
from eval.questions import run as question_run
from eval.questions.question import Question
from eval.questions.run import QuestionOptions, question_options, run_questions
from eval.questions.summary import words_group
from eval.settings import EvalSettings, eval_settings

VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's own options."""
    question_run.add_arguments(parser, default_split="val")
    parser.add_argument(
        "--images", type=Path, help="folder of all images (default: the public layout under --root)"
    )


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    run(eval_settings(args), question_options(args), args.images)


def run(settings: EvalSettings, options: QuestionOptions, images: Path | None = None) -> None:
    """Ask every question of the split; `images`: folder of all images, None for the public layout."""
    file = settings.root if settings.root.is_file() else settings.root / f"{options.split}.json"
    if not file.is_file():
        raise BadInput(f"no {file}: --root is a folder with {options.split}.json, or such a file")
    folders = {name: "" for name in LLMSEG_FOLDERS} if images else LLMSEG_FOLDERS
    bad: list[tuple[str, str]] = []
    questions = []
    counts: dict[str, int] = {}  # questions so far, by the stem of the image's name
    for record in from_llmseg40k(file, folders, bad):
        stem = Path(record.source["file"]).stem
        number = counts.get(stem, 0)
        counts[stem] = number + 1
        groups = [f"from: {record.source['from_dataset']}", words_group(record.question)]
        questions.append(Question(f"{stem}_{number}", record, (images or file.parent) / record.image, groups))
    run_questions(settings, options, "llmseg40k", VERSION, questions, bad)
