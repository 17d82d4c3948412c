"""The trained part of VLP-SAM: what a query has in common with references and a name becomes prompts for a frozen SAM.

logits, iou = prompted(segmenter, [query], encoder(given), encoder.draw(given))
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.few_shot.similarity import NAMED, NAMELESS, Given, Look
from assistant.sam.segmenter import Segmenter

MAP_SCALE = 10.0  # of the maps beside features of about unit size, as the paper


class PromptEncoder(nn.Module):
    """Query, references and a name -> embedded prompts for SAM.

    patches, joint: channels of what pictures and names are compared by; prompt: of SAM's prompts; text: with names
    (VLP-SAM) or without (VRP-SAM); coarse: also a mask prompt, drawn from the maps alone: how like two things are says
    the same of categories that were never seen, what they look like does not.
    """

    def __init__(
        self,
        patches: int,
        joint: int,
        prompt: int,
        text: bool = True,
        coarse: bool = True,
        width: int = 256,
        queries: int = 50,
        heads: int = 4,
    ):
        super().__init__()
        self.settings = {
            "patches": patches,
            "joint": joint,
            "prompt": prompt,
            "text": text,
            "coarse": coarse,
            "width": width,
            "queries": queries,
            "heads": heads,
        }
        self.register_buffer("mean", torch.zeros(patches))
        self.register_buffer("scale", torch.ones(patches))
        self.shrink = nn.Linear(patches, width, bias=False)
        if text and joint != patches:
            self.shrink_text = nn.Linear(joint, width, bias=False)
        common = 2 if text else 1  # the prototype, the name; a map of each
        self.merge = nn.Linear((1 + common) * width + common, width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(4)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.out = nn.Linear(width, prompt)
        if coarse:
            conv = lambda inner, outer, gap: nn.Conv2d(inner, outer, 3, padding=gap, dilation=gap)
            self.coarse = nn.Sequential(
                conv(NAMELESS + NAMED * text, 32, 1),
                nn.ReLU(),
                conv(32, 32, 2),
                nn.ReLU(),
                conv(32, 32, 1),
                nn.ReLU(),
                nn.Conv2d(32, 1, 1),
            )

    def unit(self, patches: Tensor) -> Tensor:
        """(..., C, h, w) -> the same, standardised and of unit length."""
        return F.normalize((patches - self.mean[:, None, None]) / self.scale[:, None, None], dim=-3)

    def draw(self, given: Given) -> Tensor | None:
        """Coarse logits (B, h, w) of the query, None where this encoder has none."""
        return self.coarse(given.maps)[:, 0] if self.settings["coarse"] else None

    def forward(self, given: Given) -> Tensor:
        """-> prompts (B, queries, prompt)."""
        b, k = given.masks.shape[:2]
        drop = lambda x: F.dropout1d(x.transpose(-1, -2), 0.5, self.training).transpose(-1, -2)
        q = drop(self.shrink(given.query.flatten(2).transpose(1, 2)).relu())  # B, n, width
        r = drop(
            self.shrink(given.references.flatten(3).transpose(2, 3)).relu().flatten(1, 2)
        )  # B, K * n, width
        weight = given.masks.flatten(1)[..., None]
        common = [(r * weight).sum(1, keepdim=True) / (weight.sum(1, keepdim=True) + 5e-4)]
        if self.settings["text"]:
            common.append(getattr(self, "shrink_text", self.shrink)(given.names).relu()[:, None])
        # merge([x, prototype, name, maps]) in parts: what is common to all cells is multiplied once.
        of_x, of_common, of_maps = self.merge.weight.split(
            [q.shape[-1], len(common) * q.shape[-1], len(common)], 1
        )
        shared = F.linear(torch.cat(common, -1), of_common, self.merge.bias)
        flat = lambda maps, x: maps.reshape(b, x.shape[1], -1) * MAP_SCALE
        join = lambda x, maps: (F.linear(x, of_x) + shared + F.linear(flat(maps, x), of_maps)).relu()
        q, r = join(q, given.query_maps), join(r, given.reference_maps)
        places = sine_places(*given.masks.shape[-2:], q.shape[-1], q)
        x = self.queries.expand(b, -1, -1)
        seen = (
            (r + places.repeat(k, 1), r, given.covered.flatten(1) <= 0),
            None,
            (q + places, q, given.inside.flatten(1) <= 0),
            None,
        )
        for attend, norm, other in zip(self.attention, self.norms, seen):
            key, value, ignored = other or (x, x, None)
            x = norm(x + attend(x, key, value, key_padding_mask=ignored, need_weights=False)[0])
        return self.out(x)


def sine_places(h: int, w: int, width: int, like: Tensor) -> Tensor:
    """(h * w, width) sines and cosines of each cell's row and column, as DETR's (Carion et al. 2020)."""
    wave = 10000 ** (-torch.arange(width // 4, device=like.device) / (width // 4))
    y, x = ((torch.arange(n, device=like.device) + 0.5) / n * 2 * torch.pi for n in (h, w))
    code = lambda t: torch.cat([(t[:, None] * wave).sin(), (t[:, None] * wave).cos()], 1)
    both = torch.cat([code(y)[:, None].expand(-1, w, -1), code(x)[None].expand(h, -1, -1)], 2)
    return both.flatten(0, 1).to(like.dtype)


def prompted(
    segmenter: Segmenter, queries: list[Look], prompts: Tensor, coarse: Tensor | None
) -> tuple[Tensor, Tensor]:
    """SAM's answers: prompts (B, T, P), coarse (B, h, w) or None -> low-resolution logits (B, l, l), IoU (B,)."""
    if coarse is not None:
        coarse = F.interpolate(
            coarse[:, None], (segmenter.low_res_side,) * 2, mode="bilinear", align_corners=False
        )[:, 0]
    found = [
        segmenter.prompted(q.embedding, prompts[k : k + 1], None if coarse is None else coarse[k : k + 1])
        for k, q in enumerate(queries)
    ]
    return tuple(torch.cat(x) for x in zip(*found))
