"""The everyday names of ImageNet's classes."""

import re

import numpy as np
import pytest
from timm.data import ImageNetInfo

from assistant.errors import BadInput
from assistant.pocket.heads import Heads
from assistant.pocket.imagenet_names import NAMES_FILE, NO_NAME, everyday_names, read_names
from assistant.weights import pocket_file
from datagen.composer.phrasebank import load_bank

IMAGENET = ImageNetInfo("imagenet-1k")  # the class list of timm's wheel


def name_of(words):
    """The everyday name of the class whose first word of WordNet it is; None for one without."""
    everyday = everyday_names()
    for row, synset in zip(everyday.rows, IMAGENET.label_names(), strict=True):
        if IMAGENET.label_name_to_description(synset).split(", ")[0] == words:
            return None if row == NO_NAME else everyday.names[row]
    raise KeyError(words)


def test_every_class_stands_there_once_in_the_order_of_imagenet():
    listed = re.findall(r'"(n\d{8})"', NAMES_FILE.read_text(encoding="utf-8"))
    assert sorted(listed) == IMAGENET.label_names()
    everyday = everyday_names()
    assert everyday.rows.shape == (1000,) and everyday.rows.dtype == np.int64
    assert set(everyday.rows) == {NO_NAME, *range(len(everyday.names))}
    assert (everyday.rows != NO_NAME).sum() >= 800


def test_the_words_beside_a_class_are_its_own():
    lines = re.findall(r'"(n\d{8})",?\]?  # (.*)', NAMES_FILE.read_text(encoding="utf-8"))
    assert len(lines) == 1000
    assert all(words == IMAGENET.label_name_to_description(synset) for synset, words in lines)


def test_every_name_was_taught_or_is_in_the_phrase_bank():
    known = set(Heads.load(pocket_file("heads.safetensors")).phrase_rows)
    for bank in ("coco", "street", "clothing", "things"):
        known |= set(load_bank(bank))
    assert set(everyday_names().names) <= known


@pytest.mark.parametrize(
    "words, name",
    [
        ("golden retriever", "dog"),
        ("tabby", "cat"),
        ("espresso", "cup"),
        ("remote control", "remote"),
        ("stove", "oven"),
        ("soccer ball", "sports ball"),
        ("king penguin", "penguin"),
        ("acoustic guitar", "guitar"),
        ("Granny Smith", "apple"),
        ("laptop", "laptop"),
        ("liner", "boat"),
        ("web site", None),
    ],
)
def test_classes_have_the_names_that_people_use(words, name):
    assert name_of(words) == name


def test_faults_of_a_file_are_told(tmp_path):
    file = tmp_path / "names.toml"
    text = NAMES_FILE.read_text(encoding="utf-8")
    for changed, message in [
        (text.replace('"n01440764"', '"n01443537"', 1), "n01443537 stands there twice"),
        (text.replace('"n01440764",', "", 1), "has 999 classes"),
        (text.replace('beetle = ["ladybug"]', 'beetle = ["ladybird"]'), "'ladybird', which is no name"),
        (text.replace("\n[names]", "\n[names", 1), "not a file of names"),
        ("[names]\n", "not a file of names"),
    ]:
        assert changed != text
        file.write_text(changed, encoding="utf-8")
        with pytest.raises(BadInput, match=message):
            read_names(file)
