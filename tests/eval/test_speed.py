"""Everything mode beside its peers, on tiny weights."""

import json

import numpy as np
import pytest

from assistant.sam.mask_ops import encode_rle
from eval.__main__ import main
from eval.costs import count_by_loop, metric_costs
from eval.metrics import counts
from eval.speed import compare_masks


@pytest.mark.parametrize("peers", [["--no-transformers"], []], ids=["two", "three"])
def test_programs_are_compared(tmp_path, capsys, peers):
    words = ["speed", "--model", "tiny", "--points-per-side", "4", "--teach", "20", "--no-question"]
    assert main([*words, *peers, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    programs = {row["program"]: row for row in result["programs"]}
    names = ["segment-anything", "ours", "ours, fast"]
    assert list(programs) == (names if peers else [names[0], "transformers", *names[1:]])
    reference, ours = programs["segment-anything"], programs["ours"]
    assert reference["times_as_fast"] == 1 and reference["masks"] == ours["masks"]
    assert ours["found"] == ours["confirmed"] == (1 if ours["masks"] else None)
    assert "segment-anything" in capsys.readouterr().out


def test_a_grid_without_points_is_refused(tmp_path, capsys):
    assert main(["speed", "--points-per-side", "0", "--out", str(tmp_path)]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_masks_are_compared_both_ways():
    left, right = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    left[:, :4] = True
    right[:, 4:] = True
    rles = [encode_rle(mask) for mask in (left, right)]
    assert compare_masks(rles, rles[:1]) == {"found": 0.5, "confirmed": 1.0, "oracle": 0.5}
    assert compare_masks(rles, []) == {"found": 0.0, "confirmed": None, "oracle": 0.0}
    assert compare_masks([], rles) == {"found": None, "confirmed": 0.0, "oracle": None}


def test_the_metric_counts_as_a_plain_loop_does():
    prediction, target = np.random.default_rng(0).random((2, 9, 7)) < 0.5
    assert count_by_loop(prediction, target) == counts(prediction, target)
    assert metric_costs(side=16)["times_as_fast"] > 0
