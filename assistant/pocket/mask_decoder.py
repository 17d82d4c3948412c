"""The mask decoder of the pocket SAM: tokens and image attend to each other, then masks are drawn.

decoded = decoder.decode(embedding, position_encoding, sparse, dense)      # .iou (B, 4), before any mask
logits = decoder.draw(decoded, embedding, slice(1, None))                  # (B, 3, 128, 128)
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.pocket.image_encoder import SKIP4_CHANNELS, SKIP8_CHANNELS, WIDTH


class Attention(nn.Module):
    """Multi-head attention; by default its inputs are projected to half the width, as in SAM's decoder.

    Args:
        inner: Width of queries, keys and values.
        heads: Number of heads.
    """

    def __init__(self, inner: int = WIDTH // 2, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out = nn.Linear(inner, WIDTH)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, Q, WIDTH), (B, K, WIDTH), (B, K, WIDTH) -> (B, Q, WIDTH)."""
        return self.attend(self.q(q), self.k(k), self.v(v))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `forward`, on queries, keys and values that are projected already."""
        q = self.split(q)
        k = self.split(k)
        v = self.split(v)
        # Written out: on a CPU twice as fast as the fused kernel, for a handful of tokens against a thousand.
        x = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1, dtype=v.dtype) @ v
        return self.out(x.transpose(1, 2).flatten(2))


class TwoWayLayer(nn.Module):
    """Two-way attention in SAM's order.

    Args:
        mixes: Whether a small convolution then mixes each image token with its neighbours, per prompt.
    """

    def __init__(self, mixes: bool):
        super().__init__()
        self.self_attention = Attention(WIDTH)
        self.to_image = Attention()
        self.to_tokens = Attention()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH))
        self.mixes = mixes
        if mixes:
            self.spatial = nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH)
            self.mix = nn.Linear(WIDTH, WIDTH)

    def update_tokens(self, tokens: Tensor, pe: Tensor, image_k: Tensor, image_v: Tensor) -> Tensor:
        """Let the tokens attend to themselves and to the image.

        Args:
            tokens: (B, T, WIDTH).
            pe: Their position encoding, of the same shape.
            image_k, image_v: (I, n, inner) projected image tokens; I = B, or I images with B / I prompts
                each.

        Returns:
            The tokens (B, T, WIDTH).
        """
        tokens = self.norms[0](tokens + self.self_attention(tokens + pe, tokens + pe, tokens))
        q = self.to_image.q(tokens + pe)
        # The prompts of one image attend to it as one long query.
        shared = q.reshape(len(image_k), -1, q.shape[-1])
        tokens = self.norms[1](tokens + self.to_image.attend(shared, image_k, image_v).view_as(tokens))
        return self.norms[2](tokens + self.mlp(tokens))

    def update_image(self, image: Tensor, change: Tensor) -> Tensor:
        """Add `change` to the image tokens and, where the layer mixes, mix neighbours: both (B, n, WIDTH)."""
        image = self.norms[3](image + change)
        if not self.mixes:
            return image
        b, n, c = image.shape
        y = self.spatial(image.transpose(1, 2).reshape(b, c, int(n**0.5), -1)).flatten(2).transpose(1, 2)
        return image + self.mix(F.relu(y))


class Decoded(NamedTuple):
    """What is known before any mask is drawn: quality comes first, so that hopeless masks cost no pixels."""

    tokens: Tensor  # (B, 4, 128) mask tokens
    image: Tensor  # (B, 1024, 128) image tokens, per prompt
    iou: Tensor  # (B, 4) predicted IoU


def _mlp(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs)
    )


class PocketMaskDecoder(nn.Module):
    """As SAM's: token 0 answers boxes and several clicks, tokens 1 to 3 are three readings of one click."""

    num_mask_tokens = 4

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(1 + self.num_mask_tokens, WIDTH)
        self.layers = nn.ModuleList([TwoWayLayer(mixes=True), TwoWayLayer(mixes=False)])
        self.final = Attention()
        self.final_norm = nn.LayerNorm(WIDTH)
        self.up8 = nn.Linear(WIDTH, 4 * SKIP8_CHANNELS)
        self.norm8 = nn.LayerNorm(SKIP8_CHANNELS)
        self.up4 = nn.Linear(SKIP8_CHANNELS, 4 * SKIP4_CHANNELS)
        self.hyper = nn.ModuleList(_mlp(SKIP4_CHANNELS + 1) for _ in range(self.num_mask_tokens))
        self.iou = _mlp(self.num_mask_tokens)

    def decode(self, embedding: Tensor, pe: Tensor, sparse: Tensor, dense: Tensor) -> Decoded:
        """Run the attention layers.

        Args:
            embedding: (I, EMBEDDING_CHANNELS, h, w) of I images.
            pe: (1, 128, h, w), the position encoding of the image.
            sparse: (B, T, 128) prompts, B = I * P, grouped by image.
            dense: (B, 128, h, w), what the prompts add to the image.

        Returns:
            The mask tokens, the image tokens and the predicted IoU of each prompt.
        """
        per_image = len(sparse) // len(embedding)
        output_tokens = self.tokens.weight.expand(len(sparse), -1, -1)
        tokens = query_pe = torch.cat([output_tokens, sparse], 1)
        image = embedding[:, :WIDTH].flatten(2).transpose(1, 2)  # (I, n, C)
        pe = pe.flatten(2).transpose(1, 2).to(image.dtype)
        first, second = self.layers
        assert isinstance(first, TwoWayLayer) and isinstance(second, TwoWayLayer)
        # The first layer reads images before any prompt: its projections are computed once per image.
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
        """Draw masks.

        The finer grids stay nested inside the image tokens (token, 2x2 cells, 2x2 cells, channel), so that
        only the finished logits are ever laid out as an image.

        Args:
            decoded: What `decode` returned for B prompts.
            embedding: The same embedding (I, EMBEDDING_CHANNELS, h, w).
            masks: Which of the four mask tokens to draw.

        Returns:
            (B, M, 4 h, 4 w) float32 mask logits.
        """
        images = len(embedding)
        per_image = len(decoded.image) // images
        skip8, skip4 = embedding[:, WIDTH:].split([4 * SKIP8_CHANNELS, 16 * SKIP4_CHANNELS], 1)
        skip8 = skip8.reshape(images, SKIP8_CHANNELS, 4, -1).permute(0, 3, 2, 1)  # (I, n, 4, C)
        skip4 = skip4.reshape(images, SKIP4_CHANNELS, 2, 2, 2, 2, -1)  # C, y8, y4, x8, x4, n
        skip4 = skip4.permute(0, 6, 2, 4, 3, 5, 1)  # (I, n, y8, x8, y4, x4, C)
        skip4 = skip4.reshape(images, -1, 4, 4, SKIP4_CHANNELS)
        x = self.up8(decoded.image).view(images, per_image, -1, 4, SKIP8_CHANNELS)
        x = F.relu(self.norm8(x + skip8.unsqueeze(1)))
        x = self.up4(x).view(images, per_image, -1, 4, 4, SKIP4_CHANNELS)
        x = F.relu(x + skip4.unsqueeze(1)).view(images * per_image, -1, SKIP4_CHANNELS)
        chosen = range(self.num_mask_tokens)[masks]
        hyper = torch.stack([self.hyper[i](decoded.tokens[:, i]) for i in chosen], -1)  # (B, SKIP4 + 1, M)
        logits = x @ hyper[:, :-1] + hyper[:, -1:]
        grid = embedding.shape[-1]
        nested = logits.view(-1, grid, grid, 2, 2, 2, 2, len(chosen))  # y, x, y8, x8, y4, x4
        return nested.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(-1, len(chosen), 4 * grid, 4 * grid).float()

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """As SAM's mask decoder: mask logits (B, M, 128, 128) and predicted IoU (B, M), M = 3 or 1."""
        dense = dense_prompt_embeddings.expand(len(sparse_prompt_embeddings), -1, -1, -1)
        decoded = self.decode(image_embeddings, image_pe, sparse_prompt_embeddings, dense)
        masks = slice(1, None) if multimask_output else slice(0, 1)
        return self.draw(decoded, image_embeddings, masks), decoded.iou[:, masks].float()
