"""SAM's mask decoder, rearranged so that everything mode costs a third of the arithmetic.

    decoder = FastDecoder(sam.mask_decoder, sam.prompt_encoder.get_dense_pe(), no_mask)   # SAM, SamModel or Sam2Model
    image = decoder.share(features)                   # once per image
    decoded = decoder.decode(image, sparse)           # P prompts: tokens, image tokens, predicted IoU
    logits = decoder.draw(image, decoded, rows)       # masks of the prompts that are worth drawing

The weights and the result are those of the original (Kirillov et al. 2023, arXiv 2304.02643, appendix A; Ravi et
al. 2024, arXiv 2408.00714), to rounding. What is different is the order of the products. A prompt has about seven
tokens and the image 4,096, so projecting the image is the whole cost, and it is avoided:

- a query q meets a projected key as q . (K x) = (K^T q) . x: the few tokens are carried into the image's space;
- the mean of projected values is the projected mean, V (A x);
- an update of the image through V and the output projection O is A (V O), again on the tokens' side;
- before the first update the image is the same for all prompts, so its projections are made once per image,
  and the positions' projections once per decoder;
- a transposed convolution of stride 2 is a matrix product whose result is put in order only at the very end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention:
    """One cross-attention between tokens and the image, with the image's projections folded away.

    Written out rather than through `scaled_dot_product_attention`: for a handful of tokens against thousands the
    plain products are about twice as fast on CPU.
    """

    def __init__(self, module: nn.Module, heads: int):
        self.q, self.k, self.v = module.q_proj, module.k_proj, module.v_proj
        self.out = module.out_proj if hasattr(module, "out_proj") else module.o_proj
        self.heads = heads
        self.scale = (self.q.out_features // heads) ** -0.5

    def split(self, x: Tensor) -> Tensor:  # (..., T, heads * d) -> (..., heads, T, d)
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def per_head(self, weight: Tensor) -> Tensor:  # (heads * d, C) -> (heads, d, C)
        return weight.unflatten(0, (self.heads, -1))

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Tokens to tokens: (P, T, C) each -> (P, T, C)."""
        q, k, v = self.split(self.q(q)), self.split(self.k(k)), self.split(self.v(v))
        x = (q * self.scale @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(x.transpose(-2, -3).flatten(-2))

    def read_shared(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Tokens (P, T, C) look at one image: keys (heads, d, n), values (heads, n, d) -> (P, T, C)."""
        q = self.split(self.q(tokens.flatten(0, 1)) * self.scale).to(
            keys.dtype
        )  # all prompts as one long query
        x = ((q @ keys).softmax(-1) @ values).to(tokens.dtype)
        return self.out(x.transpose(0, 1).flatten(1)).view_as(tokens)

    def read(self, tokens: Tensor, image: Tensor, positions: Tensor) -> Tensor:
        """Tokens (P, T, C) look at images (P, n, C) whose positions project to (heads, d, n) -> (P, T, C)."""
        q = self.split(self.q(tokens)) * self.scale
        carried = (q @ self.per_head(self.k.weight)).flatten(1, 2).to(image.dtype)
        # The key's bias adds the same to every position of a query: softmax removes it.
        logits = torch.baddbmm((q.to(image.dtype) @ positions).flatten(1, 2), carried, image.transpose(1, 2))
        mean = (logits.softmax(-1) @ image).to(tokens.dtype).unflatten(1, (self.heads, -1))
        x = mean @ self.per_head(self.v.weight).transpose(1, 2) + self.per_head(self.v.bias)[:, None]
        return self.out(x.transpose(1, 2).flatten(2))

    def write(self, image: Tensor, keys: Tensor, values: Tensor, positions: Tensor, seen: bool) -> Tensor:
        """Images (P, n, C), or one (1, n, C), plus what they take from tokens keys, values (P, T, C) -> (P, n, C).
        positions (heads, d, n): the projection of the positions, or, when the image is already `seen` in it, of both.
        """
        k = self.split(self.k(keys)) * self.scale
        logits = (k.to(image.dtype) @ positions).flatten(1, 2)
        if not seen:
            carried = (k @ self.per_head(self.q.weight)).flatten(1, 2).to(image.dtype)
            logits = torch.baddbmm(logits, carried, image.transpose(1, 2))
        weights = logits.unflatten(1, (self.heads, -1)).softmax(2).flatten(1, 2)
        carried = (self.split(self.v(values)) @ self.per_head(self.out.weight.T)).flatten(1, 2)
        carried = carried + self.out.bias / self.heads  # each head's weights sum to one
        image = image.expand(len(keys), -1, -1)
        return torch.baddbmm(image, weights.transpose(1, 2), carried.to(image.dtype))


@dataclass
class SharedImage:
    """What all prompts on one image share. h = w = side of the embedding, n = h * w, d = width of a head."""

    tokens: Tensor  # (1, n, C) features with the "no mask" embedding added
    keys: Tensor  # (heads, d, n) for the tokens' first look at the image
    values: Tensor  # (heads, n, d)
    queries: Tensor  # (heads, d, n) for the image's first look at the tokens
    fine: tuple  # SAM 2: features of the two finer grids, (1, n, 4, C / 4) and (1, n, 4, 4, C / 8); SAM: ()


@dataclass
class Decoded:
    """What is known before any mask is drawn: quality first, so that only survivors cost pixels."""

    tokens: Tensor  # (P, 4, C) mask tokens
    image: Tensor  # (P, n, C) image tokens of each prompt
    iou: Tensor  # (P, 4) predicted IoU: 0 is the single answer, 1 to 3 the readings of an ambiguous prompt


class FastDecoder:
    """The mask decoder of SAM (segment_anything or transformers) or of SAM 2 (transformers).

    decoder: the original module, whose weights are used in place. positions: (1, C, h, w) dense positional
    encoding. no_mask: (C,) embedding of "no mask given". dtype: of the image's side; bfloat16 is faster and
    differs from the original by about 1 % of a logit's size.
    """

    def __init__(
        self, decoder: nn.Module, positions: Tensor, no_mask: Tensor, dtype: torch.dtype = torch.float32
    ):
        self.no_mask, self.dtype = no_mask.detach(), dtype
        two_way = decoder.transformer
        official = hasattr(two_way, "norm_final_attn")
        norm = "norm{}" if official else "layer_norm{}"
        heads = two_way.num_heads if official else decoder.config.num_attention_heads
        self.layers = [
            (
                Attention(x.self_attn, heads),
                Attention(x.cross_attn_token_to_image, heads),
                Attention(x.cross_attn_image_to_token, heads),
                x.mlp,
                *[getattr(x, norm.format(i)) for i in (1, 2, 3, 4)],
            )
            for x in two_way.layers
        ]
        self.final = Attention(two_way.final_attn_token_to_image, heads)
        self.final_norm = two_way.norm_final_attn if official else two_way.layer_norm_final_attn
        objects = [decoder.obj_score_token.weight] if hasattr(decoder, "obj_score_token") else []
        self.output_tokens = torch.cat(
            [*objects, decoder.iou_token.weight, decoder.mask_tokens.weight]
        ).detach()
        self.first_mask = len(objects) + 1
        self.hypernetworks, self.iou_head = decoder.output_hypernetworks_mlps, decoder.iou_prediction_head
        if official:
            self.up1, self.up_norm, _, self.up2, _ = decoder.output_upscaling
        else:
            self.up1, self.up_norm, self.up2 = (
                decoder.upscale_conv1,
                decoder.upscale_layer_norm,
                decoder.upscale_conv2,
            )
        with torch.no_grad():
            self.positions = positions.flatten(2).transpose(1, 2)[0]  # (n, C)
            project = lambda attention, linear, bias: attention.per_head(
                F.linear(self.positions, linear.weight, linear.bias if bias else None).T
            ).to(dtype)
            self.read_positions = [project(layer[1], layer[1].k, False) for layer in self.layers]
            self.write_positions = [project(layer[2], layer[2].q, True) for layer in self.layers]
            self.final_positions = project(self.final, self.final.k, False)

    def share(self, features: Tensor, dense: Tensor | None = None, fine=()) -> SharedImage:
        """features (1, C, h, w); dense (1, C, h, w): an embedded mask prompt, None = no mask; fine: SAM 2's
        features (1, C / 8, 4h, 4w) and (1, C / 4, 2h, 2w), in the order its encoder gives them."""
        dense = self.no_mask.view(1, -1, 1, 1) if dense is None else dense
        tokens = (features + dense).flatten(2).transpose(1, 2)
        placed = tokens[0] + self.positions
        read, write = self.layers[0][1], self.layers[0][2]
        nested = ()
        if fine:
            h = features.shape[-1]
            at2 = fine[1].unflatten(2, (h, 2)).unflatten(4, (h, 2))  # 1, c, y, y2, x, x2
            at4 = fine[0].unflatten(2, (h, 2, 2)).unflatten(5, (h, 2, 2))  # 1, c, y, y2, y4, x, x2, x4
            nested = (
                at2.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2).to(self.dtype),
                at4.permute(0, 2, 5, 3, 6, 4, 7, 1).flatten(5, 6).flatten(3, 4).flatten(1, 2).to(self.dtype),
            )
        return SharedImage(
            tokens.to(self.dtype).contiguous(),
            read.per_head(read.k(placed).T).to(self.dtype).contiguous(),
            read.split(read.v(tokens[0])).to(self.dtype).contiguous(),
            write.per_head(write.q(placed).T).to(self.dtype).contiguous(),
            nested,
        )

    def decode(self, shared: SharedImage, sparse: Tensor) -> Decoded:
        """Everything but the pixels, for prompts sparse (P, T, C) float; T may be 0."""
        tokens = prompt = torch.cat([self.output_tokens.expand(len(sparse), -1, -1), sparse], 1)
        image = shared.tokens
        for i, (among, read, write, mlp, norm1, norm2, norm3, norm4) in enumerate(self.layers):
            if i == 0:
                tokens = norm1(among.plain(tokens, tokens, tokens))
                change = read.read_shared(tokens + prompt, shared.keys, shared.values)
            else:
                tokens = norm1(tokens + among.plain(tokens + prompt, tokens + prompt, tokens))
                change = read.read(tokens + prompt, image, self.read_positions[i])
            tokens = norm2(tokens + change)
            tokens = norm3(tokens + mlp(tokens))
            seen = shared.queries if i == 0 else self.write_positions[i]
            image = write.write(image, tokens + prompt, tokens, seen, seen=i == 0)
            image = normalise(image, norm4)
        tokens = self.final_norm(tokens + self.final.read(tokens + prompt, image, self.final_positions))
        masks = tokens[:, self.first_mask : self.first_mask + len(self.hypernetworks)]
        return Decoded(masks, image, self.iou_head(tokens[:, self.first_mask - 1]))

    def draw(self, shared: SharedImage, decoded: Decoded, rows: Tensor, masks: slice = slice(None)) -> Tensor:
        """Mask logits (R, M, 4h, 4w) float of the prompts `rows` (R,) int and the mask tokens `masks`."""
        chosen = range(len(self.hypernetworks))[masks]
        hyper = torch.stack(
            [self.hypernetworks[i](decoded.tokens[rows, i]) for i in chosen], -1
        )  # R, C / 8, M
        side = int(decoded.image.shape[1] ** 0.5)
        out = torch.empty(len(rows), len(chosen), 4 * side, 4 * side, device=hyper.device)
        # The finer grids stay nested inside the coarse one (cell, 2x2 cells, 2x2 cells, channel) and prompts are
        # drawn one by one on CPU, so that the widest array, 65,536 x 32 for SAM, stays near the processor.
        step = 1 if out.device.type == "cpu" else 16
        for i in range(0, len(rows), step):
            x = unfold(decoded.image[rows[i : i + step]], self.up1)  # r, n, 4, C / 4
            x = F.gelu(normalise(x + shared.fine[0] if shared.fine else x, self.up_norm))
            x = unfold(x, self.up2)  # r, n, 4, 4, C / 8
            x = F.gelu(x + shared.fine[1] if shared.fine else x)
            logits = x.flatten(1, 3) @ hyper[i : i + step].to(x.dtype)
            nested = logits.view(len(x), side, side, 2, 2, 2, 2, -1)  # y, x, y2, x2, y4, x4
            out[i : i + step] = nested.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(len(x), -1, 4 * side, 4 * side)
        return out


def normalise(x: Tensor, norm: nn.Module) -> Tensor:
    """Layer norm over the last axis with the weights of `norm`, whichever axis that was made for."""
    eps = norm.eps
    return F.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), eps)


def unfold(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """A transposed convolution of size and stride 2 on (..., C): -> (..., 4, C'), the 2x2 cells row by row."""
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1).to(x.dtype)  # C, 4 * C'
    bias = conv.bias.repeat(4).to(x.dtype)
    return F.linear(x, weight.T, bias).unflatten(-1, (4, -1))
