"""A contact sheet of generated questions with their masks, to judge a set by eye or to show it.

    python -m datagen.sheet questions --out sheet.jpg
    python -m datagen.sheet cars clothes --rows 10 --columns 6 --seed 3 --out sheet.png

Draws rows at random, the same ones for the same seed. Absent things are named in grey.
"""

import argparse
import random
import sys
from collections import Counter
from pathlib import Path

CELL, TEXT, GAP = 300, 15, 8  # px: side of a picture, height of its letters, space between


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser("python -m datagen.sheet", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", metavar="DIR", help="what python -m datagen wrote")
    parser.add_argument("--rows", type=int, default=2, help="rows of pictures (default: 2)")
    parser.add_argument("--columns", type=int, default=3, help="pictures a row (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other questions (default: 0)")
    parser.add_argument(
        "--kinds", nargs="+", help="one question of each of these kinds in turn (default: any)"
    )
    parser.add_argument("--out", required=True, help="picture to write: .jpg or .png")
    options = parser.parse_args(arguments)

    from assistant.errors import exit_code

    return exit_code(lambda: print(run(options)))


def run(options: argparse.Namespace) -> str:
    """Draw and write; returns what was drawn, one line a question."""
    from assistant.errors import BadInput
    from assistant.record import read_records

    if min(options.rows, options.columns) < 1:
        raise BadInput("--rows and --columns must be at least 1")
    found = [
        (record, Path(folder) / "records.jsonl")
        for folder in options.folders
        for record in read_records(Path(folder) / "records.jsonl")
    ]
    chosen = draw(found, options.rows * options.columns, options.seed, options.kinds)
    if not chosen:
        raise BadInput("no such questions in there")
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        contact_sheet([cell(*each) for each in chosen], options.columns).save(out, quality=82)
    except (ValueError, OSError) as error:
        raise BadInput(f"cannot write {out}: {error}") from None
    said = lambda record: " / ".join([*(turn.question for turn in record.history), record.question])
    return "\n".join(
        f"{k:3} {record.source.get('kind', '-')}: {said(record)}" for k, (record, _) in enumerate(chosen, 1)
    )


def draw(found: list, count: int, seed: int, kinds: list[str] | None = None) -> list:
    """`count` of the (record, file) pairs at random, each of another picture while there are any."""
    order = random.Random(seed).sample(found, len(found))
    wanted, chosen, shown = list(kinds or [None]), [], Counter()
    while len(chosen) < count and wanted:
        kind = wanted.pop(0)
        fitting = [each for each in order if kind in (None, each[0].source.get("kind"))]
        if fitting:
            chosen.append(min(fitting, key=lambda each: shown[each[0].image]))
            order.remove(chosen[-1])
            shown[chosen[-1][0].image] += 1
            wanted.append(kind)
    return chosen


def cell(record, file: Path):
    """A PIL picture, CELL px wide: the photo with the masks, and below it what was said."""
    from PIL import Image, ImageDraw, ImageFont

    from assistant.answer import colour_of
    from assistant.export.drawing import draw_targets
    from assistant.grammar import plain
    from assistant.images import open_image
    from assistant.record import image_path, record_masks

    targets = [
        (k + 1, colour_of(k), target.phrase, mask)
        for k, (target, mask) in enumerate(zip(record.targets, record_masks(record)))
        if mask is not None
    ]
    photo = draw_targets(open_image(image_path(record, file)), targets)
    photo.thumbnail((CELL, CELL))
    font = ImageFont.load_default(size=TEXT)
    lines = []
    for question, answer in [
        *((turn.question, turn.answer) for turn in record.history),
        (record.question, record.answer),
    ]:
        lines += [(line, "black") for line in wrapped(question, font)]
        lines += [(line, "#666666") for line in wrapped(plain(answer), font)]
    high = round(TEXT * 1.3)
    sheet = Image.new("RGB", (CELL, photo.height + GAP + high * len(lines)), "white")
    sheet.paste(photo, ((CELL - photo.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for k, (line, colour) in enumerate(lines):
        pen.text((0, photo.height + GAP // 2 + k * high), line, colour, font=font)
    return sheet


def wrapped(text: str, font) -> list[str]:
    """Lines no wider than a cell."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > CELL:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def contact_sheet(cells: list, columns: int):
    """The cells in rows, each row as high as its highest cell; a PIL picture."""
    from PIL import Image

    rows = [cells[k : k + columns] for k in range(0, len(cells), columns)]
    heights = [max(each.height for each in row) for row in rows]
    sheet = Image.new("RGB", (columns * (CELL + GAP) + GAP, sum(heights) + GAP * (len(rows) + 1)), "white")
    top = GAP
    for row, height in zip(rows, heights):
        for k, each in enumerate(row):
            sheet.paste(each, (GAP + k * (CELL + GAP), top))
        top += height + GAP
    return sheet


if __name__ == "__main__":
    sys.exit(main())
