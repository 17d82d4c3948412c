"""COCO's files with odd rows: each row is used, or named and counted, and none is taken for another."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from assistant.errors import BadInput
from assistant.export.converters import from_llmseg40k
from assistant.record import check_records, read_records
from datagen.__main__ import main
from datagen.sources.annotated_images import AnnotatedImages, read_images
from datagen.sources.index import open_index
from tests.helpers.datagen_images import annotation, command, rectangle, write_instances

W, H = 120, 80
NAMES = {"cup": 1, "cat": 2, "dog": 3}
CUP_BOX, CAT_BOX = (10, 10, 30, 40), (60, 20, 50, 30)


def write(folder, annotations=None, images=None, names=None):
    """Two photos, p.png and q.png, and instances.json about them."""
    (folder / "images").mkdir(exist_ok=True)
    for name in ("p.png", "q.png"):
        Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(folder / "images" / name)
    images = images or [image(1, "p.png"), image(2, "q.png")]
    annotations = annotations or [annotation(1, 1, 1, CUP_BOX), annotation(2, 1, 2, CAT_BOX)]
    write_instances(folder, images, annotations, names or NAMES)


def image(number, name, **more):
    return {"id": number, "file_name": name, "width": W, "height": H} | more


def read(folder, drops):
    return read_images(folder / "instances.json", folder / "images", None, drops)


@pytest.mark.parametrize(
    "odd",
    [
        {"area": None},
        {"area": float("nan")},
        {"area": "900"},
        {"area": 7},
        {"bbox": []},
        {"bbox": None},
        {"bbox": [0, 0, None, 5]},
        {"bbox": [70, 60, 5, 5]},
        {"iscrowd": None},
        {"segmentation": [10, 10, 40, 10, 40, 50, 10, 50]},
    ],
)
def test_box_and_area_are_the_masks(tmp_path, odd):
    write(tmp_path, [annotation(1, 1, 1, CUP_BOX, **odd), annotation(2, 1, 2, CAT_BOX)])
    drops = Counter()
    (found,) = read(tmp_path, drops)
    (cup,) = found.of("cup")
    assert (cup.box, cup.area, cup.crowd) == (CUP_BOX, 1200, False) and not found.partial
    assert drops == {"photo without usable annotations": 1}


def test_without_box_and_area_they_are_the_masks(tmp_path):
    row = annotation(1, 1, 1, CUP_BOX)
    del row["bbox"], row["area"]
    write(tmp_path, [row])
    ((cup,),) = [found.instances for found in read(tmp_path, Counter())]
    assert (cup.box, cup.area) == (CUP_BOX, 1200)


@pytest.mark.parametrize("size", [{"width": None}, {"width": 0, "height": 0}, {"width": "x"}, {"height": -3}])
def test_a_size_that_is_none_is_that_of_the_image(tmp_path, size):
    write(tmp_path, images=[image(1, "p.png", **size)])
    (found,) = read(tmp_path, Counter())
    assert (found.width, found.height) == (W, H)


def test_two_images_with_one_id_get_no_outlines(tmp_path):
    rows = [annotation(1, 1, 1, CUP_BOX), annotation(2, 2, 2, CAT_BOX)]
    write(tmp_path, rows, [image(1, "p.png"), image(1, "q.png")])
    with pytest.raises(BadInput, match="2 x photo: two images with one id, such as p.png"):
        read(tmp_path, Counter())
    (tmp_path / "images/r.png").write_bytes((tmp_path / "images/p.png").read_bytes())
    write(tmp_path, rows, [image(1, "p.png"), image(1, "q.png"), image(2, "r.png")])
    drops = Counter()
    (found,) = read(tmp_path, drops)
    assert found.keys() == ["cat"] and drops["annotation of an unknown image"] == 1


def test_annotations_with_one_id(tmp_path):
    first, second = annotation(1, 1, 1, CUP_BOX), annotation(1, 1, 2, CAT_BOX)
    elsewhere = annotation(1, 2, 3, CUP_BOX)
    write(tmp_path, [first, first, second, elsewhere])
    drops = Counter()
    one, other = read(tmp_path, drops)
    assert one.keys() == ["cup"] and one.partial == {"cat"} and other.keys() == ["dog"]
    assert drops == {"annotation: listed twice, and read once": 1, "annotation: with the id of another": 1}


def test_rows_that_cannot_be_used_are_named(tmp_path, capsys):
    write(
        tmp_path,
        [
            annotation(1, 1, 1, CUP_BOX),
            annotation(2, 1, 2, CAT_BOX, segmentation=[[0, 0, 3e8, 3e8, 5, 60]]),
            annotation(None, 1, 2, CAT_BOX),
            annotation(4, None, 2, CAT_BOX),
        ],
        [image(1, "p.png"), {"id": 2}, {"file_name": "q.png"}, None],
    )
    assert main(command(tmp_path, "out", "--per-image", 6)) == 0
    printed = capsys.readouterr().out
    for line in (
        "dropped 1 x annotation: a polygon has a corner far outside the image (annotation 2 of p.png)",
        "dropped 1 x annotation: without an id (p.png)",
        "dropped 1 x annotation: without an image ({'id': 4",
        "dropped 2 x photo: without an id or a file name ({'id': 2}",
        "dropped 1 x images: a row that is no object (None)",
    ):
        assert line in printed
    figures = json.loads((tmp_path / "out/statistics.json").read_text())
    assert figures["dropped_items"]["annotation: without an id"] == ["p.png"]
    keys = {key for r in read_records(tmp_path / "out/records.jsonl") for key in r.source["categories"]}
    assert "cat" not in keys  # it is there, and not outlined: neither asked for nor called absent


@pytest.mark.parametrize("category", [None, "x", 99, [1]])
def test_what_has_no_name_may_be_anything(tmp_path, category):
    write(tmp_path, [annotation(1, 1, 1, CUP_BOX), annotation(2, 1, category, CAT_BOX)])
    (found,) = read(tmp_path, Counter())
    assert found.keys() == ["cup"] and found.partial == {"cat", "dog"}


@pytest.mark.parametrize("number", [None, True, [1], ""])
def test_what_has_no_image_may_be_in_any(tmp_path, number):
    write(tmp_path, [annotation(1, 1, 1, CUP_BOX), annotation(2, number, 2, CAT_BOX)])
    drops = Counter()
    (found,) = read(tmp_path, drops)
    assert found.keys() == ["cup"] and found.partial == {"cat"}
    assert drops["annotation: without an image"] == 1


def test_words_that_are_no_numbers_and_a_mark_of_utf_8(tmp_path):
    """Python writes NaN, which is not JSON; a name that holds the word stays as it is."""
    rows = [annotation(1, 1, 1, CUP_BOX, area=float("nan")), annotation(2, 1, 2, CAT_BOX, area=-float("inf"))]
    write(tmp_path, rows, names={'mug "NaN, Infinity" \\': 1, "cat": 2})
    text = (tmp_path / "instances.json").read_text()
    padding = json.dumps({"info": "x" * 70_000 + " NaN"})[1:-1]  # longer than what is read at once
    (tmp_path / "instances.json").write_bytes(b"\xef\xbb\xbf" + f"{{{padding}, {text[1:]}".encode())
    (found,) = read(tmp_path, Counter())
    assert found.keys() == ["cat", 'mug "nan, infinity" \\']
    assert [each.area for each in found.instances] == [1200, 1500]


@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_another_encoding_is_one_line(tmp_path, encoding, capsys):
    write(tmp_path)
    text = (tmp_path / "instances.json").read_text().replace("cup", "杯子")
    (tmp_path / "instances.json").write_bytes(text.encode(encoding))
    assert main(command(tmp_path, "out")) == 2
    assert "instances.json is not JSON in UTF-8" in capsys.readouterr().err


def test_swapped_sides_are_said_and_put_right_where_the_outlines_tell(tmp_path):
    write(tmp_path, images=[image(1, "p.png", width=H, height=W)])
    drops = Counter()
    (found,) = read(tmp_path, drops)
    assert (found.width, found.height) == (W, H)
    assert [reason for reason in drops if "swapped" in reason]
    write(tmp_path, [annotation(1, 1, 1, CUP_BOX)], [image(1, "p.png", width=H, height=W)])
    with pytest.raises(BadInput, match="annotated without its EXIF orientation"):  # fits both ways
        read(tmp_path, Counter())


def test_an_image_that_exif_turns_is_not_used_with_outlines_of_its_other_side(tmp_path):
    write(tmp_path, images=[image(1, "p.jpg")])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((H, W, 3), 90, np.uint8)).save(tmp_path / "images/p.jpg", exif=exif)
    with pytest.raises(BadInput, match=f"p.jpg is {H}x{W}, its annotations say {W}x{H}"):
        read(tmp_path, Counter())


def test_images_of_one_name_in_two_folders_are_kept_apart(tmp_path):
    write(
        tmp_path, [annotation(1, 1, 1, CUP_BOX), annotation(2, 2, 2, CAT_BOX), annotation(3, 3, 3, CUP_BOX)]
    )
    images = [image(1, "a/1.png"), image(2, "b/1.png"), image(3, "b/2.png")]
    for row in images:
        file = tmp_path / "images" / row["file_name"]
        file.parent.mkdir(exist_ok=True)
        file.write_bytes((tmp_path / "images/p.png").read_bytes())
    rows = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    write_instances(tmp_path, images, rows, NAMES)
    assert main(command(tmp_path, "out", "--per-image", 6)) == 0
    records = read_records(tmp_path / "out/records.jsonl")
    assert check_records(tmp_path / "out/records.jsonl") == []
    back = list(from_llmseg40k(tmp_path / "out/llmseg40k.json"))
    assert {record.source["file"] for record in back} == {"a/1.png", "b/1.png", "2.png"}
    assert len(back) == sum(not record.history for record in records)


def test_the_first_things_that_are_dropped_are_kept(tmp_path):
    rows = [annotation(number, 1, 2, CAT_BOX, segmentation="x") for number in range(2, 12)]
    write(tmp_path, [annotation(1, 1, 1, CUP_BOX), *rows])
    folder = tmp_path / "images"
    images = AnnotatedImages(open_index("coco", tmp_path / "instances.json", folder, None), folder)
    for _ in range(2):
        list(images.read(Counter()))
    (items,) = images.dropped_items.values()
    assert items == [f"annotation {number} of p.png" for number in (2, 3, 4)]


def test_categories_that_share_an_id_have_no_name(tmp_path):
    write(tmp_path)
    table = json.loads((tmp_path / "instances.json").read_text())
    table["categories"].append({"id": 2, "name": "dog"})
    (tmp_path / "instances.json").write_text(json.dumps(table))
    (found,) = read(tmp_path, Counter())
    assert found.keys() == ["cup"] and "dog" in found.partial


def test_the_outline_of_a_row_is_that_of_its_image(tmp_path):
    """Two cups in a row: a box elsewhere must not make the right one the left one."""
    rows = [
        annotation(1, 1, 1, (5, 20, 30, 30), bbox=[80, 20, 30, 30]),
        annotation(2, 1, 1, (80, 20, 30, 30), bbox=[5, 20, 30, 30]),
    ]
    write(tmp_path, rows)
    (found,) = read(tmp_path, Counter())
    assert [each.box[0] for each in found.of("cup")] == [5, 80]
    assert found.of("cup")[0].segmentation == rectangle(5, 20, 30, 30)
