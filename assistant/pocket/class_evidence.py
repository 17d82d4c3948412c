"""What ImageNet's classifier sees in an image, under everyday names: for names that no labelled set taught.

classes = ClassNames(taught=llm.phrase_rows)
classes.names                                    # ["accordion", "axe", ...]: those that are not taught
evidence = classes.evidence(opened.classes, regions.objectness, taught)
evidence.logit("guitar"), evidence.regions("guitar", rles)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assistant.pocket.imagenet_names import NO_NAME, EverydayNames, everyday_names
from assistant.sam.mask_ops import Rle, rle_containment

# Score of the best region from which a name counts as present more likely than not.
LIKELY_SCORE = 0.2
# Of the best region's score, from which another region shows one more thing of the name.
MIN_SCORE_SHARE = 0.6
MIN_SCORE = 1e-5
MAX_SHARED = 0.1  # of a region, that another one may cover where both are things of their own
MAX_THINGS = 8


@dataclass
class ClassEvidence:
    """How surely the N regions of an image bear the K everyday names of ImageNet's classes.

    Attributes:
        scores: (N, K) float32 in [0, 1]: the probability of the name, times that of being a whole object.
        rows: {name: column of `scores`}.
    """

    scores: Tensor
    rows: dict[str, int]

    def logit(self, name: str) -> float:
        """The logit that a name is in the image: 0 where its best region scores LIKELY_SCORE."""
        if name not in self.rows or not len(self.scores):
            return math.log(MIN_SCORE / LIKELY_SCORE)
        best = float(self.scores[:, self.rows[name]].max())
        return math.log(max(best, MIN_SCORE) / LIKELY_SCORE)

    def regions(self, name: str, rles: Sequence[Rle]) -> list[int]:
        """The regions of a name, the best first: at least one, and others that show further things of it.

        Args:
            name: One of `rows`.
            rles: The masks of the N regions, N above 0.
        """
        scores = self.scores[:, self.rows[name]]
        order = scores.argsort(descending=True).tolist()
        chosen: list[int] = []
        for index in order:
            if len(chosen) == MAX_THINGS or (chosen and scores[index] < MIN_SCORE_SHARE * scores[chosen[0]]):
                break
            others = [rles[k] for k in chosen]
            shared = rle_containment([rles[index]], others), rle_containment(others, [rles[index]])
            if all((shares <= MAX_SHARED).all() for shares in shared):
                chosen.append(index)
        return chosen


class ClassNames:
    """The everyday names of ImageNet's classes.

    Args:
        taught: {phrase in lower case: row of the region encoder} of the names that it was taught.
        everyday: The names of the classes.

    Attributes:
        names: Those that were not taught.
    """

    def __init__(self, taught: Mapping[str, int], everyday: EverydayNames | None = None):
        self.everyday = everyday or everyday_names()
        self.names = [name for name in self.everyday.names if name not in taught]
        self._rows = {name: k for k, name in enumerate(self.everyday.names)}
        columns = len(self._rows)
        class_rows = torch.from_numpy(self.everyday.rows)
        self._has_name = class_rows != NO_NAME
        self._class_rows = class_rows[self._has_name]
        # {name: the names that are kinds of it, itself included} as a table.
        self._is_kind = torch.eye(columns)
        for name, kinds in self.everyday.kinds.items():
            self._is_kind[self._rows[name], [self._rows[kind] for kind in kinds]] = 1
        # (K, names of the encoder): which taught names say something else than a name.
        self._is_rival = torch.ones(columns, max(taught.values(), default=-1) + 1, dtype=torch.bool)
        kinds_of = self.everyday.kinds
        for name, row in self._rows.items():
            related = {name, *kinds_of.get(name, ()), *(k for k, v in kinds_of.items() if name in v)}
            self._is_rival[row, [taught[other] for other in related if other in taught]] = False

    def evidence(self, classes: Tensor, objectness: Tensor, taught: Tensor) -> ClassEvidence:
        """What the classifier says of N regions.

        ImageNet lacks much: its classifier takes a giraffe for a leopard. A name therefore counts only where
        it is surer than every taught name that is neither the same nor a kind of it.

        Args:
            classes: (N, 1000) float32 logits.
            objectness: (N,) float32 logits that a region is a whole object.
            taught: (N, C) float32 in [0, 1], the probabilities of the names that the encoder was taught.
        """
        probabilities = classes.softmax(1)[:, self._has_name]
        by_name = torch.zeros(len(classes), len(self._rows)).index_add_(1, self._class_rows, probabilities)
        probabilities = (by_name @ self._is_kind.T).clamp(max=1)
        if taught.shape[1]:
            rivals = torch.where(self._is_rival, taught[:, None], 0).amax(2)
            probabilities = probabilities * (probabilities > rivals)
        return ClassEvidence(probabilities * objectness.sigmoid()[:, None], self._rows)
