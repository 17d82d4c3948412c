"""Boxes that become masks, and photos about which nothing is known: with a segmenter that fills what it is shown."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="the openai client is not installed")

from assistant.errors import BadInput
from assistant.record import from_rle, read_records, to_rle
from datagen.__main__ import main
from datagen.result_cache import Kept
from datagen.sources import outline
from datagen.sources.outline import Outliner, distinct, named
from datagen.sources.photos import Photo
from tests.datagen.llm.test_openai import model  # noqa: F401

H, W = 80, 120
BOXES = {1: [10, 10, 30, 30], 2: [60, 20, 50, 50], 3: [0, 0, 8, 8]}  # xywh


def block(x, y, width, height):
    mask = np.zeros((H, W), bool)
    mask[y : y + height, x : x + width] = True
    return mask


class Segmenter:
    """Fills a box; but for one in the corner, in which it sees nothing."""

    def __init__(self):
        self.encoded = 0

    def encode(self, image):
        self.encoded += 1
        return image.shape[:2]

    def predict(self, embedding, box, multimask):
        x0, y0, x1, y1 = map(int, box)
        if x1 > W:
            raise BadInput("the box is empty")
        return np.array([block(x0, y0, x1 - x0, y1 - y0) & (x0 > 0)]), None, None


@pytest.fixture
def segmenter(monkeypatch):
    found = Segmenter()
    found_boxes = ([0, 0, W, H], BOXES[1], [11, 11, 30, 30], BOXES[2], [90, 5, 3, 3])
    proposals = SimpleNamespace(rles=[to_rle(block(*box)) for box in found_boxes])

    def load(outliner):
        outliner.segmenter, outliner.eyes = (
            found,
            SimpleNamespace(open=lambda image: SimpleNamespace(proposals=proposals)),
        )
        return found

    monkeypatch.setattr(Outliner, "load", load)
    return found


@pytest.fixture
def boxes(tmp_path):
    """A photo with two good boxes, one that SAM sees nothing in and one outside; and a picture that is none."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(tmp_path / "images/p.jpg")
    (tmp_path / "images/q.jpg").write_bytes(b"no picture")
    things = [
        {"id": k, "image_id": 1, "category_id": 1 + k % 2, "bbox": box}
        for k, box in (BOXES | {4: [W + 5, 0, 20, 20]}).items()
    ]
    things.append({"id": 9, "image_id": 2, "category_id": 1, "bbox": [1, 1, 9, 9], "segmentation": []})
    rows = [{"id": k, "url": f"x/{name}.jpg", "width": W, "height": H} for k, name in ((1, "p"), (2, "q"))]
    data = {
        "images": rows,
        "annotations": things,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cup"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    return tmp_path


def words(folder, *more):
    return ["--images", str(folder / "images"), "--out", str(folder / "out"), *map(str, more)]


def test_boxes_become_masks_once(boxes, segmenter, capsys):
    options = words(boxes, "--annotations", boxes / "boxes.json", "--format", "egoobjects")
    assert main(options) == 0 and segmenter.encoded == 1
    records = read_records(boxes / "out/records.jsonl")
    masks = {"cup": block(*BOXES[1]), "cat": block(*BOXES[2])}
    seen = Counter()
    for record in records:
        for target, key in zip(record.targets, record.source["categories"]):
            if target.rle:
                assert np.array_equal(from_rle(target.rle), masks[key])
                seen[key] += 1
    assert set(seen) == {"cup", "cat"}
    drops = json.loads((boxes / "out/statistics.json").read_text())["drops"]
    assert drops["box: SAM's mask does not fill it"] == 2
    assert drops["photo: cannot be read, or is not of the size that its annotations say"] == 1
    assert json.loads((boxes / "out/llmseg40k.json").read_text())["p.jpg"]["from_dataset"] == "ego_objects"
    assert main([*options, "--seed", "1"]) == 0 and segmenter.encoded == 1  # other questions, the same masks
    assert main([*options, "--sam", "none"]) == 2 and "annotation without a mask" in capsys.readouterr().err


def test_a_photo_of_another_size_than_its_annotations_say(boxes, segmenter):
    data = json.loads((boxes / "boxes.json").read_text())
    data["images"][0]["width"] = W + 1
    (boxes / "boxes.json").write_text(json.dumps(data))
    assert main(words(boxes, "--annotations", boxes / "boxes.json", "--format", "egoobjects")) == 2
    assert segmenter.encoded == 0


def test_photos_without_labels_are_outlined_and_named(boxes, segmenter, model, monkeypatch):
    said = {
        "things": [
            {"number": 1, "name": "Cup", "count": 1},
            {"number": 2, "name": "cat", "count": 2},
            {"number": 7, "name": "x", "count": 1},
        ]
    }
    names = lambda body: body["response_format"]["json_schema"]["name"] == "names"
    answer = model.answer

    def answering(body, bad):
        if names(body):
            found = json.dumps(said)
            return 200, json.dumps({"choices": [{"message": {"content": found}}]}).encode()
        return answer(body, bad)

    monkeypatch.setattr(model, "answer", answering)
    options = words(boxes, "--format", "none", "--describe-with", "eyes", "--base-url", model.url)
    assert main(options) == 0
    assert sum(names(body) for body in model.asked) == 1  # the picture that is none is not among them
    records = read_records(boxes / "out/records.jsonl")
    assert {key for r in records for key in r.source["categories"]} == {"cup"}  # of two cats one is outlined
    assert all(np.array_equal(from_rle(t.rle), block(*BOXES[1])) for r in records for t in r.targets)
    assert json.loads((boxes / "out/statistics.json").read_text())["drops"]["names: no such region"] == 1
    asked = len(model.asked)
    assert main(options) == 0 and len(model.asked) == asked


def test_what_regions_are_named(boxes):
    photo = Photo(1, boxes / "images/p.jpg", W, H, (), {})
    rles = distinct(
        [to_rle(block(*box)) for box in ([0, 0, W, H], BOXES[1], [11, 11, 30, 30], BOXES[2], [90, 5, 3, 3])],
        photo,
    )
    assert [from_rle(rle).sum() for rle in rles] == [
        900,
        2500,
    ]  # neither all, nor twice the same, nor a speck
    drops = Counter()
    thing = lambda number, name, count=1: {"number": number, "name": name, "count": count}
    found = named(photo, rles, {"things": [thing(1, "Mug"), thing(1, "cup"), thing(2, "nothing")]}, drops)
    assert [(i.key, i.box, i.area) for i in found.instances] == [
        ("mug", (10, 10, 30, 30), 900)
    ] and not found.partial
    assert drops == {"names: no such region": 1, "names: no whole thing": 1}
    assert named(photo, rles, {"things": [thing(2, "mug", 3)]}, drops).partial == {"mug"}
    assert named(photo, rles, None, drops) is photo and drops["names: no usable answer"] == 1


def test_the_numbers_are_drawn(boxes, segmenter):
    photo = Photo(1, boxes / "images/p.jpg", W, H, (), {})
    marked, rles = Outliner("pocket", Kept(None)).marks(photo)
    assert len(rles) == 2 and marked.shape == (H, W, 3)
    assert (marked[25, 25] != 90).any() and (marked[5, 5] == 90).all()


@pytest.mark.parametrize(
    "more, said",
    [
        (["--format", "none"], "--describe-with"),
        (["--format", "coco"], "--annotations"),
        (["--format", "none", "--annotations", "x"], "there are none"),
    ],
)
def test_what_is_missing_is_one_line(boxes, more, said, capsys):
    assert main(words(boxes, *more)) == 2 and said in capsys.readouterr().err


def test_sam_that_is_nowhere(boxes, capsys):
    assert (
        main(
            words(
                boxes,
                "--annotations",
                boxes / "boxes.json",
                "--format",
                "egoobjects",
                "--sam",
                boxes / "no.pth",
            )
        )
        == 2
    )
    assert "no.pth" in capsys.readouterr().err


def test_the_segmenter_of_the_pocket_takes_boxes(boxes):
    """The real one, where its weights can be had: a disc from its box."""
    outliner = Outliner("pocket", Kept(None))
    try:
        outliner.load()
    except (BadInput, OSError) as error:
        pytest.skip(f"the pocket weights cannot be had here ({error})")
    y, x = np.mgrid[:200, :300]
    disc = (y - 90) ** 2 + (x - 140) ** 2 < 60**2
    Image.fromarray(np.where(disc[..., None], (220, 40, 40), (40, 90, 60)).astype(np.uint8)).save(
        boxes / "images/disc.png"
    )
    ball = outline.Instance(1, "ball", None, (80, 30, 120, 120), 14400.0, False)
    photo = Photo(1, boxes / "images/disc.png", 300, 200, (ball,), {})
    (found,) = outliner.boxes(photo, Counter()).instances
    mask = from_rle(found.segmentation)
    assert (mask & disc).sum() / (mask | disc).sum() > 0.85
