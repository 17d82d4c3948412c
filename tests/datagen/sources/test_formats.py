"""The same two instances in every format that datagen reads: a cup and a cat, with their masks."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from assistant.errors import BadInput
from assistant.sam.mask_ops import decode_rle
from datagen.__main__ import main
from datagen.composer.phrasebank import load_bank
from datagen.sources.annotated_images import read_images

W, H = 120, 80
BOXES = {"cup": (10, 10, 40, 40), "cat": (60, 20, 110, 70)}


def outline(box):
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(tmp_path / "images/p.jpg")
    return tmp_path / "images"


def coco_like(**image):
    rows = [
        {
            "id": k,
            "image_id": 1,
            "category_id": k,
            "bbox": [*b[:2], b[2] - b[0], b[3] - b[1]],
            "area": 900,
            "segmentation": [outline(b)],
        }
        for k, b in enumerate(BOXES.values(), 1)
    ]
    return {"images": [{"id": 1, "width": W, "height": H} | image], "annotations": rows}


def write(folder, format):
    """Write the format; returns what --annotations names."""
    if format == "coco":
        data = coco_like(file_name="p.jpg") | {
            "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "cat"}]
        }
    elif format == "lvis":
        data = coco_like(coco_url="http://images.test/train2017/p.jpg", neg_category_ids=[3]) | {
            "categories": [
                {"id": 1, "name": "cup", "synonyms": ["cup"]},
                {"id": 2, "name": "cat_(animal)", "synonyms": ["kitten"]},
            ]
        }
    elif format == "egoobjects":
        data = coco_like(url="images/p.jpg") | {
            "categories": [{"id": 1, "name": "Cup"}, {"id": 2, "name": "Cat"}]
        }
        data["annotations"].append(
            {"id": 9, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25}
        )  # a box alone
    elif format == "labelme":
        (folder / "labelme").mkdir()
        x0, y0, x1, y1 = BOXES["cat"]
        shapes = [
            {
                "label": "cup",
                "points": [[10, 10], [40, 10], [40, 25], [10, 25]],
                "group_id": 1,
                "shape_type": "polygon",
            },
            {
                "label": "cup",
                "points": [[10, 25], [40, 25], [40, 40], [10, 40]],
                "group_id": 1,
                "shape_type": "polygon",
            },
            {"label": "Cat", "points": [[x0, y0], [x1, y1]], "group_id": None, "shape_type": "rectangle"},
            {"label": "cat", "points": [[3, 3]], "group_id": None, "shape_type": "point"},
        ]
        row = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": "..\\images\\p.jpg",
            "imageData": None,
            "imageHeight": H,
            "imageWidth": W,
        }
        (folder / "labelme/p.json").write_text(json.dumps(row))
        return folder / "labelme"
    else:
        index = np.full((H, W), 2, np.uint8)
        for k, (x0, y0, x1, y1) in enumerate(BOXES.values()):
            index[y0:y1, x0:x1] = k
        (folder / "labels").mkdir()
        Image.fromarray(index).save(folder / "labels/p.png")
        (folder / "names.json").write_text(json.dumps(["cup", "cat", "void"]))
        return folder / "labels"
    (folder / "annotations.json").write_text(json.dumps(data))
    return folder / "annotations.json"


@pytest.mark.parametrize("format", ["coco", "lvis", "egoobjects", "labelme", "labels"])
def test_every_format_gives_the_same_masks(images, tmp_path, format):
    drops = Counter()
    (image,) = read_images(write(tmp_path, format), images, load_bank("coco"), drops, format)
    assert (
        image.file == images / "p.jpg"
        and (image.width, image.height) == (W, H)
        and image.keys() == ["cat", "cup"]
    )
    for name, (x0, y0, x1, y1) in BOXES.items():
        mask = np.zeros((H, W), bool)
        mask[y0:y1, x0:x1] = True
        (instance,) = image.of(name)
        assert (decode_rle(image.rle([instance])) == mask).mean() > 0.98
        assert instance.box == pytest.approx((x0, y0, x1 - x0, y1 - y0), abs=1.5)
    skipped = {"egoobjects": "annotation without a mask", "labelme": "labelme: a point has no area"}
    assert drops == ({skipped[format]: 1} if format in skipped else {})


def test_questions_from_labelme(images, tmp_path):
    words = [
        "--images",
        str(images),
        "--annotations",
        str(write(tmp_path, "labelme")),
        "--format",
        "labelme",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0 and (tmp_path / "out/records.jsonl").stat().st_size > 1000


@pytest.mark.parametrize(
    "format, content",
    [
        ("lvis", '{"images": [{"id": 1}]}'),
        ("coco", "{"),
        ("egoobjects", "[]"),
        ("coco", None),
        ("labelme", None),
        ("labels", None),
    ],
)
def test_what_is_not_in_the_format_is_one_line(images, tmp_path, format, content):
    file = tmp_path / "x.json"
    if content:
        file.write_text(content)
    with pytest.raises(BadInput) as refused:
        read_images(file, images, None, Counter(), format)
    assert "x.json" in str(refused.value) and "\n" not in str(refused.value)


def test_labelme_that_is_broken_or_a_map_of_another_size(images, tmp_path):
    write(tmp_path, "labels")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "labels/p.png")
    with pytest.raises(BadInput, match="not its image's height"):
        read_images(tmp_path / "labels", images, None, Counter(), "labels")
    (tmp_path / "labelme").mkdir()
    (tmp_path / "labelme/p.json").write_text('{"shapes": [{}]}')
    with pytest.raises(BadInput, match="labelme"):
        read_images(tmp_path / "labelme", images, None, Counter(), "labelme")
