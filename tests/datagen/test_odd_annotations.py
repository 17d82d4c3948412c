"""Hundreds of mutated annotation files: each gives questions or one line; nothing named is called absent.

Seeded, so that a failure can be seen again: its file is in the message.
"""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from assistant.record import check_records, read_records
from datagen.__main__ import main
from tests.helpers.datagen_images import annotation
from tests.helpers.mutations import mutated_texts

W, H = 80, 60
CATEGORY_IDS = {"cup": 1, "cat": 2, "dog": 3}
COUNT = 150  # of each format
PHOTOS = ("a.png", "b.png")


def coco_table():
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


def labelme_table():
    """One photo with shapes of three kinds."""
    shapes = [
        {"label": "cup", "points": [[5, 5], [25, 5], [25, 35]], "group_id": None, "shape_type": "polygon"},
        {"label": "cat", "points": [[40, 10], [70, 50]], "group_id": 1, "shape_type": "rectangle"},
        {"label": "dog", "points": [[20, 45], [20, 55]], "group_id": None, "shape_type": "circle"},
    ]
    return {"shapes": shapes, "imagePath": "a.png", "imageHeight": H, "imageWidth": W}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(folder / name)
    return folder


def named_in_coco(text):
    """{photo: the names of its annotations}, as far as the file says it."""
    try:
        table = json.loads(text.decode("utf-8-sig"))
        names = {row["id"]: row["name"] for row in table["categories"]}
        files = {row["id"]: row["file_name"] for row in table["images"]}
    except (ValueError, KeyError, TypeError):
        return {}
    named = {}
    for row in table["annotations"] if isinstance(table.get("annotations"), list) else []:
        try:
            named.setdefault(files[row["image_id"]], set()).add(names[row["category_id"]])
        except (KeyError, TypeError):
            continue
    return named


def named_in_labelme(text):
    """As `named_in_coco`."""
    try:
        rows = json.loads(text.decode("utf-8-sig"))["shapes"]
    except (ValueError, KeyError, TypeError):
        return {}
    rows = rows if isinstance(rows, list) else []
    labels = [row.get("label") for row in rows if isinstance(row, dict)]
    return {"a.png": {label for label in labels if isinstance(label, str)}}


def check(command, out, named, capsys, text):
    """Run datagen: it ends with 0, or with 2 and one line, and nothing that is named is called absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main([*command, "--sam", "none", "--per-image", "6", "--out", str(out)])
    printed = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in printed.err, text
    if code == 2:
        assert printed.err.strip().splitlines()[-1].startswith("error: "), text
        return
    assert check_records(out / "records.jsonl") == [], text
    for record in read_records(out / "records.jsonl"):
        for target, key in zip(record.targets, record.source["categories"], strict=True):
            photo = record.image.rsplit("/", 1)[1]
            assert target.rle or key not in named.get(photo, ()), (record.answer, text)


def test_mutated_coco_files(photos, tmp_path, capsys):
    for number, text in enumerate(mutated_texts(coco_table(), COUNT, seed=20)):
        file = tmp_path / "instances.json"
        file.write_bytes(text)
        command = ["--images", str(photos), "--annotations", str(file)]
        check(command, tmp_path / f"out{number}", named_in_coco(text), capsys, text)


def test_mutated_labelme_files(photos, tmp_path, capsys):
    for number, text in enumerate(mutated_texts(labelme_table(), COUNT, seed=21)):
        folder = tmp_path / f"labelme{number}"
        folder.mkdir()
        (folder / "a.json").write_bytes(text)
        command = ["--images", str(photos), "--annotations", str(folder), "--format", "labelme"]
        check(command, tmp_path / f"out{number}", named_in_labelme(text), capsys, text)
