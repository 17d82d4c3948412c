"""The command `ask`: one question about one photo, about several, or about all photos of a folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.cli import add_model_arguments, model_options, open_assistant
from assistant.errors import BadInput

if TYPE_CHECKING:
    from assistant.answer import Answer
    from assistant.scene import Assistant


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("ask", help="find what a question means")
    parser.add_argument("image", type=Path, nargs="+", help="one or several images, or folders of images")
    parser.add_argument("question")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for masks, overlay, COCO, LabelMe and YOLO files; for several images, one folder each",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the answer as JSON, masks as RLE; a line for each image"
    )
    add_model_arguments(parser)
    parser.set_defaults(run=ask)


def ask(args: argparse.Namespace) -> None:
    """Answer one question about each image."""
    from assistant.grammar import check_question
    from assistant.images import IMAGE_SUFFIXES

    check_question(args.question)
    if Path(args.question).suffix.lower() in IMAGE_SUFFIXES and Path(args.question).is_file():
        raise BadInput(f"{args.question} is an image: the last word is the question")
    files = listed_images(args.image)
    assistant = open_assistant(model_options(args))
    if len(args.image) > 1 or args.image[0].is_dir():
        _ask_about_all(assistant, files, args.question, args.out, args.json)
        return
    answer = assistant.open(files[0]).ask(args.question)
    if args.out:
        answer.save(args.out)
    if args.json:
        print(json.dumps(_json_row(files[0], answer)))
        return
    if answer.reasoning:
        print(f"({answer.reasoning})")
    print(answer.text)
    for target in answer.targets:
        missing = "seen, but not outlined" if target.seen else "not in the picture"
        where = missing if target.mask is None else f"{int(target.mask.sum()):,} px"
        print(f"  {target.phrase}: {where} (confidence {target.confidence:.2f})")
    if args.out:
        print(f"masks, overlay, COCO, LabelMe and YOLO files: {args.out}")


def listed_images(places: list[Path]) -> list[Path]:
    """The images of the command line; a folder stands for those in it and in its folders.

    Raises:
        BadInput: A folder holds none.
    """
    from assistant.images import images_under

    files = []
    for place in places:
        found = images_under(place) if place.is_dir() else [place]
        if not found:
            raise BadInput(f"there is no image in {place}")
        files += found
    return files


def _ask_about_all(
    assistant: Assistant, files: list[Path], question: str, out: Path | None, as_json: bool
) -> None:
    """Print a line for each image.

    Raises:
        BadInput: Some images could not be asked about; those that could were.
    """
    from tqdm import tqdm

    failed = 0
    progress = tqdm(files, unit="image", disable=None)
    for file, folder in zip(progress, folders_for(files, out), strict=True):
        try:
            answer = assistant.open(file).ask(question)
            if folder is not None:
                answer.save(folder)
        except BadInput as error:
            failed += 1
            if as_json:
                tqdm.write(json.dumps({"image": str(file), "error": str(error)}), file=sys.stdout)
            tqdm.write(f"error: {file}: {error}", file=sys.stderr)
        else:
            row = json.dumps(_json_row(file, answer)) if as_json else f"{file}: {_in_one_line(answer)}"
            tqdm.write(row, file=sys.stdout)
    if failed:
        raise BadInput(f"{failed} of {len(files)} images could not be asked about; the others were")


def folders_for(files: list[Path], out: Path | None) -> Iterator[Path | None]:
    """A folder in `out` for each file, named after it; a number keeps equal names apart."""
    taken: set[str] = set()
    for file in files:
        if out is None:
            yield None
            continue
        name, number = file.stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{file.stem}-{number}"
        taken.add(name.lower())
        yield out / name


def _json_row(file: Path, answer: Answer) -> dict[str, Any]:
    """An answer as a row of JSON, with what it took."""
    cost = {} if answer.cost is None else {"cost": dataclasses.asdict(answer.cost)}
    return {"image": str(file), **answer.to_json(), **cost}


def _in_one_line(answer: Answer) -> str:
    """The answer's text, and in brackets the size and the confidence of what is there."""
    found = ", ".join(
        f"{target.phrase} {int(target.mask.sum()):,} px, {target.confidence:.2f}"
        for target in answer.present
        if target.mask is not None
    )
    text = " ".join(answer.text.split())
    return f"{text} ({found})" if found else text
