"""How good the weights in training are on records that are not learned from: which checkpoint is the best.

The LLM is given the phrases of the answer, and chooses nothing else: cheap enough for every checkpoint, and not a score to
report. That is `python -m eval records`, where the model speaks freely.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.mllm.selector import choose
from assistant.record import image_path, read_records
from finetune.mllm.mixture import Asked
from finetune.region_cache import union_iou

SHOWN = 10  # questions whose pictures are in the report


@dataclass
class Validation:
    batches: list[list[Asked]]
    shown: list[Asked]

    @classmethod
    def of(cls, file: Path, limit: int, size: int) -> "Validation":
        """At most `limit` records of a file, spread over it."""
        asked = spread(
            [Asked(r, image_path(r, file).resolve()) for r in read_records(file) if r.targets], limit
        )
        return cls([asked[i : i + size] for i in range(0, len(asked), size)], spread(asked, SHOWN))

    @property
    def images(self) -> list[Path]:
        return sorted({a.image for batch in self.batches for a in batch})

    @torch.no_grad()
    def score(self, student, read, regions_of, accelerator) -> tuple[dict[str, float], Tensor | None]:
        """Figures, and the calibration of presence on these records. score: mean over targets of the IoU of what is
        chosen (0 where it is called absent), and 1 or 0 for what is absent."""
        from accelerate.utils import gather_object

        student.eval()
        world, rank = accelerator.num_processes, accelerator.process_index
        rows, text = [], torch.zeros(2, device=accelerator.device)
        for first in range(0, len(self.batches), world):
            mine = first + rank < len(self.batches)  # all processes take as many steps
            asked = self.batches[min(first + rank, len(self.batches) - 1)]
            batch = {k: v.to(accelerator.device) for k, v in read([[a] for a in asked]).items()}
            sums, counts, extra = student(batch)
            if mine:
                text += torch.stack([sums[0], counts[0]])
                rows += targets(extra["scores"], asked, regions_of)
        rows, text = gather_object(rows), accelerator.reduce(text, "sum")
        figures, fit = judged(*(torch.tensor(x) for x in zip(*rows)))
        return figures | {"text": (text[0] / text[1]).item()}, fit


def spread(items: list, count: int) -> list:
    """At most `count` of the items, spread over them."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def judged(presence: Tensor, present: Tensor, overlap: Tensor) -> tuple[dict[str, float], Tensor]:
    """The figures of targets, with their presence calibrated on themselves, and that calibration: presence logits, which
    are there, and the IoU of what is chosen, (K,) each."""
    fit = fit_presence(presence, present)
    sure = presence * fit[0] + fit[1] > 0
    share = lambda x: x.float().mean().item()
    return {
        "score": share(torch.where(present, overlap * sure, (~sure).float())),
        "iou": share(overlap[present]),
        "T_acc": share(sure[present]),
        "N_acc": share(~sure[~present]),
    }, fit


def targets(scores, asked: list[Asked], regions_of) -> list[tuple[float, bool, float]]:
    """Of every target: presence, whether it is there, and the IoU of what is chosen for it."""
    rows, k = [], 0
    for one in asked:
        rles = regions_of(one.image).rles
        for target in one.record.targets:
            overlap = 0.0
            if target.rle and rles:
                overlap = union_iou([rles[i] for i in choose(scores, k) if i < len(rles)], target.rle)
            rows.append((float(scores.presence[k]), target.rle is not None, overlap))
            k += 1
    return rows


def fit_presence(presence: Tensor, present: Tensor) -> Tensor:
    """Scale and shift of presence logits (Platt 1999), both classes with equal weight, so that one half is the fair
    threshold. (1, 0) where one of the classes is missing."""
    if present.all() or not present.any():
        return torch.tensor([1.0, 0.0])
    part = present.float().mean()
    weight = torch.where(present, 0.5 / part.clamp(min=1e-3), 0.5 / (1 - part).clamp(min=1e-3))
    with torch.enable_grad():
        fit = torch.tensor([1.0, 0.0], requires_grad=True)
        optimizer = torch.optim.LBFGS([fit], max_iter=50, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(presence * fit[0] + fit[1], present.float(), weight)
            loss = loss + 1e-3 * fit.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return fit.detach()
