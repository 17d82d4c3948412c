"""Hundreds of mutated annotation files: each gives questions or one line; nothing named is called absent.

Seeded, so that a failure can be seen again: its file is in the message.
"""

import pytest

from tests.helpers.mutations import mutated_texts
from tests.helpers.odd_annotations import (
    coco_table,
    labelme_table,
    named_in_coco,
    named_in_labelme,
    run_datagen,
    write_photos,
)

COUNT = 150  # of each format


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


def check(command, out, named, text):
    try:
        run_datagen(command, out, named)
    except BaseException as error:
        pytest.fail(f"{error!r} of {text!r}")


def test_mutated_coco_files(photos, tmp_path):
    for number, text in enumerate(mutated_texts(coco_table(), COUNT, seed=20)):
        file = tmp_path / "instances.json"
        file.write_bytes(text)
        command = ["--images", str(photos), "--annotations", str(file)]
        check(command, tmp_path / f"out{number}", named_in_coco(text), text)


def test_mutated_labelme_files(photos, tmp_path):
    for number, text in enumerate(mutated_texts(labelme_table(), COUNT, seed=21)):
        folder = tmp_path / f"labelme{number}"
        folder.mkdir()
        (folder / "a.json").write_bytes(text)
        command = ["--images", str(photos), "--annotations", str(folder), "--format", "labelme"]
        check(command, tmp_path / f"out{number}", named_in_labelme(text), text)
