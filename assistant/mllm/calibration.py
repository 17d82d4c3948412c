"""How sure an answer of the concepts selection is: what model and segmenter say, as one probability.

    confidence = geometric_mean(Evidence(probability=0.9, presence=0.8, score=0.7))    # without calibration
    calibration = Calibration.fit(evidence, present)             # of answers to records whose truth is known
    calibration.save("calibration.json")                         # --calibration calibration.json
    confidence = Calibration.load("calibration.json").confidence(evidence)

A calibration is a logistic regression (Platt 1999) on the log-odds of the three probabilities, and on whether
the model picked an instance among the numbered ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.files import replace_whole

FILE_VERSION = 1
MAX_LOG_ODDS = 7.0  # of a probability of .999
PICKED_CONFIDENCE = 0.5  # at least, of what the model picked; at most, of what it left
MAX_UNFOUND_CONFIDENCE = 0.5  # of what the model sees and nothing is found for
DECAY = 0.05  # of the squared weights, in examples; it keeps them finite where the classes can be separated
MAX_STEPS = 100  # of Newton's method
TOLERANCE = 1e-8


@dataclass(frozen=True)
class Evidence:
    """What is known of a target.

    Attributes:
        probability: In [0, 1], of the language model that it sees it.
        presence: In [0, 1], of the segmenter that the concept is in the image; 0 where nothing was found.
        score: In [0, 1], of the surest instance; 0 where nothing was found.
        picked: Whether the model picked any of the numbered instances; None where it was not asked.
    """

    probability: float
    presence: float
    score: float
    picked: bool | None = None

    @property
    def is_found(self) -> bool:
        """Whether the segmenter found any instance."""
        return self.score > 0

    def features(self) -> np.ndarray:
        """(6,) float64: one, the log-odds of the probabilities, and two flags: picked, and left."""
        odds = [_log_odds(value) for value in (self.probability, self.presence, self.score)]
        return np.array([1.0, *odds, float(self.picked is True), float(self.picked is False)])


def _log_odds(probability: float) -> float:
    probability = min(max(probability, 1e-9), 1 - 1e-9)
    return float(np.clip(np.log(probability / (1 - probability)), -MAX_LOG_ODDS, MAX_LOG_ODDS))


Confidence = Callable[[Evidence], float]  # in [0, 1], that a target is in the image


def geometric_mean(evidence: Evidence) -> float:
    """The confidence without calibration: the geometric mean of the three probabilities.

    The model's word counts where it has seen the outlines, and more than one half takes an outline.
    """
    if not evidence.is_found:
        return min(evidence.probability, MAX_UNFOUND_CONFIDENCE)
    confidence = float((evidence.probability * evidence.presence * evidence.score) ** (1 / 3))
    if evidence.picked is None:
        return confidence
    if evidence.picked:
        return max(confidence, PICKED_CONFIDENCE)
    return min(confidence, 1 - PICKED_CONFIDENCE)


@dataclass(frozen=True)
class Calibration:
    """A logistic regression on `Evidence.features`.

    Attributes:
        weights: Of the features.
        models: {part: sha256 of its weights}, on whose answers it was fitted.
        targets: Number of targets that it was fitted on.
    """

    weights: tuple[float, ...]
    models: dict[str, str]
    targets: int

    def confidence(self, evidence: Evidence) -> float:
        """In [0, 1], that the target is in the image."""
        return float(1 / (1 + np.exp(-evidence.features() @ np.array(self.weights))))

    @classmethod
    def fit(
        cls, evidence: Sequence[Evidence], present: Sequence[bool], models: dict[str, str] | None = None
    ) -> Calibration:
        """Fit it to targets whose truth is known.

        Args:
            evidence: Of each target.
            present: Whether each is in the image.
            models: See the attribute.

        Raises:
            BadInput: All targets are present, or none is.
        """
        truth = np.array(present, float)
        if len(truth) == 0 or truth.min() == truth.max():
            raise BadInput("a calibration needs targets that are in their image and others that are not")
        inputs = np.stack([row.features() for row in evidence])
        weights = np.zeros(inputs.shape[1])
        decay = np.full(len(weights), DECAY)
        decay[0] = 0.0  # the bias is free
        for _ in range(MAX_STEPS):  # Newton's method; the loss is convex
            expected = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
            gradient = inputs.T @ (expected - truth) + decay * weights
            hessian = (inputs * (expected * (1 - expected))[:, None]).T @ inputs + np.diag(decay + 1e-9)
            step = np.linalg.solve(hessian, gradient)
            weights -= step
            if np.abs(step).max() < TOLERANCE:
                break
        return cls(tuple(float(weight) for weight in weights), models or {}, len(truth))

    def save(self, file: str | Path) -> None:
        """Write it as JSON. Raises BadInput where it cannot be written."""
        row = {
            "calibration": FILE_VERSION,
            "weights": list(self.weights),
            "models": self.models,
            "targets": self.targets,
        }
        with replace_whole(Path(file)) as path:
            path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: str | Path) -> Calibration:
        """Read what `save` wrote. Raises BadInput where the file holds something else."""
        try:
            row: Any = json.loads(Path(file).read_text(encoding="utf-8"))
            if row["calibration"] != FILE_VERSION:
                raise ValueError(f"version {row['calibration']}")
            weights = tuple(float(weight) for weight in row["weights"])
            if len(weights) != len(Evidence(0, 0, 0).features()) or not np.isfinite(weights).all():
                raise ValueError(f"{len(weights)} weights")
            return cls(weights, dict(row["models"]), int(row["targets"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:80]
            raise BadInput(
                f"{file} is no calibration that `python -m finetune calibrate` wrote ({reason})"
            ) from None

    def check(self, models: dict[str, str], file: str | Path) -> None:
        """Raise BadInput where it was fitted on answers of other models than these {part: sha256}."""
        for part, checksum in self.models.items():
            if models.get(part, checksum) != checksum:
                raise BadInput(
                    f"{file} was fitted with another {part}: run `python -m finetune calibrate` again"
                )
