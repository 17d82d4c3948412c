"""From labelled images to a result: ranking, one-shot tuning and scoring, with a tiny image-text matcher."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from assistant.__main__ import main as assistant_main
from eval.__main__ import main as eval_main
from eval.benchmarks.oneshot_maps import label_map_of
from eval.benchmarks.oneshot_scores import mean_iou
from finetune import attention, attention_tuning
from finetune.__main__ import main as finetune_main
from tests.helpers.mugs_and_boxes import HEIGHT, WIDTH, write_mugs_and_boxes
from tests.helpers.tiny_matchers import tiny_blip


def run(main, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of a command."""
    monkeypatch.setattr("sys.argv", ["x", *map(str, words)])
    return main()


def tuning_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    attention.add_arguments(parser)
    return parser.parse_args(words[1:])


def test_from_ranking_to_result(tmp_path, monkeypatch, capsys, stopped):
    blip = tiny_blip(tmp_path / "blip")
    train = write_mugs_and_boxes(tmp_path / "train", 6)
    dev = write_mugs_and_boxes(tmp_path / "dev", 4, seed=1)
    ranking, tuned, out = tmp_path / "ranking.json", tmp_path / "tuned", tmp_path / "out"

    words = (
        f"rank-layers --images {train}/images --names {train}/instances.json --mllm {blip} --out {ranking}"
    )
    assert run(assistant_main, monkeypatch, *words.split()) == 0
    assert len(json.loads(ranking.read_text())["layers"]) == 3

    heat = tmp_path / "heat"
    words = ["attend", train / "images/0.png", "a mug", "--mllm", blip, "--ranking", ranking, "--out", heat]
    assert run(assistant_main, monkeypatch, *words) == 0
    assert Image.open(heat / "overlay.png").size == (WIDTH, HEIGHT)

    tune_and_resume(train, blip, ranking, tuned, tmp_path / "whole", monkeypatch, capsys, stopped)

    (tmp_path / "first").mkdir()
    (tmp_path / "first/run-0.safetensors").write_bytes((tuned / "run-0.safetensors").read_bytes())
    evaluate = f"oneshot --root {dev} --mllm {blip} --ranking {ranking} --no-refinement --out {out}".split()
    # training-free first, then one run, both at last
    assert eval_main(evaluate) == 0
    assert eval_main([*evaluate, "--tuned", str(tmp_path / "first")]) == 0
    assert eval_main([*evaluate, "--tuned", str(tuned)]) == 0
    check_result(out)
    before = (out / "samples.jsonl").read_text()
    assert eval_main([*evaluate, "--tuned", str(tuned)]) == 0
    assert (out / "samples.jsonl").read_text() == before  # no image is scored twice
    assert eval_main([*evaluate[:-1], str(tmp_path / "o2"), "--tuned", str(tmp_path)]) == 2


def tune_and_resume(
    train: Path,
    blip: Path,
    ranking: Path,
    tuned: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    stopped,
) -> None:
    """Tune two runs into `tuned`, interrupted in the second one, and into `whole`, uninterrupted."""
    words = (
        f"attention --data {train} --mllm {blip} --ranking {ranking} --out {tuned} --runs 2 --batch 1".split()
    )
    words += ["--passes", "1", "--word-passes", "1"]
    monkeypatch.setattr(attention_tuning, "STEPS_PER_CHECKPOINT", 1)
    stopped(attention_tuning, "loss_of", 7, lambda: attention.main(tuning_arguments(words)))
    assert (tuned / "run-0.safetensors").exists() and (tuned / "run-1.pt").exists()
    assert run(finetune_main, monkeypatch, *words) == 0
    assert not (tuned / "run-1.pt").exists()
    assert run(finetune_main, monkeypatch, *[str(whole) if w == str(tuned) else w for w in words]) == 0
    resumed, uninterrupted = (load_file(folder / "run-1.safetensors") for folder in (tuned, whole))
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.allclose(resumed[k], uninterrupted[k], atol=1e-6) for k in resumed)
    assert run(finetune_main, monkeypatch, *words, "--lr", "0.5") == 2
    assert "other settings" in capsys.readouterr().err


def check_result(out: Path) -> None:
    """The result of two tuned runs on four images."""
    result = json.loads((out / "result.json").read_text())
    figures = result["figures"]
    arms = figures["arms"]
    assert {"all layers", "ranked layers", "ranked heads", "tuned"} <= arms.keys()
    assert result["n"] == 4
    assert all(0 <= score <= 1 for score in arms.values())
    assert len(figures["tuned_runs"]) == 2
    assert arms["tuned"] == pytest.approx(np.mean(figures["tuned_runs"]), abs=1e-4)
    difference, low, high = figures["differences"]["tuned - ranked layers"]
    assert difference == pytest.approx(arms["tuned"] - arms["ranked layers"], abs=1e-4)
    assert low <= high
    assert "background" in result["by"]
    assert (out / "report.html").exists()


def test_the_label_map_is_the_largest_class_after_enlargement():
    maps = torch.rand(5, 6, 7)
    maps[4] = 0
    enlarged = torch.nn.functional.interpolate(maps[None], (31, 40), mode="bilinear", align_corners=False)[0]
    assert np.array_equal(label_map_of(maps, (31, 40)), enlarged.argmax(0).numpy())


def test_a_class_that_never_occurs_does_not_count():
    counts = np.array([[2, 0, 0], [4, 1, 0], [3, 1, 0]])
    assert mean_iou(counts) == pytest.approx((2 / 5 + 0) / 2)
