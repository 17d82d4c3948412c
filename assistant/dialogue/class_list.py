"""Asks for a list of classes and makes a semantic map of the answers (LaSagnA, arXiv 2404.08506).

    names = read_class_names("road, sky, car")
    class_map = ask_classes(scene.fresh(), names)
    class_map.label, class_map.answers           # (H, W) int16, {class: (present, confidence)}

A list of more than CLASSES_PER_QUESTION names is split into several questions. Where the preset finds things
by their name (`Scene.finds_names`), each class is looked for instead, and no question is asked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from assistant.answer import Answer, Cost, Target
from assistant.dialogue.named_search import found_target
from assistant.errors import BadInput

if TYPE_CHECKING:
    from assistant.sam.concepts import Instances

CLASSES_PER_QUESTION = 6
MAX_CLASSES = 200  # in a list
MAX_CLASS_NAME_LENGTH = 80  # characters
MAX_LIST_LENGTH = 100_000  # characters of a pasted list that are read
UNANSWERED_PIXEL = -1  # in a label map, where no class was answered


class AskableScene(Protocol):
    """What this module needs of an `assistant.scene.Scene`; see there."""

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def threshold(self) -> float: ...

    @property
    def finds_names(self) -> bool: ...

    def find(self, phrase: str) -> tuple[Instances, Cost]: ...

    def ask(self, question: str) -> Answer: ...

    def reset(self) -> None: ...


@dataclass
class ClassMap:
    """The answers to a list of classes.

    Attributes:
        names: The classes that were asked for.
        label: (H, W) int16, the index in `names` of the class of each pixel; UNANSWERED_PIXEL where there is
            none. Where masks overlap, the answer with the higher confidence counts; of instances that were
            found by their name, the one with the higher score.
        answers: {class: (whether it is present, confidence in [0, 1])} of the classes that the model
            answered.
        found: {class: its target, as it was answered}, of the same classes.
        unknown_phrases: Phrases of the answers that are none of the classes.
        seconds: How long each question took, or looking for each class.
        tokens: How many tokens were generated for each of these; None where that is unknown.
        calls: How often the language model was asked for each; None where that is unknown.
        passes: How many phrases a concept segmenter looked for, for each; None without one.
    """

    names: list[str]
    label: np.ndarray
    answers: dict[str, tuple[bool, float]] = field(default_factory=dict)
    found: dict[str, Target] = field(default_factory=dict)
    unknown_phrases: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int | None] = field(default_factory=list)
    calls: list[int | None] = field(default_factory=list)
    passes: list[int | None] = field(default_factory=list)

    @property
    def unanswered(self) -> list[str]:
        """The classes of which the model said neither that they are present nor that they are absent."""
        return [name for name in self.names if name not in self.answers]

    def targets(self) -> list[Target]:
        """A target for each class that was answered: the pixels of its label; absent where it has none."""
        targets = []
        for index, name in enumerate(self.names):
            if name in self.answers:
                present, confidence = self.answers[name]
                mask = self.label == index
                visible = bool(present and mask.any())
                found = self.found.get(name)
                known, seen = (found.known, found.seen) if found else (True, False)
                targets.append(
                    Target(
                        name,
                        visible,
                        confidence,
                        mask if visible else None,
                        [],
                        known=known,
                        seen=seen,
                        instances=found.instances if found else [],
                    )
                )
        return targets


def read_class_names(text: str) -> list[str]:
    """Read class names from pasted text.

    Args:
        text: Names, one a line or separated by commas, semicolons, tabs or bars. Numbers and bullets before a
            name are dropped, and so are repetitions in any case.

    Returns:
        The names in their order, at least one.

    Raises:
        BadInput: There are none or too many, or a name is too long.
    """
    if not isinstance(text, str):
        raise BadInput(f"a list of classes is text, not {type(text).__name__}")
    bullet = re.compile(r"^\s*(?:[-*\u2022]|\d+[.):]?(?=\s))?\s*")
    names: dict[str, str] = {}  # by its lower case
    for part in re.split(r"[\n,;\t|]+", text[:MAX_LIST_LENGTH]):
        name = " ".join(bullet.sub("", part).strip(" \"'").split())
        if name:
            names.setdefault(name.lower(), name)
    if not names:
        raise BadInput("the list of classes is empty: give names, one a line or with commas between them")
    if len(names) > MAX_CLASSES:
        raise BadInput(f"the list has {len(names)} classes: give at most {MAX_CLASSES}")
    for name in names.values():
        if len(name) > MAX_CLASS_NAME_LENGTH:
            raise BadInput(
                f"{name[:30]!r}... has {len(name)} characters: names have at most {MAX_CLASS_NAME_LENGTH}"
            )
    return list(names.values())


def class_of(phrase: str, asked: list[str]) -> str | None:
    """The class of the same words as a phrase, whatever its article, case or plural."""
    return next((name for name in asked if _comparable(name) == _comparable(phrase)), None)


def _comparable(text: str) -> str:
    """A name in lower case without its article and plural endings."""
    words = " ".join(text.lower().split())
    return re.sub(r"(s|es)\b", "", re.sub(r"^(the|an?|some)\s+", "", words))


def ask_classes(
    scene: AskableScene,
    names: list[str],
    per_question: int = CLASSES_PER_QUESTION,
    check: Callable[[], None] | None = None,
) -> ClassMap:
    """Ask for all classes of a list.

    Args:
        scene: The scene to ask; its earlier turns are forgotten. Pass `scene.fresh()` to keep them.
        names: The classes.
        per_question: Number of classes in one question.
        check: Called before each question, or each class. What it raises ends the work.

    Returns:
        The answers and their label map.

    Raises:
        BadInput: See `Scene.ask` and `Scene.find`.
    """
    class_map = ClassMap(names, np.full(scene.size, UNANSWERED_PIXEL, np.int16))
    masks: list[_ScoredMask] = []
    if scene.finds_names:
        scene.reset()
        for index in range(len(names)):
            if check:
                check()
            masks += _record_instances(class_map, scene, index)
    else:
        for first in range(0, len(names), per_question):
            if check:
                check()
            masks += _record_question(class_map, scene, names[first : first + per_question])
    for _, index, mask in sorted(masks, key=lambda row: row[0]):
        class_map.label[mask] = index
    return class_map


_ScoredMask = tuple[float, int, np.ndarray]  # its confidence, the index of its class, the mask


def _record_instances(class_map: ClassMap, scene: AskableScene, index: int) -> list[_ScoredMask]:
    """Look for a class and enter what is found; returns its instances where it is present."""
    name = class_map.names[index]
    instances, cost = scene.find(name)
    class_map.seconds.append(cost.seconds)
    class_map.tokens.append(cost.tokens)
    class_map.calls.append(cost.calls)
    class_map.passes.append(cost.passes)
    target = found_target(name, instances, scene.threshold, [name])
    class_map.answers[name] = (target.present, target.confidence)
    class_map.found[name] = target
    if not target.present:
        return []
    return [(float(score), index, instances.mask(k)) for k, score in enumerate(instances.scores)]


def _record_question(class_map: ClassMap, scene: AskableScene, asked: list[str]) -> list[_ScoredMask]:
    """Ask for some classes and enter the answer; returns the masks of those that are present."""
    scene.reset()
    start = time.perf_counter()
    answer = scene.ask(f"Which of these are in the picture: {', '.join(asked)}?")
    class_map.seconds.append(time.perf_counter() - start)
    class_map.tokens.append(answer.tokens)
    class_map.calls.append(answer.cost.calls if answer.cost else None)
    class_map.passes.append(answer.cost.passes if answer.cost else None)
    return _record_answers(class_map, answer.targets, asked)


def _record_answers(class_map: ClassMap, targets: list[Target], asked: list[str]) -> list[_ScoredMask]:
    """Enter one answer; returns the masks of its present classes."""
    masks = []
    in_order: list[str] | list[None] = asked if len(targets) == len(asked) else [None] * len(targets)
    for target, asked_here in zip(targets, in_order, strict=True):
        name = class_of(target.phrase, asked)
        if name is None and asked_here not in class_map.answers:
            name = asked_here  # a synonym ("person" for pedestrian) in a complete answer
        if name is None:
            class_map.unknown_phrases.append(target.phrase)
        elif name not in class_map.answers:  # of a class that is answered twice, the first answer counts
            confidence = float(target.confidence)
            class_map.answers[name] = (bool(target.present), confidence)
            class_map.found[name] = target
            if target.present and target.mask is not None:
                masks.append((confidence, class_map.names.index(name), target.mask))
    return masks
