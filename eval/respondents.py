"""Who answers the questions of a benchmark: the assistant, or a folder of another model's masks.

respondent = open_respondent(settings, predictions=None)
timed = respondent.ask("a12", Path("a.jpg"), (480, 640), ["what keeps the rain off?"], seed=0)
timed.answer.mask, timed.seconds
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from eval import models
from eval.annotated_images import check_size, open_sized
from eval.predictions import Predictions
from eval.settings import EvalSettings

if TYPE_CHECKING:  # torch is loaded when a model is
    from assistant.answer import Answer
    from assistant.sam.proposals import Proposals
    from assistant.scene import Assistant, Scene


@dataclass(frozen=True)
class TimedAnswer:
    """An answer and what it cost.

    Attributes:
        answer: The answer.
        proposals: The proposals that it was selected from; None where the masks were read from a folder.
        seconds: Of the question alone, on the opened image; None where the masks were read.
        open_seconds: Of opening the image, for the first answer about it; None for the others.
    """

    answer: Answer
    proposals: Proposals | None = None
    seconds: float | None = None
    open_seconds: float | None = None

    def cost_fields(self) -> dict[str, int | None]:
        """What the answer took of the models, as fields of a line; {} where that is not known."""
        cost = self.answer.cost
        if cost is None:
            return {}
        return {name: getattr(cost, name) for name in ("calls", "read_tokens", "image_tokens", "passes")}


class Respondent(Protocol):
    """Answers questions about image files.

    Attributes:
        name: What results call it.
        weights: {part: sha256}.
    """

    name: str
    weights: dict[str, str]

    def ask(
        self, key: int | str, image: Path, size: tuple[int, int], questions: list[str], seed: int
    ) -> TimedAnswer:
        """Answer one question in a new conversation.

        Args:
            key: The benchmark's name of the question.
            image: The image file. Questions about one image are asked one after the other.
            size: (height, width) in pixels that the annotation gives.
            questions: Earlier questions of the conversation, then the one to answer.
            seed: Seed of sampling.

        Raises:
            BadInput: The image cannot be used or has another size, or there is no answer.
        """


class AssistantRespondent:
    """The assistant, free-running: it reads its own answers to the earlier questions. See `Respondent`."""

    def __init__(self, assistant: Assistant, name: str):
        self.name = name
        self.weights = dict(assistant.weights)
        self._assistant = assistant
        self._image: Path | None = None
        self._scene: Scene | None = None  # of the image that was asked about last
        self._open_seconds: float | None = None  # of the scene, until an answer has reported them

    def ask(
        self, key: int | str, image: Path, size: tuple[int, int], questions: list[str], seed: int
    ) -> TimedAnswer:
        """See `Respondent.ask`."""
        import torch

        scene = self._open(image, size)
        scene.reset()
        torch.manual_seed(seed)
        for question in questions[:-1]:
            scene.ask(question)
        began = time.perf_counter()
        answer = scene.ask(questions[-1])
        seconds = time.perf_counter() - began
        open_seconds = self._open_seconds
        self._open_seconds = None
        return TimedAnswer(answer, scene.proposals, seconds, open_seconds)

    def _open(self, image: Path, size: tuple[int, int]) -> Scene:
        """The scene of an image, which is opened once."""
        if self._scene is None or self._image != image:
            self._scene = None
            began = time.perf_counter()
            scene = self._assistant.open(open_sized(image, *size))
            len(scene.proposals)  # a scene may put its work off until the proposals are asked for
            self._image = image
            self._scene = scene
            self._open_seconds = time.perf_counter() - began
        check_size(self._scene.size, size)
        return self._scene


class PredictionsRespondent:
    """Another model's masks from a folder. See `Respondent`."""

    def __init__(self, folder: Path):
        self._predictions = Predictions(folder)
        self.name = f"predictions in {folder.name}"
        self.weights = self._predictions.weights

    def ask(
        self, key: int | str, image: Path, size: tuple[int, int], questions: list[str], seed: int
    ) -> TimedAnswer:
        """See `Respondent.ask`; the image is not opened."""
        return TimedAnswer(self._predictions.answer(key, size))


def open_respondent(settings: EvalSettings, predictions: Path | None) -> Respondent:
    """The assistant that the settings name, or the folder `predictions`.

    Raises BadInput where it cannot be had.
    """
    if predictions is not None:
        return PredictionsRespondent(predictions)
    return AssistantRespondent(models.open_assistant(settings), settings.models.describe())
