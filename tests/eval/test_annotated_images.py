"""COCO-format folders: what cannot be read makes its image a bad one, and is not taken for nothing."""

import json

import pytest

from assistant.errors import BadInput
from eval.annotated_images import open_annotated, read_annotated_images

SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]


def write(folder, outline):
    """A folder with an image 20 px wide and 10 px high, and two annotations; outline: of the second."""
    rows = [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": SQUARE},
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": outline},
    ]
    table = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 1, "name": "tasse à café"}],
        "annotations": rows,
    }
    (folder / "instances.json").write_bytes(json.dumps(table, ensure_ascii=False).encode("utf-8-sig"))


def test_an_image_with_an_unreadable_outline_is_a_bad_one(tmp_path):
    for outline in ("[[1, 1]]", [[1, 1, 9e9, 1, 9, 9]], {"size": [20, 10], "counts": [200]}, [[30, 1] * 3]):
        write(tmp_path, outline)
        (image,) = read_annotated_images(tmp_path)
        assert [instance.category for instance in image.instances] == ["tasse à café"]
        with pytest.raises(BadInput, match="annotation 2: "):
            open_annotated(image)


def test_an_annotation_without_an_outline_is_left_out(tmp_path):
    for outline in (None, [], {}):
        write(tmp_path, outline)
        (image,) = read_annotated_images(tmp_path)
        assert len(image.instances) == 1 and not image.fault


def test_what_is_not_cocos_is_one_line(tmp_path):
    for content in ("[]", "{}", '{"images": [{}], "categories": [], "annotations": []}', "{"):
        (tmp_path / "instances.json").write_text(content)
        with pytest.raises(BadInput, match="instances.json"):
            read_annotated_images(tmp_path)
