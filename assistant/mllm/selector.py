"""Which proposals are meant: a [SEG] state against the regions of an image.

LLM-Seg (Wang et al. 2024, arXiv 2404.08767) scores each proposal by its cosine to the [SEG] query and by IoP,
the share of the proposal that lies inside the target; the union of the proposals whose IoP is above one half
is the mask. Here the regions also attend to each other and to the query (self-attention with geometry), so
that "the cup on the left" can be one of three cups. A third head says whether the target is in the image at
all: the best similarity alone cannot tell, since some proposal is always the most similar.

    scores = selector(states, regions, shapes, name_match)     # an image, M targets, N proposals
    selected = select_proposals(scores, k)                     # indices whose union is the mask of target k
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 0.05  # of the alignment softmax, as LLM-Seg
NAME_FEATURES = 2  # how well a region bears the target's name: a scaled cosine and a log-probability
MATCH_FEATURES = 2 + NAME_FEATURES  # with the cosine to the query, and its distance to the best one
TOP_FEATURES = 3  # of the best proposal, which the presence head reads
COSINE_SCALE = 5  # of cosines among the features, which are then of the size of the others
MAX_REFINEMENT = 0.2  # how much self-attention adds to the cosine, per unit of its output
SHAPE_WIDTH = 64  # of the geometry's hidden layer
ATTENTION_HEADS = 4

# What excludes padding: a cosine, an IoP logit and a name score that no real proposal falls below.
IGNORED_SIMILARITY = -1.0
IGNORED_IOP = -20.0
IGNORED_NAME = -8.0
MAX_LOGIT = 8.0  # of the logits among the features

# The ranking score of a proposal is log IoP + SIMILARITY_WEIGHT x similarity + QUALITY_WEIGHT x log quality.
SIMILARITY_WEIGHT = 3.0
QUALITY_WEIGHT = 0.3
# The mask is the union of the proposals within UNION_MARGIN of the best ranking score, and of those that
# surely lie inside the target (IoP above SURE_IOP) within MAX_MARGIN of it.
UNION_MARGIN = 0.7
SURE_IOP = 0.8
MAX_MARGIN = 2.0

MAX_ALTERNATIVES = 24  # next best proposals that are offered for "not that one"
MIN_REACHABLE_IOU = 0.1  # below it no proposal shows the target
IOP_BASE_WEIGHT = 0.3  # in the IoP loss, of a proposal that does not touch the target


class Scores(NamedTuple):
    """What the selector says of M targets and N proposals.

    Attributes:
        similarity: (M, N) cosine in [-1, 1].
        iop: (M, N) logits of the share of the proposal that lies inside the target.
        presence: (M,) logits that the target is in the image.
        quality: (M, N) log-probability that the proposal is a whole object, well outlined.
    """

    similarity: Tensor
    iop: Tensor
    presence: Tensor
    quality: Tensor


class LayerNorm(nn.LayerNorm):
    """Computed in float32 whatever the precision of its weights: CPUs do not mix precisions as GPUs do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )


class Block(nn.Module):
    """A pre-norm transformer block over [query, regions] of one target."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, ignored: Tensor) -> Tensor:
        """x: (M, L, width); ignored: (M, L) bool, True for padding."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y, key_padding_mask=ignored, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def _head(inputs: int, width: int) -> nn.Sequential:
    """A head with one output."""
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, 1))


