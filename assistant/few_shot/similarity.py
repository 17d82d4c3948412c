"""Where a picture looks like others with masks and like a name: what `assistant.few_shot.prompt_encoder` reads. All is frozen.

given = gather([(query, [reference, ...], "mug")], encoder, features)
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.sam.segmenter import Embedding, Segmenter

NAMELESS, NAMED = 9, 4  # maps that tell where the query is like the references, and like the name


@dataclass
class Look:
    """A picture as the matcher sees it, on a grid over SAM's square.

    patches: (C, h, w) float, compared with those of other pictures; joint: (D, h', w') float, compared with names;
    inside: (h, w) share in [0, 1] of each cell that the picture covers; embedding: SAM's.
    """

    patches: Tensor
    joint: Tensor
    inside: Tensor
    embedding: Embedding

    def core(self, width: int) -> Tensor:
        """SAM's own features (width, h, w) of unit length, on the grid of the patches. The pocket SAM packs finer maps
        behind them, so that the first `width` channels are taken, as many as a prompt has."""
        own = self.embedding.features[:, :width].float().cpu()
        return F.normalize(
            F.interpolate(own, self.inside.shape, mode="bilinear", align_corners=False)[0], dim=0
        )


@dataclass
class Reference:
    """A look and its mask: (h, w) share in [0, 1] of each cell that is inside the mask."""

    look: Look
    mask: Tensor


class Given(NamedTuple):
    """What `PromptEncoder` reads of B episodes with K references: all of it comes from frozen parts.

    maps: (B, M, h, w), where the query is like the references and like its name. The rest is on a grid of half the
    side, (a, b): query (B, C, a, b), references (B, K, C, a, b) patches; inside (B, a, b), covered and masks (B, K, a,
    b) shares of cells; query_maps (B, a, b, 1 + text), reference_maps (B, K, a, b, 1 + text), in [0, 1]; names (B, D)
    or None.
    """

    maps: Tensor
    query: Tensor
    references: Tensor
    inside: Tensor
    covered: Tensor
    masks: Tensor
    query_maps: Tensor
    reference_maps: Tensor
    names: Tensor | None

    def nameless(self) -> "Given":
        """The same for an encoder that is not told the name."""
        return self._replace(
            maps=self.maps[:, :NAMELESS],
            query_maps=self.query_maps[..., :1],
            reference_maps=self.reference_maps[..., :1],
            names=None,
        )


def cover(segmenter: Segmenter, size: tuple[int, int], mask: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """The share in [0, 1] of each cell of a grid (h, w) over SAM's square that `mask` (H, W) bool of a picture of
    `size` covers: the square's transform is that of the picture (`Segmenter.input_size`)."""
    height, width = segmenter.input_size(size)
    rows, columns = (cells(of, used, segmenter.side, n) for of, used, n in zip(size, (height, width), grid))
    return (rows @ torch.as_tensor(mask, dtype=torch.float32) @ columns.T).clamp(0, 1)


def cells(pixels: int, used: int, side: int, n: int) -> Tensor:
    """(n, pixels): how much of each of n cells along the square's side each pixel of the picture covers."""
    edges = torch.arange(pixels + 1, dtype=torch.float64) * used / pixels * n / side  # of pixels, in cells
    line = torch.arange(n, dtype=torch.float64)[:, None]
    overlap = torch.minimum(edges[1:], line + 1) - torch.maximum(edges[:-1], line)
    return overlap.clamp(min=0).float()


