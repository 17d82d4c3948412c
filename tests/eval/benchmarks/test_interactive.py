"""Boxes and clicks on a segmenter whose answers are known."""

import json

import numpy as np
import pytest

from assistant.sam.mask_ops import tight_box
from eval import models
from eval.__main__ import main
from eval.benchmarks import interactive
from tests.helpers.benchmark_data import write_coco_folder
from tests.helpers.colour_finder import COLOURS, H, W, rectangle


class FakeSegmenter:
    """Answers a box with its left half, and a click with the whole rectangle under it as its third mask."""

    def encode(self, image):
        return image

    def predict(self, image, points=None, labels=None, box=None, mask=None, multimask=True):
        if box is not None:
            x0, y0, x1, y1 = np.asarray(box).astype(int)
            left_half = rectangle(x0, y0, (x0 + x1) // 2, y1)
            return left_half[None], np.array([0.75]), np.zeros((1, 8, 8), np.float32)
        x, y = points[0]
        assert labels[0] == 1 and tuple(image[y, x]) in COLOURS.values()
        whole = (image == image[y, x]).all(2)
        if multimask:
            assert mask is None
            masks = np.stack([whole & (np.arange(W) < x), np.zeros_like(whole), whole])
            return masks, np.array([0.9, 0.1, 0.5]), np.zeros((3, 8, 8), np.float32)
        assert mask.shape == (8, 8) and len(points) == len(labels) > 1
        assert labels[1] == 1 and whole[points[1][1], points[1][0]]
        return whole[None], np.array([1.0]), np.zeros((1, 8, 8), np.float32)


def test_interactive(monkeypatch, folder):
    write_coco_folder(folder)
    monkeypatch.setattr(models, "open_segmenter", lambda settings: (FakeSegmenter(), {"sam": "1"}))
    words = ["interactive", "--root", str(folder), "--out", str(folder / "out")]
    assert main(words) == 0
    result = json.loads((folder / "out/result.json").read_text())
    assert result["n"] == 2  # the crowd is not prompted
    assert [bad["name"] for bad in result["bad"]] == ["gone.png"]
    figures = result["figures"]["all"]
    assert figures["box"] == 0.5 and figures["box_itself"] == 1 and figures["click_best"] == 1
    assert figures["ellipse"] == pytest.approx(np.pi / 4, abs=0.02)
    # The mask that the segmenter scores highest is the half.
    assert 0.4 <= figures["click_by_score"] <= 0.55
    assert figures["after_2_clicks"] == figures["after_5_clicks"] == 1 and figures["NoC@80"] == 2
    assert figures["NoC@80_failed"] == 0 and figures["box_calibration_error"] == pytest.approx(0.25)
    assert result["figures"]["above_32x32"] == {"n": 0} and result["by"]["small"]["n"] == 2
    assert "polyline" in (folder / "out/report.html").read_text()
    before = (folder / "out/samples.jsonl").read_text()
    assert main(words) == 0 and (folder / "out/samples.jsonl").read_text() == before
    assert main([*words[:-1], str(folder / "strict"), "--strict"]) == 2


def test_clicks_are_where_a_person_would_set_them():
    target = rectangle(10, 5, 31, 26)
    assert interactive.deepest_pixel(target) == (20, 15, 11)
    assert interactive.deepest_pixel(np.ones((5, 9), bool))[1] == 2  # the image's border is an edge
    assert interactive.next_click(target, target) is None
    assert interactive.next_click(np.zeros_like(target), target) == (20, 15, 1)
    x, y, label = interactive.next_click(target | rectangle(40, 0, 60, 40), target)
    assert label == 0 and 40 <= x < 60
    assert tight_box(target) == [10, 5, 31, 26]
    whole = interactive.ellipse_in_box(np.array([0, 0, W, H], np.float32), (H, W))
    assert whole.sum() == pytest.approx(np.pi / 4 * H * W, rel=0.01)
    assert whole[H // 2].all() and not whole[0, 0]


def test_calibration_error():
    assert interactive.calibration_error([], []) is None
    assert interactive.calibration_error([0.5, 0.5], [0.4, 0.6]) == pytest.approx(0)
    assert interactive.calibration_error([1.0, 0.15], [0.8, 0.25]) == pytest.approx(0.15)
