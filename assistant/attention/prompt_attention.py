"""What an attention probe reads of an image, and which of it `assistant.attention.maps.attend` follows."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from assistant.errors import BadInput
from assistant.files import replace_whole


class PlaceMap(Protocol):
    """Where the N places that a model attends to lie in the image."""

    def spread(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Values (K, N) of the places -> maps (K, H, W) of the image's pixels, size = (H, W)."""


@dataclass
class PromptAttention:
    """What P prompts look at in one picture of N places.

    scores: (P, L, H, N) float32, attention before the softmax, mean over a prompt's words, of the L layers in `layers`
    and their H heads. match: (P,) in [0, 1], does the prompt fit the picture at all. place: has
    `spread((K, N), (H, W)) -> (K, H, W)`, from places to pixels.
    """

    scores: Tensor
    match: Tensor
    layers: list[int]
    place: PlaceMap


@dataclass
class Ranking:
    """Layers [(layer, InfoScore)] and heads [(layer, head, InfoScore)], best first; use: (layer, head or None) of what
    `attend` averages, None = the strongest head at each place."""

    layers: list[tuple[int, float]]
    heads: list[tuple[int, int, float]]
    use: list[tuple[int, int | None]]
    photos: int = 0
    prompts: int = 0
    about: dict = field(default_factory=dict)

    def save(self, file: Path) -> None:
        with replace_whole(file) as path:
            path.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, file: Path) -> "Ranking":
        """BadInput: no ranking in that file."""
        try:
            found = cls(**json.loads(Path(file).read_text()))
            for name in ("layers", "heads", "use"):
                setattr(found, name, [tuple(row) for row in getattr(found, name)])
            if not found.use or not all(len(u) == 2 for u in found.use):
                raise ValueError("it names no layer to use")
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(
                f"{file} holds no ranking of layers; write one with python -m assistant rank-layers ({error})"
            ) from None
        return found
