"""LLM-Seg40K's layout, counted by hand."""

import json

import numpy as np
import pytest

from assistant.sam.mask_ops import encode_rle
from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import BOXES, H, W, rectangle, save_image


def pair(question, mask, answer):
    return {"question": question, "answer": answer, "rle_seg": encode_rle(mask)}


def test_llmseg40k(monkeypatch, tmp_path):
    save_image(tmp_path / "coco/train2017/x.jpg")
    pairs = [
        pair("red", rectangle(*BOXES["red"]), "the red thing"),
        pair("green", np.zeros((H, W), bool), "there is none"),
        pair("blue", rectangle(30, 10, 40, 30), "a part"),
        {"question": "no mask"},
    ]
    (tmp_path / "val.json").write_text(json.dumps({"x.jpg": {"from_dataset": "coco", "qa_pairs": pairs}}))
    _, result = run_benchmark(monkeypatch, tmp_path / "out", "llmseg40k", "--root", tmp_path)
    assert result["n"] == 3 and result["gIoU"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert result["cIoU"] == pytest.approx(600 / 800)
    assert result["ncIoU"] == pytest.approx(600 / 800, abs=0.01)
    assert result["N_acc"] == 1 and result["T_acc"] == 1 and result["bad"][0]["name"] == "x.jpg, pair 4"
