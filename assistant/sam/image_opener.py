"""Opens an image with any SAM: its encoding and the masks of everything mode.

opener = SamImageOpener(OfficialSegmenter.from_checkpoint("sam_vit_h_4b8939.pth", device="cuda"))
opened = opener.open(image)                  # opened.embedding, opened.proposals, opened.image
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from assistant.sam.proposals import Proposals, everything
from assistant.sam.segmenter import Embedding, Segmenter

# Called before each step of opening an image with the name of the step ("encoding", "proposing" or
# "recognising") and the proposals as far as they are known. What it raises ends the work.
Progress = Callable[[str, Proposals | None], None]

MAX_PROPOSALS = 100  # of an image
POINTS_PER_SIDE = 32  # of the grid of clicks


@dataclass
class SamOpenedImage:
    """An opened image, for the pipelines of `assistant.mllm`.

    Attributes:
        embedding: SAM's encoding.
        proposals: The masks of everything mode, best first.
        image: (H, W, 3) uint8 RGB.
        cache: What a pipeline has made of the image, by name, so that later questions need not make it again.
    """

    embedding: Embedding
    proposals: Proposals
    image: np.ndarray
    cache: dict[str, Any] = field(default_factory=dict, repr=False)


class SamImageOpener:
    """Opens images with one SAM.

    Args:
        segmenter: Any SAM.
        max_proposals: Number of proposals at most.
        settings: Of `assistant.sam.proposals.everything`. By default its fast way, because people wait while
            an image is opened.
    """

    def __init__(self, segmenter: Segmenter, max_proposals: int = MAX_PROPOSALS, **settings: Any):
        self.segmenter = segmenter
        self.settings = {
            "fast": True,
            "points_per_side": POINTS_PER_SIDE,
            "max_proposals": max_proposals,
        } | settings

    def propose(self, image: np.ndarray, progress: Progress | None = None) -> tuple[Embedding, Proposals]:
        """Encode an image (H, W, 3) uint8 RGB and run everything mode on it; see `pipeline.ImageOpener`."""
        if progress:
            progress("encoding", None)
        embedding = self.segmenter.encode(image)
        if progress:
            progress("proposing", None)
        return embedding, everything(self.segmenter, embedding, image=image, **self.settings)

    def open(self, image: np.ndarray, progress: Progress | None = None) -> SamOpenedImage:
        """Open an image (H, W, 3) uint8 RGB; see `pipeline.ImageOpener`."""
        return SamOpenedImage(*self.propose(image, progress), image)
