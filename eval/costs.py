"""What a question costs on an opened image, and what counting IoU costs beside a plain loop. Part of `eval
speed`.

    costs = question_costs(Assistant.from_preset("pocket"), image)
    print(question_sentence(costs))
    print(metric_sentence(metric_costs()))
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.metrics import counts

if TYPE_CHECKING:
    from assistant import Assistant

QUESTIONS = (
    "what could I drink from?",
    "is there a bear?",
    "the table and the spoon",
    "what is the left one?",
    "a cup, a dog, a car.",
)
PHRASE = "a cup"
MASK_SHARE = 0.4  # of pixels that are set in the random masks of `metric_costs`
COUNTING_ROUNDS = 20


def question_costs(assistant: Assistant, image: np.ndarray, rounds: int = 3) -> dict[str, Any]:
    """Time questions on an image.

    Args:
        assistant: With any preset.
        image: (H, W, 3) uint8 RGB.
        rounds: How often the image is opened and each of `QUESTIONS` asked.

    Returns:
        Medians in seconds of opening the image, of a question on the opened image, and of an attention map
        after it; and how many times as fast a question is as one for which the image is opened again.
    """
    assistant.open(image).ask(QUESTIONS[0])  # the first of everything is slower
    open_times, question_times, attention_times, tokens = [], [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        scene = assistant.open(image)
        open_times.append(time.perf_counter() - began)
        for question in QUESTIONS:
            scene.reset()
            began = time.perf_counter()
            tokens.append(scene.ask(question).tokens)
            question_times.append(time.perf_counter() - began)
            began = time.perf_counter()
            scene.attend(PHRASE)
            attention_times.append(time.perf_counter() - began)
    open_seconds, question_seconds = float(np.median(open_times)), float(np.median(question_times))
    attend_seconds = float(np.median(attention_times))
    counted = [count for count in tokens if count is not None]
    return {
        "open_seconds": round(open_seconds, 3),
        "question_seconds": round(question_seconds, 3),
        "attend_seconds": round(attend_seconds, 3),
        "attend_adds": round(attend_seconds / question_seconds, 3),
        "tokens": float(np.mean(counted)) if any(counted) else None,
        "times_as_fast_as_opening_again": round((open_seconds + question_seconds) / question_seconds, 2),
    }


def question_sentence(costs: dict[str, Any]) -> str:
    """The result of `question_costs` in words."""
    return (
        f"pocket preset: opening {costs['open_seconds']:.2f} s, a question on the opened image "
        f"{costs['question_seconds']:.2f} s ({costs['times_as_fast_as_opening_again']} times as fast as "
        f"opening again), an attention map {costs['attend_seconds']:.3f} s more ({costs['attend_adds']:.0%})"
    )


def metric_costs(side: int = 512, seed: int = 0) -> dict[str, Any]:
    """Time the counting of one pair of masks, ours and by a plain loop.

    Args:
        side: Of the random masks, px.
        seed: Of the random masks.

    Returns:
        Seconds of both, and their ratio.

    Raises:
        AssertionError: The two count differently.
    """
    rng = np.random.default_rng(seed)
    prediction, target = rng.random((2, side, side)) < MASK_SHARE
    expected, loop_seconds = _timed(lambda: count_by_loop(prediction, target), rounds=1)
    found, seconds = _timed(lambda: counts(prediction, target), COUNTING_ROUNDS)
    if found != expected:
        raise AssertionError(f"the metric counts {found}, a plain loop {expected}")
    return {
        "side": side,
        "loop_seconds": round(loop_seconds, 5),
        "seconds": round(seconds, 6),
        "times_as_fast": round(loop_seconds / seconds, 1),
    }


def metric_sentence(costs: dict[str, Any]) -> str:
    """The result of `metric_costs` in words."""
    return (
        f"counting IoU of {costs['side']} x {costs['side']} px: {costs['seconds'] * 1000:.2f} ms, a plain "
        f"loop {costs['loop_seconds'] * 1000:.1f} ms ({costs['times_as_fast']} times as fast)"
    )


def _timed(count: Callable[[], tuple[int, int]], rounds: int) -> tuple[tuple[int, int], float]:
    """What `count` returns, and its mean seconds over `rounds`."""
    began = time.perf_counter()
    for _ in range(rounds):
        result = count()
    return result, (time.perf_counter() - began) / rounds


def count_by_loop(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """(intersection, union) of two masks (H, W) bool, in px, pixel by pixel."""
    intersection = union = 0
    for predicted_row, target_row in zip(prediction.tolist(), target.tolist(), strict=True):
        for is_predicted, is_target in zip(predicted_row, target_row, strict=True):
            intersection += is_predicted and is_target
            union += is_predicted or is_target
    return intersection, union
