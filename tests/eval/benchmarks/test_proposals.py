"""What the best choice of proposals could score, counted by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from assistant.sam.mask_ops import encode_rle
from eval import models
from eval.__main__ import main
from eval.benchmarks import proposals
from tests.helpers.benchmark_data import write_coco_folder
from tests.helpers.colour_finder import FakeProposals, rectangle


def test_proposals(monkeypatch, folder):
    write_coco_folder(folder)
    boxes = [(0, 0, 60, 40), (4, 4, 24, 24), (30, 10, 50, 30)]
    pool = FakeProposals(rles=[encode_rle(rectangle(*box)) for box in boxes])
    monkeypatch.setattr(
        models,
        "open_everything_mode",
        lambda settings, everything_settings: (lambda image: pool, {"sam": "1"}),
    )
    monkeypatch.setattr(proposals, "FIRST", (1, 60, None))
    assert main(["proposals", "--root", str(folder), "--out", str(folder / "out")]) == 0
    result = json.loads((folder / "out/result.json").read_text())
    figures = result["figures"]
    assert result["n"] == 2 and len(result["bad"]) == 1 and figures["proposals_per_photo"] == 3
    blue = 400 / (400 + 48)  # the crowd belongs to the category's union and no proposal has it
    assert figures["oracle_gIoU@60"] == figures["oracle_gIoU@all"] == result["oracle_gIoU"]
    assert result["oracle_gIoU"] == pytest.approx((1 + blue) / 2)
    assert figures["oracle_gIoU@1"] == pytest.approx((400 / 2400 + 448 / 2400) / 2)
    assert figures["large_objects"] == 0 and figures["large_recall_50@60"] is None


def test_large_objects_are_counted_one_by_one():
    big = np.zeros((200, 200), bool)
    big[:120, :120] = True
    small = np.zeros_like(big)
    small[150:160, 150:160] = True
    instances = [
        SimpleNamespace(category="a", crowd=crowd, rle=encode_rle(mask))
        for mask, crowd in ((big, False), (big[::-1], False), (small, False), (~small, True))
    ]
    line = proposals.score_image(SimpleNamespace(instances=instances), [encode_rle(big)])
    assert [pair[0] for pair in line["large"]] == [1, pytest.approx(40 * 120 / (2 * 14400 - 40 * 120))]
