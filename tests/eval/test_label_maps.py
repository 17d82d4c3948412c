"""Label maps in their public layouts."""

import numpy as np
import pytest

from assistant.errors import BadInput
from eval.label_maps import find_layout, read_label_map, save_label_map
from tests.helpers.benchmark_data import label_map, save_label_png
from tests.helpers.colour_finder import save_image


def test_ade20k(tmp_path):
    image = tmp_path / "images/validation/a.jpg"
    save_image(image)
    save_label_png(tmp_path / "annotations/validation/a.png", label_map(0, 1, 3))
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
        "1\t.1\t1\t1\t1\twall\n2\t.1\t1\t1\t1\tbuilding, edifice\n3\t.1\t1\t1\t1\tsky\n"
    )
    data = find_layout(tmp_path, "val")
    assert data.names == ["wall", "building", "sky"] and data.pairs[0][0] == image
    assert (data.read(data.pairs[0][1]) == label_map(255, 0, 2).astype(np.int8)).all()


def test_coco_stuff(tmp_path):
    save_label_png(tmp_path / "stuffthingmaps_trainval2017/val2017/a.png", label_map(255, 0, 181))
    (tmp_path / "labels.txt").write_text(
        "0: unlabeled\n1: person\n12: street sign\n170: wall-other\n171: wall-brick\n182: wood\n"
    )
    data = find_layout(tmp_path, "val")
    assert data.names == ["person", "wall", "wall brick", "wood"]
    assert data.pairs[0][0] == tmp_path / "val2017/a.jpg"
    assert set(np.unique(data.read(data.pairs[0][1]))) == {-1, 0, 3}


def test_cityscapes(tmp_path):
    save_label_png(tmp_path / "gtFine/val/ulm/ulm_0_gtFine_labelIds.png", label_map(7, 26, 4))
    data = find_layout(tmp_path, "val")
    assert len(data.names) == 19
    assert data.pairs[0][0] == tmp_path / "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png"
    classes = set(np.unique(data.read(data.pairs[0][1])))
    assert classes == {data.names.index("road"), data.names.index("car"), -1}


def test_a_plain_folder_with_json_beside_its_images(tmp_path):
    """LabelMe's files stand beside the images; names.json was saved by a program that marks UTF-8."""
    save_image(tmp_path / "images/a.png")
    (tmp_path / "images/a.json").write_text("{}")
    save_label_png(tmp_path / "labels/a.png", label_map(0, 1, 0))
    (tmp_path / "names.json").write_bytes('["tasse à café", "table"]'.encode("utf-8-sig"))
    data = find_layout(tmp_path, "val")
    assert data.names == ["tasse à café", "table"]
    assert data.pairs == [(tmp_path / "images/a.png", tmp_path / "labels/a.png")]


def test_a_folder_without_a_known_layout_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no known layout"):
        find_layout(tmp_path, "val")


def test_answered_label_maps_are_read_as_they_were_saved(tmp_path):
    labels = label_map(0, 2, 0).astype(np.int16)
    labels[:, 50:] = -1
    save_label_map(tmp_path, "a", labels)
    assert (read_label_map(tmp_path / "label_maps", "a", 3) == labels).all()
    assert set(np.unique(read_label_map(tmp_path / "label_maps", "a", 2))) == {-1, 0}
    with pytest.raises(BadInput, match="no prediction"):
        read_label_map(tmp_path / "label_maps", "b", 3)
