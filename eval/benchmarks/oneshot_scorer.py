"""Scores the images of the one-shot benchmark one by one, and reads the tuned runs that are scored.

tuned = read_tuned(Path("runs/attention"), ranking)                # {0: TunedRun, ...}
scorer = ImageScorer(samples, probe, arms, tuned, propose, cache_folder)
lines = samples.each(images, key, scorer.score, is_finished=scorer.is_finished)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assistant.attention.labelled_images import LabelledImage
from assistant.attention.prompt_attention import Ranking
from assistant.errors import BadInput
from assistant.images import open_image
from assistant.pipeline import AttentionProbe
from assistant.sam.mask_ops import Rle
from assistant.weights import read_weights, sha256_of
from eval.benchmarks.oneshot_maps import AttentionArms, masks_on_grid
from eval.benchmarks.oneshot_scores import Line
from eval.label_maps import save_label_map
from eval.metrics import class_counts, packed_counts
from eval.run import Run


@dataclass(frozen=True)
class TunedRun:
    """One run of `finetune attention`.

    Attributes:
        parameters: The tuned parameters, as `AttentionProbe.restore` takes them.
        checksum: The sha256 of its file.
    """

    parameters: Mapping[str, Tensor]
    checksum: str


def read_tuned(folder: Path, ranking: Ranking) -> dict[int, TunedRun]:
    """Read the runs of `finetune attention`.

    Args:
        folder: What it wrote.
        ranking: Of the layers that it should have tuned.

    Returns:
        {number: run}.

    Raises:
        BadInput: There is none, or one was tuned for other layers.
    """
    runs = {}
    for file in sorted(folder.glob("run-*.safetensors"), key=_run_number):
        parameters, metadata = read_weights(file)
        try:
            use = [tuple(choice) for choice in json.loads(metadata["use"])]
        except (KeyError, ValueError) as error:
            raise BadInput(f"cannot read {file}: {error}") from None
        if use != ranking.use:
            raise BadInput(
                f"{file} was tuned for {use}, the ranking uses {ranking.use}: give --ranking that one"
            )
        runs[_run_number(file)] = TunedRun(parameters, sha256_of(file))
    if not runs:
        raise BadInput(f"no run-*.safetensors in --tuned {folder}; python -m finetune attention writes them")
    return runs


def _run_number(file: Path) -> int:
    """The number of a run, of its file run-NUMBER.safetensors."""
    return int(file.stem.removeprefix("run-"))


class ImageScorer:
    """Scores one image after the other, with every arm or, where a result has an image already, with new runs
    alone.

    Args:
        samples: The run, which holds the lines of an earlier call.
        probe: Reads the model's attention.
        arms: Make the label maps.
        tuned: {number: tuned run}.
        propose: The masks of an image, for a model that attends to no regions; None for no refinement.
        cache_folder: Of opened images.
    """

    def __init__(
        self,
        samples: Run,
        probe: AttentionProbe,
        arms: AttentionArms,
        tuned: dict[int, TunedRun],
        propose: Callable[[np.ndarray], list[Rle]] | None,
        cache_folder: Path,
    ):
        self.samples = samples
        self.probe = probe
        self.arms = arms
        self.tuned = tuned
        self.propose = propose
        self.cache_folder = cache_folder
        self.saved_arms = {"ranked layers", *(f"tuned {number}" for number in sorted(tuned)[:1])}

    def is_finished(self, line: Line) -> bool:
        """Whether a line of an earlier call needs nothing more; tuned runs may have been added."""
        return "error" in line or not self._missing(line)

    def score(self, image: LabelledImage) -> Line:
        """Score an image; its line of samples.jsonl. Raises BadInput where it cannot be used."""
        earlier = self.samples.done.get(image.path.name, {})
        missing = self._missing(earlier)
        truth = image.read()
        pixels = open_image(image.path)
        if truth.shape != pixels.shape[:2]:
            raise BadInput(
                f"the image is {pixels.shape[1]}x{pixels.shape[0]}, its labels "
                f"{truth.shape[1]}x{truth.shape[0]}"
            )
        opened = self.probe.open(image.path, self.cache_folder)
        masks = self._masks(opened, pixels)
        began = time.perf_counter()
        label_maps: dict[str, np.ndarray] = {}
        with torch.inference_mode(), self.probe.reusing():
            if not earlier:
                label_maps |= self.arms.training_free(opened, pixels, masks)
            parameters = {number: run.parameters for number, run in missing.items()}
            label_maps |= self.arms.tuned(opened, pixels, masks, parameters)
        line: Line = {
            "image": str(image.path),
            "seconds": time.perf_counter() - began,
            "arms": dict(earlier.get("arms", {})),
            "tuned": earlier.get("tuned", {}) | {str(k): run.checksum for k, run in missing.items()},
        }
        for arm, label_map in label_maps.items():
            line["arms"][arm] = packed_counts(class_counts(label_map, truth, self.arms.classes))
            if arm in self.saved_arms:
                save_label_map(self.samples.out / arm, image.path.stem, label_map)
        return line

    def _missing(self, line: Line) -> dict[int, TunedRun]:
        """The tuned runs that a line does not have yet."""
        known = line.get("tuned", {})
        return {number: run for number, run in self.tuned.items() if known.get(str(number)) != run.checksum}

    def _masks(self, opened: Any, image: np.ndarray) -> Tensor | None:
        """The masks that vote: the regions that the model attends to, or else SAM's proposals."""
        if self.propose is None:
            return None
        rles = self.probe.region_rles(opened)
        if rles is None:
            rles = self.propose(image)
        return masks_on_grid(rles, (image.shape[0], image.shape[1]))
