"""Confidences of the selection "concepts": fitted to answers whose truth is known, stored, and read again."""

import json

import numpy as np
import pytest

from assistant.errors import BadInput
from assistant.mllm.calibration import Calibration, Evidence, geometric_mean
from tests.helpers.refusals import refusal

MODELS = {"mllm": "1", "concepts": "2"}


def drawn(count: int, seed: int) -> tuple[list[Evidence], list[bool]]:
    """Targets whose segmenter is too sure of itself: its presence says less than it should."""
    rng = np.random.default_rng(seed)
    evidence, present = [], []
    for _ in range(count):
        odds = rng.normal(0, 1.5)
        is_there = rng.random() < 1 / (1 + np.exp(-odds))
        probability = 1 / (1 + np.exp(-odds - rng.normal(0, 0.3)))
        presence = 1 / (1 + np.exp(-6 * odds - 5))
        evidence.append(Evidence(float(probability), float(presence), 0.9))
        present.append(bool(is_there))
    return evidence, present


def log_loss(confidences, present):
    values = np.clip(confidences, 1e-6, 1 - 1e-6)
    return -np.mean(np.where(present, np.log(values), np.log(1 - values)))


def test_a_fit_makes_confidences_true_on_other_targets():
    calibration = Calibration.fit(*drawn(400, 0), MODELS)
    evidence, present = drawn(400, 1)
    before = log_loss([geometric_mean(row) for row in evidence], present)
    after = log_loss([calibration.confidence(row) for row in evidence], present)
    assert after < before - 0.03 and calibration.targets == 400


def test_without_calibration_the_word_of_the_model_counts_where_it_has_seen_the_outlines():
    assert geometric_mean(Evidence(0.9, 0.8, 0.7)) == pytest.approx((0.9 * 0.8 * 0.7) ** (1 / 3))
    assert geometric_mean(Evidence(0.2, 0.3, 0.4, picked=True)) == 0.5
    assert geometric_mean(Evidence(0.9, 0.9, 0.9, picked=False)) == 0.5
    assert geometric_mean(Evidence(0.9, 0.0, 0.0)) == 0.5  # seen, but nothing is found
    assert geometric_mean(Evidence(0.1, 0.0, 0.0)) == 0.1


def test_what_separates_the_classes_keeps_finite_weights():
    evidence = [Evidence(1.0, 1.0, 1.0, True)] * 5 + [Evidence(0.0, 0.0, 0.0, False)] * 5
    calibration = Calibration.fit(evidence, [True] * 5 + [False] * 5)
    assert np.abs(calibration.weights).max() < 5
    assert calibration.confidence(evidence[0]) > 0.95 and calibration.confidence(evidence[-1]) < 0.05


def test_a_file_comes_back_and_other_files_are_refused(tmp_path):
    calibration = Calibration.fit(*drawn(50, 0), MODELS)
    file = tmp_path / "calibration.json"
    calibration.save(file)
    assert Calibration.load(file) == calibration
    calibration.check(MODELS | {"sam": "3"}, file)
    assert "another concepts" in refusal(lambda: calibration.check(MODELS | {"concepts": "4"}, file))
    row = json.loads(file.read_text())
    for wrong in ("[]", "nonsense", *(json.dumps(row | change) for change in WRONG_FIELDS)):
        file.write_text(wrong)
        assert "is no calibration" in refusal(lambda: Calibration.load(file))
    assert "is no calibration" in refusal(lambda: Calibration.load(tmp_path / "gone.json"))


WRONG_FIELDS = ({"calibration": 2}, {"weights": [1.0]}, {"weights": [float("nan")] * 6}, {"models": 3})


def test_targets_of_one_kind_calibrate_nothing():
    with pytest.raises(BadInput, match="others that are not"):
        Calibration.fit([Evidence(0.5, 0.5, 0.5)], [True])
