"""Where the taught names are in a picture, and the masks that follow from it.

The selector judges proposals one by one, from what lies under each and around it. `SemanticHead` names every place of the
picture instead, so that the parts of a bus know of the bus. `PixelHead` weighs both for every cell of the picture, and a
target's mask is the union of proposals that should overlap its cells best.

    semantic = Semantic.load(pocket_file("semantic.safetensors"))
    names = semantic.names(embedding)                                   # once per picture
    chosen = semantic.choose(scores, 0, low > 0, names, row, size)      # instead of `selector.choose`
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.mllm.selector import Scores, ranking_score
from assistant.pocket.region_features import STRIDE16, STRIDE32
from assistant.pocket.sam import GRID, IMAGE_SIZE, SKIP8, WIDTH, ConvBlock
from assistant.weights import read_weights

SIDE = 2 * GRID  # cells of 8 px over the padded square
NAMED = 5  # figures of a cell that need the name's map
FEATURES = 22 + NAMED
MOST = 40  # proposals in a union


class SemanticHead(nn.Module):
    """names: C, how many it was taught; groups: sets of them that were taught together, each on pictures of its own, where
    whatever is none of them is background (the last row of the logits)."""

    def __init__(self, names: int, groups: int, width: int = 192):
        super().__init__()
        self.config = {"names": names, "groups": groups, "width": width}
        for name, channels in (("16", STRIDE16), ("32", STRIDE32), ("neck", WIDTH + 4 * SKIP8)):
            self.register_buffer(f"mean{name}", torch.zeros(channels))
            self.register_buffer(f"scale{name}", torch.ones(channels))
        self.register_buffer("together", torch.ones(groups, names + 1, dtype=torch.bool))
        self.drop = nn.Dropout2d(0.2)
        self.lateral32, self.context = nn.Conv2d(STRIDE32, width, 1), nn.Linear(STRIDE32, width)
        self.lateral16, self.neck16 = nn.Conv2d(STRIDE16, width, 1), nn.Conv2d(WIDTH, width, 1)
        self.top8, self.neck8 = nn.Conv2d(width, width // 2, 1), nn.Conv2d(SKIP8, width // 2, 1)
        self.blocks32 = ConvBlock(width, 5, 2)
        self.blocks16 = nn.Sequential(ConvBlock(width, 7, 2), ConvBlock(width, 7, 2))
        self.blocks8 = ConvBlock(width // 2, 5, 2)
        self.out = nn.Conv2d(width // 2, names + 1, 1)

    @staticmethod
    def inputs(maps: tuple, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What it reads of an `Embedding`'s maps and features: the backbone's strides 16 and 32, the neck without stride 4."""
        return maps[2].float(), maps[3].float(), features[:, : WIDTH + 4 * SKIP8].float()

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """-> logits (B, C + 1, SIDE, SIDE)."""
        even = lambda x, name: (
            (x - getattr(self, f"mean{name}")[:, None, None]) / getattr(self, f"scale{name}")[:, None, None]
        )
        up = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        s16, s32, neck = (even(x, name) for x, name in zip(inputs, ("16", "32", "neck")))
        x = self.blocks32(self.lateral32(self.drop(s32)) + self.context(s32.mean((2, 3)))[:, :, None, None])
        x = self.blocks16(up(x) + self.lateral16(self.drop(s16)) + self.neck16(neck[:, :WIDTH]))
        x = self.blocks8(up(self.top8(self.drop(x))) + self.neck8(F.pixel_shuffle(neck[:, WIDTH:], 2)))
        return self.out(x)

    def beside(self, row: int) -> Tensor:
        """(C + 1,) bool: the names that compete with a name for a cell, those taught together with it."""
        return self.together[self.together[:, row]].any(0)


class PixelHead(nn.Sequential):
    """Evidence (..., FEATURES) -> logit (...,) that a cell belongs to the target."""

    def __init__(self, width: int = 32):
        super().__init__(
            nn.Linear(FEATURES, width),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 1),
        )
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / self.scale)[..., 0]


