"""Training of the pocket SAM: its samples, its losses, and a stopped run."""

import argparse
import json
import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from finetune.pocket import sam
from finetune.pocket.sam_data import PromptDataset, all_images, collage
from finetune.pocket.sam_loss import mask_losses, pairwise_iou


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two real photos in COCO's layout, each with a disc and a box outlined, and one in BSDS's."""
    root = tmp_path_factory.mktemp("data")
    images, annotations = [], []
    for k, photo in enumerate((data.coffee(), data.chelsea()), 1):
        h, w = photo.shape[:2]
        (root / "coco/train/images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(root / f"coco/train/images/{k}.jpg")
        images.append({"id": k, "file_name": f"{k}.jpg", "height": h, "width": w})
        angle = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        disc = np.stack([w * 0.3 + 60 * np.cos(angle), h * 0.5 + 60 * np.sin(angle)], 1)
        for polygon in (disc, np.array([[300, 50], [420, 50], [420, 180], [300, 180]])):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": k,
                    "category_id": 1,
                    "iscrowd": 0,
                    "segmentation": [polygon.ravel().tolist()],
                }
            )
    record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "coco/train/instances.json").write_text(json.dumps(record))
    for sub in ("images", "regions"):
        (root / "bsds/train" / sub).mkdir(parents=True)
    Image.fromarray(data.astronaut()[:256]).save(root / "bsds/train/images/7.jpg")
    Image.fromarray((np.arange(512)[None] // 128 + np.zeros((256, 1))).astype(np.uint8)).save(
        root / "bsds/train/regions/7_0.png"
    )
    return root


def test_the_fields_of_samples_agree(root):
    samples = PromptDataset(root, 128, 16, seed=3, length=8)
    assert {k: len(v) for k, v in all_images(root).items()} == {"coco": 2, "bsds": 1}
    for sample in (samples[k] for k in range(8)):
        assert sample.image.shape == (3, 128, 128) and sample.targets.shape == (16, 32, 32)
        fields = (sample.targets, sample.points, sample.labels, sample.kind)
        for target, points, labels, kind in zip(*fields, strict=True):
            assert (labels >= 0).any() and (points[labels >= 0] >= -0.5).all() and (points <= 128).all()
            if kind == 1:  # a single click lies inside its target
                x, y = (points[0] / 4).long().clamp(0, 31)
                assert target[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max() > 0
            if (labels == 2).any():
                low, high = points[labels == 2][0], points[labels == 3][0]
                assert (high > low).all()


def test_a_sample_depends_on_seed_and_number_alone(root):
    a, b = PromptDataset(root, 96, 4, seed=5, length=9), PromptDataset(root, 96, 4, seed=5, length=99)
    assert all(torch.equal(x, y) for x, y in zip(a[7], b[7], strict=True))
    assert not torch.equal(a[7].image, PromptDataset(root, 96, 4, seed=6, length=9)[7].image)


def test_every_tenth_image_of_a_measured_set_is_kept_aside(tmp_path):
    folder = tmp_path / "voc/train"
    (folder / "images").mkdir(parents=True)
    images = [{"id": k, "file_name": f"{k:02}.jpg", "height": 20, "width": 30} for k in range(20)]
    box = [[1, 1, 9, 1, 9, 9, 1, 9]]
    annotations = [
        {"id": k, "image_id": k, "category_id": 1, "iscrowd": 0, "segmentation": box} for k in range(20)
    ]
    record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "instances.json").write_text(json.dumps(record))

    used = {row.image.name for row in all_images(tmp_path)["voc"]}

    assert {f"{k:02}.jpg" for k in range(20)} - used == {"09.jpg", "19.jpg"}


def test_a_collage_keeps_every_mask_on_its_image():
    tiles = []
    for k in range(4):
        image = Image.new("RGB", (32, 20 + k), (50 * k, 0, 0))
        mask = np.zeros((20 + k, 32), bool)
        mask[2:10, 5:20] = True
        tiles.append((image, [mask]))

    image, masks = collage(tiles, 64)

    assert image.size == (64, 64) and len(masks) == 4
    for k, mask in enumerate(masks):
        assert mask.sum() == 8 * 15
        assert (np.asarray(image)[mask] == (50 * k, 0, 0)).all()


def arguments(root, out, steps):
    parser = argparse.ArgumentParser()
    sam.add_arguments(parser)
    return parser.parse_args(
        [
            "--data",
            str(root),
            "--out",
            str(out),
            "--steps",
            str(steps),
            "--size",
            "64",
            "--images",
            "2",
            "--prompts",
            "3",
            "--save-every",
            "0",
            "--workers",
            "0",
            "--correct",
            "0.5",
        ]
    )


def test_a_stopped_training_resumes_to_the_same_weights(root, tmp_path, monkeypatch, stopped):
    torch.manual_seed(0)
    backbone = timm.create_model("tf_efficientnet_lite2").state_dict()
    monkeypatch.setattr(sam, "backbone_state", lambda: backbone)
    sam.main(arguments(root, tmp_path / "whole", 4))
    stopped(sam, "step_loss", 3, lambda: sam.main(arguments(root, tmp_path / "parts", 4)))
    sam.main(arguments(root, tmp_path / "parts", 4))
    whole, parts = (load_file(tmp_path / k / "sam.safetensors") for k in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)


def test_losses_prefer_the_truth():
    target = torch.zeros(1, 1, 32, 32)
    target[..., 8:20, 8:20] = 1
    good, bad = target * 12 - 6, 6 - target * 12
    assert mask_losses(good, target) < 0.1 < mask_losses(bad, target)
    table = pairwise_iou(torch.cat([good, bad], 1), target)
    assert table[0, 0, 0] == 1 and table[0, 1, 0] == 0
