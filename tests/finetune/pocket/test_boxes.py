"""Training of the boxes of everything mode: which place owns which thing, the loss, and a stopped run."""

import argparse
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from assistant.pocket.box_proposals import load_box_head, place_middles
from finetune.pocket import boxes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two real photos in COCO's layout, with two boxes each."""
    root = tmp_path_factory.mktemp("data")
    images, annotations = [], []
    (root / "coco/train/images").mkdir(parents=True)
    for k, photo in enumerate((data.coffee(), data.chelsea()), 1):
        h, w = photo.shape[:2]
        Image.fromarray(photo).save(root / f"coco/train/images/{k}.jpg")
        images.append({"id": k, "file_name": f"{k}.jpg", "height": h, "width": w})
        for x, y, side in ((20, 30, 180), (300, 50, 60)):
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
            row = {"image_id": k, "category_id": 1, "iscrowd": 0, "segmentation": [polygon]}
            annotations.append({"id": len(annotations) + 1, **row})
    record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "coco/train/instances.json").write_text(json.dumps(record))
    return root


def test_a_sample_holds_the_boxes_that_are_left_of_its_things(root):
    samples = boxes.BoxDataset(root, 128, seed=3, length=8)
    for sample in (samples[k] for k in range(8)):
        assert sample.image.shape == (3, 128, 128)
        assert sample.boxes.shape == (boxes.MAX_MASKS, 4) and (sample.boxes <= 128).all()
        real = sample.boxes[(sample.boxes[:, 2:] > sample.boxes[:, :2]).all(1)]
        assert ((real[:, 2:] - real[:, :2]) >= boxes.MIN_BOX_SIDE).all()
        assert sample.nothing_weight.shape == (16, 16) and sample.nothing_weight.max() == 1


def test_what_a_place_with_nothing_counts_depends_on_the_folder(root):
    dataset = boxes.BoxDataset(root, 128, seed=3, length=8)
    picture = Image.fromarray(np.zeros((64, 128, 3), np.uint8))
    tiles = [("coco", (0, 0, 64, 64)), ("duts", (64, 0, 128, 64))]
    weight = dataset.sample(boxes.AugmentedImage(picture, [], tiles), np.random.default_rng(0)).nothing_weight
    assert (weight[:8, :8] == 1).all() and (weight[:8, 8:] == boxes.NOTHING_WEIGHT).all()
    assert (weight[8:] == boxes.OUTSIDE_WEIGHT).all()


def test_the_smallest_thing_around_a_place_owns_it():
    things = torch.tensor([[32.0, 32, 96, 96], [60, 60, 76, 76], [0, 0, 250, 250], [0, 0, 0, 0]])
    owner = boxes.assign(things, 256)
    fine, middle, coarse = (len(places) for places in place_middles(256))
    on_fine, on_middle, on_coarse = owner.split([fine, middle, coarse])
    grid = on_fine.view(32, 32)
    assert grid[8, 8] == 1 and grid[7, 7] == grid[7, 8] == 0 and grid[10, 10] == -1
    assert set(on_fine.tolist()) == {-1, 0, 1}  # the largest is not for the finest map
    assert set(on_middle.tolist()) == {-1, 0}
    assert set(on_coarse.tolist()) == {-1, 2}


def test_the_loss_prefers_the_right_boxes_and_knows_their_quality():
    size = 128
    thing = torch.tensor([[[16.0, 16, 80, 72]]])
    owner = boxes.assign(thing[0], size)
    weight = torch.ones(1, size // 8, size // 8)
    right = thing.expand(1, len(owner), 4).clone()
    sure = torch.where(owner >= 0, 6.0, -6.0)[None]
    good, figures = boxes.step_loss(sure, right, thing, weight)
    shifted, _ = boxes.step_loss(sure, right + 20, thing, weight)
    everywhere, _ = boxes.step_loss(torch.full_like(sure, 6.0), right, thing, weight)
    assert good < 0.01 and figures["iou"] == 1
    assert shifted > good and everywhere > good


def arguments(root, out):
    parser = argparse.ArgumentParser()
    boxes.add_arguments(parser)
    words = f"--data {root} --out {out} --steps 4 --size 64 --images 2 --save-every 0 --workers 0"
    return parser.parse_args(words.split())


def test_a_stopped_training_resumes_to_the_same_weights(root, tmp_path, monkeypatch, stopped):
    torch.manual_seed(0)
    backbone = timm.create_model("tf_efficientnet_lite2").state_dict()
    monkeypatch.setattr(boxes, "backbone_state", lambda: backbone)
    boxes.main(arguments(root, tmp_path / "whole"))
    stopped(boxes, "step_loss", 3, lambda: boxes.main(arguments(root, tmp_path / "parts")))
    boxes.main(arguments(root, tmp_path / "parts"))
    whole, parts = (load_file(tmp_path / k / "boxes.safetensors") for k in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    load_box_head(tmp_path / "parts/boxes.safetensors")