class Selector(nn.Module):
    """Scores proposals against the states of [SEG] and [ABS].

    Args:
        state_dim: Size of a state.
        region_dim: Size of the embedding of a region.
        shape_dim: Size of the geometry of a region.
        width: Of the transformer.
        depth: Number of its blocks.
        dropout: Share of the activations that are dropped in training.

    Attributes:
        config: These arguments.
        calibration: (2,) scale and shift of the presence logits, fitted on held-out images.
    """

    calibration: Tensor

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
        self.shape = nn.Sequential(
            nn.Linear(shape_dim, SHAPE_WIDTH), nn.GELU(), nn.Linear(SHAPE_WIDTH, width)
        )
        self.match = nn.Linear(MATCH_FEATURES, width)  # tells each region how well it fits
        self.blocks = nn.ModuleList(Block(width, ATTENTION_HEADS, dropout) for _ in range(depth))
        self.norm = LayerNorm(width)
        self.refine = _head(width, width)
        self.iop = _head(width + MATCH_FEATURES, width)
        self.presence = _head(width + TOP_FEATURES + NAME_FEATURES, width)
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))

    def forward(
        self,
        states: Tensor,
        regions: Tensor,
        shapes: Tensor,
        name_match: Tensor | None = None,
        margin: Tensor | None = None,
        ignored: Tensor | None = None,
        quality: Tensor | None = None,
    ) -> Scores:
        """Score N proposals for M targets.

        Args:
            states: (M, state_dim) float, the states that predict the markers.
            regions: (N, region_dim) float embeddings of the proposals, or (M, N, region_dim) for each target
                its own.
            shapes: (N, shape_dim) or (M, N, shape_dim) float geometry of the proposals.
            name_match: (M, N, 2) float, how well each region bears the target's name: a scaled cosine, and a
                log-probability among the known names; None or 0 where it is unknown.
            margin: (M,) float, log p([SEG]) - log p([ABS]) of the LLM; None or 0 where it is unknown.
            ignored: (M, N) bool, True for padding; None for none.
            quality: (M, N) or (N,) logits that a proposal is a whole object; None where it is unknown.
        """
        count = len(states)
        if regions.ndim == 2:
            regions = regions.expand(count, -1, -1)
            shapes = shapes.expand(count, -1, -1)
        if ignored is None:
            ignored = torch.zeros(regions.shape[:2], dtype=torch.bool, device=regions.device)
        query = self.query(states)
        region = self.region(regions)
        cosine = F.cosine_similarity(query[:, None], region, dim=-1)
        best = cosine.masked_fill(ignored, IGNORED_SIMILARITY).amax(1, keepdim=True)
        if name_match is None:
            name_match = torch.zeros(*cosine.shape, NAME_FEATURES, device=cosine.device)
        query_match = torch.stack([cosine * COSINE_SCALE, (cosine - best) * COSINE_SCALE], -1)
        match = torch.cat([query_match, name_match], -1)
        x = torch.cat([query[:, None], region + self.shape(shapes) + self.match(match)], 1)
        padding = torch.cat([torch.zeros_like(ignored[:, :1]), ignored], 1)
        for block in self.blocks:
            x = block(x, padding)
        x = self.norm(x)
        similarity = torch.tanh(cosine + MAX_REFINEMENT * self.refine(x[:, 1:])[..., 0])
        iop = self.iop(torch.cat([x[:, 1:], match], -1))[..., 0]
        if margin is None:
            margin = torch.zeros(count, device=states.device)
        top = torch.stack(
            [
                best[:, 0] * COSINE_SCALE,
                iop.masked_fill(ignored, IGNORED_IOP).amax(1).clamp(-MAX_LOGIT, MAX_LOGIT),
                margin.clamp(-MAX_LOGIT, MAX_LOGIT),
            ],
            1,
        )
        best_name = name_match.masked_fill(ignored[..., None], IGNORED_NAME).amax(1)
        presence = self.presence(torch.cat([x[:, 0], top, best_name], 1))[:, 0]
        return Scores(
            similarity.masked_fill(ignored, IGNORED_SIMILARITY),
            iop.masked_fill(ignored, IGNORED_IOP),
            presence * self.calibration[0] + self.calibration[1],
            torch.zeros_like(iop) if quality is None else F.logsigmoid(quality).expand_as(iop),
        )


