"""From labelled photos to a benchmark result, with a tiny image-text matcher; refinement and layouts by themselves."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.__main__ import main as assistant_main
from assistant.attention.labelled_images import VOC, read_labelled
from assistant.attention.refinement import ConvCRF, vote
from assistant.errors import BadInput
from eval.__main__ import main as eval_main
from eval.benchmarks.oneshot import enlarged, miou
from finetune.__main__ import main as finetune_main
from finetune.attention import draw_supports, support_map
from tests.helpers.tiny_models import tiny_blip

H, W = 48, 64


def folder(root, count, seed=0):
    """A COCO-format folder of red mugs and blue boxes on grey."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for k in range(count):
        pixels = rng.integers(100, 130, (H, W, 3)).astype(np.uint8)
        images.append({"id": k, "file_name": f"{k}.png", "height": H, "width": W})
        for c, colour in ((1, (255, 0, 0)), (2, (0, 0, 255))):
            if c == 1 + k % 2 or k % 3 == 0:
                x, y = int(rng.integers(0, 20)) + 24 * (c - 1), int(rng.integers(0, 20))
                pixels[y : y + 20, x : x + 20] = colour
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": k,
                        "category_id": c,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + 20, y, x + 20, y + 20, x, y + 20]],
                    }
                )
        Image.fromarray(pixels).save(root / "images" / f"{k}.png")
    (root / "instances.json").write_text(
        json.dumps(
            {
                "images": images,
                "annotations": annotations,
                "categories": [{"id": 1, "name": "mug"}, {"id": 2, "name": "box"}],
            }
        )
    )
    return root


def run(main, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["x", *map(str, words)])
    return main()


def test_from_ranking_to_result(tmp_path, monkeypatch, capsys, stopped):
    import finetune.attention

    blip = tiny_blip(tmp_path / "blip")
    train, dev = folder(tmp_path / "train", 6), folder(tmp_path / "dev", 4, seed=1)
    ranking, tuned, out = tmp_path / "ranking.json", tmp_path / "tuned", tmp_path / "out"
    assert (
        run(
            assistant_main,
            monkeypatch,
            "rank-layers",
            "--images",
            train / "images",
            "--names",
            train / "instances.json",
            "--mllm",
            blip,
            "--out",
            ranking,
        )
        == 0
    )
    assert len(json.loads(ranking.read_text())["layers"]) == 3
    assert (
        run(
            assistant_main,
            monkeypatch,
            "attend",
            train / "images" / "0.png",
            "a mug",
            "--mllm",
            blip,
            "--ranking",
            ranking,
            "--out",
            tmp_path / "heat",
        )
        == 0
    )
    assert Image.open(tmp_path / "heat" / "overlay.png").size == (W, H)
    words = [
        "attention",
        "--data",
        train,
        "--mllm",
        blip,
        "--ranking",
        ranking,
        "--out",
        tuned,
        "--runs",
        "2",
        "--passes",
        "1",
        "--word-passes",
        "1",
        "--batch",
        "1",
    ]
    monkeypatch.setattr(finetune.attention, "SAVED", 1)
    monkeypatch.setattr("sys.argv", ["x", *map(str, words)])
    stopped(finetune.attention, "loss_of", 7, lambda: finetune.attention.main(arguments(words)))
    assert (tuned / "run-0.safetensors").exists() and (tuned / "run-1.pt").exists()
    assert run(finetune_main, monkeypatch, *words) == 0 and not (tuned / "run-1.pt").exists()
    whole = tmp_path / "whole"  # what was stopped and went on is what runs through
    assert run(finetune_main, monkeypatch, *[whole if w == tuned else w for w in words]) == 0
    from safetensors.torch import load_file

    a, b = (load_file(f / "run-1.safetensors") for f in (tuned, whole))
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    assert (
        run(finetune_main, monkeypatch, *words, "--lr", "0.5") == 2
        and "other settings" in capsys.readouterr().err
    )
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "run-0.safetensors").write_bytes((tuned / "run-0.safetensors").read_bytes())
    for folder_of_runs in (None, tmp_path / "first"):  # training-free first, one run then, both at last
        added = [] if folder_of_runs is None else ["--tuned", str(folder_of_runs)]
        assert (
            eval_main(
                [
                    "oneshot",
                    "--root",
                    str(dev),
                    "--mllm",
                    str(blip),
                    "--ranking",
                    str(ranking),
                    *added,
                    "--no-refinement",
                    "--out",
                    str(out),
                ]
            )
            == 0
        )
    evaluate = [
        "oneshot",
        "--root",
        str(dev),
        "--mllm",
        str(blip),
        "--ranking",
        str(ranking),
        "--tuned",
        str(tuned),
        "--no-refinement",
        "--out",
        str(out),
    ]
    assert eval_main(evaluate) == 0
    result = json.loads((out / "result.json").read_text())
    arms = result["figures"]["arms"]
    assert {"all layers", "ranked layers", "ranked heads", "tuned"} <= arms.keys() and result["n"] == 4
    assert all(0 <= v <= 1 for v in arms.values()) and len(result["figures"]["tuned_runs"]) == 2
    assert arms["tuned"] == pytest.approx(np.mean(result["figures"]["tuned_runs"]), abs=1e-4)
    difference = result["figures"]["differences"]["tuned - ranked layers"]
    assert (
        difference[0] == pytest.approx(arms["tuned"] - arms["ranked layers"], abs=1e-4)
        and difference[1] <= difference[2]
    )
    assert "background" in result["by"] and (out / "report.html").exists()
    before = (out / "samples.jsonl").read_text()
    assert (
        eval_main(evaluate) == 0 and (out / "samples.jsonl").read_text() == before
    )  # nothing is looked at twice
    assert eval_main([*evaluate[:-1], str(tmp_path / "o2"), "--tuned", str(tmp_path)]) == 2


