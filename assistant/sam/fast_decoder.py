"""SAM's mask decoder, rearranged so that everything mode takes a third of the arithmetic.

    decoder = FastDecoder(sam.mask_decoder, sam.prompt_encoder.get_dense_pe(), no_mask)
    shared = decoder.share(features)                   # once per image
    decoded = decoder.decode(shared, sparse)           # P prompts: tokens, image tokens, predicted IoU
    logits = decoder.draw(shared, decoded, rows)       # the masks of the prompts that are worth drawing

The weights are those of the original (Kirillov et al. 2023, arXiv 2304.02643, appendix A; Ravi et al. 2024,
arXiv 2408.00714), and so is the result, to rounding. What differs is the order of the products. A prompt has
about seven tokens and the image has 4,096, so projecting the image is nearly the whole cost, and it is
avoided:

- The projections of the image are folded into the tokens, see `assistant.sam.folded_attention`.
- Before the first update the image is the same for all prompts, so it is projected once per image, and the
  positional encoding once per decoder.
- A transposed convolution of stride 2 is a matrix product, whose result is put in order at the very end only.

Shapes: P prompts of T tokens, C channels, n image tokens (the embedding's h x w), d channels of an attention
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.sam.folded_attention import FoldedAttention

# Prompts drawn together. On a CPU one, so that the widest array (65,536 x 32 for SAM) fits its cache.
CPU_PROMPTS_PER_DRAWING = 1
GPU_PROMPTS_PER_DRAWING = 16


class Layer(NamedTuple):
    """A two-way layer of the decoder, in the order in which its parts are run."""

    self_attention: FoldedAttention
    to_image: FoldedAttention  # tokens attend to the image
    to_tokens: FoldedAttention  # the image attends to the tokens
    mlp: nn.Module
    norm_self: nn.Module
    norm_to_image: nn.Module
    norm_mlp: nn.Module
    norm_image: nn.Module


@dataclass
class SharedImage:
    """What all prompts on one image share.

    Attributes:
        tokens: (1, n, C) features with the embedding of "no mask" added.
        keys: (heads, d, n), for the first attention of the tokens to the image.
        values: (heads, n, d), for the same.
        queries: (heads, d, n), for the first attention of the image to the tokens.
        finer: SAM 2's features of the two finer grids, (1, n, 4, C / 4) and (1, n, 4, 4, C / 8) flattened to
            its nesting; () for SAM.
        fine_map: SAM-HQ's map of the finest grid, (1, C / 8, 4h, 4w); None for others.
    """

    tokens: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor
    finer: tuple[Tensor, ...]
    fine_map: Tensor | None = None


@dataclass
class Decoded:
    """What is known of prompts before any mask is drawn, so that only good masks cost pixels.

    Attributes:
        tokens: (P, 4, C) mask tokens; of SAM-HQ (P, 5, C), with the one for high quality last.
        image: (P, n, C) image tokens of each prompt.
        iou: (P, 4) predicted IoU: token 0 is the single mask, tokens 1 to 3 are the multimask output.
    """

    tokens: Tensor
    image: Tensor
    iou: Tensor


class FastDecoder:
    """The mask decoder of SAM (segment_anything or transformers) or of SAM 2 (transformers).

    Args:
        decoder: The original module, whose weights are used in place.
        positions: (1, C, h, w) float, the dense positional encoding.
        no_mask: (C,) float, the embedding of "no mask prompt".
        dtype: Of the image's side. bfloat16 is faster and differs from the original by about 1 % of a logit's
            size.
    """

    def __init__(self, decoder: Any, positions: Tensor, no_mask: Tensor, dtype: torch.dtype = torch.float32):
        self.no_mask = no_mask.detach()
        self.dtype = dtype
        two_way = decoder.transformer
        # The two libraries and SAM 2 name their modules differently, which `hasattr` tells apart: none of
        # them carries a version or a type that says so.
        is_official = hasattr(two_way, "norm_final_attn")
        heads = two_way.num_heads if is_official else two_way.config.num_attention_heads
        self.layers = [_layer(module, heads, is_official) for module in two_way.layers]
        self.final = FoldedAttention(two_way.final_attn_token_to_image, heads)
        self.final_norm = two_way.norm_final_attn if is_official else two_way.layer_norm_final_attn
        # SAM 2 has one token more, for whether the object is visible, which comes first.
        leading = [decoder.obj_score_token.weight] if hasattr(decoder, "obj_score_token") else []
        output_tokens = [*leading, decoder.iou_token.weight, decoder.mask_tokens.weight]
        self.output_tokens = torch.cat(output_tokens).detach()
        self.first_mask = len(leading) + 1
        self.hypernetworks = decoder.output_hypernetworks_mlps
        self.iou_head = decoder.iou_prediction_head
        if is_official:
            self.upscale1, self.upscale_norm, _, self.upscale2, _ = decoder.output_upscaling
        else:
            self.upscale1 = decoder.upscale_conv1
            self.upscale_norm = decoder.upscale_layer_norm
            self.upscale2 = decoder.upscale_conv2
        self._project_positions(positions)

    @torch.no_grad()
    def _project_positions(self, positions: Tensor) -> None:
        """Project the positional encoding (1, C, h, w) for each attention, once."""
        self.positions = positions.flatten(2).transpose(1, 2)[0]  # (n, C)

        def projected(attention: FoldedAttention, linear: nn.Linear, bias: Tensor | None) -> Tensor:
            product = F.linear(self.positions, linear.weight, bias)
            return attention.weight_per_head(product.T).to(self.dtype)

        # Without the bias where these are keys, see `tokens_to_image`.
        self.key_positions = [projected(x.to_image, x.to_image.k, None) for x in self.layers]
        self.query_positions = [
            projected(x.to_tokens, x.to_tokens.q, x.to_tokens.q.bias) for x in self.layers
        ]
        self.final_positions = projected(self.final, self.final.k, None)

    def share(
        self, features: Tensor, dense: Tensor | None = None, finer_features: Sequence[Tensor] = ()
    ) -> SharedImage:
        """Compute what all prompts on an image share.

        Args:
            features: (1, C, h, w) float, from the image encoder.
            dense: (1, C, h, w) float, an embedded mask prompt; None for no mask prompt.
            finer_features: SAM 2's features (1, C / 8, 4h, 4w) and (1, C / 4, 2h, 2w), in the order of its
                encoder.

        Returns:
            What `decode` and `draw` take.
        """
        if dense is None:
            dense = self.no_mask.view(1, -1, 1, 1)
        tokens = (features + dense).flatten(2).transpose(1, 2)
        placed = tokens[0] + self.positions
        read, write = self.layers[0].to_image, self.layers[0].to_tokens
        return SharedImage(
            tokens.to(self.dtype).contiguous(),
            read.weight_per_head(read.k(placed).T).to(self.dtype).contiguous(),
            read.split_heads(read.v(tokens[0])).to(self.dtype).contiguous(),
            write.weight_per_head(write.q(placed).T).to(self.dtype).contiguous(),
            self._nested(finer_features, features.shape[-1]) if finer_features else (),
        )

    def _nested(self, finer_features: Sequence[Tensor], side: int) -> tuple[Tensor, Tensor]:
        """SAM 2's finer features, their cells nested in those of the coarse grid of `side` x `side`."""
        at4, at2 = finer_features
        at2 = at2.unflatten(2, (side, 2)).unflatten(4, (side, 2))  # 1, c, y, y2, x, x2
        at4 = at4.unflatten(2, (side, 2, 2)).unflatten(5, (side, 2, 2))  # 1, c, y, y2, y4, x, x2, x4
        return (
            at2.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2).to(self.dtype),
            at4.permute(0, 2, 5, 3, 6, 4, 7, 1).flatten(5, 6).flatten(3, 4).flatten(1, 2).to(self.dtype),
        )

    def decode(self, shared: SharedImage, sparse: Tensor) -> Decoded:
        """Run everything but the drawing, for prompts on one image.

        Args:
            shared: From `share`.
            sparse: (P, T, C) float, prompt tokens; T may be 0.

        Returns:
            What `draw` takes.
        """
        prompt = torch.cat([self.output_tokens.expand(len(sparse), -1, -1), sparse], 1)
        tokens, image = prompt, shared.tokens
        for i, layer in enumerate(self.layers):
            among = layer.self_attention
            if i == 0:
                tokens = layer.norm_self(among.tokens_to_tokens(tokens, tokens, tokens))
                change = layer.to_image.tokens_to_shared_image(tokens + prompt, shared.keys, shared.values)
            else:
                placed = tokens + prompt
                tokens = layer.norm_self(tokens + among.tokens_to_tokens(placed, placed, tokens))
                change = layer.to_image.tokens_to_image(tokens + prompt, image, self.key_positions[i])
            tokens = layer.norm_to_image(tokens + change)
            tokens = layer.norm_mlp(tokens + layer.mlp(tokens))
            queries = shared.queries if i == 0 else self.query_positions[i]
            image = layer.to_tokens.image_to_tokens(
                image, tokens + prompt, tokens, queries, image_included=i == 0
            )
            image = normalise(image, layer.norm_image)
        change = self.final.tokens_to_image(tokens + prompt, image, self.final_positions)
        tokens = self.final_norm(tokens + change)
        masks = tokens[:, self.first_mask : len(self.output_tokens)]
        return Decoded(masks, image, self.iou_head(tokens[:, self.first_mask - 1]))

    def draw(self, shared: SharedImage, decoded: Decoded, rows: Tensor, masks: slice = slice(None)) -> Tensor:
        """Draw masks of decoded prompts.

        The finer grids stay nested inside the coarse one (cell, 2 x 2 cells, 2 x 2 cells, channel) until the
        logits are finished.

        Args:
            shared: From `share`.
            decoded: From `decode`.
            rows: (R,) int64, the prompts to draw.
            masks: The mask tokens to draw, M of the four.

        Returns:
            (R, M, 4h, 4w) float logits.
        """
        chosen = range(len(self.hypernetworks))[masks]
        hyper = torch.stack(
            [self.hypernetworks[i](decoded.tokens[rows, i]) for i in chosen], -1
        )  # R, C / 8, M
        side = int(decoded.image.shape[1] ** 0.5)
        out = torch.empty(len(rows), len(chosen), 4 * side, 4 * side, device=hyper.device)
        step = CPU_PROMPTS_PER_DRAWING if out.device.type == "cpu" else GPU_PROMPTS_PER_DRAWING
        for i in range(0, len(rows), step):
            part = rows[i : i + step]
            x = self._upscaled(shared, decoded.image[part])
            nested = (x.flatten(1, 3) @ hyper[i : i + step].to(x.dtype)).unflatten(1, (-1, 4, 4))
            logits = in_rows(nested, side)
            out[i : i + step] = self._refined(logits, shared, x, decoded.tokens[part])
        return out

    def _upscaled(self, shared: SharedImage, image: Tensor) -> Tensor:
        """Image tokens (r, n, C) of prompts on the finest grid, nested: (r, n, 4, 4, C / 8)."""
        x = upscale(image, self.upscale1)  # r, n, 4, C / 4
        x = F.gelu(normalise(x + shared.finer[0] if shared.finer else x, self.upscale_norm))
        x = upscale(x, self.upscale2)  # r, n, 4, 4, C / 8
        return F.gelu(x + shared.finer[1] if shared.finer else x)

    def _refined(self, logits: Tensor, shared: SharedImage, upscaled: Tensor, tokens: Tensor) -> Tensor:
        """The logits (r, M, 4h, 4w) as they are; SAM-HQ's are refined, see `assistant.sam.hq_decoder`."""
        return logits


