"""A contact sheet of generated questions with their masks, to judge a set by eye or to show it.

    python -m datagen.sheet questions --out sheet.jpg
    python -m datagen.sheet cars clothes --rows 10 --columns 6 --seed 3 --out sheet.png

Draws rows at random, the same ones for the same seed. What is absent is named in grey.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as PilImage
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from assistant.record import Record

CELL_WIDTH = 300  # px
TEXT_HEIGHT = 15  # px, of the letters
LINE_HEIGHT = round(TEXT_HEIGHT * 1.3)  # px
GAP = 8  # px, between cells
JPEG_QUALITY = 82
QUESTION_COLOUR, ANSWER_COLOUR = "black", "#666666"

FiledRecord = tuple["Record", Path]  # a record and the file that it is in


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser("python -m datagen.sheet", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="+", metavar="DIR", help="what python -m datagen wrote")
    parser.add_argument("--rows", type=int, default=2, help="rows of images (default: 2)")
    parser.add_argument("--columns", type=int, default=3, help="images a row (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other questions (default: 0)")
    parser.add_argument(
        "--kinds", nargs="+", help="one question of each of these kinds in turn (default: any)"
    )
    parser.add_argument("--out", required=True, help="image to write: .jpg or .png")
    options = parser.parse_args(arguments)

    from assistant.errors import exit_code

    def command() -> None:
        chosen = write_sheet(
            [Path(folder) for folder in options.folders],
            Path(options.out),
            options.rows,
            options.columns,
            options.seed,
            options.kinds,
        )
        print("\n".join(_description(number, record) for number, record in enumerate(chosen, 1)))

    return exit_code(command)


def _description(number: int, record: "Record") -> str:
    """One line about a record on the sheet."""
    questions = [*(turn.question for turn in record.history), record.question]
    return f"{number:3} {record.source.get('kind', '-')}: {' / '.join(questions)}"


def write_sheet(
    folders: Sequence[Path],
    out: Path,
    rows: int = 2,
    columns: int = 3,
    seed: int = 0,
    kinds: Sequence[str] | None = None,
) -> "list[Record]":
    """Draw a sheet and write it.

    Args:
        folders: What `python -m datagen` wrote.
        out: The image, .jpg or .png.
        rows, columns: Of the sheet.
        seed: Another seed gives other questions.
        kinds: One question of each of these kinds in turn; None: any.

    Returns:
        The records that were drawn.

    Raises:
        BadInput: There are no such questions, or the image cannot be written.
    """
    from assistant.errors import BadInput
    from assistant.record import read_records

    if min(rows, columns) < 1:
        raise BadInput("--rows and --columns must be at least 1")
    files = [folder / "records.jsonl" for folder in folders]
    records = [(record, file) for file in files for record in read_records(file)]
    chosen = draw_records(records, rows * columns, seed, kinds)
    if not chosen:
        raise BadInput("the folders hold no such questions")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        contact_sheet([cell(record, file) for record, file in chosen], columns).save(
            out, quality=JPEG_QUALITY
        )
    except (ValueError, OSError) as error:
        raise BadInput(f"cannot write {out}: {error}") from None
    return [record for record, _ in chosen]


def draw_records(
    records: Sequence[FiledRecord], count: int, seed: int, kinds: Sequence[str] | None = None
) -> list[FiledRecord]:
    """Draw `count` records at random, each of another image while there are any.

    Args:
        records: To draw from.
        count: How many; fewer where there are fewer.
        seed: Another seed gives others.
        kinds: One of each of these kinds in turn; None: any.
    """
    order = random.Random(seed).sample(records, len(records))
    wanted: list[str | None] = [*kinds] if kinds else [None]
    chosen: list[FiledRecord] = []
    times_shown: Counter[str] = Counter()
    while len(chosen) < count and wanted:
        kind = wanted.pop(0)
        options = [each for each in order if kind in (None, each[0].source.get("kind"))]
        if options:
            choice = min(options, key=lambda each: times_shown[each[0].image])
            chosen.append(choice)
            order.remove(choice)
            times_shown[choice[0].image] += 1
            wanted.append(kind)
    return chosen


def cell(record: "Record", file: Path) -> "PilImage":
    """A PIL image, CELL_WIDTH px wide: the photo with the masks, and below it the questions and answers."""
    from PIL import Image, ImageDraw, ImageFont

    from assistant.grammar import plain

    drawn = _with_masks(record, file)
    drawn.thumbnail((CELL_WIDTH, CELL_WIDTH))
    font = ImageFont.load_default(size=TEXT_HEIGHT)
    turns = [
        *((turn.question, turn.answer or "") for turn in record.history),
        (record.question, record.answer),
    ]
    lines = []
    for question, answer in turns:
        lines += [(line, QUESTION_COLOUR) for line in _wrapped(question, font)]
        lines += [(line, ANSWER_COLOUR) for line in _wrapped(plain(answer), font)]
    sheet = Image.new("RGB", (CELL_WIDTH, drawn.height + GAP + LINE_HEIGHT * len(lines)), "white")
    sheet.paste(drawn, ((CELL_WIDTH - drawn.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for number, (line, colour) in enumerate(lines):
        top = drawn.height + GAP // 2 + number * LINE_HEIGHT
        pen.text((0, top), line, colour, font=font)
    return sheet


def _with_masks(record: "Record", file: Path) -> "PilImage":
    """The record's image with its masks."""
    from assistant.export.drawing import draw_targets
    from assistant.images import open_image
    from assistant.record import image_path

    image = open_image(image_path(record, file))
    return draw_targets(image, coloured_targets(record, image))


def coloured_targets(record: "Record", image: "np.ndarray") -> list[tuple[int, str, str, "np.ndarray"]]:
    """The present targets of a record about an image (H, W, 3) uint8, as `draw_targets` takes them."""
    from assistant.export.colours import colours_on
    from assistant.record import record_masks

    masks = record_masks(record)
    rows = zip(record.targets, colours_on(image, masks), masks, strict=True)
    return [
        (number, colour, target.phrase, mask)
        for number, (target, colour, mask) in enumerate(rows, 1)
        if mask is not None
    ]


def _wrapped(text: str, font: "FreeTypeFont | ImageFont") -> list[str]:
    """Lines no wider than a cell."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > CELL_WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def contact_sheet(cells: "Sequence[PilImage]", columns: int) -> "PilImage":
    """The cells in rows, each row as high as its highest cell."""
    from PIL import Image

    rows = [cells[k : k + columns] for k in range(0, len(cells), columns)]
    heights = [max(each.height for each in row) for row in rows]
    width = columns * (CELL_WIDTH + GAP) + GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP * (len(rows) + 1)), "white")
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, each in enumerate(row):
            sheet.paste(each, (GAP + column * (CELL_WIDTH + GAP), top))
        top += height + GAP
    return sheet


if __name__ == "__main__":
    sys.exit(main())
