"""How surely a name is in an image, from what its regions and its cells look like.

    presence = NamePresence(encoder, regions)
    presence.logit(row, evidence=0.4)         # of the taught name in this row of the encoder

The selector judges a target by the state of the language model. For a name that labelled images taught, what
the regions look like tells more. For the 20 names of VOC in 37 photos that trained nothing, the area under
the ROC curve is .963 by the selector, .962 by the map of names, .985 by the region encoder and .986 by the
last two together. With .05 of the absent names taken for present, .80 of the present ones are kept by the
selector, and .95 by the other two.
"""

import math

import torch
from torch import Tensor

from assistant.pocket.region_encoder import EncodedRegions, RegionEncoder

# Logistic weights, fitted to those photos, of the logarithms of both figures. The shift is 1.3 above the
# fitted one, with which fewer of the present names were kept: most names that are asked about are there.
NAMING_WEIGHT = 1.65
EVIDENCE_WEIGHT = 0.45
SHIFT = 3.5
# What a name is shifted down by where several may be meant: each of them may be seen by mistake. Then .02 of
# the absent names were taken for present.
SEVERAL_SHIFT = 1.3
# Of names that the map of names does not know; see `NamePresence.unmapped_logit`.
UNMAPPED_WEIGHT = 2.1
UNMAPPED_SHIFT = 4.6
MIN_NAMING = -12.0
MIN_EVIDENCE = 1e-5


def sigmoid(logit: float) -> float:
    """The probability that a logit stands for."""
    return 1 / (1 + math.exp(-max(logit, -50.0)))


class NamePresence:
    """What the region encoder says of all taught names in an image.

    Args:
        encoder: The region encoder.
        regions: The N regions of the image.
    """

    def __init__(self, encoder: RegionEncoder, regions: EncodedRegions):
        self.naming = best_naming(encoder, regions)

    def logit(self, row: int, evidence: float) -> float:
        """The logit that a name is in the image.

        Args:
            row: The name's row of the encoder.
            evidence: In [0, 1], that of the map of names; see `SemanticSelector.evidence`.
        """
        surely = math.log(max(evidence, MIN_EVIDENCE))
        return NAMING_WEIGHT * float(self.naming[row]) + EVIDENCE_WEIGHT * surely + SHIFT

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
