"""LLM-Seg40K (Wang and Ke 2024): {file name: {"from_dataset", "qa_pairs": [{"question", "answer", "rle_seg"}]}}.

    python -m eval llmseg40k --root LLM-Seg40K --split val --out runs/eval/llmseg40k

--root holds SPLIT.json, and the pictures under coco/train2017 and ego_objects/images; or it is a json
file in this form, with `--images` the folder of its pictures. An empty mask counts as an absent target.
"""

import argparse
from pathlib import Path

from assistant.errors import BadInput
from assistant.export.converters import LLMSEG_FOLDERS, from_llmseg40k
from eval import question_run as masks

VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    masks.add_arguments(parser, default_split="val")
    parser.add_argument(
        "--images", type=Path, help="folder of all pictures (default: the public layout under --root)"
    )


def main(args: argparse.Namespace) -> None:
    file = args.root if args.root.is_file() else args.root / f"{args.split}.json"
    if not file.is_file():
        raise BadInput(f"no {file}: --root is a folder with {args.split}.json, or such a file")
    folders = {name: "" for name in LLMSEG_FOLDERS} if args.images else LLMSEG_FOLDERS
    bad: list = []
    questions, seen = [], {}
    for record in from_llmseg40k(file, folders, bad):
        name = Path(record.source["file"]).stem
        seen[name] = seen.get(name, -1) + 1
        questions.append(
            masks.Question(
                f"{name}_{seen[name]}",
                record,
                (args.images or file.parent) / record.image,
                [f"from: {record.source['from_dataset']}", masks.words_group(record.question)],
            )
        )
    masks.run_questions(args, "llmseg40k", VERSION, questions, bad)
