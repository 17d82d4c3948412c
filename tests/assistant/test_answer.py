"""Answers keep phrase and mask together, and every export says the same as the masks."""

import json
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from skimage import data

from assistant.answer import Answer, Target
from assistant.errors import BadInput
from assistant.export import image_folder
from assistant.export.colours import COLOURS, rgb_of
from assistant.export.yolo import joined_polygon
from assistant.sam.mask_ops import decode_rle
from tests.helpers.polygons import filled_polygon

COFFEE = np.ascontiguousarray(data.coffee()[::2, ::2])  # (200, 300, 3)
H, W = COFFEE.shape[:2]
ROWS, COLUMNS = np.mgrid[:H, :W]
CUP = (ROWS - 100) ** 2 + (COLUMNS - 150) ** 2 < 60**2
RING = CUP & ~((ROWS - 100) ** 2 + (COLUMNS - 150) ** 2 < 20**2)
SPOON = (abs(ROWS - 100) < 8) & (COLUMNS > 240)


def answer(image=COFFEE):
    return Answer(
        "The cup [SEG], the spoon [SEG]; no bear [ABS]; another cup [SEG].",
        [
            Target("cup", True, 0.9, RING, [3, 4]),
            Target("spoon/left: \u202f…", True, 0.8, SPOON, [1]),
            Target("bear", False, 0.1, None, []),
            Target("cup", True, 0.7, SPOON | RING, []),
        ],
        (H, W),
        image,
        "what is there?",
    )


def test_mask_is_the_union_of_the_present_targets():
    assert np.array_equal(answer().mask, RING | SPOON)
    nothing = Answer("no", [Target("bear", False, 0.2, CUP, [])], (H, W), None)
    assert nothing.mask.shape == (H, W) and nothing.mask.dtype == bool and not nothing.mask.any()


@pytest.mark.parametrize(
    "target, size, image",
    [
        (Target("cup", True, 1, CUP.T, []), (H, W), None),
        (Target("cup", False, 1, CUP[1:], []), (H, W), None),
        (Target("cup", True, 1, None, []), (H, W), None),
        (Target("cup", True, 1, CUP, []), (H, W), COFFEE[1:]),
    ],
)
def test_sizes_are_checked(target, size, image):
    with pytest.raises(BadInput):
        Answer("", [target], size, image)


def test_coco_is_read_by_pycocotools(tmp_path):
    from pycocotools.coco import COCO

    table = answer().to_coco("coffee.png")
    assert table["absent"] == ["bear"]
    assert [c["name"] for c in table["categories"]] == ["cup", "spoon/left: \u202f…"]
    assert [a["category_id"] for a in table["annotations"]] == [1, 2, 1]
    assert [a["score"] for a in table["annotations"]] == [0.9, 0.8, 0.7]
    (tmp_path / "coco.json").write_text(json.dumps(table))
    coco = COCO(str(tmp_path / "coco.json"))
    for row, mask in zip(coco.loadAnns(coco.getAnnIds(imgIds=[1])), (RING, SPOON, SPOON | RING), strict=True):
        assert np.array_equal(coco.annToMask(row).astype(bool), mask)
        x, y, w, h = row["bbox"]
        assert mask[y : y + h, x : x + w].sum() == mask.sum() == row["area"]
        assert mask[y].any() and mask[y + h - 1].any() and mask[:, x].any() and mask[:, x + w - 1].any()
    assert coco.loadImgs([1])[0] == {"id": 1, "file_name": "coffee.png", "width": W, "height": H}


def test_to_json():
    table = json.loads(json.dumps(answer().to_json()))
    assert (table["question"], table["width"], table["height"]) == ("what is there?", W, H)
    assert [t["present"] for t in table["targets"]] == [True, True, False, True]
    assert np.array_equal(decode_rle(table["targets"][0]["rle"]), RING)
    assert table["targets"][0]["box"] == [91, 41, 119, 119] and table["targets"][0]["proposals"] == [3, 4]
    assert table["targets"][2] == {
        "phrase": "bear",
        "present": False,
        "confidence": 0.1,
        "box": None,
        "area": 0,
        "proposals": [],
        "rle": None,
        "instances": [],
    }
    assert table["targets"][0]["instances"] == [
        {key: table["targets"][0][key] for key in ("box", "area", "rle")}
    ]


