"""`python -m finetune semantic`: the semantic head and the pixel head."""

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.pocket.opening import load_pocket_opener
from assistant.pocket.semantic import SemanticSelector
from assistant.record import read_records
from assistant.sam.mask_ops import encode_rle
from assistant.weights import pocket_file
from finetune import __main__ as command
from finetune.log import TrainingLog
from finetune.pocket import records
from finetune.pocket.pixel_head import images_to_learn_from, on_grid
from finetune.pocket.semantic_head import (
    BACKGROUND,
    OUTSIDE,
    AugmentedImages,
    ImageSet,
    LabelledImages,
    label_cells,
)
from tests.helpers.pocket_records import NAMES, records_arguments


def test_cells_are_labelled_where_instances_are():
    image = np.zeros((100, 200, 3), np.uint8)
    image[50:, 100:] = 255
    big, small = np.zeros((100, 200), bool), np.zeros((100, 200), bool)
    big[50:, 100:] = small[80:, 180:] = True
    square, labels = label_cells(image, [("small", small), ("big", big)], {"big": 0, "small": 1})
    assert square.shape == (512, 512, 3) and (square[256:] == 127).all()
    assert (labels[32:] == OUTSIDE).all() and (labels[:16] == BACKGROUND).all()
    assert labels[20, 40] == 0 and labels[30, 62] == 1
    white = square[:256].max(-1) > 200
    assert (white[4::8, 4::8] == (labels[:32] >= 0)).mean() > 0.99


def test_augmentation_keeps_labels_with_the_image(tmp_path):
    mask = np.zeros((90, 120), bool)
    mask[20:70, 30:80] = True
    pixels = np.where(mask[..., None], 250, 5).astype(np.uint8).repeat(3, 2)
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    images = LabelledImages(
        {file: [("square", encode_rle(mask))]}, {file: 0}, ["square"], [ImageSet({"square"}, 0)]
    )
    data = AugmentedImages(images, [file] * 6, seed=0)
    items = [data[n] for n in range(6)]
    for square, labels, set_number in items:
        bright = square.max(-1)[4::8, 4::8] > 90
        assert set_number == 0
        assert (bright & (labels >= 0)).sum() > 0.9 * (labels >= 0).sum()
    assert any((a[1] != b[1]).any() for a, b in zip(items, items[1:], strict=False))
    again = data[0]
    assert (again[0] == items[0][0]).all() and (again[1] == items[0][1]).all()


def test_masks_and_cells_have_the_same_grid():
    for height, width in ((300, 400), (512, 200), (77, 1000)):
        mask = np.zeros((height, width), bool)
        mask[height // 4 : height // 2, width // 4 :] = True
        grid = on_grid([encode_rle(mask)])[0]
        scale = max(height, width) / 512
        ys, xs = (np.flatnonzero(grid.any(axis).numpy()) for axis in (1, 0))
        edges = [(ys[0], height // 4), (ys[-1] + 1, height // 2), (xs[0], width // 4), (xs[-1] + 1, width)]
        for cells, pixels in edges:
            assert abs(cells * 4 * scale - pixels) <= 4 * scale


def test_the_pixel_head_learns_from_a_few_images_of_each_source(tmp_path):
    aside = {tmp_path / f"{k:02}.png": [] for k in range(12)}
    set_of = {image: int(k >= 9) for k, image in enumerate(aside)}
    sets = [ImageSet({"cup"}, 0), ImageSet({"dog"}, 0)]
    images = LabelledImages({}, set_of, ["cup", "dog"], sets, {}, aside)
    chosen = [int(image.stem) for image in images_to_learn_from(images, 4)]
    assert chosen == [0, 2, 4, 6, 9, 10, 11]


def words(folder, out, **more) -> list[str]:
    options = {
        "data": folder / "records.jsonl",
        "sam": pocket_file("sam.safetensors"),
        "reasoner": folder / "reasoner",
        "out": out,
        "steps": 14,
        "batch": 2,
        "lr": 3e-3,
        "pixel-steps": 12,
        "photos": 6,
        "workers": 0,
        "save-every": 0,
    } | more
    return ["semantic", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def test_bad_input_is_one_line(drawn, capsys):
    assert command.main(words(drawn, drawn / "out")) == 2  # before the records stage
    assert "there is no" in capsys.readouterr().err
    (drawn / "reasoner").mkdir()
    for option in ("--steps", "--pixel-steps"):
        assert command.main(words(drawn, drawn / "out", **{option[2:]: 0})) == 2
        assert f"{option} must be at least 1, or give --start" in capsys.readouterr().err


@pytest.mark.slow
def test_the_stage_learns_where_names_are_and_continues_where_it_stopped(drawn, capsys, monkeypatch):
    records.main(records_arguments(drawn, drawn / "reasoner"))
    add = TrainingLog.add

    def stop(log, step, *more, **options):
        if step == 8 and log.file.name == "head.jsonl":
            raise KeyboardInterrupt
        add(log, step, *more, **options)

    monkeypatch.setattr(TrainingLog, "add", stop)
    assert command.main(words(drawn, drawn / "parts")) == 130
    monkeypatch.setattr(TrainingLog, "add", add)
    assert command.main(words(drawn, drawn / "parts")) == 0
    assert "resuming at step 8" in capsys.readouterr().out
    assert command.main(words(drawn, drawn / "whole")) == 0
    whole, parts = (
        torch.load(drawn / run / "head.pt", weights_only=True)["model"] for run in ("whole", "parts")
    )
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    semantic = SemanticSelector.load(drawn / "whole/semantic.safetensors")
    assert semantic.categories == NAMES
    opener = load_pocket_opener(pocket_file("sam.safetensors"))
    right = []
    for row in [r for r in read_records(drawn / "records.jsonl") if r.targets[0].rle][:8]:
        pixels = np.array(Image.open(drawn / row.image).convert("RGB"))
        named = semantic.semantic_map(
            opener.segmenter.encode(pixels), opener.detector.maps_of(pixels)
        ).argmax(0)
        cells = named[on_grid([row.targets[0].rle])[0][::2, ::2]]
        right.append((cells == NAMES.index(row.targets[0].phrase)).float().mean())
    assert np.mean(right) > 0.5  # of four answers
