"""Expressions with boxes, counted by hand."""

import json

import pytest

from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import H, W, save_image


def row(expression, box, hops=1, **more):
    return {
        "image": "p.jpg",
        "width": W,
        "height": H,
        "expression": expression,
        "box": box,
        "empty": box is None,
        "hops": hops,
        "type": ["colour"],
        "distractors": "1",
    } | more


def test_boxes(monkeypatch, tmp_path):
    save_image(tmp_path / "images/p.jpg")
    rows = [
        row("the red one", [4, 4, 24, 24]),
        row("the blue one", [30, 10, 80, 30], hops=3),  # leaves the image
        row("blue", [30, 10, 60, 30], hops=2),
        row("red", [10, 10, 24, 24]),
        row("green", None),
        row("surely green", None),
        row("red", [4, 4, 24, 24], image="gone.jpg"),
        {"expression": "x"},
    ]
    (tmp_path / "expressions.json").write_text(json.dumps(rows))
    _, result = run_benchmark(monkeypatch, tmp_path / "out", "boxes", "--root", tmp_path)
    figures = result["figures"]
    # red 400/400, blue 400/600, red 196/400 (wrong); green absent, surely green not
    assert result["n"] == 5 and figures["acc@50"] == pytest.approx(2 / 3)
    assert figures["mean_box_iou"] == pytest.approx((1 + 400 / 600 + 196 / 400) / 3)
    assert result["N_acc"] == 1 / 2 and result["T_acc"] == 1 and figures["right"] == pytest.approx(3 / 5)
    # single proposals: half of red (.5), blue (400/600), the right half of red against the last: 140/256
    assert figures["oracle_acc@50, all proposals"] == 1
    assert result["by"]["hops: 2"]["acc@50"] == 1 and result["by"]["hops: 1"]["n"] == 4
    assert result["gIoU"] is None
    assert [bad["name"] for bad in result["bad"]] == ["row 2, p.jpg", "row 7, gone.jpg", "row 8, None"]
    assert run_benchmark(monkeypatch, tmp_path / "strict", "boxes", "--root", tmp_path, "--strict")[0] == 2
