"""Annotation files of every kind of oddness, and what datagen may make of them.

    for text in mutated_texts(coco_table(), count=100, seed=0):
        file.write_bytes(text)
        ending = run_datagen(["--annotations", str(file), ...], out, named_in_coco(text))

`ending` is "questions" or "refused"; anything else is an AssertionError that says what is wrong.
"""

import contextlib
import io
import json
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from assistant.record import check_records, read_records
from datagen.__main__ import main
from tests.helpers.datagen_images import annotation

W, H = 80, 60
CATEGORY_IDS = {"cup": 1, "cat": 2, "dog": 3}
PHOTOS = ("a.png", "b.png")

Named = dict[str, set[str]]  # {photo: the names of its annotations}


def write_photos(folder: Path) -> None:
    """The photos that the tables below annotate."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(folder / name)


def coco_table() -> dict:
    """Two photos: a cup and a cat in the first, a cat in the second; some outlines are RLE."""
    images = [
        {"id": number, "file_name": name, "width": W, "height": H} for number, name in enumerate(PHOTOS, 1)
    ]
    runs = {"size": [H, W], "counts": [0, 1200, 3600]}
    annotations = [
        annotation(1, 1, CATEGORY_IDS["cup"], (5, 5, 20, 30)),
        annotation(2, 1, CATEGORY_IDS["cat"], (40, 10, 30, 40)),
        annotation(3, 2, CATEGORY_IDS["cat"], (0, 0, 20, 60), segmentation=runs),
    ]
    categories = [{"id": number, "name": name} for name, number in CATEGORY_IDS.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def labelme_table() -> dict:
    """One photo with shapes of three kinds."""
    shapes = [
        {"label": "cup", "points": [[5, 5], [25, 5], [25, 35]], "group_id": None, "shape_type": "polygon"},
        {"label": "cat", "points": [[40, 10], [70, 50]], "group_id": 1, "shape_type": "rectangle"},
        {"label": "dog", "points": [[20, 45], [20, 55]], "group_id": None, "shape_type": "circle"},
    ]
    return {"shapes": shapes, "imagePath": "a.png", "imageHeight": H, "imageWidth": W}


def named_in_coco(text: bytes) -> Named:
    """{photo: the names of its annotations}, as far as the file says it."""
    try:
        table = json.loads(text.decode("utf-8-sig"))
        names = {row["id"]: row["name"] for row in table["categories"]}
        files = {row["id"]: row["file_name"] for row in table["images"]}
    except (ValueError, KeyError, TypeError):
        return {}
    named: Named = {}
    for row in table["annotations"] if isinstance(table.get("annotations"), list) else []:
        try:
            named.setdefault(files[row["image_id"]], set()).add(names[row["category_id"]])
        except (KeyError, TypeError):
            continue
    return named


def named_in_labelme(text: bytes) -> Named:
    """As `named_in_coco`."""
    try:
        rows = json.loads(text.decode("utf-8-sig"))["shapes"]
    except (ValueError, KeyError, TypeError):
        return {}
    rows = rows if isinstance(rows, list) else []
    labels = [row.get("label") for row in rows if isinstance(row, dict)]
    return {"a.png": {label for label in labels if isinstance(label, str)}}


def run_datagen(command: list[str], out: Path, named: Named) -> str:
    """Run datagen without SAM on odd annotations.

    Args:
        command: Its options, but --sam, --per-image and --out.
        out: Its output folder.
        named: What must not be called absent.

    Returns:
        "questions" where it wrote records, "refused" where it ended with one line.

    Raises:
        AssertionError: Another ending, records that fail their check, or something named is called absent.
    """
    said = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        warnings.simplefilter("ignore")
        code = main([*command, "--sam", "none", "--per-image", "6", "--out", str(out)])
    assert code in (0, 2) and "Traceback" not in said.getvalue(), said.getvalue()[-500:]
    if code == 2:
        assert said.getvalue().strip().splitlines()[-1].startswith("error: "), said.getvalue()[-500:]
        return "refused"
    assert check_records(out / "records.jsonl") == []
    for record in read_records(out / "records.jsonl"):
        for target, key in zip(record.targets, record.source["categories"], strict=True):
            photo = record.image.rsplit("/", 1)[1]
            assert target.rle or key not in named.get(photo, ()), f"called absent: {record.answer}"
    return "questions"
