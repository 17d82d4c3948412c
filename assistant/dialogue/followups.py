"""Answers questions that refer to the masks of the last answer: "now remove the cup", "not that one".

    answer(scene, "only the smaller one", {})               # an Answer, or None: ask the language model
    answer_about(scene, "what is this?", region, {})        # about a part of the image, (H, W) bool

A language model does not know what its masks look like, least of all one of 135 million parameters. So rules
parse such questions (`assistant.dialogue.followup_parser`) and work on the masks: positions and sizes are
measured, and other instances are the selector's next best proposals. What the rules cannot parse or answer
goes to the language model, spelled out where that helps ("the cup on the left").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from assistant.answer import Answer, Target
from assistant.dialogue.followup_actions import (
    Add,
    Again,
    Another,
    Choose,
    ChooseNumber,
    Criterion,
    FindBeside,
    Keep,
    NameRegion,
    Others,
    Remove,
    in_words,
)
from assistant.dialogue.followup_parser import bare_noun, parse_followup, parse_region_question
from assistant.dialogue.instances import (
    SAME_INSTANCE_OVERLAP,
    Instance,
    distance,
    distinct,
    instances,
    misfit,
    overlap,
    share,
)
from assistant.grammar import ABS, SEG, clean_phrase, counted, plain, plural, reply_for
from assistant.sam.instances import in_reading_order
from assistant.sam.proposals import Proposals

# The selector's next best proposals among which the first that fits better than what was shown is looked for.
MAX_COMPARED_PROPOSALS = 6
# Share of a proposal in the region that is named, from which the proposal counts as part of it.
MIN_SHARE_OF_NAMED_REGION = 0.8
# Share of a target's proposal in the region asked about, from which the proposal is used for the answer.
MIN_SHARE_IN_REGION = 0.6
# Share of the smaller of a target and the region asked about that must lie in both; otherwise it is absent.
MIN_COMMON_SHARE = 0.1
# The names after the first that the answer to "what is this?" mentions, and their least probability.
MAX_ALTERNATIVE_NAMES = 2
MIN_ALTERNATIVE_PROBABILITY = 0.05


class AnsweringScene(Protocol):
    """What this module needs of an `assistant.scene.Scene`; see there."""

    image: np.ndarray
    shown: list[Target]

    @property
    def proposals(self) -> Proposals: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def threshold(self) -> float: ...

    def ask_model(self, question: str, **options: Any) -> Answer: ...

    def name_region(self, mask: np.ndarray) -> list[tuple[str, float]]: ...

    def union(self, proposals: list[int]) -> np.ndarray: ...


def answer(scene: AnsweringScene, question: str, options: dict[str, Any]) -> Answer | None:
    """Answer a question that refers to the targets of the last answer.

    Args:
        scene: The scene, whose `shown` are those targets.
        question: Any text.
        options: For the language model, see `Scene.ask`.

    Returns:
        The answer; None where the question should go to the language model.
    """
    shown = [target for target in scene.shown if target.present]
    action = parse_followup(question, [target.phrase for target in shown])
    match action:
        case Remove():
            return _remove(scene, question, action, shown)
        case Keep():
            return _answer(scene, question, [target for target in shown if target.phrase in action.phrases])
        case Add():
            return _add(scene, question, action, shown, options)
        case Again():
            return _answer(scene, question, shown)
        case Others():
            return _others(scene, question, shown[-1], options)
        case Another():
            return _another(scene, question, action, shown[-1], options)
        case Choose():
            return _choose(scene, question, action, shown, options)
        case ChooseNumber():
            return _choose_number(scene, question, action, shown, options)
    return None


def _remove(scene: AnsweringScene, question: str, action: Remove, shown: list[Target]) -> Answer | None:
    """The other targets; None for "everything except the cup" where only the cup is shown."""
    if action.phrase is None:
        return _answer(scene, question, [], "Without everything. Nothing is left.")
    remaining = [target for target in shown if target.phrase != action.phrase]
    if not remaining and question.lower().startswith(("all", "everything")):
        return None
    reply = _plain_reply(remaining) if remaining else "Nothing is left."
    return _answer(scene, question, remaining, f"Without the {clean_phrase(action.phrase)}. {reply}")


def _add(
    scene: AnsweringScene, question: str, action: Add, shown: list[Target], options: dict[str, Any]
) -> Answer:
    new = scene.ask_model(f"Where is the {action.phrase}?", **options).targets
    replaced = {target.phrase.lower() for target in new}
    return _answer(scene, question, [t for t in shown if t.phrase.lower() not in replaced] + new)


def _others(scene: AnsweringScene, question: str, target: Target, options: dict[str, Any]) -> Answer | None:
    """All instances of the target's name but the one that is shown; None where the model finds no other."""
    others = _other_instances(scene, target, options)
    if not others:
        return None
    masks = [other.mask for other in others]
    mask = np.logical_or.reduce(masks)
    proposals = [index for other in others for index in other.proposals]
    found = Target(target.phrase, True, target.confidence, mask, proposals, target.proposals, instances=masks)
    return _answer(scene, question, [found])


