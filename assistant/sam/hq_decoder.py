"""SAM-HQ's mask decoder: SAM's, with a token and features of its own that sharpen every mask.

    decoder = HqDecoder(model.mask_decoder, positions, no_mask)
    shared = decoder.share(features)
    shared.fine_map = decoder.fine_map(features, states)       # once per image
    logits = decoder.draw(shared, decoder.decode(shared, sparse), rows)

Ke et al. 2023, arXiv 2306.01567. A mask is the sum of SAM's logits and of those that the token draws on SAM's
upscaled image tokens, joined with early and late features of the image encoder.

transformers 5.24 draws on the image as it was before the two-way transformer, with rows and columns swapped,
and drops the image tokens that the transformer returns. The published weights were trained as it is done
here and in the authors' code, which is what the tests compare with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.sam.fast_decoder import FastDecoder, SharedImage, in_rows


class HqDecoder(FastDecoder):
    """The mask decoder of transformers' `SamHQModel`; see `FastDecoder`."""

    def __init__(self, decoder: Any, positions: Tensor, no_mask: Tensor, dtype: torch.dtype = torch.float32):
        super().__init__(decoder, positions, no_mask, dtype)
        self.module = decoder
        self.output_tokens = torch.cat([self.output_tokens, decoder.hq_token.weight.detach()])

    def fine_map(self, features: Tensor, states: Tensor) -> Tensor:
        """Join early and late features of the image encoder on the finest grid.

        Args:
            features: (1, C, h, w) float, from the image encoder.
            states: (1, h, w, V) float, of the encoder's first block of global attention.

        Returns:
            (1, C / 8, 4h, 4w), in the decoder's type.
        """
        module = self.module
        late = F.gelu(module.encoder_norm(module.encoder_conv1(features)))
        early = F.gelu(module.compress_vit_norm(module.compress_vit_conv1(states.permute(0, 3, 1, 2))))
        return (module.encoder_conv2(late) + module.compress_vit_conv2(early)).to(self.dtype)

    def _refined(self, logits: Tensor, shared: SharedImage, upscaled: Tensor, tokens: Tensor) -> Tensor:
        """Add what the token for high quality draws to each of the logits (r, M, 4h, 4w)."""
        module = self.module
        weights = module.hq_mask_mlp(tokens[:, -1]).to(upscaled.dtype)  # r, C / 8
        side = round(upscaled.shape[1] ** 0.5)
        hidden = F.gelu(module.mask_norm(_convolved(in_rows(upscaled, side), module.mask_conv1)))
        # The last convolution is carried to the token's side: one channel is drawn, not C / 8.
        kernels = torch.einsum("rc,cdyx->rdyx", weights, module.mask_conv2.weight.to(weights.dtype))
        assert module.mask_conv2.bias is not None and shared.fine_map is not None
        drawn = [
            F.conv2d(x[None], kernel[None], padding=1) for x, kernel in zip(hidden, kernels, strict=True)
        ]
        drawn_fine = torch.einsum("rc,cyx->ryx", weights, shared.fine_map[0].to(weights.dtype))
        offset = weights @ module.mask_conv2.bias.to(weights.dtype)
        return logits + torch.cat(drawn) + (drawn_fine + offset[:, None, None])[:, None]


def _convolved(x: Tensor, conv: Any) -> Tensor:
    """A 3 x 3 convolution in the type of `x`."""
    return F.conv2d(x, conv.weight.to(x.dtype), conv.bias.to(x.dtype), padding=1)