def arguments(words):
    import argparse

    from finetune.attention import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(w) for w in words[1:]])


def test_one_photo_for_each_category():
    def label(*shares):
        pixels = [c for c, share in shares for _ in range(int(100 * share))]
        return np.array(pixels + [0] * (100 - len(pixels))).reshape(10, 10)

    photos = [
        ("both", label((1, 0.3), (2, 0.3))),
        ("one", label((1, 0.3))),
        ("few", label((2, 0.5))),
        ("none", label()),
    ]
    drawn = dict(draw_supports(["mug", "box", "cup"], photos, np.random.default_rng(0)))
    assert drawn == {1: 1, 2: 2}  # alone in the photo; no photo of a cup
    again = [draw_supports(["mug", "box"], photos, np.random.default_rng(5)) for _ in range(2)]
    assert again[0] == again[1]
    assert support_map(photos[0][1], 2).unique().tolist() == [-1, 0, 2]  # the mug's label is not given away


def test_voc_and_coco_layouts(tmp_path):
    voc = tmp_path / "voc"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / part).mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("a\n")
    label = np.zeros((4, 5), np.uint8)
    label[0], label[1] = 15, 255
    Image.fromarray(label).save(voc / "SegmentationClass/a.png")
    names, photos = read_labelled(voc)
    assert len(names) == 20 and names[14] == "person" and "dining table" in names and len(VOC) == 20
    assert (
        photos[0].read().tolist() == [[15] * 5, [-1] * 5, [0] * 5, [0] * 5] and photos[0].path.name == "a.jpg"
    )
    with pytest.raises(BadInput, match="split"):
        read_labelled(voc, "trainval")
    source = folder(tmp_path / "flat", 1)
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True), (coco / "val2017").mkdir()
    (source / "instances.json").rename(coco / "annotations/instances_val2017.json")
    names, photos = read_labelled(coco, "val2017")
    assert (
        names == ["mug", "box"]
        and photos[0].path == coco / "val2017/0.png"
        and set(np.unique(photos[0].read())) == {0, 1, 2}
    )
    with pytest.raises(BadInput, match="layout"):
        read_labelled(tmp_path)


def test_crf_follows_the_edges_of_the_picture():
    image = np.zeros((24, 24, 3), np.uint8)
    image[:, 12:] = 200
    coarse = torch.full((2, 24, 24), 0.5)
    coarse[1, :, 9:], coarse[0, :, 9:] = 0.7, 0.3  # drawn over the edge by three columns
    coarse[1, :, :9], coarse[0, :, :9] = 0.3, 0.7
    coarse[:, 4, 4] = torch.tensor([0.4, 0.6])  # a speck
    fine = ConvCRF(far=8.0)(coarse, image)
    assert fine.shape == coarse.shape and torch.allclose(fine.sum(0), torch.ones(24, 24), atol=1e-5)
    label = fine.argmax(0)
    assert (label[:, 12:] == 1).all() and label[4, 4] == 0
    assert (label[:, 9:12] == 0).float().mean() > 0.9


def test_votes_of_proposals():
    probabilities = torch.tensor([[[0.9, 0.4, 0.4, 0.8]], [[0.1, 0.6, 0.6, 0.2]]])
    masks = torch.tensor([[[False, True, True, True]], [[True, False, False, False]]])
    voted = vote(probabilities, masks)
    assert voted[:, 0, 3].tolist() == pytest.approx([1.6 / 3, 1.4 / 3]) and voted[0, 0, 0] == pytest.approx(
        0.9
    )
    assert torch.equal(vote(probabilities, masks[:0]), probabilities)


def test_enlargement_and_score():
    maps = torch.rand(5, 6, 7)
    maps[4] = 0
    expected = torch.nn.functional.interpolate(maps[None], (31, 40), mode="bilinear", align_corners=False)[
        0
    ].argmax(0)
    assert np.array_equal(enlarged(maps, (31, 40)), expected.numpy())
    counts = np.array([[2, 0, 0], [4, 1, 0], [3, 1, 0]])
    assert miou(counts) == pytest.approx((2 / 5 + 0) / 2)  # a class that is nowhere does not count