def _another(
    scene: AnsweringScene, question: str, action: Another, target: Target, options: dict[str, Any]
) -> Answer | None:
    """Another instance than the one that is shown, which becomes the last of those to try next."""
    instance = _other_instance(scene, target, action.criterion, options)
    if instance is None:
        return None
    candidates = [*target.others, *target.proposals]
    return _answer_with(scene, question, target, instance, candidates)


def _choose(
    scene: AnsweringScene, question: str, action: Choose, shown: list[Target], options: dict[str, Any]
) -> Answer:
    """One instance of a target; the language model is asked in full where none fits."""
    target = next((target for target in shown if target.phrase == action.phrase), shown[-1])
    instance = _other_instance(scene, target, action.criterion, options)
    if instance is None:
        phrase = in_words(bare_noun(target.phrase), action.criterion)
        return replace(scene.ask_model(f"Where is the {phrase}?", **options), question=question)
    candidates = [*target.proposals, *target.others]
    return _answer_with(scene, question, target, instance, candidates)


def _choose_number(
    scene: AnsweringScene, question: str, action: ChooseNumber, shown: list[Target], options: dict[str, Any]
) -> Answer:
    """The instance of a target with a number; where there are too few, how many there are.

    Of several targets with one instance each, the number means a target.
    """
    target = next((target for target in shown if target.phrase == action.phrase), shown[-1])
    found = instances(scene.proposals, target)
    if len(found) == 1 and len(shown) > 1 and action.phrase is None:
        if action.side is None and 0 < action.number <= len(shown):
            return _answer(scene, question, [shown[action.number - 1]])
    elif len(found) < max(2, action.number):  # one of several may be shown by itself
        found += _other_instances(scene, target, options)
        ordered = in_reading_order([instance.mask for instance in found])
        found.sort(key=lambda instance: next(k for k, mask in enumerate(ordered) if mask is instance.mask))
    if side := action.side:
        found.sort(key=lambda instance: misfit(instance.mask, side))
    count = len(found)
    noun = clean_phrase(bare_noun(target.phrase))
    if action.number > count:
        seen = f"{count} {plural(noun)}" if count > 1 else f"one {noun}"
        return _answer(scene, question, [target], f"I see only {seen}.")
    number = count if action.number == -1 else action.number
    instance = found[number - 1]
    candidates = [*target.proposals, *target.others]
    answered = _answer_with(scene, question, target, instance, candidates)
    if count > 1:
        answered.text = f"This is number {number} of {count} {plural(noun)}."
        if side:
            answered.text = f"{answered.text[:-1]}, counted from the {side}."
    return answered


def _answer_with(
    scene: AnsweringScene, question: str, target: Target, instance: Instance, candidates: list[int]
) -> Answer:
    """The answer that shows one instance of a target; candidates: what to try next, best first."""
    others = [index for index in candidates if index not in instance.proposals]
    found = Target(target.phrase, True, target.confidence, instance.mask, instance.proposals, others)
    return _answer(scene, question, [found])


def _other_instance(
    scene: AnsweringScene, target: Target, criterion: Criterion | None, options: dict[str, Any]
) -> Instance | None:
    """The instance that a criterion singles out, or without one the selector's next best.

    It is looked for among the instances that are shown if there are several, then among the others that the
    model finds, then among the selector's next best proposals.
    """
    assert target.mask is not None
    shown = instances(scene.proposals, target)
    others = distinct(scene.proposals, target.others, [target.mask])
    if criterion is None:
        return Instance(scene.proposals.mask(others[0]), others[:1]) if others else None

    def misfit_of(instance: Instance) -> float:
        return misfit(instance.mask, criterion)

    if len(shown) > 1:
        return min(shown, key=misfit_of)
    shown_misfit = misfit(target.mask, criterion)
    fitting = [other for other in _other_instances(scene, target, options) if misfit_of(other) < shown_misfit]
    if fitting:
        return min(fitting, key=misfit_of)
    for index in others[:MAX_COMPARED_PROPOSALS]:  # best first: the first that is smaller, further left, ...
        mask = scene.proposals.mask(index)
        if misfit(mask, criterion) < shown_misfit:
            return Instance(mask, [index])
    return None


def _other_instances(scene: AnsweringScene, target: Target, options: dict[str, Any]) -> list[Instance]:
    """The instances of the target's name that the model finds beside the one that is shown."""
    assert target.mask is not None
    # The wording of questions about a whole class, which asks for all instances.
    reply = scene.ask_model(f"Please segment {bare_noun(target.phrase)}.", **options)
    return [
        instance
        for found in reply.targets
        if found.present
        for instance in instances(scene.proposals, found)
        if overlap(instance.mask, target.mask) < SAME_INSTANCE_OVERLAP
    ]


