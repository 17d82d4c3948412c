"""The score of one answer against the masks of its record.

    truth = Truth.of(record)
    line = score_answer(answer, truth) | score_oracle(proposals.rles, truth)

What is said is scored: the union of the masks that the answer calls present against the union of the present
targets. The fields are those of samples.jsonl.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from assistant.answer import Answer
from assistant.errors import BadInput
from assistant.record import Record, record_masks
from assistant.sam.mask_ops import Rle, decode_rle, encode_rle
from eval.metrics import PROTOCOLS, Pair, boundary_f, counts, iou, normalised_counts
from eval.oracle import Atoms, oracle

# How many proposals the oracle may choose from, in their order; None: all.
ORACLE_PREFIXES = {"10": 10, "50": 50, "60": 60, "all": None}
MIN_MATCH_IOU = 0.5  # from which a mask counts as that of a target


@dataclass(frozen=True)
class Truth:
    """What a record says about its image.

    Attributes:
        masks: The masks of the present targets, (H, W) bool each.
        ignore: (H, W) bool, the pixels that do not count; None where every pixel counts.
        size: (height, width) in pixels.
    """

    masks: list[np.ndarray]
    ignore: np.ndarray | None
    size: tuple[int, int]

    @classmethod
    def of(cls, record: Record) -> Truth:
        """The truth of a record; an empty mask counts as absent, as in LLM-Seg40K.

        Raises BadInput where a mask has another size than the record says.
        """
        size = (record.height, record.width)
        rle = record.source.get("ignore")
        ignore = decode_rle(rle) if rle else None
        if ignore is not None and ignore.shape != size:
            raise BadInput(
                f"the mask to ignore is {ignore.shape[1]}x{ignore.shape[0]}, not {size[1]}x{size[0]}"
            )
        masks = [mask for mask in record_masks(record) if mask is not None and mask.any()]
        return cls(masks, ignore, size)

    @property
    def union(self) -> np.ndarray:
        """(H, W) bool: the union of the present targets."""
        return np.any(self.masks, axis=0) if self.masks else np.zeros(self.size, bool)


def score_answer(answer: Answer, truth: Truth) -> dict[str, Any]:
    """Score what an answer says; both may be empty.

    Returns:
        `pair` and `normal`: pixels counted under the "lisa" protocol, and after resizing to a square;
        `under`: the same for the other protocols, where they differ. `found`: how many targets have a mask of
        the answer at `MIN_MATCH_IOU`; `right`: how many masks of the answer have such a target. `said`:
        whether it claims anything present; `confidence`: that of its surest target; `area` and `share`: of
        the truth, in px and of the image; `boundary`: the boundary F of the whole answer, None where every
        target is absent; `answer` and `answered`: its text and its targets.
    """
    masks = [target.mask for target in answer.targets if target.present and target.mask is not None]
    prediction = answer.mask
    union = truth.union
    table = np.array([[iou(*counts(mask, other)) for other in truth.masks] for mask in masks])
    is_match = table.reshape(len(masks), len(truth.masks)) >= MIN_MATCH_IOU

    def pairs(protocol: str) -> dict[str, Pair]:
        return {
            "pair": counts(prediction, union, truth.ignore, protocol),
            "normal": normalised_counts(prediction, union, truth.ignore, protocol),
        }

    return pairs("lisa") | {
        "under": {} if truth.ignore is None else {p: pairs(p) for p in PROTOCOLS if p != "lisa"},
        "said": bool(masks),
        "confidence": max((float(target.confidence) for target in answer.targets), default=0.0),
        "area": int(union.sum()),
        "share": float(union.mean()),
        "boundary": boundary_f(prediction, union, truth.ignore) if truth.masks else None,
        "found": int(is_match.any(0).sum()),
        "right": int(is_match.any(1).sum()),
        "answer": answer.text,
        "answered": [
            {
                "phrase": target.phrase,
                "present": bool(target.present),
                "known": bool(target.known),
                "seen": bool(target.seen),
                "confidence": float(target.confidence),
                "proposals": [int(index) for index in target.proposals],
                "rle": encode_rle(target.mask) if target.present and target.mask is not None else None,
            }
            for target in answer.targets
        ],
    }


def score_oracle(rles: list[Rle], truth: Truth) -> dict[str, Any]:
    """Score the best choice among the proposals: the bound of every answer (`eval.oracle`).

    Args:
        rles: The proposals, best first.
        truth: The targets.

    Returns:
        `oracle`: {prefix: IoU} for each of `ORACLE_PREFIXES`, {} where every target is absent; `chosen` and
        `best`: the indices and masks of the best choice among all proposals; `oracle_under`: the IoUs under
        the other protocols, where they differ.
    """
    nothing: dict[str, Any] = {"oracle": {}, "chosen": []}
    if truth.ignore is None:
        return _best_choices(Atoms.of(rles, [truth.union]), rles) if truth.masks else nothing
    atoms = Atoms.of(rles, [truth.union, truth.union | truth.ignore, truth.ignore])
    counted = Atoms(atoms.proposals, atoms.targets[:1], atoms.size * ~atoms.targets[2])
    seg_zero = Atoms(atoms.proposals, atoms.targets[1:2], atoms.size)
    best = _best_choices(counted, rles) if truth.masks else nothing
    return best | {"oracle_under": {"seg-zero": _best_choices(seg_zero, rles)["oracle"]}}


def _best_choices(atoms: Atoms, rles: list[Rle]) -> dict[str, Any]:
    """The best choice for the first target of `atoms`, with each prefix of the proposals."""
    best = {name: oracle(atoms, 0, first) for name, first in ORACLE_PREFIXES.items()}
    chosen = best["all"].chosen
    return {
        "oracle": {name: choice.iou for name, choice in best.items()},
        "chosen": chosen,
        "best": [rles[k] for k in chosen],
    }