@pytest.fixture
def two_spoons():
    """A target of two instances, given from right to left, and one of a single instance."""
    other = np.roll(SPOON, -220, axis=1)
    spoons = Target("spoon", True, 0.8, SPOON | other, [1, 2], instances=[SPOON, other])
    return Answer("", [spoons, Target("cup", True, 0.9, RING, [3])], (H, W), COFFEE), [other, SPOON]


def test_instances_are_exported_one_by_one(two_spoons, tmp_path):
    answer, masks = two_spoons
    assert np.array_equal(answer.targets[0].instances, masks)  # from left to right
    expected = [*masks, RING]
    annotations = answer.to_coco()["annotations"]
    assert [a["category_id"] for a in annotations] == [1, 1, 2] and annotations[1]["score"] == 0.8
    assert all((decode_rle(a["segmentation"]) == m).all() for a, m in zip(annotations, expected, strict=True))
    assert [s["group_id"] for s in answer.to_labelme()["shapes"]] == [1, 2, 3]
    assert [line.split()[0] for line in answer.to_yolo().lines] == ["0", "0", "1"]
    rows = answer.to_json()["targets"]
    assert [len(row["instances"]) for row in rows] == [2, 1] and rows[0]["area"] == 2 * SPOON.sum()
    assert np.array_equal(decode_rle(rows[0]["instances"][1]["rle"]), SPOON)
    assert rows[0]["instances"][1]["box"][0] == 241
    answer.save(tmp_path)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "1_spoon_2.png")) > 0, SPOON)
    assert sorted(f.name for f in tmp_path.glob("2_cup*")) == ["2_cup.png", "2_cup_cutout.png"]
    saved = json.loads((tmp_path / "answer.json").read_text())["targets"][0]
    assert [row["file"] for row in saved["instances"]] == ["1_spoon_1.png", "1_spoon_2.png"]


def test_instances_always_make_up_the_mask(two_spoons):
    answer, (left, right) = two_spoons
    grown = Target("spoon", True, 0.8, left | right | np.roll(right, 20, axis=0), [], instances=[left, right])
    assert (grown.instances[0] == left).all() and (grown.instances[1] == grown.mask & ~left).all()
    assert [len(t.instances) for t in (replace(grown, mask=left), replace(grown, mask=RING))] == [1, 1]
    assert replace(grown, present=False, mask=None).instances == []
    grown.mask = right
    assert np.array_equal(Answer("", [grown], (H, W), None).targets[0].instances, [right])
    with pytest.raises(BadInput, match="instance"):
        Target("spoon", True, 0.8, left, [], instances=[left[1:], right])


def test_an_empty_mask_that_is_present():
    empty = Answer("", [Target("x", True, 0.5, np.zeros((H, W), bool), [])], (H, W), COFFEE)
    assert empty.to_coco()["annotations"][0]["bbox"] == [0, 0, 0, 0]
    assert empty.to_labelme()["shapes"] == []
    assert np.array_equal(np.asarray(empty.overlay()), COFFEE)


def test_labelme_polygons():
    table = answer().to_labelme("coffee.png")
    assert (
        table["version"].startswith("5.")
        and table["imageData"] is None
        and table["imagePath"] == "coffee.png"
    )
    assert (table["imageHeight"], table["imageWidth"]) == (H, W) and table["flags"] == {"no bear": True}
    ring, spoon, *both = table["shapes"]
    assert [s["label"] for s in table["shapes"]] == ["cup", "spoon/left: \u202f…", "cup", "cup"]
    assert [s["group_id"] for s in table["shapes"]] == [1, 2, 3, 3]
    assert ring["description"] == "1 holes filled" and spoon["description"] == ""
    for shape, mask in ((ring, CUP), (spoon, SPOON)):
        found = filled_polygon(shape["points"], (H, W))
        assert (found & mask).sum() / (found | mask).sum() > 0.97
    xs, ys = np.transpose(spoon["points"])
    assert np.abs(np.array([xs.min(), xs.max(), ys.min(), ys.max()]) - (241, W, 93, 108)).max() <= 0.5


def test_yolo_has_a_polygon_for_each_instance():
    labels = answer().to_yolo()
    assert labels.names == ["cup", "spoon/left: \u202f…"]
    assert [line.split()[0] for line in labels.lines] == ["0", "1", "0"]
    for line, mask in zip(labels.lines, (CUP, SPOON, CUP | SPOON), strict=True):  # the hole is filled
        shares = np.array(line.split()[1:], float).reshape(-1, 2)
        found = filled_polygon(shares * (W, H), (H, W))
        assert shares.min() >= 0 and shares.max() <= 1
        assert (found & mask).sum() / (found | mask).sum() > 0.97
    empty = Answer("", [Target("x", True, 0.5, np.zeros((H, W), bool), [])], (H, W), COFFEE)
    assert empty.to_yolo().lines == [] and empty.to_yolo().names == ["x"]


