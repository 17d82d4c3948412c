"""How surely a name is in an image, from what its regions and its cells look like.

    presence = NamePresence(encoder, regions)
    presence.logit(row, evidence=0.4)         # of the taught name in this row of the encoder

The selector judges a target by the state of the language model. For a name that labelled images taught, what
the regions look like tells more.
"""

import math

import torch
from scipy.special import expit, logit
from torch import Tensor

from assistant.pocket.detector import MIN_SCORE
from assistant.pocket.region_encoder import EncodedRegions, RegionEncoder

# Logistic weights of the logarithms of both figures, fitted to photos of COCO and VOC that taught nothing.
NAMING_WEIGHT = 0.83
EVIDENCE_WEIGHT = 0.55
# Of names that are asked for as often where they are as where they are not. `python -m finetune presence`
# measures what the shifts keep and what they let through.
SHIFT = 4.85
# The same of the detector's categories. The logit of the surest detection's score joins both figures: on 37
# photos of VOC that taught nothing, .03 of the absent names are then let through with .95 of the present kept
# (without it .05). What is not detected counts as detected with the lowest score that is.
DETECTION_WEIGHT = 1.0
DETECTED_SHIFT = 6.2
# Of "person", which labelled images show so often that the networks are quick to see one: of 16 photos of
# people all are kept, and of 34 without anybody .12 are taken for photos of people (with 3.0: 15, and .09).
PERSON_SHIFT = 3.5
# Of names that the language model was not taught: on 54 photos of DUTS .97 of the 114 things are kept.
UNSPOKEN_SHIFT = 3.85
# What a name is shifted down by where several may be meant, as each of them may be seen by mistake: so many
# nats times the logarithm of their number. See `several_shift`.
SHIFT_OF_LOG_COUNT = 0.45
# Of names that the map of names does not know: on 54 photos of DUTS that taught nothing .94 of them are kept
# (32), and .006 of those that are not outlined are taken for present.
UNMAPPED_WEIGHT = 2.1
UNMAPPED_SHIFT = 6.3
MIN_NAMING = -12.0
MIN_EVIDENCE = 1e-5


def sigmoid(logit: float) -> float:
    """The probability that a logit stands for."""
    return float(expit(logit))


def several_shift(count: int) -> float:
    """What the logit of each of `count` names is shifted down by, where any of them may be meant.

    Of 65 photos that show an animal, .94 have one among the 68 names of "animals" whose logit is above that,
    and .06 of 108 others; with a shift of .6 they are 1 and .24 (`python -m finetune presence`).
    """
    return SHIFT_OF_LOG_COUNT * math.log(count)


class NamePresence:
    """What the region encoder says of all taught names in an image.

    Args:
        encoder: The region encoder.
        regions: The N regions of the image.
    """

    def __init__(self, encoder: RegionEncoder, regions: EncodedRegions):
        self.naming = best_naming(encoder, regions)

    def logit(self, row: int, evidence: float, shift: float = SHIFT, detection: float | None = None) -> float:
        """The logit that a name is in the image.

        Args:
            row: The name's row of the encoder.
            evidence: In [0, 1], that of the map of names; see `SemanticSelector.evidence`.
            shift: The logit where the name is certain by both.
            detection: In [0, 1], the score of the surest detection, 0 where there is none; None where the
                detector does not know the name.
        """
        surely = math.log(max(evidence, MIN_EVIDENCE))
        presence = NAMING_WEIGHT * float(self.naming[row]) + EVIDENCE_WEIGHT * surely + shift
        if detection is not None:
            presence += DETECTION_WEIGHT * float(logit(max(detection, MIN_SCORE)))
        return presence

    def unmapped_logit(self, row: int) -> float:
        """The same for a name that the map of names does not know."""
        return UNMAPPED_WEIGHT * float(self.naming[row]) + UNMAPPED_SHIFT


def best_naming(encoder: RegionEncoder, regions: EncodedRegions) -> Tensor:
    """How surely some region is a whole object of each taught name.

    Returns:
        (C,) float32: the highest log-probability over the regions, at least MIN_NAMING.
    """
    if not len(encoder.names) or not len(regions.embeddings):
        return torch.full((len(encoder.names),), MIN_NAMING)
    names = encoder.name_logits(regions.embeddings, encoder.names).log_softmax(1)
    whole = torch.nn.functional.logsigmoid(regions.objectness)
    return (names + whole[:, None]).amax(0).clamp(min=MIN_NAMING)
