"""What is found by its name, without a question: targets of a concept segmenter, answers with other phrases.

target = found_target("umbrella", instances, threshold=0.5)
answer = search_again(scene, answer, {"umbrella": ["parasol", "sunshade"]})
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from assistant.answer import Answer, Cost, Target
from assistant.errors import BadInput
from assistant.grammar import plain, reply_with_seen
from assistant.sam.concepts import Instances, look_for

if TYPE_CHECKING:
    from assistant.scene import Scene

MAX_PHRASES = 10  # looked for in the place of one target's


def found_target(
    phrase: str, instances: Instances | None, threshold: float, searched: Sequence[str] = ()
) -> Target:
    """A target that all instances of a concept belong to.

    Args:
        phrase: What to call it.
        instances: What was found; None for nothing.
        threshold: Confidence in [0, 1] from which it is present.
        searched: The phrases that were looked for.
    """
    confidence = 0.0 if instances is None else instances.confidence
    if instances is None or not len(instances) or confidence < threshold:
        return Target(phrase, False, confidence, None, [], searched=list(searched))
    masks = [instances.mask(k) for k in range(len(instances))]
    return Target(phrase, True, confidence, instances.union(), [], instances=masks, searched=list(searched))


def search_again(scene: Scene, answer: Answer, phrases: Mapping[str, Sequence[str]]) -> Answer:
    """See `Scene.search_again`; the scene remembers nothing of it."""
    concepts, opened = scene.concepts, scene.opened
    names = {target.phrase.lower() for target in answer.targets}
    for name, wanted in phrases.items():
        if name.lower() not in names:
            named = ", ".join(repr(target.phrase) for target in answer.targets) or "nothing"
            raise BadInput(f"the answer names no {name!r}; it names {named}")
        if isinstance(wanted, str) or not 1 <= len(wanted) <= MAX_PHRASES:
            raise BadInput(f"give 1 to {MAX_PHRASES} phrases to look for in the place of {name!r}")
    began, passes = time.perf_counter(), concepts.passes
    found = {name.lower(): look_for(concepts, opened, wanted) for name, wanted in phrases.items()}
    changed = [
        found_target(target.phrase, found[name][0], scene.threshold, found[name][1])
        if (name := target.phrase.lower()) in found
        else target
        for target in answer.targets
    ]
    cost = Cost(time.perf_counter() - began, passes=concepts.passes - passes)
    reply = reply_with_seen(
        [(target.phrase, target.present) for target in changed if not target.seen],
        [target.phrase for target in changed if target.seen],
    )
    return replace(answer, text=plain(reply), targets=changed, tokens=0, said="", reasoning="", cost=cost)