def ranking_score(scores: Scores, k: int) -> Tensor:
    """(N,) float, by which the proposals are ranked for target k; higher is better."""
    return (
        F.logsigmoid(scores.iop[k])
        + SIMILARITY_WEIGHT * scores.similarity[k]
        + QUALITY_WEIGHT * scores.quality[k]
    )


def select_proposals(scores: Scores, k: int) -> list[int]:
    """The proposals whose union is the mask of target k.

    They are the best one, all that are nearly as good, and those that surely lie inside the target. The
    constants were set on the training images that `python -m finetune records` holds out: the IoU is 0.334
    with the first two kinds alone and 0.367 with all three (862 targets). MAX_MARGIN changes nothing there
    (0.394 of 833 targets), but where one object fills the image the selector is sure of its background too.

    Returns:
        Indices of proposals, best first.
    """
    score = ranking_score(scores, k)
    order = torch.argsort(score, descending=True)
    distance = score[order[0]] - score
    surely_inside = scores.iop[k].sigmoid() > SURE_IOP
    return [
        int(i) for i in order if distance[i] < UNION_MARGIN or (surely_inside[i] and distance[i] < MAX_MARGIN)
    ]


def next_best_proposals(
    scores: Scores, k: int, selected: list[int], count: int = MAX_ALTERNATIVES
) -> list[int]:
    """The next best proposals for target k after the selected ones, best first: for "not that one"."""
    order = torch.argsort(ranking_score(scores, k), descending=True)
    return [int(i) for i in order if int(i) not in selected][:count]


def reachable(present: Tensor, iou: Tensor) -> Tensor:
    """Which of M targets are in the image and shown by some proposal.

    Args:
        present: (M,) bool.
        iou: (M, N) IoU of the proposals with the targets.

    Returns:
        (M,) bool.
    """
    return present & (iou.amax(1) > MIN_REACHABLE_IOU)


def selection_losses(
    scores: Scores, iou: Tensor, iop: Tensor, present: Tensor, ignored: Tensor, hard_negatives: int = 0
) -> dict[str, Tensor]:
    """LLM-Seg's alignment and IoP losses, and presence.

    Args:
        scores: What the selector says of M targets and N proposals.
        iou: (M, N) float in [0, 1], IoU of each proposal with each target.
        iop: (M, N) float in [0, 1], share of each proposal that lies inside each target.
        present: (M,) bool, whether the target is in the image. Absent targets train "iop" and "presence"
            only.
        ignored: (M, N) bool, True for padding.
        hard_negatives: Number of proposals outside each target that count more in "iop": those with the
            highest scores.

    Returns:
        "align": KL(softmax(iou / T) || softmax(similarity / T)); "iop": cross-entropy with the share as soft
        label, weighted towards proposals that touch the target; "presence": cross-entropy.
    """
    truth = (iou / TEMPERATURE).masked_fill(ignored, -1e4).softmax(1)
    log_prediction = (scores.similarity / TEMPERATURE).masked_fill(ignored, -1e4).log_softmax(1)
    align = (truth * (truth.clamp(min=1e-8).log() - log_prediction)).sum(1)
    alignable = reachable(present, iou)
    align = (align * alignable).sum() / alignable.sum().clamp(min=1)
    weight = (~ignored) * (IOP_BASE_WEIGHT + iop + (iop > 0.5))
    if hard_negatives:
        outside = scores.iop.detach().masked_fill(ignored | (iop > 0.1), -torch.inf)
        worst, places = outside.topk(min(hard_negatives, outside.shape[1]), dim=1)
        weight = weight.scatter_add(1, places, worst.isfinite().float())
    error = F.binary_cross_entropy_with_logits(scores.iop, iop, reduction="none")
    inside = ((error * weight).sum(1) / weight.sum(1).clamp(min=1e-6)).mean()
    presence = F.binary_cross_entropy_with_logits(scores.presence, present.float())
    return {"align": align, "iop": inside, "presence": presence}
