"""The attention probe of chat models that see: from a phrase in the question to the tokens of the image.

    probe = ChatProbe(MultimodalLLM.load("Qwen/Qwen3-VL-2B-Instruct"))
    attention = probe.attention(probe.open("photo.jpg"), ["mug", "sky"])

The tokens of an image are part of the text, and later words attend to them. A conversation may hold any
number of images; the last one is probed. Scores are recorded where queries meet keys, in an attention
function that otherwise is transformers' sdpa. It replaces the attention of the text part of the model while a
probe reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assistant.attention.image_tokens import image_positions, phrase_positions
from assistant.attention.prompt_attention import PromptAttention, checked_layers
from assistant.attention.transformers_probe import (
    NO_ATTENTION,
    PROMPTS_PER_BATCH,
    HasImage,
    PatchPlaces,
    TransformersProbe,
)
from assistant.errors import BadInput, memory_advice
from assistant.grammar import Turn

if TYPE_CHECKING:
    from assistant.mllm.local_model import MultimodalLLM

RECORDING = "maskpick_recorded"  # the name under which transformers knows our attention function
# In one batch of prompts. Each prompt reads the image anew: sixteen times 1,280 tokens would take more memory
# than a conversation ever does.
MAX_TOKENS_PER_BATCH = 8192


@dataclass
class _Recording:
    """Which scores the attention function records, and what it has recorded.

    Attributes:
        layers: The layers to record.
        keys: For each row of the batch the positions (N,) of the image's tokens.
        queries: For each row of the batch the positions (K,) of the phrase's tokens.
        scores: {layer: (B, H, N) float}, the mean over the phrase's tokens.
    """

    layers: set[int]
    keys: list[Tensor]
    queries: list[Tensor]
    scores: dict[int, Tensor] = field(default_factory=dict)


_current_recording: ContextVar[_Recording | None] = ContextVar("current_recording", default=None)


class ChatProbe(TransformersProbe):
    """The attention of a chat model that sees.

    The question reads "where is the {phrase}?", and the answer begins with the phrase. Scores are the mean
    over the phrase's tokens in the question. The match is the probability of [SEG] rather than [ABS] after
    the phrase in the answer: one half for every phrase if the model does not have these tokens.

    Args:
        llm: The model.

    Raises:
        BadInput: The model exposes no attention.
    """

    def __init__(self, llm: MultimodalLLM):
        super().__init__(llm.model, llm.tokenizer)
        self.llm = llm
        self.decoder = llm.model.get_decoder()
        blocks = getattr(self.decoder, "layers", None)
        if blocks is None or not hasattr(blocks[0], "self_attn"):
            raise BadInput(NO_ATTENTION)
        self.layers = len(blocks)
        if self.tokenizer.pad_token is None:  # batches need one; the mask hides it
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def attention_modules(self) -> list[nn.Module]:
        """See `TransformersProbe`: the self-attention of each layer of the text part."""
        return [layer.self_attn for layer in self.decoder.layers]

    def attention(
        self,
        opened: HasImage,
        prompts: list[str],
        layers: list[int] | None = None,
        earlier_turns: Sequence[Turn] = (),
    ) -> PromptAttention:
        """See `assistant.pipeline.AttentionProbe`. The `earlier_turns` may have images of their own."""
        layers = checked_layers(layers, self.layers)
        image = opened.image
        image_share = self.llm.image_fit.share_of_image(image.shape[:2])
        conversations = [
            [*earlier_turns, Turn(f"where is the {prompt}?", None, [image])] for prompt in prompts
        ]
        size = PROMPTS_PER_BATCH
        if len(prompts) > 1:
            length = self._inputs(prompts[:1], conversations[:1])["input_ids"].shape[1]
            size = min(size, max(1, MAX_TOKENS_PER_BATCH // length))
        scores = []
        match = []
        for first in range(0, len(prompts), size):
            batch = slice(first, first + size)
            batch_scores, batch_match, places = self._batch(
                prompts[batch], conversations[batch], layers, image_share
            )
            scores.append(batch_scores)
            match.append(batch_match)
        return PromptAttention(torch.cat(scores), torch.cat(match), layers, places)

    def _batch(
        self,
        prompts: list[str],
        conversations: list[list[Turn]],
        layers: list[int],
        image_share: tuple[float, float],
    ) -> tuple[Tensor, Tensor, PatchPlaces]:
        """One batch of P prompts, each with its conversation -> scores (P, L, H, N), match (P,), places."""
        inputs = self._inputs(prompts, conversations)
        ids = inputs["input_ids"]
        mask = inputs["attention_mask"].bool()
        images = sum(len(turn.images) for turn in conversations[0])
        located = [
            image_positions(row, self.model.config, self.tokenizer, inputs, images, image_share)
            for row in ids
        ]
        keys = [positions for positions, _ in located]
        queries = [
            phrase_positions(self.tokenizer, row, row_mask, int(positions.max()) + 1, prompt)
            for row, row_mask, positions, prompt in zip(ids, mask, keys, prompts, strict=True)
        ]
        recording = _Recording(set(layers), keys, queries)
        advice = (
            f"for an attention map from {ids.shape[1]:,} tokens: lower --pixels (now "
            f"{self.llm.image_fit.max_pixels}), or use --four-bit or a smaller --preset"
        )
        with (
            memory_advice(advice),
            self.llm.lock,
            self._recorded(recording),
            self.embedding_overrides.active(),
        ):
            hidden = self.model.model(**inputs).last_hidden_state
        if set(recording.scores) != set(layers):
            raise BadInput(NO_ATTENTION)
        scores = torch.stack([recording.scores[layer] for layer in layers], 1)
        return scores.cpu(), self._match(hidden, mask).cpu(), located[0][1]

    def _inputs(self, prompts: list[str], conversations: list[list[Turn]]) -> Any:
        """The model's inputs for P conversations, each answered with the beginning of its prompt."""
        texts = [
            self.llm.prompt(turns) + prompt for turns, prompt in zip(conversations, prompts, strict=True)
        ]
        return self.llm.encode_batch(texts, conversations)

    def _match(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The probability of [SEG] rather than [ABS]: hidden (P, T, C), mask (P, T) bool -> (P,)."""
        if not self.llm.has_markers:
            return torch.full((len(hidden),), 0.5)
        last = torch.stack([row.nonzero()[-1, 0] for row in mask])
        logits = self.model.get_output_embeddings()(hidden[torch.arange(len(hidden)), last]).float()
        return (logits[:, self.llm.seg] - logits[:, self.llm.abs]).sigmoid()

    @contextmanager
    def _recorded(self, recording: _Recording) -> Iterator[None]:
        """While active, the text part of the model records into `recording` when it runs."""
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

        AttentionInterface.register(RECORDING, recorded_attention)
        AttentionMaskInterface.register(RECORDING, sdpa_mask)
        usual = self.decoder.config._attn_implementation
        if usual not in (None, "eager", "sdpa", RECORDING) and "flash" not in str(usual):
            raise BadInput(NO_ATTENTION)
        token = _current_recording.set(recording)
        try:
            self.decoder.set_attn_implementation(RECORDING)
            yield
        finally:
            _current_recording.reset(token)
            self.decoder.set_attn_implementation(usual or "sdpa")


def recorded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' sdpa attention, which also records the scores that the current probe asks for.

    Arguments and result are those of an attention function of transformers: query (B, H, T, D), key and value
    (B, H', T, D).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    recording = _current_recording.get()
    layer = getattr(module, "layer_idx", None)
    if recording is not None and layer in recording.layers:
        recording.scores[layer] = _phrase_scores(recording, query, key, scaling)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)


def _phrase_scores(recording: _Recording, query: Tensor, key: Tensor, scaling: float | None) -> Tensor:
    """The scores of the phrase's queries on the image's keys, the mean over the phrase -> (B, H, N) float."""
    groups = query.shape[1] // key.shape[1]
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = []
    for row, (keys, queries) in enumerate(zip(recording.keys, recording.queries, strict=True)):
        image_keys = key[row][:, keys].float().repeat_interleave(groups, 0)
        scores.append((query[row][:, queries].float() @ image_keys.transpose(1, 2) * factor).mean(1))
    return torch.stack(scores)
