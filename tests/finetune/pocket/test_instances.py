"""Labelled instances in records and in COCO's files."""

import json
from pathlib import Path

import numpy as np

from assistant.record import Record, RecordTarget
from assistant.sam.mask_ops import decode_rle, encode_rle
from finetune.image_record import ImageRecord
from finetune.pocket.instances import instances_in_records, instances_of_images, read_instances


def test_names_come_from_records_and_separate_parts_are_instances():
    wheels = np.zeros((20, 40), bool)
    wheels[5:15, 2:12] = wheels[5:15, 25:35] = True
    speck = wheels.copy()
    speck[:, 20:] = False
    speck[0, 0] = True
    categories = {"categories": ["wheel"]}
    records = [
        Record(
            "a.jpg", 40, 20, "?", "wheels [SEG].", [RecordTarget("wheels", encode_rle(wheels))], categories
        ),
        Record("a.jpg", 40, 20, "?", "Wheels [SEG].", [RecordTarget("Speck", encode_rle(speck))]),
        Record("a.jpg", 40, 20, "?", "door [ABS].", [RecordTarget("door", None)]),
    ]
    image = Path("a.jpg")
    instances = instances_in_records([ImageRecord(record, image) for record in records])[image]
    assert [name for name, _ in instances] == ["wheel", "wheel", "speck"]
    assert [int(decode_rle(rle).sum()) for _, rle in instances] == [100, 100, 101]


def test_annotations_that_cannot_be_read_are_left_out_and_counted(tmp_path, capsys):
    outlines = [[[1, 1, 9, 1, 9, 9]], [[1, 1, float("nan"), 1, 9, 9]], {"size": [9, 9], "counts": [81]}, "x"]
    rows = [{"image_id": 1, "category_id": 1, "segmentation": outline} for outline in outlines]
    table = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [*rows, {"image_id": 7, "category_id": 1, "segmentation": outlines[0]}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(table))
    (instance,) = read_instances(tmp_path / "instances.json")["a.png"]
    assert instance[0] == "cup" and decode_rle(instance[1]).sum() > 20
    assert "4 annotations cannot be read" in capsys.readouterr().err


def test_images_of_one_name_in_two_folders_have_their_own_instances():
    mask = np.ones((4, 4), bool)
    by_file = {"a/1.png": [("cup", encode_rle(mask))], "1.png": [("cat", encode_rle(mask))]}
    records = [
        ImageRecord(Record("1.png", 4, 4, "q", "A cup [ABS].", [RecordTarget("cup", None)], {}), path)
        for path in (Path("/data/a/1.png"), Path("/data/b/1.png"), Path("/data/b/2.png"))
    ]
    found = instances_of_images(records, by_file)
    names = {path.parts[2:]: [name for name, _ in instances] for path, instances in found.items()}
    assert names == {("a", "1.png"): ["cup"], ("b", "1.png"): ["cat"], ("b", "2.png"): []}
