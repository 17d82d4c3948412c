"""Labelled images in VOC's layout, COCO's, and in a COCO-format folder."""

import json

import numpy as np
import pytest
from PIL import Image

from assistant.attention.labelled_images import VOC_CATEGORIES, read_labelled
from assistant.errors import BadInput
from tests.helpers.mugs_and_boxes import write_mugs_and_boxes


def test_voc_layout(tmp_path):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    numbers = np.zeros((4, 5), np.uint8)
    numbers[0] = 15
    numbers[1] = 255
    Image.fromarray(numbers).save(tmp_path / "SegmentationClass/a.png")
    names, images = read_labelled(tmp_path)
    assert len(names) == 20 and len(VOC_CATEGORIES) == 20
    assert names[14] == "person" and "dining table" in names
    assert images[0].read().tolist() == [[15] * 5, [-1] * 5, [0] * 5, [0] * 5]
    assert images[0].path.name == "a.jpg"
    with pytest.raises(BadInput, match="split"):
        read_labelled(tmp_path, "trainval")


def test_coco_layout(tmp_path):
    source = write_mugs_and_boxes(tmp_path / "flat", 1)
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "val2017").mkdir()
    (source / "instances.json").rename(coco / "annotations/instances_val2017.json")
    names, images = read_labelled(coco, "val2017")
    assert names == ["mug", "box"]
    assert images[0].path == coco / "val2017/0.png"
    assert set(np.unique(images[0].read())) == {0, 1, 2}
    with pytest.raises(BadInput, match="layout"):
        read_labelled(tmp_path)


def test_the_smaller_of_two_instances_lies_on_top_and_crowds_do_not_count(tmp_path):
    def rectangle(x0: int, x1: int) -> list[list[int]]:
        return [[x0, 0, x1, 0, x1, 2, x0, 2]]

    annotations = [
        {"image_id": 7, "category_id": 3, "segmentation": rectangle(0, 2)},
        {"image_id": 7, "category_id": 5, "segmentation": rectangle(0, 6)},
        {"image_id": 7, "category_id": 5, "segmentation": rectangle(7, 8), "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 2, "width": 10}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "mug"}, {"id": 5, "name": "table"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    names, images = read_labelled(tmp_path)
    assert names == ["mug", "table"]
    assert images[0].read()[0].tolist() == [1, 1, 2, 2, 2, 2, 0, -1, 0, 0]
    (tmp_path / "instances.json").write_text("{}")
    with pytest.raises(BadInput, match="not a COCO instances file"):
        read_labelled(tmp_path)
