"""Which proposals are meant: a [SEG] state against the regions of one picture.

LLM-Seg (Wang et al. 2024, arXiv 2404.08767) scores each proposal by cosine to the [SEG] query and by
IoP, the share of the proposal that lies inside the target; the union of proposals with IoP above one
half is the mask. Here the regions also see each other and the query (self-attention with geometry), so
that "the cup on the left" can be one of three cups, and a third head says whether the target is there
at all: best similarity alone cannot tell, since something is always the most similar.

    scores = selector(states, regions, shapes, named)     # one picture, M targets, N proposals
    chosen = choose(scores, k)                     # indices whose union is target k's mask
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 0.05  # of the alignment softmax, as LLM-Seg
NAMED, MATCH = 2, 4  # figures on the name, and on the fit in all, of each region
# What a proposal is worth to a target: log IoP + CLOSE x similarity + WHOLE x log quality; all within NEAR of the best
# make the union, and all whose IoP is above SURE and that are not FAR below the best.
CLOSE, WHOLE, NEAR, SURE, FAR = 3.0, 0.3, 0.7, 0.8, 2.0


class Scores(NamedTuple):
    similarity: Tensor  # (M, N) cosine in [-1, 1]
    iop: Tensor  # (M, N) logits of the share of the proposal inside the target
    presence: Tensor  # (M,) logits of "the target is in the picture"
    quality: Tensor  # (M, N) log-probability that the proposal is a whole thing, well outlined


class LayerNorm(nn.LayerNorm):
    """In float32, whatever its weights are kept in: CPUs refuse to mix what GPUs mix."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )


class Block(nn.Module):
    """Pre-norm transformer block over [query, regions] of one target."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, ignored: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, key_padding_mask=ignored, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Selector(nn.Module):
    """state_dim: size of a [SEG] state; region_dim: size of a region's embedding; shape_dim: of its geometry."""

    def __init__(
        self,
        state_dim: int,
        region_dim: int,
        shape_dim: int,
        width: int = 192,
        depth: int = 2,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.config = {
            "state_dim": state_dim,
            "region_dim": region_dim,
            "shape_dim": shape_dim,
            "width": width,
            "depth": depth,
            "dropout": dropout,
        }
        self.query = nn.Sequential(
            LayerNorm(state_dim),
            nn.Linear(state_dim, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )
        self.region = nn.Sequential(LayerNorm(region_dim), nn.Dropout(dropout), nn.Linear(region_dim, width))
        self.shape = nn.Sequential(nn.Linear(shape_dim, 64), nn.GELU(), nn.Linear(64, width))
        self.match = nn.Linear(MATCH, width)  # how well each region fits, told to it
        self.blocks = nn.ModuleList(Block(width, 4, dropout) for _ in range(depth))
        self.norm = LayerNorm(width)
        head = lambda inputs: nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, 1))
        self.refine, self.iop, self.presence = head(width), head(width + MATCH), head(width + 3 + NAMED)
        self.register_buffer(
            "calibration", torch.tensor([1.0, 0.0])
        )  # presence = a x + b, fitted on photos kept aside

    def forward(
        self,
        states: Tensor,
        regions: Tensor,
        shapes: Tensor,
        named: Tensor | None = None,
        margin: Tensor | None = None,
        ignored: Tensor | None = None,
        quality: Tensor | None = None,
    ) -> Scores:
        """states (M, state_dim); regions (N, region_dim) shared by the targets or (M, N, region_dim); shapes alike
        (.., N, shape_dim); named (M, N, 2): how well each region bears the target's name, as a scaled cosine and as a
        log-probability among the known names, 0 if unknown; margin (M,) log p([SEG]) - log p([ABS]) of the LLM, 0 if
        unknown; ignored (M, N) True = pad; quality (M, N) or (N,) logits that the proposal is a whole thing, 0 if unknown."""
        m = len(states)
        if regions.ndim == 2:
            regions, shapes = regions.expand(m, -1, -1), shapes.expand(m, -1, -1)
        ignored = (
            torch.zeros(regions.shape[:2], dtype=torch.bool, device=regions.device)
            if ignored is None
            else ignored
        )
        query, region = self.query(states), self.region(regions)
        cosine = F.cosine_similarity(query[:, None], region, dim=-1)
        best = cosine.masked_fill(ignored, -1).amax(1, keepdim=True)
        named = torch.zeros(*cosine.shape, NAMED, device=cosine.device) if named is None else named
        match = torch.cat([torch.stack([cosine * 5, (cosine - best) * 5], -1), named], -1)
        x = torch.cat([query[:, None], region + self.shape(shapes) + self.match(match)], 1)
        pad = torch.cat([torch.zeros_like(ignored[:, :1]), ignored], 1)
        for block in self.blocks:
            x = block(x, pad)
        x = self.norm(x)
        similarity = torch.tanh(cosine + 0.2 * self.refine(x[:, 1:])[..., 0])
        iop = self.iop(torch.cat([x[:, 1:], match], -1))[..., 0]
        margin = torch.zeros(m, device=states.device) if margin is None else margin
        top = torch.stack(
            [best[:, 0] * 5, iop.masked_fill(ignored, -20).amax(1).clamp(-8, 8), margin.clamp(-8, 8)], 1
        )
        fits = named.masked_fill(ignored[..., None], -8).amax(1)
        presence = (
            self.presence(torch.cat([x[:, 0], top, fits], 1))[:, 0] * self.calibration[0]
            + self.calibration[1]
        )
        quality = torch.zeros_like(iop) if quality is None else F.logsigmoid(quality).expand_as(iop)
        return Scores(similarity.masked_fill(ignored, -1), iop.masked_fill(ignored, -20), presence, quality)


