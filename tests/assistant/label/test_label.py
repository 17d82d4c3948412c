"""A folder of photos and a list of classes become one set, the same however often the run is stopped."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from assistant.errors import BadInput
from assistant.label import labeller, run
from assistant.label.labeller import Labeller, Outcome
from assistant.label.output import LabelSummary
from assistant.label.run import label_photos
from assistant.label.settings import LabelSettings, read_classes
from assistant.mask_images import open_label_map
from assistant.presets import ModelOptions
from assistant.scene import Assistant
from tests.helpers.cups import BLANK_IMAGE, LEFT_CUP, MASKS, RIGHT_CUP, SMALL_CUP, CupPipeline
from tests.helpers.fake_assistant import COLOURS, colour_mask
from tests.helpers.labelled_sets import CLASSES, set_files, write_photos
from tests.helpers.polygons import filled_polygon

NAMES = ["a.png", "b.png", "sub/a.png", "sub/c.png"]


def label(folder: Path, out: Path, classes: list[str] = CLASSES, **options) -> LabelSummary:
    return label_photos(LabelSettings(folder, classes, out, **options))


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_photos(tmp_path / "photos", NAMES)


def test_every_file_says_the_same(photos, tmp_path, models):
    from pycocotools.coco import COCO

    out = tmp_path / "out"
    summary = label(photos, out)
    assert summary.photos == 4 and not summary.failures and not summary.unknown
    assert summary.instances == {"red ball": 4, "green box": 4, "blue sky": 4, "bench": 0}
    coco = COCO(str(out / "instances.json"))
    assert [row["file_name"] for row in coco.dataset["images"]] == NAMES
    assert [row["name"] for row in coco.dataset["categories"]] == CLASSES
    for row in coco.dataset["images"]:
        image = np.asarray(Image.open(out / "images" / row["file_name"]))
        assert image.shape == (row["height"], row["width"], 3)
        assert row["neg_category_ids"] == [4] and row["not_exhaustive_category_ids"] == []
        stem = row["file_name"].removesuffix(".png")
        numbers = open_label_map(out / "label_maps" / f"{stem}.png")
        lines = [line.split() for line in (out / "labels" / f"{stem}.txt").read_text().splitlines()]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[row["id"]]))
        assert [int(line[0]) + 1 for line in lines] == [each["category_id"] for each in annotations]
        for line, annotation in zip(lines, annotations, strict=True):
            name = CLASSES[annotation["category_id"] - 1]
            mask = colour_mask(image, COLOURS[name.split()[0]])
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
            assert np.array_equal(numbers == annotation["category_id"], mask)
            x, y, width, height = annotation["bbox"]
            assert mask[y : y + height, x : x + width].sum() == mask.sum() == annotation["area"]
            points = np.array(line[1:], float).reshape(-1, 2) * (row["width"], row["height"])
            found = filled_polygon(points, mask.shape)
            assert (found & mask).sum() / (found | mask).sum() > 0.97
    table = yaml.safe_load((out / "data.yaml").read_text())
    assert table == {"train": "images", "val": "images", "names": dict(enumerate(CLASSES))}
    assert (out / "classes.txt").read_text().splitlines() == CLASSES
    assert (out / "failed.txt").read_text() == ""


def test_the_label_map_has_the_colours_of_the_sheet(photos, tmp_path, models):
    label(photos, tmp_path / "out")
    shown = np.asarray(Image.open(tmp_path / "out/label_maps/a.png").convert("RGB"))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == 4  # three classes, and black
    sheet = (tmp_path / "out/sheet.html").read_text()
    assert f"background:#{shown[80, 40].tobytes().hex()}" in sheet  # of the green box


def test_each_instance_is_an_annotation(tmp_path):
    Image.fromarray(BLANK_IMAGE).save(tmp_path / "cups.png")
    settings = LabelSettings(tmp_path, ["cup", "spoon"], tmp_path / "out")
    scene = Assistant(CupPipeline(), {}).open(BLANK_IMAGE)
    found = labeller.ask_classes(scene, settings.classes)
    masks = labeller.instance_masks(found.found["cup"], found.label == 0)
    from_left = [MASKS[k] for k in (LEFT_CUP, SMALL_CUP, RIGHT_CUP)]
    assert np.array_equal(masks, from_left)


def test_what_another_class_covers_is_cut_off():
    scene = Assistant(CupPipeline(), {}).open(BLANK_IMAGE)
    found = labeller.ask_classes(scene, ["cup"])
    pixels = (found.label == 0) & ~MASKS[SMALL_CUP]
    pixels[10, 60] = True  # a splinter of the small cup
    masks = labeller.instance_masks(found.found["cup"], pixels)
    assert np.array_equal(masks, [MASKS[LEFT_CUP], MASKS[RIGHT_CUP]])


def test_bad_photos_are_named_and_the_others_labelled(photos, tmp_path, models):
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "notes.txt").write_text("no photo")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(photos / "small.png")
    summary = label(photos, tmp_path / "out")
    assert summary.photos == 4 and list(summary.failures) == ["empty.jpg", "small.png"]
    assert "empty file" in summary.failures["empty.jpg"]
    failed = (tmp_path / "out/failed.txt").read_text()
    assert failed.startswith("empty.jpg: ") and failed.count("\n") == 2
    only_bad = tmp_path / "bad"
    only_bad.mkdir()
    (only_bad / "empty.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match="none of 1 photos .* empty file"):
        label(only_bad, tmp_path / "other")
    with pytest.raises(BadInput, match="no photo in"):
        label(tmp_path / "out/labels", tmp_path / "other")


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_files(photos, tmp_path, models, monkeypatch):
    label(photos, tmp_path / "whole")
    write_result = labeller.write_result
    written = []

    def stop_at_third(file, result):
        written.append(file)
        if len(written) == 3:  # its other files are there
            raise KeyboardInterrupt
        write_result(file, result)

    monkeypatch.setattr(labeller, "write_result", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        label(photos, tmp_path / "out")
    monkeypatch.undo()
    for name in ("labels/.a.txt.k2x9", ".results/sub/.c.json.0_1", "images/sub/.c.png.77.maskpick"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("half a fi")  # as a kill leaves them
    again = Assistant(models.pipeline, {})
    monkeypatch.setattr(
        run, "outcomes", lambda waiting, settings: map(Labeller(settings, again).label, waiting)
    )
    before = models.pipeline.opened
    label(photos, tmp_path / "out")
    assert models.pipeline.opened - before == 2  # the third and the fourth
    assert set_files(tmp_path / "out") == set_files(tmp_path / "whole")
    label(photos, tmp_path / "out")
    assert models.pipeline.opened - before == 2


def test_other_classes_and_other_photos_are_labelled_again(photos, tmp_path, models):
    out = tmp_path / "out"
    label(photos, out)
    label(photos, out, ["bench", "red ball"])
    assert models.pipeline.opened == 8
    assert (out / "labels/a.txt").read_text().startswith("1 ") and "bench" in (out / "data.yaml").read_text()
    write_photos(photos, ["changed/a.png", "b.png"])
    (photos / "a.png").unlink()
    (out / "labels/mine.txt").write_text("mine")
    label(photos, out, ["bench", "red ball"])
    assert models.pipeline.opened == 10
    files = set_files(out)
    assert not [name for name in files if name.rpartition("/")[2].startswith("a.") and "/a" not in name[6:]]
    for folder, ending in (("images", "png"), ("labels", "txt"), ("label_maps", "png"), ("overlays", "jpg")):
        assert f"{folder}/a.{ending}" not in files and f"{folder}/changed/a.{ending}" in files
    assert files["labels/mine.txt"] == b"mine"


def test_a_photo_that_cannot_be_labelled_any_more_leaves_no_labels(photos, tmp_path, models):
    label(photos, tmp_path / "out")
    (photos / "b.png").unlink()
    (photos / "b.png").write_bytes(b"")
    assert list(label(photos, tmp_path / "out").failures) == ["b.png"]
    assert not [name for name in set_files(tmp_path / "out") if "/b." in name]


def test_the_photos_stay_as_they_are(photos, tmp_path, models):
    (photos / "a.png").chmod(0o640)
    before = {file: (file.stat().st_mtime_ns, file.stat().st_mode) for file in photos.rglob("*.png")}
    label(photos, tmp_path / "out")
    after = {file: (file.stat().st_mtime_ns, file.stat().st_mode) for file in photos.rglob("*.png")}
    assert after == before
    assert (tmp_path / "out/images/a.png").samefile(photos / "a.png")


@pytest.mark.parametrize("missing", ["link", "symlink"])
def test_photos_on_another_disk_are_linked_or_copied(photos, tmp_path, models, monkeypatch, missing):
    def refuse(*arguments, **options):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    if missing == "symlink":
        monkeypatch.setattr(Path, "symlink_to", refuse)
    for _ in range(2):
        assert label(photos, tmp_path / "out").photos == 4
    assert (tmp_path / "out/images/a.png").read_bytes() == (photos / "a.png").read_bytes()
    assert (tmp_path / "out/images/a.png").is_symlink() == (missing == "link")
    assert models.pipeline.opened == 4


def test_photos_in_the_folder_of_images_itself_are_never_deleted(photos, tmp_path, models):
    """A YOLO folder is completed where it is; another folder of photos does not replace it."""
    out = tmp_path / "yolo"
    out.mkdir()
    photos.rename(out / "images")
    for _ in range(2):
        assert label(out / "images", out).photos == 4
    other = write_photos(tmp_path / "other", ["z.png", "b.png", "c.png"])
    Image.fromarray(np.zeros((99, 99, 3), np.uint8)).save(other / "b.png")
    summary = label(other, out)
    assert list(summary.failures) == ["b.png"] and "is another photo" in summary.failures["b.png"]
    images = {name for name in set_files(out) if name.startswith("images/")}
    assert images == {f"images/{name}" for name in (*NAMES, "z.png", "c.png")}
    for _ in range(2):  # what is written into the folder of the photos is no photo
        assert label(out / "images", out / "images/set").photos == 6


def test_equal_names_and_odd_ones(tmp_path, models):
    names = ["cat.png", "cat.jpg", "Cat.PNG", "<b>&'\"#?%.png", "cat-2.png", ".hidden.png", "new\nline.png"]
    photos = write_photos(tmp_path / "photos", names)
    odd = os.fsdecode(b"caf\xe9.png")  # of a file system in another encoding
    write_photos(photos, [odd])
    out = tmp_path / "out"
    assert label(photos, out).photos == 7
    files = set_files(out)
    assert len({name.lower() for name in files if name.startswith("labels/")}) == 7
    images = [row["file_name"] for row in json.loads(files["instances.json"])["images"]]
    assert len(images) == 7 and odd in images and ".hidden.png" not in images
    assert all((out / "images" / name).is_file() for name in images)
    assert label(photos, out).photos == 7 and models.pipeline.opened == 7


def test_models_that_fail_on_everything_stop_the_run():
    bad_photo = Outcome("a", "is an empty file")
    no_answer = Outcome("b", "the server does not answer", was_opened=True)
    assert len(list(run.stopped_by_the_models([bad_photo] * 50))) == 50
    mixed = ([no_answer] * 9 + [Outcome("c")]) * 3
    assert len(list(run.stopped_by_the_models(mixed))) == 30
    with pytest.raises(BadInput, match="10 photos in a row.*does not answer"):
        list(run.stopped_by_the_models([Outcome("c"), *[no_answer, bad_photo] * 20]))


def test_classes_are_read_from_the_command_line_or_a_file(tmp_path):
    assert read_classes("cup, spoon") == ["cup", "spoon"]
    (tmp_path / "names").write_text("1. dining table\n- cup, small\n")
    assert read_classes(str(tmp_path / "names")) == ["dining table", "cup", "small"]
    with pytest.raises(BadInput, match="names.txt"):
        read_classes(str(tmp_path / "names.txt"))


def test_settings_are_checked(tmp_path):
    with pytest.raises(BadInput, match="no folder of photos"):
        LabelSettings(tmp_path / "none", CLASSES, tmp_path)
    with pytest.raises(BadInput, match="--workers"):
        LabelSettings(tmp_path, CLASSES, tmp_path, workers=0)


def test_the_key_changes_with_what_decides_the_labels(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "heads.safetensors").write_bytes(b"one")

    def key(classes=CLASSES, **options) -> str:
        return LabelSettings(tmp_path, classes, tmp_path / "out", ModelOptions(**options)).key()

    keys = [key(), key(CLASSES[::-1]), key(preset="base"), key(verify=True), key(adapter=adapter)]
    (adapter / "heads.safetensors").write_bytes(b"two")
    keys.append(key(adapter=adapter))
    assert len(set(keys)) == len(keys)
    assert key(device="cpu") == key()
