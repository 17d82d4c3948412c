"""The models that a benchmark opens."""

import pytest

from eval.__main__ import main
from eval.models import parse_everything_settings
from tests.helpers.benchmark_data import write_coco_folder


@pytest.mark.parametrize("setting, message", [("points=3", "no such setting"), ("fast", "NAME=VALUE")])
def test_settings_of_everything_mode_that_cannot_be_used(folder, setting, message, capsys):
    write_coco_folder(folder)
    words = ["proposals", "--root", str(folder), "--out", str(folder / "out"), "--setting", setting]
    assert main(words) == 2 and message in capsys.readouterr().err


def test_settings_of_everything_mode():
    assert parse_everything_settings([]) == {}
    assert parse_everything_settings(["pred_iou_thresh=.5", "fast=true", "points_per_side=8"]) == {
        "pred_iou_thresh": 0.5,
        "fast": True,
        "points_per_side": 8,
    }
