"""A multimodal model's names for the regions of an image."""

from collections import Counter
from pathlib import Path

import numpy as np

from assistant.sam.mask_ops import encode_rle
from datagen.llm.naming import with_names
from datagen.sources.annotated_images import AnnotatedImage


def region(x, y, width, height):
    mask = np.zeros((80, 120), bool)
    mask[y : y + height, x : x + width] = True
    return encode_rle(mask)


def name(number, text, count=1):
    return {"number": number, "name": text, "count": count}


def test_what_regions_are_named():
    image = AnnotatedImage(1, Path("p.jpg"), 120, 80, (), {})
    rles = [region(10, 10, 30, 30), region(60, 20, 50, 50)]
    drops = Counter()
    answer = {"things": [name(1, "Mug"), name(1, "cup"), name(2, "nothing")]}
    named = with_names(image, rles, answer, drops)
    assert [(each.key, each.box, each.area) for each in named.instances] == [("mug", (10, 10, 30, 30), 900)]
    assert not named.partial
    assert drops == {"names: no such region": 1, "names: not a whole object": 1}
    assert with_names(image, rles, {"things": [name(2, "mug", 3)]}, drops).partial == {"mug"}
    assert with_names(image, rles, None, drops) is image and drops["names: no usable answer"] == 1
