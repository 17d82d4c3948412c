"""How good the weights in training are on records that are held out; this selects the best checkpoint.

    validation = Validation.read(Path("val.jsonl"), limit=200, size=4)
    figures, calibration = validation.score(model, read_batch, regions_of, accelerator)

The LLM is given the phrases of the answer, and only presence and masks are judged. That is cheap enough for
every checkpoint, but not a score to report: `python -m eval records` gives one, where the model answers
freely.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.mllm.selector import Scores, select_proposals
from finetune.image_record import ImageRecord, read_image_records
from finetune.mllm.batches import BatchReader
from finetune.region_cache import ImageRegions, iou_of_union

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.mllm.model import LLMWithSelector

QUESTIONS_IN_REPORT = 10  # whose images and answers the report shows
CALIBRATION_DECAY = (
    1e-3  # of the squared scale and shift, which keeps both finite where the classes can be separated
)
SMALLEST_CLASS_SHARE = 1e-3  # below it the weight of a class no longer grows

Item = TypeVar("Item")


class JudgedTarget(NamedTuple):
    """What the selector says of a target, and the truth.

    Attributes:
        presence: Logit that it is in the image.
        present: Whether it is.
        iou: IoU of the selected proposals with its mask; 0 where it has none.
    """

    presence: float
    present: bool
    iou: float


@dataclass
class Validation:
    """The validation records of a run.

    Attributes:
        batches: The records in batches.
        shown: Those that the report shows.
    """

    batches: list[list[ImageRecord]]
    shown: list[ImageRecord]

    @classmethod
    def read(cls, file: Path, limit: int, size: int) -> "Validation":
        """Read at most `limit` records, evenly spaced over the file, in batches of `size`."""
        with_targets = [r for r in read_image_records(file) if r.record.targets]
        records = evenly_spaced(with_targets, limit)
        batches = [records[i : i + size] for i in range(0, len(records), size)]
        return cls(batches, evenly_spaced(records, QUESTIONS_IN_REPORT))

    @property
    def images(self) -> list[Path]:
        """The images of the records, sorted."""
        return sorted({record.image for batch in self.batches for record in batch})

    @torch.no_grad()
    def score(
        self,
        model: "LLMWithSelector",
        read_batch: BatchReader,
        regions_of: Callable[[Path], ImageRegions],
        accelerator: "Accelerator",
    ) -> tuple[dict[str, float], Tensor]:
        """Judge the weights as they are. Every process must call this.

        Args:
            model: The model in training.
            read_batch: Reads the records.
            regions_of: Gives the regions of an image file.
            accelerator: The accelerator of this run.

        Returns:
            The figures of `score_targets` with "text", the cross-entropy of the answers, and the calibration
            of presence on these records.
        """
        from accelerate.utils import gather_object

        model.eval()
        processes, rank = accelerator.num_processes, accelerator.process_index
        judged: list[JudgedTarget] = []
        text = torch.zeros(2, device=accelerator.device)
        for first in range(0, len(self.batches), processes):
            # All processes compute the same number of batches; what is beyond the end does not count.
            is_counted = first + rank < len(self.batches)
            records = self.batches[min(first + rank, len(self.batches) - 1)]
            batch = read_batch([[record] for record in records])
            output = model({k: v.to(accelerator.device) for k, v in batch.items()})
            if is_counted:
                text += torch.stack([output.sums[0], output.counts[0]])
                judged += judge_targets(output.scores, records, regions_of)
        judged = gather_object(judged)
        text = accelerator.reduce(text, "sum")
        presence, present, iou = (torch.tensor(column) for column in zip(*judged, strict=True))
        figures, calibration = score_targets(presence, present, iou)
        return figures | {"text": (text[0] / text[1]).item()}, calibration


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced over them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in places]


def score_targets(presence: Tensor, present: Tensor, iou: Tensor) -> tuple[dict[str, float], Tensor]:
    """The figures of K judged targets, with their presence calibrated on themselves.

    Args:
        presence: (K,) logits that each target is in the image.
        present: (K,) bool, whether it is.
        iou: (K,) IoU of the selected proposals with each target.

    Returns:
        The figures, and the calibration (2,) of `fit_presence`. "score" is the mean over targets of the IoU
        (0 where a target is called absent), and of 1 or 0 for absent targets; "iou" the mean IoU of the
        present ones, whatever they are called; "T_acc" and "N_acc" the shares of present and absent targets
        that are called so.
    """
    calibration = fit_presence(presence, present)
    said_present = presence * calibration[0] + calibration[1] > 0
    figures = {
        "score": _mean(torch.where(present, iou * said_present, (~said_present).float())),
        "iou": _mean(iou[present]),
        "T_acc": _mean(said_present[present]),
        "N_acc": _mean(~said_present[~present]),
    }
    return figures, calibration


def _mean(values: Tensor) -> float:
    return values.float().mean().item()


def judge_targets(
    scores: Scores | None, records: Sequence[ImageRecord], regions_of: Callable[[Path], ImageRegions]
) -> list[JudgedTarget]:
    """Judge all targets of some records.

    Args:
        scores: Of the targets, in the order of the records; None where there are none.
        records: With the true masks.
        regions_of: Gives the regions of an image file.
    """
    judged: list[JudgedTarget] = []
    for record in records:
        rles = regions_of(record.image).rles
        for target in record.record.targets:
            assert scores is not None
            k = len(judged)
            iou = 0.0
            if target.rle and rles:
                selected = [rles[i] for i in select_proposals(scores, k) if i < len(rles)]
                iou = iou_of_union(selected, target.rle)
            judged.append(JudgedTarget(float(scores.presence[k]), target.rle is not None, iou))
    return judged


def fit_presence(presence: Tensor, present: Tensor) -> Tensor:
    """Calibrate presence, so that one half is the fair threshold (Platt 1999).

    Both classes have equal weight.

    Args:
        presence: (K,) logits.
        present: (K,) bool.

    Returns:
        (2,) scale and shift of the logits; (1, 0) where one of the classes is missing.
    """
    if present.all() or not present.any():
        return torch.tensor([1.0, 0.0])
    share = present.float().mean()
    weight_present = 0.5 / share.clamp(min=SMALLEST_CLASS_SHARE)
    weight_absent = 0.5 / (1 - share).clamp(min=SMALLEST_CLASS_SHARE)
    weight = torch.where(present, weight_present, weight_absent)
    with torch.enable_grad():
        fit = torch.tensor([1.0, 0.0], requires_grad=True)
        optimizer = torch.optim.LBFGS([fit], max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(presence * fit[0] + fit[1], present.float(), weight)
            loss = loss + CALIBRATION_DECAY * fit.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return fit.detach()