def worth(scores: Scores, k: int) -> Tensor:
    """(N,) what `choose` ranks the proposals of target k by, higher is better."""
    return F.logsigmoid(scores.iop[k]) + CLOSE * scores.similarity[k] + WHOLE * scores.quality[k]


def choose(scores: Scores, k: int) -> list[int]:
    """Proposals of target k, best first: the best one, all that are nearly as good, and those that surely lie inside it.

    Set on the training pictures that `finetune records` keeps aside: IoU .334 with the best and its like alone, .367 with
    all that surely lie inside (862 targets); FAR changes nothing there (.394 of 833), but where one thing fills the picture
    the selector is sure of its background too.
    """
    value = worth(scores, k)
    order = torch.argsort(value, descending=True)
    below = value[order[0]] - value
    inside = scores.iop[k].sigmoid() > SURE
    return [int(i) for i in order if below[i] < NEAR or (inside[i] and below[i] < FAR)]


def runners_up(scores: Scores, k: int, chosen: list[int], count: int = 24) -> list[int]:
    """The next best proposals of target k after the chosen ones, best first: for "not that one"."""
    return [int(i) for i in torch.argsort(worth(scores, k), descending=True) if int(i) not in chosen][:count]


def reachable(present: Tensor, iou: Tensor) -> Tensor:
    """Of M targets, those that are there and that some proposal shows at all: (M,) bool of (M,) bool and (M, N)."""
    return present & (iou.amax(1) > 0.1)


def selection_losses(
    scores: Scores, iou: Tensor, iop: Tensor, present: Tensor, ignored: Tensor, hard: int = 0
) -> dict[str, Tensor]:
    """LLM-Seg's alignment and IoP losses, and presence.

    iou, iop: (M, N) of each proposal with each target in [0, 1]; present: (M,) bool; ignored: (M, N) bool.
    align: KL(softmax(iou / T) || softmax(similarity / T)); iop: cross-entropy with the share as soft label,
    weighted towards proposals that touch the target, and the `hard` outside of it that it takes most for its own;
    presence: cross-entropy. Absent targets train the last two.
    """
    p = (iou / TEMPERATURE).masked_fill(ignored, -1e4).softmax(1)
    q = (scores.similarity / TEMPERATURE).masked_fill(ignored, -1e4).log_softmax(1)
    align = (p * (p.clamp(min=1e-8).log() - q)).sum(1)
    usable = reachable(present, iou)
    align = (align * usable).sum() / usable.sum().clamp(min=1)
    weight = (~ignored) * (0.3 + iop + (iop > 0.5))
    if hard:
        outside = scores.iop.detach().masked_fill(ignored | (iop > 0.1), -torch.inf)
        worst, where = outside.topk(min(hard, outside.shape[1]), dim=1)
        weight = weight.scatter_add(1, where, worst.isfinite().float())
    error = F.binary_cross_entropy_with_logits(scores.iop, iop, reduction="none")
    inside = ((error * weight).sum(1) / weight.sum(1).clamp(min=1e-6)).mean()
    presence = F.binary_cross_entropy_with_logits(scores.presence, present.float())
    return {"align": align, "iop": inside, "presence": presence}