def test_yolo_joins_the_parts_of_an_instance_into_one_polygon():
    parts = np.zeros((H, W), bool)
    for top, left, side in ((10, 10, 1), (30, 50, 12), (150, 250, 30), (199, 0, 1), (0, 299, 1)):
        parts[top : top + side, left : left + side] = True
    polygon = joined_polygon(parts)
    found = filled_polygon(polygon, (H, W))
    assert (found & parts).sum() / (found | parts).sum() > 0.97  # the lines between the parts enclose nothing
    x, y = polygon.T
    assert abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 == pytest.approx(parts.sum(), rel=0.05)


@dataclass
class Detections:
    """The fields of supervision's class of that name."""

    xyxy: np.ndarray
    mask: np.ndarray
    confidence: np.ndarray
    class_id: np.ndarray
    data: dict


def test_detections_of_supervision(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=Detections))
    found = answer().to_detections()
    assert np.array_equal(found.mask, [RING, SPOON, SPOON | RING]) and found.class_id.tolist() == [0, 1, 0]
    assert found.data["class_name"].tolist() == ["cup", "spoon/left: \u202f…", "cup"]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.8, 0.7])
    for (x0, y0, x1, y1), mask in zip(found.xyxy.astype(int), found.mask, strict=True):
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
    nothing = Answer("", [], (H, W), None).to_detections()
    assert nothing.xyxy.shape == (0, 4) and nothing.mask.shape == (0, H, W)


def test_detections_say_which_package_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(BadInput, match="pip install supervision"):
        answer().to_detections()


def test_supervision_takes_the_detections():
    supervision = pytest.importorskip("supervision", reason="pip install supervision")
    found = answer().to_detections()
    assert isinstance(found, supervision.Detections) and len(found) == 3
    assert len(Answer("", [], (H, W), None).to_detections()) == 0


def test_overlay_colours_the_masks_only():
    a = Answer("", [Target("cup", True, 0.9, RING, [])], (H, W), COFFEE)
    shown = np.asarray(a.overlay()).astype(int)
    assert shown.shape == COFFEE.shape
    rgb = np.array(rgb_of(COLOURS[0]))
    inside, outside = (100, 190), (190, 20)
    assert np.abs(shown[inside] - (COFFEE[inside] * 0.55 + rgb * 0.45)).max() <= 1
    assert (shown[outside] == COFFEE[outside]).all()
    assert (shown[100, 150 + 59] == rgb).all()  # the outline
    assert (shown[100, 150] == COFFEE[100, 150]).all()  # the hole
    label = (shown != COFFEE).any(2) & ~RING
    rows = np.flatnonzero(label.any(1))
    assert label.sum() > 200 and rows.max() < 60  # the name, above the mask
    assert (Answer("", [], (H, W), None).overlay().getpixel((5, 5))) == (128, 128, 128)


def test_overlay_labels_do_not_cover_each_other():
    names = ["left cup", "right cup", "large cup", "cup"]
    labelled = Answer("", [Target(n, True, 1, CUP, []) for n in names], (H, W), COFFEE)
    shown = np.asarray(labelled.overlay())
    assert len(set(labelled.colours)) == len(names)
    for name, colour in zip(names, labelled.colours, strict=True):
        assert (shown == np.array(rgb_of(colour))).all(2).sum() > 150, name


@pytest.mark.parametrize("size", [(8, 8), (8, 400), (400, 30)])
def test_overlay_of_any_size_and_script(size):
    names = ["雨伞", "x" * 300, "", "a\nb", "umbrella"]
    a = Answer("", [Target(n, True, 1, np.ones(size, bool), []) for n in names * 3], size, None)
    assert a.overlay().size == size[::-1]


