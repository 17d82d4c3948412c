"""Attention of models that transformers knows: image-text matchers with cross-attention, and chat models that see.

    looker = load_looker("Salesforce/blip-itm-large-coco")       # or LLaVA, Qwen-VL, SmolVLM: a folder or a hub id
    look = looker.look(image, ["mug", "sky"])                    # see `assistant.attention.maps.PromptAttention`

BLIP's text layers attend to the patches (Li et al. 2022, arXiv 2201.12086); in chat models the picture's tokens are
part of the text and later words attend to them (`assistant.attention.chat_probe`). Scores are taken before the softmax, where
queries meet keys; prompts go through in batches.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from assistant.attention.prompt_attention import PromptAttention
from assistant.attention.transformers_probe import BATCH, NO_ATTENTION, Planes, TransformersProbe, WordRows
from assistant.errors import BadInput

SIDE = 512  # px, about, of the longer side of what BLIP is shown


class BlipProbe(TransformersProbe):
    """BlipForImageTextRetrieval. Prompts are "image of {name}"; scores are the mean over the name's tokens."""

    def __init__(self, model, processor):
        self.model, self.processor = model.eval(), processor
        self.tokenizer = processor.tokenizer
        self.text = model.text_encoder
        self.layers = len(self.attention_modules())
        self.words, self.own = WordRows(model.get_input_embeddings()), {}

    def attention_modules(self) -> list[nn.Module]:
        return [layer.crossattention.self for layer in self.text.encoder.layer]

    def tokens(self, name: str) -> list[int]:
        return self.tokenizer(f" {name}", add_special_tokens=False).input_ids

    def pixels(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """(1, 3, h, w) normalised, in the picture's own shape (both sides whole patches), and its grid."""
        patch = self.model.config.vision_config.patch_size
        longest = min(SIDE, 2 * self.model.config.vision_config.image_size)
        scale = longest / max(image.shape[:2])
        grid = tuple(max(1, round(side * scale / patch)) for side in image.shape[:2])
        resized = Image.fromarray(image).resize((grid[1] * patch, grid[0] * patch), Image.Resampling.BICUBIC)
        norm = self.processor.image_processor
        mean, std = torch.tensor(norm.image_mean), torch.tensor(norm.image_std)
        values = (torch.from_numpy(np.array(resized)).float() / 255 - mean) / std
        weight = self.model.vision_model.embeddings.patch_embedding.weight
        return values.permute(2, 0, 1)[None].to(weight), grid

    def attention(self, view, prompts: list[str], layers: list[int] | None = None) -> PromptAttention:
        layers = self.chosen(layers)
        pixels, grid = self.pixels(view.image)
        with torch.no_grad():
            patches = self.model.vision_model(
                pixel_values=pixels, interpolate_pos_encoding=True
            ).last_hidden_state
        scores, match = [], []
        for first in range(0, len(prompts), BATCH):
            one = self._batch(patches, prompts[first : first + BATCH], layers)
            scores.append(one[0]), match.append(one[1])
        index = torch.arange(grid[0] * grid[1]).view(grid)
        return PromptAttention(torch.cat(scores), torch.cat(match), layers, Planes([(index, (1.0, 1.0))]))

    def _batch(self, patches: Tensor, prompts: list[str], layers: list[int]) -> tuple[Tensor, Tensor]:
        texts = [f"image of {p}" for p in prompts]
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, return_offsets_mapping=True)
        start = len("image of ")
        named = (encoded.offset_mapping[..., 1] > start) & encoded.attention_mask.bool()  # (P, T)
        device = patches.device
        kept: dict[tuple[int, str], Tensor] = {}
        modules, handles = self.attention_modules(), []
        for k in layers:
            for part in ("query", "key"):
                hook = lambda module, args, out, key=(k, part): kept.__setitem__(key, out)
                handles.append(getattr(modules[k], part).register_forward_hook(hook))
        try:
            with self.words.active():
                states = self.text(
                    input_ids=encoded.input_ids.to(device),
                    attention_mask=encoded.attention_mask.to(device),
                    encoder_hidden_states=patches.expand(len(prompts), -1, -1),
                    encoder_attention_mask=torch.ones(len(prompts), patches.shape[1], device=device),
                ).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        if len(kept) < 2 * len(layers):
            raise BadInput(NO_ATTENTION)
        rows, weight = [], named.float().to(device)
        for k in layers:
            heads = modules[k].num_attention_heads
            q, key = (
                kept[k, part].unflatten(-1, (heads, -1)).transpose(1, 2).float() for part in ("query", "key")
            )
            # (P, H, T, N): without the picture's own token
            each = q @ key[:, :, 1:].transpose(2, 3) / q.shape[-1] ** 0.5
            rows.append((each * weight[:, None, :, None]).sum(2) / weight.sum(1)[:, None, None])
        fits = self.model.itm_head(states).float().softmax(-1)[..., 1]
        inside = encoded.attention_mask.bool().to(device)  # padding says nothing about the match
        return torch.stack(rows, 1).cpu(), fits.masked_fill(~inside, 0).amax(1).cpu()