def _layer(module: Any, heads: int, is_official: bool) -> Layer:
    """A layer of the two-way transformer of segment_anything (`is_official`) or of transformers."""
    norm = "norm{}" if is_official else "layer_norm{}"
    return Layer(
        FoldedAttention(module.self_attn, heads),
        FoldedAttention(module.cross_attn_token_to_image, heads),
        FoldedAttention(module.cross_attn_image_to_token, heads),
        module.mlp,
        *(getattr(module, norm.format(i)) for i in (1, 2, 3, 4)),
    )


def normalise(x: Tensor, norm: Any) -> Tensor:
    """Layer norm over the last axis with the weights of `norm`, whichever axis that module is made for."""
    return F.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def upscale(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """A transposed convolution of size and stride 2, (..., C) -> (..., 4, C'): 2 x 2 cells row by row."""
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1).to(x.dtype)  # C, 4 * C'
    assert conv.bias is not None
    bias = conv.bias.repeat(4).to(x.dtype)
    return F.linear(x, weight.T, bias).unflatten(-1, (4, -1))


def in_rows(nested: Tensor, side: int) -> Tensor:
    """A nested array (r, n, 4, 4, M) of `side` x `side` cells in the order of rows: (r, M, 4h, 4w)."""
    cells = (
        nested.unflatten(1, (side, side)).unflatten(3, (2, 2)).unflatten(5, (2, 2))
    )  # y, x, y2, x2, y4, x4
    return cells.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(len(nested), -1, 4 * side, 4 * side)
