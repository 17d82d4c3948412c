"""LabelMe's files of all versions and kinds of shapes: what cannot be read is named, the others are used."""

import base64
import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from assistant.sam.mask_ops import decode_rle
from datagen.sources.annotated_images import read_images

W, H = 120, 80
CUP = {"label": "cup", "points": [[10, 10], [40, 10], [40, 40], [10, 40]], "shape_type": "polygon"}


@pytest.fixture
def folder(tmp_path):
    """A folder with images/p.jpg and an empty folder labels."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(tmp_path / "images/p.jpg")
    return tmp_path


def labelme(*shapes, **more):
    size = {"imagePath": "p.jpg", "imageHeight": H, "imageWidth": W}
    return {"version": "5.5.0", "shapes": list(shapes), "imageData": None} | size | more


def read(folder, *files, drops=None):
    """The images of labels/NAME.json. files: (name, content)."""
    for name, content in files:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / "labels" / name).write_bytes(content)
    drops = Counter() if drops is None else drops
    return read_images(folder / "labels", folder / "images", None, drops, "labelme")


def png(mask):
    content = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_masks_circles_and_turned_rectangles(folder):
    patch = np.eye(21, 31, dtype=bool) | (np.arange(31) > 10)
    shapes = [
        {"label": "cup", "points": [[50, 20], [80, 40]], "shape_type": "mask", "mask": png(patch)},
        {"label": "ball", "points": [[30, 40], [30, 55]], "shape_type": "circle"},
        {"label": "box", "points": [[90, 40], [100, 30], [110, 40], [100, 50]], "shape_type": "rotation"},
        {"label": "sheet", "points": [[5, 5], [20, 5], [20, 15], [5, 15]], "shape_type": "rectangle"},
    ]
    drops = Counter()
    (image,) = read(folder, ("p.json", labelme(*shapes)), drops=drops)
    masks = {key: decode_rle(image.rle(image.of(key))) for key in image.keys()}
    expected = np.zeros((H, W), bool)
    expected[20:41, 50:81] = patch
    assert np.array_equal(masks["cup"], expected)
    y, x = np.mgrid[:H, :W] + 0.5
    disc = (x - 30) ** 2 + (y - 40) ** 2 < 15**2
    assert (masks["ball"] & disc).sum() / (masks["ball"] | disc).sum() > 0.95
    assert masks["box"].sum() == pytest.approx(200, abs=20) and masks["sheet"].sum() == 150
    assert not drops and not image.partial


@pytest.mark.parametrize(
    "shape, reason",
    [
        ({"points": [[1, 1]], "shape_type": "point"}, "a point has no area"),
        ({"points": [[1, 1], [9, 9]], "shape_type": "linestrip"}, "a linestrip has no area"),
        ({"points": [[1, 1], [9, 9]], "shape_type": "line"}, "a line has no area"),
        ({"points": [[1, 1], [9, 9]], "shape_type": "star"}, "of a type that is not read"),
        ({"points": [[1, 1], [9, 9]], "shape_type": "polygon"}, "fewer than three corners"),
        ({"points": [[1, 1], [9, 9], [9, None]], "shape_type": "polygon"}, "not a list of [x, y]"),
        ({"points": [[1, 1], [9, 9], [9, float("nan")]]}, "not finite"),
        ({"points": [[1, 1], [9, 9], [9, 3e8]]}, "far outside"),
        ({"points": None}, "not a list of [x, y]"),
        ({"points": [[1, 1], [20, 20]], "shape_type": "mask", "mask": "?"}, "PNG of a mask"),
        ({"points": [[1, 1], [20, 20]], "shape_type": "mask"}, "has no PNG"),
        ({"points": [[1, 1], [9, 9]], "shape_type": "mask", "mask": png(np.ones((20, 20)))}, "its box"),
        ({"points": [[1, 1], [1e6, 1]], "shape_type": "circle"}, "far outside"),
    ],
)
def test_a_shape_without_an_outline_leaves_its_name(folder, shape, reason):
    """Also where the same name is outlined elsewhere: not all of it is."""
    drops = Counter()
    more = CUP | {"label": "cat"}
    (image,) = read(folder, ("p.json", labelme(CUP, more, {"label": "Cat "} | shape)), drops=drops)
    assert image.keys() == ["cat", "cup"] and image.partial == {"cat"}
    ((dropped, count),) = drops.items()
    assert reason in dropped and count == 1


def test_a_point_beside_an_outline_of_one_group_takes_nothing_from_it(folder):
    point = {"label": "cup", "points": [[20, 20]], "shape_type": "point", "group_id": 3}
    (image,) = read(folder, ("p.json", labelme(CUP | {"group_id": 3}, point)))
    assert not image.partial and len(image.instances) == 1


def test_a_shape_without_a_name_may_be_anything(folder):
    """So that no category of the set is said to be absent."""
    other = labelme(CUP | {"label": "dog"}, imagePath="q.jpg")
    Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(folder / "images/q.jpg")
    nameless = {"label": None, "points": CUP["points"]}
    image, _ = read(folder, ("p.json", labelme(CUP, nameless)), ("q.json", other))
    assert image.keys() == ["cup"] and image.partial == {"dog"}


def test_an_old_file_has_the_size_of_its_image(folder):
    old = labelme(CUP)
    del old["imageHeight"], old["imageWidth"]
    (image,) = read(folder, ("p.json", old))
    assert (image.height, image.width) == (H, W)


def test_files_that_cannot_be_used_are_named_and_the_others_used(folder):
    drops = Counter()
    files = [
        ("p.json", json.dumps(labelme(CUP)).encode("utf-8-sig")),
        ("gbk.json", json.dumps(labelme(CUP | {"label": "杯子"}), ensure_ascii=False).encode("gbk")),
        ("half.json", json.dumps(labelme(CUP)).encode()[:60]),
        ("settings.json", {"theme": "dark"}),
        ("coco.json", {"images": [], "annotations": [], "categories": []}),
        ("list.json", []),
    ]
    (image,) = read(folder, *files, drops=drops)
    assert image.keys() == ["cup"]
    assert drops == {
        "labelme file: not text in UTF-8": 1,
        "labelme file: not JSON": 1,
        "labelme file: not LabelMe's": 3,
    }


def test_images_of_one_name_in_two_folders(folder):
    files = []
    for name in ("a", "b"):
        (folder / "images" / name).mkdir()
        Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(folder / "images" / name / "1.jpg")
        files.append((f"{name}.json", labelme(CUP | {"label": name}, imagePath=f"../images/{name}/1.jpg")))
    images = read(folder, *files)
    assert [(image.file.parent.name, image.keys()) for image in images] == [("a", ["a"]), ("b", ["b"])]
