"""What a question costs on an opened picture, and what counting IoU costs beside a plain loop. Part of `eval speed`."""

import time

import numpy as np

from eval.metrics import counts

QUESTIONS = (
    "what could I drink from?",
    "is there a bear?",
    "the table and the spoon",
    "what is the left one?",
    "a cup, a dog, a car.",
)
PHRASE = "a cup"


def question_costs(assistant, image: np.ndarray, rounds: int = 3) -> dict:
    """Medians in seconds: opening the picture, a question on the opened one, a heat map of a phrase after it, and what that
    question would cost if the picture were opened anew each time, as a demo does that keeps nothing."""
    assistant.open(image).ask(QUESTIONS[0])  # the first of everything is slower
    opened, asked, attended, tokens = [], [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        scene = assistant.open(image)
        opened.append(time.perf_counter() - began)
        for question in QUESTIONS:
            scene.reset()
            began = time.perf_counter()
            tokens.append(scene.ask(question).tokens)
            asked.append(time.perf_counter() - began)
            began = time.perf_counter()
            scene.attend(PHRASE)
            attended.append(time.perf_counter() - began)
    open_seconds, question_seconds = float(np.median(opened)), float(np.median(asked))
    return {
        "open_seconds": round(open_seconds, 3),
        "question_seconds": round(question_seconds, 3),
        "attend_seconds": round(float(np.median(attended)), 3),
        "attend_adds": round(float(np.median(attended)) / question_seconds, 3),
        "tokens": float(np.mean([t for t in tokens if t is not None])) if any(tokens) else None,
        "times_as_fast_as_opening_again": round((open_seconds + question_seconds) / question_seconds, 2),
    }


def loop_counts(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Intersection and union, pixel by pixel."""
    intersection = union = 0
    for row_p, row_t in zip(prediction.tolist(), target.tolist()):
        for p, t in zip(row_p, row_t):
            intersection += p and t
            union += p or t
    return intersection, union


def metric_costs(side: int = 512, seed: int = 0) -> dict:
    """Counting one pair of (side, side) masks: ours, and a plain loop that must give the same."""
    rng = np.random.default_rng(seed)
    prediction, target = rng.random((2, side, side)) < 0.4
    began = time.perf_counter()
    expected = loop_counts(prediction, target)
    loop = time.perf_counter() - began
    rounds = 20
    began = time.perf_counter()
    for _ in range(rounds):
        found = counts(prediction, target)
    ours = (time.perf_counter() - began) / rounds
    if found != expected:
        raise AssertionError(f"the metric counts {found}, a plain loop {expected}")
    return {
        "side": side,
        "loop_seconds": round(loop, 5),
        "seconds": round(ours, 6),
        "times_as_fast": round(loop / ours, 1),
    }
