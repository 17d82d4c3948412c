"""Labelled instances in records."""

from pathlib import Path

import numpy as np

from assistant.record import Record, RecordTarget
from assistant.sam.mask_ops import decode_rle, encode_rle
from finetune.image_record import ImageRecord
from finetune.pocket.instances import instances_in_records


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