def answer_about(scene: AnsweringScene, question: str, region: np.ndarray, options: dict[str, Any]) -> Answer:
    """Answer a question about a part of the image.

    Args:
        scene: The scene.
        question: Any text, in which "it" and "this" mean the part.
        region: (H, W) bool, the part; not empty.
        options: For the language model, see `Scene.ask`.

    Returns:
        The part's name, what lies in a direction of it, or what the language model finds within it.
    """
    action = parse_region_question(question)
    if isinstance(action, FindBeside):
        return _find_beside(scene, question, action, region, options)
    named = _name_region(scene, question, region) if isinstance(action, NameRegion) else None
    if named:
        return named
    targets = scene.ask_model(question, **options).targets
    return _answer(scene, question, [_within(scene, target, region) for target in targets])


def _name_region(scene: AnsweringScene, question: str, region: np.ndarray) -> Answer | None:
    """The name of a region; None where the pipeline names no regions."""
    names = scene.name_region(region)
    if not names:
        return None
    name, probability = names[0]
    alternatives = [
        f"{other} {chance:.0%}"
        for other, chance in names[1 : 1 + MAX_ALTERNATIVE_NAMES]
        if chance >= MIN_ALTERNATIVE_PROBABILITY
    ]
    inside = [
        index
        for index in range(len(scene.proposals))
        if share(scene.proposals.mask(index), region) > MIN_SHARE_OF_NAMED_REGION
    ]
    text = f"This looks like: {name} ({probability:.0%})."
    if alternatives:
        text += f" Or else: {', '.join(alternatives)}."
    return _answer(scene, question, [Target(name, True, probability, region, inside)], text)


def _find_beside(
    scene: AnsweringScene, question: str, action: FindBeside, region: np.ndarray, options: dict[str, Any]
) -> Answer:
    """The nearest instance of a noun, or without one the nearest proposal, in a direction of a region."""
    asked: list[Target] = []
    candidates: list[tuple[Instance, Target | None]] = []
    if action.noun:
        asked = scene.ask_model(f"Where is the {action.noun}?", **options).targets
        for target in asked:
            if target.present:
                candidates += [(instance, target) for instance in instances(scene.proposals, target)]
    else:
        for index in range(len(scene.proposals)):
            candidates.append((Instance(scene.proposals.mask(index), [index]), None))
    distances = [
        distance(instance.mask, region, action.direction)
        if overlap(instance.mask, region) < SAME_INSTANCE_OVERLAP
        else None
        for instance, _ in candidates
    ]
    fitting = [(pixels, k) for k, pixels in enumerate(distances) if pixels is not None]
    if not fitting:
        absent = [_absent(scene, target) for target in asked]
        return _answer(scene, question, absent, None if absent else "There is nothing there that stands out.")
    instance, asked_target = candidates[min(fitting)[1]]
    target = asked_target or _named_target(scene, instance)
    return _answer(scene, question, [replace(target, mask=instance.mask, proposals=instance.proposals)])


def _named_target(scene: AnsweringScene, instance: Instance) -> Target:
    """A proposal under its likeliest name, or as a "thing" where the pipeline names no regions."""
    names = scene.name_region(instance.mask)
    if names:
        name, confidence = names[0]
    else:
        name = "thing"
        confidence = float(scene.proposals.predicted_iou[instance.proposals[0]].clip(0, 1))
    return Target(name, True, confidence, instance.mask, instance.proposals)


def _within(scene: AnsweringScene, target: Target, region: np.ndarray) -> Target:
    """The part of a target that lies in a region; absent where they have hardly anything in common."""
    if not target.present:
        return target
    assert target.mask is not None
    inside = [
        index
        for index in target.proposals
        if share(scene.proposals.mask(index), region) > MIN_SHARE_IN_REGION
    ]
    mask = (scene.union(inside) if inside else target.mask) & region
    if mask.sum() < MIN_COMMON_SHARE * min(target.mask.sum(), region.sum()):
        return _absent(scene, target)
    return replace(target, mask=mask, proposals=inside)


def _absent(scene: AnsweringScene, target: Target) -> Target:
    """The target as one that is not in the image."""
    return replace(target, present=False, mask=None, confidence=min(target.confidence, scene.threshold))


def _plain_reply(targets: list[Target]) -> str:
    reply = reply_for([(target.phrase, target.present) for target in targets])
    return plain(counted(reply, [len(target.instances) for target in targets]))


def _answer(scene: AnsweringScene, question: str, targets: list[Target], text: str | None = None) -> Answer:
    """An answer about these targets; text: what it says, None for a sentence that lists them."""
    marks = [f"{clean_phrase(target.phrase)} {SEG if target.present else ABS}" for target in targets]
    reply = f"{', '.join(marks)}." if marks else ""
    if text is None:
        text = _plain_reply(targets)
    return Answer(text, targets, scene.size, scene.image, question, None, reply)
