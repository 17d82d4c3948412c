"""Boxes that become masks, and images without annotations: with a segmenter that fills what it is shown."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from assistant.errors import BadInput
from assistant.record import read_records
from assistant.sam.mask_ops import decode_rle, encode_rle
from datagen.__main__ import main
from datagen.result_cache import WorkerCache
from datagen.sources.annotated_images import AnnotatedImage, Instance
from datagen.sources.outline import Outliner, distinct_regions

H, W = 80, 120
BOXES = {1: [10, 10, 30, 30], 2: [60, 20, 50, 50], 3: [0, 0, 8, 8]}  # xywh
# The whole image, two objects, one of them twice, and a speck.
PROPOSED_BOXES = ([0, 0, W, H], BOXES[1], [11, 11, 30, 30], BOXES[2], [90, 5, 3, 3])


def block(x, y, width, height):
    mask = np.zeros((H, W), bool)
    mask[y : y + height, x : x + width] = True
    return mask


class FillingSegmenter:
    """Fills a box; but in one in the corner it finds nothing."""

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


class FillingOpener:
    """Proposes the masks of `PROPOSED_BOXES`."""

    def __init__(self):
        self.segmenter = FillingSegmenter()

    def propose(self, image):
        return None, SimpleNamespace(rles=[encode_rle(block(*box)) for box in PROPOSED_BOXES])


@pytest.fixture
def segmenter(monkeypatch):
    opener = FillingOpener()
    monkeypatch.setattr(Outliner, "load", lambda outliner: opener)
    return opener.segmenter


@pytest.fixture
def boxes(tmp_path):
    """An image with two good boxes, and two of dogs, empty and outside; and a file that is no image."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(tmp_path / "images/p.jpg")
    (tmp_path / "images/q.jpg").write_bytes(b"no image")
    annotations = [
        {"id": k, "image_id": 1, "category_id": 1 + k % 2 if k < 3 else 3, "bbox": box}
        for k, box in (BOXES | {4: [W + 5, 0, 20, 20]}).items()
    ]
    annotations.append({"id": 9, "image_id": 2, "category_id": 1, "bbox": [1, 1, 9, 9], "segmentation": []})
    rows = [{"id": k, "url": f"x/{name}.jpg", "width": W, "height": H} for k, name in ((1, "p"), (2, "q"))]
    data = {
        "images": rows,
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(("cat", "cup", "dog", "car"), 1)],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    return tmp_path


def arguments(folder, *more):
    return ["--images", str(folder / "images"), "--out", str(folder / "out"), *map(str, more)]


def with_boxes(folder, *more):
    return arguments(folder, "--annotations", folder / "boxes.json", "--format", "egoobjects", *more)


def absent_categories(out):
    """The categories that some question calls absent."""
    return {
        key
        for record in read_records(out / "records.jsonl")
        for target, key in zip(record.targets, record.source["categories"], strict=True)
        if target.rle is None
    }


def drops_of(folder):
    return json.loads((folder / "out/statistics.json").read_text())["drops"]


def test_boxes_become_masks_once(boxes, segmenter, capsys):
    options = with_boxes(boxes)
    assert main(options) == 0 and segmenter.encoded == 1
    masks = {"cup": block(*BOXES[1]), "cat": block(*BOXES[2])}
    checked = Counter()
    for record in read_records(boxes / "out/records.jsonl"):
        for target, key in zip(record.targets, record.source["categories"], strict=True):
            if target.rle:
                assert np.array_equal(decode_rle(target.rle), masks[key])
                checked[key] += 1
    assert set(checked) == {"cup", "cat"}
    absent = absent_categories(boxes / "out")
    assert "car" in absent and "dog" not in absent  # a dog is there, though it has no outline
    drops = drops_of(boxes)
    assert drops["box: SAM's mask does not fill it"] == 1
    assert drops["annotation: the box lies outside the image"] == 1
    assert drops["photo: unreadable, or of another size than its annotations say"] == 1
    assert json.loads((boxes / "out/llmseg40k.json").read_text())["p.jpg"]["from_dataset"] == "ego_objects"
    assert main([*options, "--seed", "1"]) == 0 and segmenter.encoded == 1  # other questions, the same masks
    assert main([*options, "--sam", "none"]) == 2 and "annotation without a mask" in capsys.readouterr().err


