"""Annotations that lack what is needed are refused in one line, before anything is written."""

import json

import pytest

from datagen.__main__ import main
from tests.helpers.datagen_images import command


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": []}, "has no images"),
        ({"categories": []}, "has no categories"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": 1, "height": 1}] * 2}, "two images"),
    ],
)
def test_annotations_without_what_is_needed(many_images, change, message, capsys):
    data = json.loads((many_images / "instances.json").read_text()) | change
    (many_images / "instances.json").write_text(json.dumps(data))
    assert main(command(many_images, "out")) == 2 and message in capsys.readouterr().err
    assert not (many_images / "out/records.jsonl").exists()
