"""What an attention probe reads of an image, and the ranking of layers that attention maps are made of.

attention = probe.attention(opened, ["mug", "sky"])
attention.scores                                            # (2, layers, heads, places)
attention.places.to_pixels(values, (height, width))         # from places to the image's pixels
probe.ranking = Ranking.load(Path("ranking.json"))
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from assistant.errors import BadInput
from assistant.files import replace_whole

# A layer, and one of its heads or None for the strongest head at each place.
LayerChoice = tuple[int, int | None]


class PlaceMap(Protocol):
    """Where the N places that a model attends to lie in the image."""

    def to_pixels(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Draw maps of the places on the image.

        Args:
            values: (K, N) float, K maps.
            size: (H, W) px, the size of the result.

        Returns:
            (K, H, W) float.
        """


@dataclass
class PromptAttention:
    """What P prompts attend to in one image of N places.

    Attributes:
        scores: (P, L, H, N) float32, attention before the softmax of L layers with H heads each, the mean
            over a prompt's tokens.
        match: (P,) float in [0, 1], how well each prompt matches the image as a whole.
        layers: The L layers, in the order of `scores`.
        places: Where the N places lie.
    """

    scores: Tensor
    match: Tensor
    layers: list[int]
    places: PlaceMap


def checked_layers(layers: list[int] | None, count: int) -> list[int]:
    """Check which layers of a model with `count` layers are asked for.

    Args:
        layers: The layers; None for all.
        count: Number of layers of the model.

    Returns:
        The layers in ascending order.

    Raises:
        BadInput: The model does not have one of them.
    """
    if layers is None:
        return list(range(count))
    in_order = sorted(layers)
    if in_order[0] < 0 or in_order[-1] >= count:
        raise BadInput(f"there is no layer {in_order[-1]}: this model has {count}")
    return in_order


@dataclass
class Ranking:
    """Which layers and heads of a model attend to what they read.

    Attributes:
        layers: (layer, InfoScore), best first.
        heads: (layer, head, InfoScore), best first.
        use: The layers or heads that `assistant.attention.maps.attend` averages.
        images: Number of images that were ranked on.
        prompts: Number of prompts that were ranked on.
        about: What else is worth knowing, such as the model's name.
    """

    layers: list[tuple[int, float]]
    heads: list[tuple[int, int, float]]
    use: list[LayerChoice]
    images: int = 0
    prompts: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def used_layers(self) -> list[int]:
        """The layers of `use`, each once, in ascending order."""
        return sorted({layer for layer, _ in self.use})

    def save(self, file: Path) -> None:
        """Write the ranking as JSON."""
        content = {
            "layers": self.layers,
            "heads": self.heads,
            "use": self.use,
            "photos": self.images,
            "prompts": self.prompts,
            "about": self.about,
        }
        with replace_whole(file) as path:
            path.write_text(json.dumps(content) + "\n")

    @classmethod
    def load(cls, file: Path) -> Ranking:
        """Read a ranking that `save` wrote. Raises BadInput where the file holds none."""
        try:
            content = json.loads(Path(file).read_text())
            ranking = cls(
                layers=[(layer, score) for layer, score in content["layers"]],
                heads=[(layer, head, score) for layer, head, score in content["heads"]],
                use=[(layer, head) for layer, head in content["use"]],
                images=content.get("photos", 0),
                prompts=content.get("prompts", 0),
                about=content.get("about", {}),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _no_ranking(file, f"{type(error).__name__}: {error}") from None
        if not ranking.use:
            raise _no_ranking(file, "it names no layer to use")
        return ranking


def _no_ranking(file: Path, reason: str) -> BadInput:
    return BadInput(
        f"{file} holds no ranking of layers; write one with python -m assistant rank-layers ({reason})"
    )