def test_an_image_of_another_size_than_its_annotations_say(boxes, segmenter):
    data = json.loads((boxes / "boxes.json").read_text())
    data["images"][0]["width"] = W + 1
    (boxes / "boxes.json").write_text(json.dumps(data))
    assert main(with_boxes(boxes)) == 2
    assert segmenter.encoded == 0


def test_images_without_annotations_are_outlined_and_named(boxes, segmenter, model_server):
    names = [
        {"number": 1, "name": "Cup", "count": 1},
        {"number": 2, "name": "cat", "count": 2},
        {"number": 7, "name": "x", "count": 1},
    ]
    model_server.answers["names"] = {"things": names}
    options = arguments(
        boxes, "--format", "none", "--describe-with", "describer", "--base-url", model_server.url
    )
    assert main(options) == 0
    titles = [body["response_format"]["json_schema"]["name"] for body in model_server.bodies]
    assert titles == ["names"]  # the file that is no image is not asked about
    records = read_records(boxes / "out/records.jsonl")
    # Of two cats one is outlined.
    assert {key for record in records for key in record.source["categories"]} == {"cup"}
    targets = [target for record in records for target in record.targets]
    assert all(np.array_equal(decode_rle(target.rle), block(*BOXES[1])) for target in targets)
    assert drops_of(boxes)["names: no such region"] == 1
    assert main(options) == 0 and len(model_server.bodies) == 1


def test_regions_are_neither_all_nor_twice_the_same_nor_specks(boxes):
    image = AnnotatedImage(1, boxes / "images/p.jpg", W, H, (), {})
    rles = distinct_regions([encode_rle(block(*box)) for box in PROPOSED_BOXES], image)
    assert [decode_rle(rle).sum() for rle in rles] == [900, 2500]


def test_the_numbers_are_drawn(boxes, segmenter):
    image = AnnotatedImage(1, boxes / "images/p.jpg", W, H, (), {})
    marked, rles = Outliner("pocket", WorkerCache()).propose(image)
    assert len(rles) == 2 and marked.shape == (H, W, 3)
    assert (marked[25, 25] != 90).any() and (marked[5, 5] == 90).all()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--format", "none"], "--describe-with"),
        (["--format", "none", "--sam", "none", "--describe-with", "x"], "--sam"),
        (["--format", "coco"], "--annotations"),
        (["--format", "none", "--annotations", "x"], "must be left out"),
    ],
)
def test_what_is_missing_is_one_line(boxes, more, message, capsys):
    assert main(arguments(boxes, *more)) == 2 and message in capsys.readouterr().err


def test_sam_that_is_nowhere(boxes, capsys):
    assert main(with_boxes(boxes, "--sam", boxes / "no.pth")) == 2
    assert "no.pth" in capsys.readouterr().err


def test_the_pocket_sam_takes_boxes(boxes):
    """The real one, where its weights can be had: a disc from its box."""
    outliner = Outliner("pocket", WorkerCache())
    try:
        outliner.load()
    except (BadInput, OSError) as error:
        pytest.skip(f"the pocket weights cannot be had here ({error})")
    y, x = np.mgrid[:200, :300]
    disc = (y - 90) ** 2 + (x - 140) ** 2 < 60**2
    pixels = np.where(disc[..., None], (220, 40, 40), (40, 90, 60)).astype(np.uint8)
    Image.fromarray(pixels).save(boxes / "images/disc.png")
    ball = Instance(1, "ball", None, (80, 30, 120, 120), 14400.0, False)
    image = AnnotatedImage(1, boxes / "images/disc.png", 300, 200, (ball,), {})
    (outlined,) = outliner.outline_boxes(image, Counter()).instances
    mask = decode_rle(outlined.segmentation)
    assert (mask & disc).sum() / (mask | disc).sum() > 0.85
