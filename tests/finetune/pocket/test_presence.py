"""`python -m finetune presence`: what is kept and let through, and a run that goes on."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from finetune import __main__ as command
from finetune.pocket import presence
from finetune.pocket.presence import Seen, labelled_photos, table
from tests.helpers.pocket_wheels import require_pocket_wheels

LISTS = """
[people]
"set/train/images" = ["astronaut"]
[nobody]
"set/train/images" = ["coffee"]
[animals]
[no_animals]
"set/train/images" = ["coffee"]
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with two listed photos, and VOC's folder with one cat in ten photos."""
    images = tmp_path / "set/train/images"
    images.mkdir(parents=True)
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(data, name)()).resize((96, 96)).save(images / f"{name}.jpg")
    voc = tmp_path / "voc/train"
    (voc / "images").mkdir(parents=True)
    rows, annotations = [], []
    for k in range(10):
        Image.fromarray(np.full((60, 80, 3), 90 + k, np.uint8)).save(voc / f"images/{k}.jpg")
        rows.append({"id": k, "file_name": f"{k}.jpg", "height": 60, "width": 80})
        polygon = [[10, 10, 50, 10, 50, 40, 10, 40]]
        annotations.append({"id": k, "image_id": k, "category_id": 1, "iscrowd": 0, "segmentation": polygon})
    record = {"images": rows, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (voc / "instances.json").write_text(json.dumps(record))
    lists = tmp_path / "presence.toml"
    lists.write_text(LISTS)
    monkeypatch.setattr(presence, "PHOTOS_FILE", lists)
    return tmp_path


def test_every_photo_comes_with_what_is_known_of_it(root):
    found = {photo.stem: labels for photo, labels in labelled_photos(root)}
    assert found == {
        "astronaut": {"people": True},
        "coffee": {"people": False, "animals": False},
        "9": {"cat": True},
    }


def test_the_published_lists_do_not_contradict_each_other():
    lists = presence.tomllib.loads(presence.PHOTOS_FILE.read_text(encoding="utf-8"))
    photos = {
        what: {f"{folder}/{stem}" for folder, stems in of.items() for stem in stems}
        for what, of in lists.items()
    }
    assert not photos["people"] & photos["nobody"] and not photos["animals"] & photos["no_animals"]
    assert {what: len(of) for what, of in photos.items()} == {
        "people": 75,
        "nobody": 148,
        "animals": 65,
        "no_animals": 108,
    }


def test_a_shift_keeps_more_and_lets_more_through():
    seen = [Seen("people", there, logit) for there, logit in [(True, 0.3), (True, -0.7), (False, -0.2)]]
    rows = {line.split("|")[2].strip(): line for line in table(seen).splitlines()[2:]}
    assert "| 0.500 of 2 | 0.000 of 1 |" in rows["+0.0"]
    assert "| 1.000 of 2 | 1.000 of 1 |" in rows["+1.0"]


def test_a_stopped_run_goes_on(root, tmp_path, monkeypatch, capsys):
    require_pocket_wheels()
    words = ["presence", "--data", str(root), "--out", str(tmp_path / "out")]
    looked = []
    look_at = presence.look_at

    def counted(pipeline, photo, labels):
        looked.append(photo.stem)
        if len(looked) == 3:
            raise KeyboardInterrupt
        return look_at(pipeline, photo, labels)

    monkeypatch.setattr(presence, "look_at", counted)
    assert command.main(words) == 130
    assert command.main(words) == 0
    assert looked == ["astronaut", "coffee", "9", "9"]
    assert "| names of VOC |" in capsys.readouterr().out
    assert command.main([*words[:2], str(tmp_path / "nothing"), *words[3:]]) == 2
