"""What the probes of transformers' models share: places on grids, word embeddings that may be tuned, and tuning itself."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.attention.prompt_attention import Ranking
from assistant.errors import BadInput
from assistant.images import open_image

NO_ATTENTION = (
    "this model exposes no attention: load it with attn_implementation='eager' or 'sdpa' in a version of "
    "transformers that lets attention be exchanged (flash attention keeps no scores)"
)
BATCH = 16  # prompts at once


@dataclass
class ProbedImage:
    """An image as these probes take it; any object with an `image` does. image: (H, W, 3) uint8."""

    image: np.ndarray


class Planes:
    """Grids of places over a picture: [(index (h, w) into the N places, share of its height and width that is
    picture)]."""

    def __init__(self, planes: list[tuple[Tensor, tuple[float, float]]]):
        self.planes = planes

    def spread(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """(K, N) -> (K, H, W): bilinear, the mean of the grids."""
        maps = []
        for index, (high, wide) in self.planes:
            full = [max(side, round(side / part)) for side, part in zip(size, (high, wide))]
            grid = values[:, index.to(values.device)][None]
            drawn = F.interpolate(grid, full, mode="bilinear", align_corners=False)[0]
            maps.append(drawn[:, : size[0], : size[1]])
        return torch.stack(maps).mean(0)


class WordRows:
    """Embeddings of some tokens in place of the model's own while a looker looks; rows: {token: (W,)}."""

    def __init__(self, embedding: nn.Module):
        self.embedding, self.rows = embedding, {}

    @contextlib.contextmanager
    def active(self):
        handle = self.embedding.register_forward_hook(self._replace) if self.rows else None
        try:
            yield
        finally:
            if handle:
                handle.remove()

    def _replace(self, module, args, out: Tensor) -> Tensor:
        for token, row in self.rows.items():
            out = torch.where((args[0] == token)[..., None], row.to(out.dtype), out)
        return out


class TransformersProbe:
    """What the two kinds share. layers: how many; `attention_modules()[l]` is what tuning trains of layer l. A view is
    the picture (H, W, 3) uint8, or has it as `image`. Without a ranking all layers are averaged."""

    ranking: Ranking | None = None

    def open(self, image, cache_folder: Path | None = None) -> ProbedImage:
        """An image as `attention` takes it; nothing is stored. BadInput: there is no image."""
        return ProbedImage(open_image(image))

    def reusing(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is reused: what these models read is not stored."""
        return contextlib.nullcontext()

    def size(self, view) -> tuple[int, int]:
        return view.image.shape[:2]

    def region_rles(self, view) -> list[dict] | None:
        """COCO RLE of the view's regions; None: what is looked at is a grid."""
        return None

    def chosen(self, layers: list[int] | None) -> list[int]:
        layers = list(range(self.layers)) if layers is None else sorted(layers)
        if layers[0] < 0 or layers[-1] >= self.layers:
            raise BadInput(f"there is no layer {layers[-1]}: this model has {self.layers}")
        return layers

    def tunable_attention(self, layers: list[int]) -> dict[str, nn.Parameter]:
        """What one-shot tuning trains first: the attention of `layers`, in the model itself. The rest is frozen.
        `restore({})` takes it back."""
        self.model.requires_grad_(False)
        found = {}
        for k in self.chosen(layers):
            for name, parameter in self.attention_modules()[k].named_parameters():
                self.own.setdefault(f"layers.{k}.{name}", parameter.detach().clone())
                found[f"layers.{k}.{name}"] = parameter.requires_grad_(True)
        return found

    def tunable_words(self, prompts: list[str]) -> dict[str, nn.Parameter]:
        """What it trains then: embeddings of the prompts' tokens."""
        table = self.model.get_input_embeddings().weight.detach()
        tokens = sorted({t for p in prompts for t in self.tokens(p)})
        self.words.rows = {t: nn.Parameter(table[t].clone()) for t in tokens}
        return {f"rows.{t}": p for t, p in self.words.rows.items()}

    def restore(self, tuned: dict[str, Tensor]) -> None:
        """Take over what the two named; {} gives back the model's own."""
        self.words.rows = {int(name[5:]): value for name, value in tuned.items() if name.startswith("rows.")}
        before = dict(self.own)
        for name, value in (before | {n: v for n, v in tuned.items() if n.startswith("layers.")}).items():
            _, k, *rest = name.split(".")
            parameter = self.attention_modules()[int(k)].get_parameter(".".join(rest))
            self.own.setdefault(name, parameter.detach().clone())
            parameter.data.copy_(value)
