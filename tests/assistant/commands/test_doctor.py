"""`python -m assistant doctor`: the drawn photo, what is measured, and what is wrong in one line each."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from assistant import __main__ as command
from assistant.commands.examination import SIGN_CLICK, SIGN_RADIUS, Part, drawn_photo, examine
from assistant.loading.sams import load_segmenter
from assistant.mllm.zero_shot import ZeroShotPipeline
from assistant.presets import ModelOptions
from assistant.sam.image_opener import SamImageOpener
from assistant.sam.mask_ops import encode_rle
from tests.helpers.marked_image import ScriptedModel
from tests.helpers.pocket_wheels import require_pocket_wheels
from tests.helpers.pretended_gpu import PretendedGpu
from tests.helpers.tiny_models import tiny_sam

ANSWER = (
    '{"thought": "", "targets": [{"phrase": "stop sign", "marks": [1]}, {"phrase": "elephant", "marks": []}]}'
)


class SignOpener(SamImageOpener):
    """Its first proposal is the drawn sign, and its SAM outlines it at every click."""

    def __init__(self, segmenter):
        super().__init__(segmenter, points_per_side=1)
        self.segmenter.predict = lambda *prompt: (drawn_photo()[1][None], np.ones(1), None)

    def propose(self, image, progress=None):
        embedding, proposals = super().propose(image, progress)
        return embedding, replace(proposals, rles=[encode_rle(drawn_photo()[1])] * len(proposals))


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return tiny_sam(tmp_path_factory.mktemp("sam"))


def let_load(monkeypatch, sam, opener_class, answer, device="cpu"):
    """Let every command load a tiny SAM and a model that gives an answer."""
    opener = opener_class(load_segmenter(sam, device)[0])
    pipeline = ZeroShotPipeline(opener, ScriptedModel([answer]), "marks")
    monkeypatch.setattr(ModelOptions, "load", lambda self: (pipeline, {}))


def test_the_drawn_photo_shows_a_red_sign():
    image, sign = drawn_photo()
    x, y = SIGN_CLICK
    assert image.shape == (480, 640, 3) and sign.shape == (480, 640) and sign[y, x]
    is_red = (image[..., 0] > 150) & (image[..., 1] < 80)
    assert is_red.sum() > 8_000 and not (is_red & ~sign).any()
    assert sign.sum() == pytest.approx(2 * 2**0.5 * SIGN_RADIUS**2, rel=0.02)  # an octagon's area


def test_all_is_well(sam, monkeypatch, capsys):
    let_load(monkeypatch, sam, SignOpener, ANSWER)
    assert command.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "float32 on cpu" in printed and "click 1.00" in printed and printed.endswith("all is well\n")
    assert "I see the stop sign" in printed and "calls 1" in printed


def test_what_is_wrong_is_a_line_each(sam, monkeypatch, capsys):
    finds_an_elephant = ANSWER.replace("stop sign", "tree").replace('"marks": []', '"marks": [1]')
    let_load(
        monkeypatch, sam, lambda segmenter: SamImageOpener(segmenter, points_per_side=1), finds_an_elephant
    )
    assert command.main(["doctor", "--json"]) == 2
    printed, errors = capsys.readouterr()
    report = json.loads(printed)
    assert len(report["problems"]) >= 3 and f"{len(report['problems'])} problems" in errors
    assert "the answer finds an elephant where there is none" in report["problems"]
    assert (
        report["seconds"].keys() == {"load", "open", "click", "ask"} and report["peak_megabytes"]["cpu"] > 100
    )
    assert report["parts"]["SAM"]["devices"] == ["cpu"] and torch.__version__.startswith(
        report["versions"]["torch"]
    )


def test_models_that_cannot_be_had_are_one_problem(tmp_path):
    report = examine(ModelOptions(preset="base", mllm=str(tmp_path / "absent"), sam="pocket", device="cpu"))
    assert len(report.problems) == 1 and "absent" in report.problems[0] and report.versions["python"]


def test_a_gpu_is_named_and_used(sam, monkeypatch):
    with PretendedGpu():
        let_load(monkeypatch, sam, SignOpener, ANSWER, "cuda")
        report = examine(ModelOptions())
    assert report.problems == [] and report.gpus == ["a pretended GPU (9 GB)"]
    assert report.parts["SAM"].devices == ["cuda:0"] and report.peak_megabytes.keys() == {"cpu", "cuda:0"}


def test_a_part_on_two_devices_is_described():
    module = torch.nn.ModuleList([torch.nn.Linear(10, 10), torch.nn.Linear(10, 10, device="meta").bfloat16()])
    part = Part.of(module)
    assert (part.parameters, part.dtypes, part.devices) == (220, ["bfloat16", "float32"], ["cpu", "meta"])


def test_the_pocket_preset_is_well(capsys):
    require_pocket_wheels()
    assert command.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["iou"]["click"] > 0.9 and report["iou"]["answer"] > 0.85 and report["tokens"] > 0
    assert report["parts"].keys() == {"LLM", "selector", "SAM"}
