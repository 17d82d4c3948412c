"""Attention between a few tokens and many image tokens, with the image's projections folded into the tokens.

    attention = FoldedAttention(layer.cross_attn_token_to_image, heads=8)
    update = attention.tokens_to_image(tokens, image, positions)

Projecting the image's 4,096 tokens would be nearly the whole cost of SAM's mask decoder, and is avoided:

- A query q meets a projected key as q . (K x) = (K^T q) . x: the few tokens are carried into the image's
  space.
- The mean of projected values is the projected mean, V (A x).
- An update of the image through V and the output projection O is A (V O), again on the tokens' side.

Shapes: P prompts of T tokens, C channels, n image tokens, d channels of an attention head.
"""

from typing import Any

import torch
from torch import Tensor


class FoldedAttention:
    """An attention layer of SAM whose projections of the image are folded into the tokens.

    It is written out rather than through `scaled_dot_product_attention`: for a handful of tokens against
    thousands, plain products are about twice as fast on a CPU.

    Args:
        module: The attention of segment_anything or transformers, whose weights are used in place.
        heads: Number of heads.
    """

    def __init__(self, module: Any, heads: int):
        self.q, self.k, self.v = module.q_proj, module.k_proj, module.v_proj
        # segment_anything and transformers name the output projection differently.
        self.out = module.out_proj if hasattr(module, "out_proj") else module.o_proj
        self.heads = heads
        self.scale = (self.q.out_features // heads) ** -0.5

    def split_heads(self, x: Tensor) -> Tensor:
        """(..., T, heads * d) -> (..., heads, T, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def weight_per_head(self, weight: Tensor) -> Tensor:
        """(heads * d, C) -> (heads, d, C)."""
        return weight.unflatten(0, (self.heads, -1))

    def tokens_to_tokens(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Plain attention among tokens, (P, T, C) each -> (P, T, C)."""
        q = self.split_heads(self.q(queries))
        k = self.split_heads(self.k(keys))
        v = self.split_heads(self.v(values))
        attended = (q * self.scale @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(attended.transpose(-2, -3).flatten(-2))

    def tokens_to_shared_image(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Tokens attend to one image that all prompts share.

        Args:
            tokens: (P, T, C).
            keys: (heads, d, n), of the image.
            values: (heads, n, d), of the image.

        Returns:
            (P, T, C), the update of the tokens.
        """
        q = self.split_heads(self.q(tokens.flatten(0, 1)) * self.scale)  # all prompts as one long query
        attended = ((q.to(keys.dtype) @ keys).softmax(-1) @ values).to(tokens.dtype)
        return self.out(attended.transpose(0, 1).flatten(1)).view_as(tokens)

    def tokens_to_image(self, tokens: Tensor, image: Tensor, positions: Tensor) -> Tensor:
        """Tokens attend to the images of their prompts.

        Args:
            tokens: (P, T, C).
            image: (P, n, C).
            positions: (heads, d, n), the positional encoding, projected to keys.

        Returns:
            (P, T, C), the update of the tokens.
        """
        q = self.split_heads(self.q(tokens)) * self.scale
        carried = (q @ self.weight_per_head(self.k.weight)).flatten(1, 2).to(image.dtype)
        # The key's bias adds the same to every position of a query: softmax removes it.
        logits = torch.baddbmm((q.to(image.dtype) @ positions).flatten(1, 2), carried, image.transpose(1, 2))
        mean = (logits.softmax(-1) @ image).to(tokens.dtype).unflatten(1, (self.heads, -1))
        v_weight, v_bias = self.weight_per_head(self.v.weight), self.weight_per_head(self.v.bias)
        attended = mean @ v_weight.transpose(1, 2) + v_bias[:, None]
        return self.out(attended.transpose(1, 2).flatten(2))

    def image_to_tokens(
        self, image: Tensor, keys: Tensor, values: Tensor, queries: Tensor, image_included: bool
    ) -> Tensor:
        """Images attend to the tokens of their prompts.

        Args:
            image: (P, n, C), or (1, n, C) for one image of all prompts.
            keys: (P, T, C) tokens.
            values: (P, T, C) tokens.
            queries: (heads, d, n), projected from the positional encoding plus, with `image_included`, the
                image.
            image_included: Whether `queries` holds the image; where not, its part is computed here.

        Returns:
            (P, n, C), the image plus its update.
        """
        k = self.split_heads(self.k(keys)) * self.scale
        logits = (k.to(image.dtype) @ queries).flatten(1, 2)
        if not image_included:
            carried = (k @ self.weight_per_head(self.q.weight)).flatten(1, 2).to(image.dtype)
            logits = torch.baddbmm(logits, carried, image.transpose(1, 2))
        weights = logits.unflatten(1, (self.heads, -1)).softmax(2).flatten(1, 2)
        carried = (self.split_heads(self.v(values)) @ self.weight_per_head(self.out.weight.T)).flatten(1, 2)
        carried = carried + self.out.bias / self.heads  # the weights of each head sum to one
        image = image.expand(len(keys), -1, -1)
        return torch.baddbmm(image, weights.transpose(1, 2), carried.to(image.dtype))