def likeness(
    query: Tensor, references: Tensor, masks: Tensor, covered: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where a query (B, C, h, w) looks like K references (B, K, C, h, w), all of unit length -> (B, h, w) four times.

    The cosine with the best cell inside any mask (VRP-SAM's pseudo mask); the cosine with the mean inside less that
    with the mean outside (PANet, Wang et al. 2019, arXiv 1908.06391); and this again, `relative` to the references'
    own. The last two need no training to be used.
    """
    b, k, c, h, w = references.shape
    r = references.transpose(1, 2).flatten(2)  # B, C, K * n
    inner = masks.flatten(1)  # B, K * n
    outer = (covered.flatten(1) - inner).clamp(min=0)
    chosen = inner >= (inner.amax(1, keepdim=True) * 0.6).clamp(max=0.5)  # something small fills no cell
    inside = [cells[:, c] for cells, c in zip(r, chosen)]
    best = torch.stack([(some.T @ x.flatten(1)).amax(0) for x, some in zip(query, inside)])
    mean = lambda weight: F.normalize((r @ weight[..., None])[..., 0], dim=1)
    direction = mean(inner) - mean(outer)
    contrast = torch.einsum("bchw,bc->bhw", query, direction)
    return (
        best.view(b, h, w),
        contrast,
        *relative(contrast, torch.einsum("bcn,bc->bn", r, direction), inner, outer),
    )


def relative(query: Tensor, own: Tensor, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """A map (B, h, w) of a query, scaled so that the references' own (B, N) is 1 on average where they are masked
    (weights inner, outer (B, N)), 0 where not, within [-1, 2]; and, everywhere the same, how far these two were apart:
    a map that does not tell the references' inside from their outside tells nothing of the query."""
    mean = lambda weight: (own * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
    low, high = mean(outer)[:, None, None], mean(inner)[:, None, None]
    level = (query - low) / (high - low).abs().clamp(min=0.02)
    return level.clamp(-1, 2), (high - low).expand_as(query)


def scaled(x: Tensor, inside: Tensor) -> Tensor:
    """Maps (..., h, w) brought to [0, 1] over the cells that the picture covers; 0 elsewhere."""
    there = inside > 0
    low = x.masked_fill(~there, torch.inf).amin((-1, -2), keepdim=True)
    high = x.masked_fill(~there, -torch.inf).amax((-1, -2), keepdim=True)
    return ((x - low) / (high - low).clamp(min=1e-6)).masked_fill(~there, 0)


def attention_map(joint: Tensor, name: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cosine of a name (D,) with each place of joint (D, h', w') -> (h, w)."""
    cosine = torch.einsum("dhw,d->hw", F.normalize(joint.float(), dim=0), F.normalize(name, dim=0))
    return F.interpolate(cosine[None, None], grid, mode="bilinear", align_corners=False)[0, 0]


@torch.no_grad()
def gather(episodes: list[tuple[Look, list[Reference], str | None]], encoder, features) -> Given:
    """Episodes with as many references each -> `Given`. encoder: a `PromptEncoder`; features: see `frozen_features`."""
    queries, several, labels = zip(*episodes)
    grid = queries[0].patches.shape[-2:]
    unit = lambda looks: encoder.unit(torch.stack([look.patches.float() for look in looks]))
    own = lambda looks: torch.stack([look.core(encoder.settings["prompt"]) for look in looks])
    each = lambda of: torch.stack([torch.stack([of(r) for r in some]) for some in several])
    looks = lambda of: torch.stack([of([r.look for r in some]) for some in several])
    query, others, inside = unit(queries), looks(unit), torch.stack([q.inside for q in queries])
    masks, covered = each(lambda r: r.mask), each(lambda r: r.look.inside)
    best, contrast, level, gap = likeness(query, others, masks, covered)
    _, contrast2, level2, gap2 = likeness(own(queries), looks(own), masks, covered)
    maps = [best, scaled(best, inside), contrast * 4, level, contrast2 * 4, level2, gap, gap2, inside]
    seen, shown, names = [scaled(best, inside)], [masks], None
    if encoder.settings["text"]:
        names = torch.stack([features.words(label) for label in labels])
        heat = torch.stack([attention_map(q.joint, n, grid) for q, n in zip(queries, names)])
        heats = torch.stack(
            [
                torch.stack([attention_map(r.look.joint, n, grid) for r in some])
                for some, n in zip(several, names)
            ]
        )
        inner = masks.flatten(1)
        level, gap = relative(heat, heats.flatten(1), inner, (covered.flatten(1) - inner).clamp(min=0))
        maps += [heat * 10, scaled(heat, inside), level, gap * 10]
        seen, shown = [*seen, scaled(heat, inside)], [*shown, scaled(heats, covered)]
    side = [max(1, n // 2) for n in grid]
    half = lambda x: F.adaptive_avg_pool2d(x.flatten(0, -3)[:, None], side)[:, 0].unflatten(0, x.shape[:-2])
    return Given(
        torch.stack(maps, 1) * inside[:, None],
        F.normalize(half(query * inside[:, None]), dim=1),
        F.normalize(half(others * covered[:, :, None]), dim=2),
        half(inside),
        half(covered),
        half(masks),
        torch.stack([half(m) for m in seen], -1),
        torch.stack([half(m) for m in shown], -1),
        names,
    )