def test_save(tmp_path):
    paths = answer().save(tmp_path / "deep" / "out")
    folder = tmp_path / "deep" / "out"
    names = {p.name for p in paths}
    assert (
        names
        == {p.name for p in folder.iterdir()}
        == {
            "mask.png",
            "overlay.png",
            "image.png",
            "1_cup.png",
            "2_spoon-left.png",
            "4_cup.png",
            "1_cup_cutout.png",
            "2_spoon-left_cutout.png",
            "4_cup_cutout.png",
            "answer.json",
            "coco.json",
            "labelme.json",
            "image.txt",
            "classes.txt",
        }
    )
    whole = np.asarray(Image.open(folder / "mask.png"))
    assert whole.dtype == np.uint8 and np.array_equal(whole, (RING | SPOON) * np.uint8(255))
    assert np.array_equal(np.asarray(Image.open(folder / "2_spoon-left.png")) > 0, SPOON)
    assert np.array_equal(np.asarray(Image.open(folder / "image.png")), COFFEE)
    cut, (y, x) = np.asarray(Image.open(folder / "2_spoon-left_cutout.png")), np.nonzero(SPOON)
    box = slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)
    assert np.array_equal(cut[..., 3] > 0, SPOON[box]) and np.array_equal(cut[..., :3], COFFEE[box])
    rows = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    assert [t["file"] for t in rows["targets"]] == ["1_cup.png", "2_spoon-left.png", None, "4_cup.png"]
    assert json.loads((folder / "coco.json").read_text())["annotations"]
    assert json.loads((folder / "labelme.json").read_text())["shapes"]
    assert (folder / "classes.txt").read_text(encoding="utf-8") == "cup\nspoon/left: …\n"
    assert (folder / "image.txt").read_text() == answer().to_yolo().text


@pytest.mark.parametrize(
    "phrase, file",
    [
        ("../../etc/passwd", "1_etc-passwd.png"),
        ("雨伞", "1_雨伞.png"),
        ("", "1_it.png"),
        ("...", "1_it.png"),
        ("a\0b\nc", "1_a-b-c.png"),
        ("é" * 200, "1_" + "é" * 30 + ".png"),
        ("CON", "1_CON.png"),
    ],
)
def test_file_names_are_safe(tmp_path, phrase, file):
    small = Answer("", [Target(phrase, True, 1, np.ones((9, 9), bool), [])], (9, 9), None)
    assert tmp_path / file in small.save(tmp_path)
    assert (tmp_path / file).is_file()


def test_two_answers_in_one_folder_do_not_mix(tmp_path):
    """The second answer replaces what answer.json lists of the first; what others put there stays."""
    first = {path.name for path in answer().save(tmp_path)}
    (tmp_path / "7_mine.png").write_bytes(b"mine")
    (tmp_path / "notes.json").write_bytes(b"mine")
    small = Answer("", [Target("sky", True, 1, np.ones((9, 9), bool), [])], (9, 9), None)
    second = {path.name for path in small.save(tmp_path)}
    assert "image.png" in first - second
    assert {path.name for path in tmp_path.iterdir()} == second | {"7_mine.png", "notes.json"}
    assert set(json.loads((tmp_path / "answer.json").read_text())["files"]) == second


def test_an_answer_of_an_earlier_version_does_not_mix_either(tmp_path):
    answer().save(tmp_path)
    table = json.loads((tmp_path / "answer.json").read_text())
    del table["files"]
    (tmp_path / "answer.json").write_text(json.dumps(table))
    Answer("", [], COFFEE.shape[:2], COFFEE).save(tmp_path)
    assert not list(tmp_path.glob("[0-9]*"))


@pytest.mark.parametrize(
    "content", ["[1]", "{", '{"files": 3}', '{"files": ["../a.png", "photo.png", null]}', '{"targets": [3]}']
)
def test_an_answer_json_of_another_program_removes_nothing(tmp_path, content):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "answer.json").write_text(content)
    for file in (tmp_path / "a.png", folder / "photo.png"):
        file.write_bytes(b"mine")
    answer().save(folder)
    assert (tmp_path / "a.png").is_file() and (folder / "photo.png").is_file()


def test_a_kill_between_two_answers_leaves_all_files_listed(tmp_path, monkeypatch):
    answer().save(tmp_path)
    monkeypatch.setattr(image_folder, "_write_table", stop_after(image_folder._write_table, calls=1))
    small = Answer("", [Target("sky", True, 1, np.ones((9, 9), bool), [])], (9, 9), None)
    with pytest.raises(KeyboardInterrupt):
        small.save(tmp_path)
    monkeypatch.undo()
    Answer("", [], (9, 9), None).save(tmp_path)
    assert not list(tmp_path.glob("[0-9]*")) and not (tmp_path / "image.png").exists()


def stop_after(function, calls):
    """`function`, which works some times and is stopped then."""
    done = []

    def stopped(*arguments):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(arguments)
        return function(*arguments)

    return stopped


def test_save_where_it_cannot(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="choose another folder"):
        answer().save(tmp_path / "file")
