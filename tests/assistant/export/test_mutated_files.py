"""Mutated files of every data set that is read: each gives records or one line, and no other error."""

import json

import numpy as np
import pytest
from PIL import Image

from assistant.errors import BadInput
from assistant.export.converters import from_llmseg40k, from_reasonseg, from_refer
from assistant.record import check_record, check_records, to_dict
from assistant.sam.mask_ops import encode_rle
from tests.helpers.example_record import COFFEE, CUP, example_record
from tests.helpers.mutations import mutated_texts

COUNT = 150  # of each format
INSTANCES = {
    "images": [{"id": 3, "file_name": "a.jpg", "height": 100, "width": 150}],
    "annotations": [
        {"id": 7, "segmentation": [[30, 20, 90, 20, 90, 60, 30, 60]]},
        {"id": 8, "segmentation": encode_rle(np.roll(CUP, 50, 1))},
    ],
}
REFS = [
    {"ref_id": 1, "ann_id": [7, 8], "image_id": 3, "split": "val", "sentences": [{"sent": "both cups"}]},
    {"ref_id": 2, "ann_id": 8, "image_id": 3, "split": "val", "sentences": [{"sent": "right cup"}]},
]
PAIR = {"question": "What holds coffee?", "answer": "cup", "rle_seg": encode_rle(CUP)}
LLMSEG = {"a.jpg": {"from_dataset": "coco", "qa_pairs": [PAIR, PAIR]}}
SHAPE = {"label": "target", "points": [[30, 20], [90, 20], [90, 60]]}
REASONSEG = {"text": ["the cup", "a cup"], "is_sentence": False, "shapes": [SHAPE, SHAPE | {"label": "flag"}]}


def check_all(records):
    """Every record that a reader gives is whole, and its targets are present: all of these data sets' are."""
    for record in records:
        assert check_record(record) == []
        assert all(target.rle for target in record.targets), record


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(COFFEE).save(tmp_path / "a.jpg")
    return tmp_path


def test_refer_sets(folder):
    refs, instances = folder / "refs(unc).json", folder / "instances.json"
    refs.write_text(json.dumps(REFS))
    for text in mutated_texts(INSTANCES, COUNT, seed=30):
        instances.write_bytes(text)
        try:
            check_all(from_refer(refs, instances, bad=[]))
        except BadInput as error:
            assert "\n" not in str(error)
    instances.write_text(json.dumps(INSTANCES))
    for text in mutated_texts(REFS, COUNT, seed=31):
        refs.write_bytes(text)
        try:
            list(from_refer(refs, instances, bad=[]))
        except BadInput as error:
            assert "\n" not in str(error)


def test_llmseg40k(folder):
    for text in mutated_texts(LLMSEG, COUNT, seed=32):
        (folder / "t.json").write_bytes(text)
        try:
            for record in from_llmseg40k(folder / "t.json", bad=[]):
                assert check_record(record) == [], text
        except BadInput as error:
            assert "\n" not in str(error)


def test_reasonseg(folder):
    for text in mutated_texts(REASONSEG, COUNT, seed=33):
        (folder / "a.json").write_bytes(text)
        try:
            for record in from_reasonseg(folder, bad=[]):
                assert check_record(record) == [], text
        except BadInput as error:
            assert "\n" not in str(error)


def test_records(folder):
    Image.fromarray(COFFEE).save(folder / "coffee.png")
    for text in mutated_texts(to_dict(example_record()), COUNT, seed=34):
        (folder / "r.jsonl").write_bytes(text + b"\n")
        for problem in check_records(folder / "r.jsonl"):
            assert problem.startswith(f"{folder / 'r.jsonl'}:") and "\n" not in problem
