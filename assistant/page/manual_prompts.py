"""Masks made by hand, as with SAM: clicks, a box and a brush, from nothing or on a mask that is refined.

prompts = ManualPrompts()
prompts.segment(scene, points=[[60, 150]], labels=[1])
targets = use_mask(targets, None, "cup", prompts.candidates[0].mask)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from assistant.answer import Target
from assistant.errors import BadInput
from assistant.grammar import clean_phrase
from assistant.scene import Scene

MAX_NAME_LENGTH = 200  # characters of the name that a visitor gives


@dataclass
class Candidate:
    """A mask to choose.

    Attributes:
        name: What its button says.
        mask: (H, W) bool.
        score: SAM's predicted IoU in [0, 1]; None for a mask that is shown as it was drawn.
    """

    name: str
    mask: np.ndarray
    score: float | None


@dataclass
class ManualPrompts:
    """What is being marked.

    Attributes:
        target: Index of the answer's target that the mask will replace; None for a new target.
        base: (H, W) bool, the mask that is refined; None where marking starts from nothing.
        candidates: The masks to choose from, best first.
    """

    target: int | None = None
    base: np.ndarray | None = None
    candidates: list[Candidate] = field(default_factory=list)

    def segment(
        self,
        scene: Scene,
        points: Sequence[Sequence[float]] = (),
        labels: Sequence[int] = (),
        box: Sequence[float] | None = None,
        added: np.ndarray | None = None,
        erased: np.ndarray | None = None,
    ) -> None:
        """Fill `candidates` with what SAM makes of the marks.

        They are a single best mask, unless the only mark is one click; the three interpretations of the
        marks; and the painted mask exactly as it is.

        Args:
            scene: The scene of the photo.
            points: (N, 2) numbers, clicks as (x, y) in px.
            labels: (N,) of 1 (inside) or 0 (outside).
            box: (left, top, right, bottom) in px.
            added: (H, W) bool, what was painted.
            erased: (H, W) bool, what was erased after it.
        """
        painted = self._painted(scene.size, added, erased)
        prompt: dict[str, Any] = {}
        if len(points):
            prompt |= {"points": points, "labels": labels}
        if box is not None:
            prompt["box"] = box
        if painted is not None and painted.any():
            prompt["mask"] = painted
        if not prompt:
            self.candidates = []
            return
        masks, scores = scene.segment(**prompt, multimask=True)
        predictions = sorted(zip(masks, map(float, scores), strict=True), key=lambda row: -row[1])
        if box is not None or len(points) != 1 or "mask" in prompt:
            single, score = scene.segment(**prompt, multimask=False)
            predictions.insert(0, (single[0], float(score[0])))
        predictions = [(mask, min(max(score, 0.0), 1.0)) for mask, score in predictions if mask.any()]
        self.candidates = [
            Candidate(f"{chr(ord('A') + k)} {score:.2f}", mask, score)
            for k, (mask, score) in enumerate(predictions)
        ]
        if painted is not None and painted.any():
            self.candidates.append(Candidate("as drawn", painted, None))

    def _painted(
        self, size: tuple[int, int], added: np.ndarray | None, erased: np.ndarray | None
    ) -> np.ndarray | None:
        """The base with what was painted and without what was erased; None where there is neither."""
        if added is None and erased is None:
            return self.base
        painted = np.zeros(size, bool) if self.base is None else self.base.copy()
        if added is not None:
            painted |= added
        if erased is not None:
            painted &= ~erased
        return painted


def use_mask(targets: Sequence[Target], replaced: int | None, name: str, mask: np.ndarray) -> list[Target]:
    """Put a mask made by hand into the targets of an answer.

    Args:
        targets: The targets.
        replaced: Index of the target that the mask replaces; None for a new one, which takes the place of an
            absent target of the same name, if there is one.
        name: What the target is called; "" leaves a replaced target its name.
        mask: (H, W) bool, not empty.

    Returns:
        The targets as they are then.

    Raises:
        BadInput: A new target has no name.
    """
    changed = list(targets)
    name = name.strip()
    if replaced is not None and replaced < len(changed):
        changed[replaced] = _target(name or changed[replaced].phrase, mask)
        return changed
    if not name:
        raise BadInput("give the thing a name first, then use the mask")
    target = _target(name, mask)
    for k, other in enumerate(changed):
        if not other.present and other.phrase.lower() == target.phrase.lower():
            changed[k] = target
            return changed
    return [*changed, target]


def _target(name: str, mask: np.ndarray) -> Target:
    """A present target of which the visitor is certain."""
    return Target(clean_phrase(name)[:MAX_NAME_LENGTH], True, 1.0, mask, [])
