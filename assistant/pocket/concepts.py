"""The pocket's map of names as a concept segmenter: finds the instances of taught names, without its LLM.

    concepts = PocketConcepts.load(PocketSamOpener(pocket_file("sam.safetensors")).opener)
    found = concepts.find(opened, "red umbrella")       # an `assistant.sam.concepts.Instances`

A proposal is an instance of a name as surely as the region encoder says that it bears the name and is a whole
object, and as the map of names says that its cells bear it. Of proposals that show the same instance the
surest one counts. What was not taught is not found: its presence is 0. The last words of a phrase are looked
for, since colours and the like were not taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.pocket.heads import Heads
from assistant.pocket.opening import PocketImageOpener
from assistant.pocket.precision import fast_math
from assistant.pocket.region_encoder import MIN_LOG_PROBABILITY, RegionEncoder
from assistant.pocket.semantic import SemanticSelector
from assistant.pocket.tiles import encode_tiles
from assistant.pocket.vocabulary import Vocabulary, comparable
from assistant.sam.concepts import MAX_INSTANCES, MIN_SCORE, Instances, KeptFinds
from assistant.sam.image_opener import SamOpenedImage
from assistant.weights import pocket_file

MIN_MAP_PROBABILITY = 1e-4  # of a name in a cell
# Share of the smaller of two proposals that lies in the other, from which both show the same instance.
MAX_SHARED = 0.6
MIN_RELATIVE_SCORE = 0.5  # of an instance, as a share of the surest one's

# Logistic weights of `ProposalEvidence`: that a proposal has an IoU of .5 with an instance; and of
# `ImageEvidence`: that there is one.
# `python -m tests.helpers.fit_pocket_concepts` fitted them on 16 photos of VOC, which had trained nothing (72
# names in photos, present and absent), for the `heads` 7b308973 and the `semantic` 1da7c173.
PROPOSAL_WEIGHTS = (-2.05, 0.348, 0.933, 0.471, 0.192)
IMAGE_WEIGHTS = (4.632, -0.031, 2.085)


class ProposalEvidence(NamedTuple):
    """What tells whether each of N proposals is an instance of a name, (N,) float32 each."""

    log_name: Tensor  # log-probability of the name among the taught ones, by the region encoder
    objectness: Tensor  # logit that it is a whole object with a name
    log_map: Tensor  # logarithm of the mean probability of the name in its cells, by the map of names
    predicted_iou: Tensor

    def score(self, weights: Sequence[float] = PROPOSAL_WEIGHTS) -> Tensor:
        """(N,) float32 in [0, 1]: that it shows an instance; weights: the bias, then one for each field."""
        logits = torch.full_like(self.objectness, weights[0])
        for weight, values in zip(weights[1:], self, strict=True):
            logits = logits + weight * values
        return logits.sigmoid()


class ImageEvidence(NamedTuple):
    """What tells whether a name is in an image at all."""

    best_score: float  # logit of the best `ProposalEvidence.score`
    log_evidence: float  # logarithm of `SemanticSelector.evidence`

    def presence(self, weights: Sequence[float] = IMAGE_WEIGHTS) -> float:
        """In [0, 1], that it is; weights: the bias, then one for each field."""
        logit = weights[0] + sum(w * x for w, x in zip(weights[1:], self, strict=True))
        return float(torch.tensor(logit).sigmoid())


class _NamedRegions(NamedTuple):
    """What is computed once per image.

    Attributes:
        log_names: (N, C) float32, log-probabilities of the taught names of each proposal.
        objectness: (N,) float32 logits.
        semantic_map: See `SemanticSelector.semantic_map`.
        masks: (N, S, S) bool, the proposals over the padded square.
    """

    log_names: Tensor
    objectness: Tensor
    semantic_map: Tensor
    masks: Tensor


class PocketConcepts(KeptFinds):
    """Finds instances of taught names in what the pocket SAM opens.

    Args:
        opener: Computes the features of regions.
        encoder: Names regions.
        phrase_rows: {phrase in lower case: row of `encoder.names`}.
        semantic: The map of names.
    """

    def __init__(
        self,
        opener: PocketImageOpener,
        encoder: RegionEncoder,
        phrase_rows: dict[str, int],
        semantic: SemanticSelector,
    ):
        super().__init__()
        self.opener = opener
        self.encoder = encoder
        self.semantic = semantic
        self.vocabulary = Vocabulary(phrase_rows)
        self.semantic_rows = semantic.category_rows(phrase_rows)

    @classmethod
    def load(cls, opener: PocketImageOpener) -> PocketConcepts:
        """Load the committed weights. Raises BadInput where they are missing or damaged."""
        heads = Heads.load(pocket_file("heads.safetensors"))
        semantic = SemanticSelector.load(pocket_file("semantic.safetensors"))
        return cls(opener, heads.encoder, heads.phrase_rows, semantic)

    def networks(self) -> dict[str, nn.Module]:
        """See `assistant.sam.concepts.ConceptSegmenter`."""
        return {"region encoder": self.encoder, "map of names": self.semantic.head}

    def _fits(self, phrase: str) -> bool:
        return True

    def row_of(self, phrase: str) -> int | None:
        """The row of the longest taught name or synonym in which a phrase ends; None where there is none."""
        asked = comparable(phrase)
        ends = {
            row: max((len(name) for name in names if asked.endswith(name)), default=0)
            for row, names in self.vocabulary.names.items()
        }
        best = max(ends, key=ends.__getitem__, default=None)
        return best if best is not None and ends[best] else None

    @torch.inference_mode()
    def _find(self, opened: SamOpenedImage, phrase: str) -> Instances:
        row = self.row_of(phrase)
        if row is None or not len(opened.proposals):
            return _found(opened, [], [], 0.0)
        evidence, log_evidence = self.evidence(opened, row)
        scores = evidence.score()
        best = scores.max()
        presence = ImageEvidence(float(best.logit()), log_evidence).presence()
        # Of the many proposals around an instance few show it, so that every score is low. That there is an
        # instance is said by the presence, and which proposal shows it by the scores' ratios.
        relative = scores / best
        chosen = [
            k for k in separate(relative, self._regions(opened).masks) if presence * relative[k] >= MIN_SCORE
        ]
        return _found(opened, chosen, (presence * relative[chosen]).tolist(), presence)

    @torch.no_grad()
    def evidence(self, opened: SamOpenedImage, row: int) -> tuple[ProposalEvidence, float]:
        """What is known of a name in an image.

        Args:
            opened: The image, with proposals.
            row: Of the name in the region encoder.

        Returns:
            The evidence of each proposal, and `ImageEvidence.log_evidence`.
        """
        regions = self._regions(opened)
        map_row = self.semantic_rows.get(row)
        predicted_iou = torch.from_numpy(opened.proposals.predicted_iou).float()
        if map_row is None:  # the map of names says nothing
            neutral = torch.zeros_like(predicted_iou)
            return ProposalEvidence(
                regions.log_names[:, row], regions.objectness, neutral, predicted_iou
            ), 0.0
        weight = regions.masks.flatten(1).float()
        probability = self._probability(regions, map_row).flatten()
        mean = (weight @ probability) / weight.sum(1).clamp(min=1)
        log_map = mean.clamp(min=MIN_MAP_PROBABILITY).log()
        evidence = self.semantic.evidence(regions.semantic_map)[map_row]
        return (
            ProposalEvidence(regions.log_names[:, row], regions.objectness, log_map, predicted_iou),
            float(evidence.clamp(min=MIN_MAP_PROBABILITY).log()),
        )

    def _probability(self, regions: _NamedRegions, map_row: int) -> Tensor:
        """(S, S) float32: the probability of a name in each cell among the names it was taught with."""
        rivals = self.semantic.head.rivals(map_row)
        competing = regions.semantic_map[rivals].softmax(0)[int(rivals[:map_row].sum())]
        side = regions.masks.shape[1]
        return F.interpolate(competing[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]

    def _regions(self, opened: SamOpenedImage) -> _NamedRegions:
        """What is known of the proposals of an image, computed once."""
        if "pocket concepts" not in opened.cache:
            logits = torch.from_numpy(opened.proposals.low_res_logits)
            features = self.opener.features(opened.image, opened.embedding, logits)
            encoded = self.encoder(features)
            log_names = self.encoder.name_logits(encoded.embeddings, self.encoder.names).log_softmax(1)
            with fast_math():
                detector_maps = self.opener.detector.maps_of(opened.image)
                tiles = encode_tiles(self.opener.segmenter, self.opener.detector, opened.embedding)
                semantic_map = self.semantic.semantic_map(opened.embedding, detector_maps, tiles)
            opened.cache["pocket concepts"] = _NamedRegions(
                log_names.clamp(min=MIN_LOG_PROBABILITY), encoded.objectness, semantic_map, logits > 0
            )
        return opened.cache["pocket concepts"]


def separate(scores: Tensor, masks: Tensor) -> list[int]:
    """Choose proposals that show different instances, the surest first.

    Args:
        scores: (N,) float32 in [0, 1], relative to the highest.
        masks: (N, S, S) bool.

    Returns:
        Indices of at most MAX_INSTANCES proposals with a score of MIN_RELATIVE_SCORE or more.
    """
    flat = masks.flatten(1).float()
    areas = flat.sum(1).clamp(min=1)
    shared = (flat @ flat.T) / torch.minimum(areas[:, None], areas[None])
    chosen: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if scores[index] < MIN_RELATIVE_SCORE or len(chosen) == MAX_INSTANCES:
            break
        if not chosen or shared[index, chosen].max() < MAX_SHARED:
            chosen.append(index)
    return chosen


def _found(
    opened: SamOpenedImage, chosen: Sequence[int], scores: Sequence[float], presence: float
) -> Instances:
    """Some proposals as instances."""
    proposals = opened.proposals
    boxes = proposals.boxes[list(chosen)].reshape(-1, 4) + np.array([0, 0, 1, 1], np.float32)  # half-open
    rles = [proposals.rles[k] for k in chosen]
    return Instances(rles, boxes.astype(np.float32), np.array(scores, np.float32), presence, proposals.size)