def evidence(scores: Scores, k: int, masks: Tensor, names: Tensor, row: int, beside: Tensor) -> Tensor:
    """What is known of every cell about target k.

    masks: (N, S, S) bool, the proposals over the padded square; names: (C + 1, SIDE, SIDE) logits; row: the target's name;
    beside: (C + 1,) bool, the names it competes with -> (S, S, FEATURES).
    """
    n, side = masks.shape[:2]
    cover = masks.flatten(1)
    m = cover.float()
    iop, similarity = scores.iop[k].clamp(-8, 8), scores.similarity[k]
    quality, value, inside = scores.quality[k], ranking_score(scores, k), scores.iop[k].sigmoid()
    area = m.mean(1).clamp(min=1e-5)
    some, count = cover.any(0), m.sum(0).clamp(min=1)
    highest = lambda v, none: torch.where(cover, v[:, None], torch.tensor(none)).amax(0)
    mean = lambda v: (m * v[:, None]).sum(0) / count
    by_size = area.argsort()
    first = torch.where(cover[by_size], torch.arange(n)[:, None], n).amin(0).clamp(max=n - 1)
    smallest, best = by_size[first], torch.where(cover, value[:, None], torch.tensor(-30.0)).argmax(0)
    of = lambda v, which, none: torch.where(some, v[which], torch.tensor(none))
    share = lambda t: ((value / t).softmax(0)[:, None] * m).sum(0)
    small = area.rsqrt()
    cells = [
        highest(iop, -8.0),
        mean(inside),
        of(iop, smallest, -8.0),
        highest(similarity - similarity.max(), -2.0),
        share(0.2),
        share(0.5),
        share(1.0),
        highest(value - value.max(), -10.0),
        of(similarity, smallest, -1.0),
        of(quality, best, -5.0),
        of(area.log(), best, -10.0),
        of(area.log(), smallest, -10.0),
        mean(similarity),
        of(iop, best, -8.0),
        count.log(),
        (m * (small * inside)[:, None]).sum(0) / ((m * small[:, None]).sum(0) + 1e-6),
    ]
    whole = [
        iop.max(),
        similarity.max(),
        value.max(),
        scores.presence[k].clamp(-6, 6),
        inside.mean(),
        (inside > 0.5).float().mean(),
    ]
    competing = F.interpolate(
        names[beside].float()[None], size=(side, side), mode="bilinear", align_corners=False
    )[0].flatten(1)
    own = torch.arange(len(competing)) == beside[:row].sum()
    log = competing.log_softmax(0)[own][0].clamp(min=-10)
    margin = (competing[own][0] - competing[~own].amax(0)).clamp(-10, 10)
    under = (m @ log.exp()) / m.sum(1).clamp(min=1)  # of each proposal: how much of it bears the name
    every = lambda v: v.expand(cover.shape[1])
    named = [log, margin, every(torch.tensor(1.0)), every(log.max()), (m * under[:, None]).amax(0)]
    return torch.stack([*cells, *map(every, whole), *named], 1).view(side, side, FEATURES)


def best_union(p: Tensor, masks: Tensor) -> list[int]:
    """The proposals whose union should overlap a target best, greedily, first the best one.

    p: (S, S) probability that a cell belongs to it, 0 outside of the picture; masks: (N, S, S) bool, N above 0. What is
    sought is the greatest expected intersection over the expected union; at least one is chosen.
    """
    p, m = p.flatten(), masks.flatten(1).float()
    total, chosen, best = p.sum(), [], torch.tensor(-1.0)
    inter, size = torch.tensor(0.0), torch.tensor(0.0)
    while len(chosen) < min(MOST, len(m)):
        inters, sizes = inter + m @ p, size + m.sum(1)
        value = inters / (sizes + total - inters).clamp(min=1e-6)
        k = int(value.argmax())
        if value[k] <= best + 1e-4:
            break
        chosen.append(k)
        best, inter, size = value[k], inters[k], sizes[k]
        m = m * (1 - m[k])  # what is left of the others
    return chosen


class Semantic:
    """Both heads. categories: the first one's names, in its order."""

    def __init__(self, head: SemanticHead, pixels: PixelHead, categories: list[str]):
        self.head, self.pixels, self.categories = head.eval(), pixels.eval(), categories

    @classmethod
    def load(cls, file: Path) -> "Semantic":
        """What `save` wrote. BadInput: it holds something else."""
        state, about = read_weights(file)
        part = lambda name: {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
        try:
            config = json.loads(about["semantic"])
            categories = config.pop("categories")
            head, pixels = SemanticHead(**config), PixelHead()
            head.load_state_dict(part("head."))
            pixels.load_state_dict(part("pixels."))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BadInput(
                f"{file} holds no semantic head of this version ({str(error).splitlines()[0]}); fetch it "
                "again"
            ) from None
        return cls(head, pixels, categories)

    def save(self, file: Path) -> None:
        from safetensors.torch import save_file

        state = {
            f"{name}.{k}": v
            for name in ("head", "pixels")
            for k, v in getattr(self, name).state_dict().items()
        }
        state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
        with replace_whole(file) as path:
            save_file(
                state, path, {"semantic": json.dumps(self.head.config | {"categories": self.categories})}
            )

    def rows(self, forms: dict[str, int]) -> dict[int, int]:
        """The region encoder's row of each name that the head knows too -> the head's. forms: {phrase: the encoder's row}."""
        return {forms[c.lower()]: k for k, c in enumerate(self.categories) if c.lower() in forms}

    @torch.inference_mode()
    def names(self, embedding) -> Tensor:
        """A pocket `Embedding` -> (C + 1, SIDE, SIDE) logits."""
        return self.head(self.head.inputs(embedding.maps, embedding.features))[0].float()

    @torch.inference_mode()
    def choose(
        self, scores: Scores, k: int, masks: Tensor, names: Tensor, row: int, size: tuple[int, int]
    ) -> list[int]:
        """The proposals of target k, best first. masks, names, row: as `evidence`; size: (h, w) of the part of the padded
        square, in its 512 px, that the picture fills."""
        told = evidence(scores, k, masks, names, row, self.head.beside(row))
        inside = torch.zeros(told.shape[:2], dtype=torch.bool)
        h, w = (-(-s * len(told) // IMAGE_SIZE) for s in size)
        inside[:h, :w] = True
        return self.union(told, masks, inside)

    @torch.inference_mode()
    def union(self, told: Tensor, masks: Tensor, inside: Tensor) -> list[int]:
        """told: (S, S, FEATURES), what `evidence` gives; inside: (S, S) bool, the part that the picture fills."""
        return best_union(self.pixels(told).sigmoid() * inside, masks)
