"""What the pocket preset sees in an image without being asked for anything.

targets = named_targets(names, probabilities, whole, presence)
# [NamedTarget("cup", 0.61, 0.97, [28, 12]), ...], surest first
offer(targets)                               # "I can see: cup, dining table, spoon."
main_target(targets, proposals)               # the NamedTarget that "what is this?" means
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from assistant.pocket.class_evidence import ClassEvidence
from assistant.pocket.presence import sigmoid
from assistant.sam.proposals import Proposals

# Probability of a region's name times that of being a whole object, from which it counts as seen. Few
# regions that are right reach one half, as of several proposals of a target at most one is a whole object.
MIN_SEEN_CONFIDENCE = 0.2
# The same for a name of ImageNet's classes. On 47 photos of VOC and COCO a name that is not outlined there
# scores as much in .001 of the cases; with hundreds of names, that is one name in five photos.
MIN_SEEN_CLASS_SCORE = 0.5
MIN_GUESSED_CLASS_SCORE = 0.1  # from which such a name is a guess, where nothing else is seen
MIN_NAME_CONFIDENCE = 0.5  # below which the name of the main thing is said to be uncertain
MAX_OFFERED = 4  # names in an offer
# Logit of presence from which a name counts as seen though no region surely is one: several people who stand
# together are found as "person" by the map of names alone.
MIN_SEEN_PRESENCE = 2.2
MIN_SEEN_PEOPLE = 0.4  # the same of "person", whose presence has a lower shift
# Names that are outlined when they are asked for, but that nobody lists among the things in a photo.
NOT_OFFERED = frozenset(["skin", "hair"])
# Names of what surrounds targets; the background keeps them.
SURROUNDINGS = frozenset("sky road pavement building tree fence".split())


@dataclass(frozen=True)
class NamedTarget:
    """A taught name that regions bear.

    Attributes:
        name: The name, in its plain form.
        confidence: In [0, 1], that the surest region is a whole target with this name.
        probability: In [0, 1], of the name among the taught ones, for the same region.
        proposals: Indices of the regions that bear it surely enough, surest first.
    """

    name: str
    confidence: float
    probability: float
    proposals: list[int]


def named_targets(
    names: Mapping[int, str], probabilities: Tensor, whole: Tensor, presence: Mapping[str, float]
) -> list[NamedTarget]:
    """The names that are surely seen in an image, surest first; [] where no names were taught.

    Args:
        names: {column of `probabilities`: plain form of the name}.
        probabilities: (N, C) float32 in [0, 1], of the taught names for the N regions of the image.
        whole: (N,) float32 in [0, 1], how likely each region is a whole object.
        presence: {name: logit that it is in the image}, of the names that the map of names knows. Of these,
            only names with a positive logit are seen; those with MIN_SEEN_PRESENCE, or people with
            MIN_SEEN_PEOPLE, always are.
    """
    if not probabilities.numel():
        return []
    best, rows = probabilities.max(1)
    confidences = best * whole
    found: dict[str, list[int]] = {}
    for index in confidences.argsort(descending=True).tolist():
        name = names.get(int(rows[index]))
        if name and confidences[index] >= MIN_SEEN_CONFIDENCE and presence.get(name, 0.0) >= 0:
            found.setdefault(name, []).append(index)
    targets = [
        NamedTarget(name, float(confidences[indices[0]]), float(best[indices[0]]), indices)
        for name, indices in found.items()
    ]
    for row, name in names.items():
        least = MIN_SEEN_PEOPLE if name == "person" else MIN_SEEN_PRESENCE
        if name not in found and presence.get(name, 0.0) >= least:
            index = int((probabilities[:, row] * whole).argmax())
            confidence = max(MIN_SEEN_CONFIDENCE, float(probabilities[index, row] * whole[index]))
            targets.append(NamedTarget(name, confidence, sigmoid(presence[name]), [index]))
    return sorted(targets, key=lambda target: -target.confidence)


def with_classes(
    targets: Sequence[NamedTarget],
    evidence: ClassEvidence,
    names: Sequence[str],
    min_score: float = MIN_SEEN_CLASS_SCORE,
) -> list[NamedTarget]:
    """Add what ImageNet's classifier sees to the targets of `named_targets`; surest first.

    Args:
        targets: The targets with taught names.
        evidence: What the classifier says of the regions.
        names: The names to look for, none of them taught.
        min_score: Score in [0, 1] of a region, from which a name counts as seen.

    Returns:
        All targets but those whose surest region is more surely another one's.
    """
    found = list(targets)
    is_likely = evidence.scores >= min_score
    for name in (name for name in names if is_likely[:, evidence.rows[name]].any()):
        scores = evidence.scores[:, evidence.rows[name]]
        likely = [k for k in scores.argsort(descending=True).tolist() if is_likely[k, evidence.rows[name]]]
        best = float(scores[likely[0]])
        found.append(NamedTarget(name, best, best, likely))
    found.sort(key=lambda target: -target.confidence)
    taken: set[int] = set()
    kept: list[NamedTarget] = []
    for target in found:
        if target.proposals[0] not in taken:
            kept.append(target)
            taken.add(target.proposals[0])
    return kept


def offer(targets: Sequence[NamedTarget]) -> str:
    """A sentence that lists what could be asked for; "" where nothing is seen."""
    names = [target.name for target in targets if target.name not in NOT_OFFERED]
    return f"I can see: {', '.join(names[:MAX_OFFERED])}." if names else ""


def main_target(targets: Sequence[NamedTarget], proposals: Proposals) -> NamedTarget | None:
    """The surest, largest and most central target, with one proposal; None without targets."""
    height, width = proposals.size
    best: tuple[float, NamedTarget] | None = None
    for target in targets:
        for index in target.proposals:
            left, top, right, bottom = proposals.boxes[index]
            aside = np.hypot((left + right) / width - 1, (top + bottom) / height - 1) / np.sqrt(2)
            share = proposals.areas[index] / (height * width)
            score = target.confidence * float(np.sqrt(share)) * float(1 - aside)
            if best is None or score > best[0]:
                best = (score, replace(target, proposals=[index]))
    return best[1] if best else None
