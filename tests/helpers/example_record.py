"""A record of a small photograph: the cup in it, and the bear that is not."""

import numpy as np
from skimage import data

from assistant.record import Record, RecordTarget
from assistant.sam.mask_ops import encode_rle

COFFEE = np.ascontiguousarray(data.coffee()[::4, ::4])  # (100, 150, 3)
CUP = np.zeros((100, 150), bool)
CUP[20:60, 30:90] = True


def example_record(**changes) -> Record:
    """A record with some fields changed."""
    fields = {
        "image": "coffee.png",
        "width": 150,
        "height": 100,
        "question": "what holds the drink, and a bear?",
        "answer": "The cup [SEG]; there is no bear [ABS].",
        "targets": [RecordTarget("cup", encode_rle(CUP)), RecordTarget("bear", None)],
        "source": {"kind": "named"},
    }
    return Record(**(fields | changes))
