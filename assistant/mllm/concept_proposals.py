"""What a concept segmenter finds, as proposals that a trained selector selects among.

    found = find_proposals(concepts, segmenter, opened, ["umbrella", "bench"])
    found.rles, found.predicted_iou, found.stability     # the masks; their scores; their phrases' presence

The names of the things come first, from the answer of the language model or, in training, from the records;
the masks of everything mode play no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from assistant.grammar import UNNAMED
from assistant.sam.concepts import ConceptSegmenter, longest_end
from assistant.sam.mask_ops import Rle, decode_rle, rle_iou, tight_box
from assistant.sam.proposals import Proposals
from assistant.sam.segmenter import Segmenter

MAX_SAME_IOU = 0.9  # from which two phrases have found the same instance


def find_proposals(
    concepts: ConceptSegmenter[Any], segmenter: Segmenter, opened: Any, phrases: Sequence[str]
) -> Proposals:
    """Look for phrases and list all that is found, each instance once.

    Args:
        concepts: Finds them.
        segmenter: Its SAM.
        opened: The image, as `concepts` takes it.
        phrases: Names of things; those that name nothing are left out.

    Returns:
        The instances, those of the highest score first: the score stands for the predicted IoU, and the
        presence of the phrase for the stability. There is no click behind them; the point is the centre of
        the box.
    """
    rows: list[tuple[float, float, Rle]] = []
    for phrase in dict.fromkeys(longest_end(phrase) for phrase in phrases):
        if phrase and phrase != UNNAMED:
            found = concepts.find(opened, phrase)
            rows += [
                (float(score), found.presence, rle)
                for score, rle in zip(found.scores, found.rles, strict=True)
            ]
    rows.sort(key=lambda row: -row[0])
    kept: list[tuple[float, float, Rle]] = []
    for row in rows:
        if not kept or rle_iou([row[2]], [rle for _, _, rle in kept]).max() < MAX_SAME_IOU:
            kept.append(row)
    return _proposals(kept, segmenter, opened)


def _proposals(rows: list[tuple[float, float, Rle]], segmenter: Segmenter, opened: Any) -> Proposals:
    """Proposals of (score, presence, mask)."""
    embedding = opened.embedding
    masks = [decode_rle(rle) for _, _, rle in rows]
    # The boxes of proposals include their last pixel.
    corners = [tight_box(mask) or (0, 0, 1, 1) for mask in masks]
    boxes = np.array(corners, np.float32).reshape(-1, 4) - np.array([0, 0, 1, 1], np.float32)
    side = segmenter.low_res_side
    logits = [segmenter.low_res_logits(embedding, mask) for mask in masks]
    return Proposals(
        [rle for _, _, rle in rows],
        boxes,
        np.array([score for score, _, _ in rows], np.float32),
        np.array([presence for _, presence, _ in rows], np.float32),
        np.array([mask.sum() for mask in masks], np.int64),
        boxes.reshape(-1, 2, 2).mean(1),
        np.array(logits, np.float32).reshape(-1, side, side),
        embedding.size,
    )
