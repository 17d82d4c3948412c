"""How a picture is opened for a model that is not the pocket preset's: any SAM, all its masks, the picture itself.

eyes = Eyes(Segmenter.official("sam_vit_h_4b8939.pth", device="cuda"))
view = eyes.open(image)                      # view.embedding, view.proposals, view.image
"""

from dataclasses import dataclass, field

import numpy as np

from assistant.sam.proposals import Proposals, everything
from assistant.sam.segmenter import Embedding, Segmenter

LIMIT = 100  # proposals
CLICKS = 32  # a side


@dataclass
class View:
    """A picture, opened. image: (H, W, 3) uint8; made: what a reader of the view has made of it, to make it once."""

    embedding: Embedding
    proposals: Proposals
    image: np.ndarray
    made: dict = field(default_factory=dict, repr=False)


class Eyes:
    """settings: of `assistant.sam.proposals.everything`; by default its fast way, as pictures are opened while people wait."""

    def __init__(self, segmenter: Segmenter, limit: int = LIMIT, **settings):
        self.segmenter, self.settings = (
            segmenter,
            {"fast": True, "points_per_side": CLICKS, "max_proposals": limit} | settings,
        )

    def look(self, image: np.ndarray, progress=None) -> tuple[Embedding, Proposals]:
        step = progress or (lambda doing, proposals: None)
        step("looking", None)
        embedding = self.segmenter.encode(image)
        step("outlining", None)
        return embedding, everything(self.segmenter, embedding, image=image, **self.settings)

    def open(self, image: np.ndarray, progress=None) -> View:
        """image: (H, W, 3) uint8 RGB; progress: as `Assistant.open`."""
        return View(*self.look(image, progress), image)


class PocketEyes(Eyes):
    """The pocket SAM, whose proposals are made another way."""

    def __init__(self, sam_file):
        from assistant.pocket.pipeline import load_eyes

        self.pocket = load_eyes(sam_file)
        super().__init__(self.pocket.segmenter)

    def look(self, image: np.ndarray, progress=None) -> tuple[Embedding, Proposals]:
        return self.pocket.look(image, progress)
