"""Reads phrases over the regions of an image with the pocket LLM: what its attention is computed from.

    reading = read_phrases(llm, embeddings, tokens, layers=[9], tuned_rows={})
    scores = attention_scores(reading, tokens, [(9, llm.model.model.layers[9].self_attn)])   # (P, 1, H, N)

The LLM reads "In the picture:", the regions as embeddings, and then the phrases, each after "where is the".
The phrases do not see each other, so that any number of them takes one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from assistant.pocket.llm import REGIONS_INTRODUCTION, USER_TURN, PocketLLM

PHRASE_INTRODUCTION = "\nwhere is the"  # stands between the regions and a phrase


class Reading(NamedTuple):
    """What layers of the LLM read. Tuned queries and keys change nothing in it.

    Attributes:
        inputs: {layer: (T, W)}, the normed input of its attention.
        rotary: Cosines and sines of the positions, each (1, T, D).
        regions: Where the regions lie among the T positions.
        start: Where the tokens of the phrases begin.
    """

    inputs: dict[int, Tensor]
    rotary: tuple[Tensor, Tensor]
    regions: slice
    start: int


def read_phrases(
    llm: PocketLLM,
    embeddings: Tensor,
    tokens: Sequence[list[int]],
    layers: Sequence[int],
    tuned_rows: Mapping[int, Tensor],
) -> Reading:
    """Run the LLM over regions and phrases, up to the deepest of some layers.

    Args:
        llm: The LLM.
        embeddings: (N, W) float unit vectors, the regions among the LLM's input embeddings.
        tokens: Of each phrase.
        layers: The layers to read, in ascending order.
        tuned_rows: {token: (W,) float} in place of the LLM's own input embeddings of the phrases.

    Returns:
        What the layers read.
    """
    model = llm.model.model
    introduction = llm.tokens(USER_TURN + REGIONS_INTRODUCTION)
    parts = [
        llm.embed(introduction),
        embeddings * llm.embedding_length(),
        llm.embed(llm.tokens(PHRASE_INTRODUCTION)),
        _phrase_embeddings(llm, tokens, tuned_rows),
    ]
    hidden = torch.cat([part.to(llm.model.dtype) for part in parts])[None]
    counts = torch.tensor([len(phrase) for phrase in tokens])
    start = hidden.shape[1] - int(counts.sum())
    position, visible = _phrases_apart(start, counts)
    rotary = model.rotary_emb(hidden, position_ids=position)
    inputs = {}
    for k, layer in enumerate(model.layers[: layers[-1] + 1]):
        if k in layers:
            inputs[k] = layer.input_layernorm(hidden[0])
        if k < layers[-1]:
            hidden = layer(
                hidden,
                attention_mask=visible[None, None],
                position_embeddings=rotary,
                position_ids=position,
            )
    regions = slice(len(introduction), len(introduction) + len(embeddings))
    return Reading(inputs, rotary, regions, start)


def _phrase_embeddings(
    llm: PocketLLM, tokens: Sequence[list[int]], tuned_rows: Mapping[int, Tensor]
) -> Tensor:
    """The input embeddings of all phrases, tuned or the LLM's own -> (T, W)."""
    flat = [token for phrase in tokens for token in phrase]
    embeddings = llm.embed(flat)
    if not tuned_rows:
        return embeddings
    return torch.stack(
        [tuned_rows.get(token, embedding) for token, embedding in zip(flat, embeddings, strict=True)]
    )


def attention_scores(
    reading: Reading, tokens: Sequence[list[int]], attention: Sequence[tuple[int, Any]]
) -> Tensor:
    """The scores of phrases on regions, the mean over each phrase's tokens.

    Args:
        reading: Of P phrases and N regions.
        tokens: Of each phrase.
        attention: L layers, each with the attention module to use for it.

    Returns:
        (P, L, H, N) float32.
    """
    counts = torch.tensor([len(phrase) for phrase in tokens])
    phrase_of_token = torch.arange(len(tokens)).repeat_interleave(counts)
    rows = []
    for layer, module in attention:
        queries = slice(reading.start, None)
        scores = queries_on_keys(module, reading.inputs[layer], reading.rotary, queries, reading.regions)
        sums = scores.new_zeros(len(tokens), len(scores), scores.shape[2])
        rows.append(sums.index_add(0, phrase_of_token, scores.transpose(0, 1)))
    return torch.stack(rows, 1) / counts[:, None, None, None]


def _phrases_apart(start: int, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and visibility under which phrases follow the same beginning and do not see each other.

    Args:
        start: Number of tokens of the beginning, T0.
        counts: (P,) int64, number of tokens of each phrase, T1 in all.

    Returns:
        (1, T0 + T1) int64, the position of each token: every phrase begins at T0. And (T0 + T1, T0 + T1)
        bool: which tokens each token attends to.
    """
    phrase_of_token = torch.arange(len(counts)).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    of_phrases = start + torch.arange(int(counts.sum())) - first[phrase_of_token]
    position = torch.cat([torch.arange(start), of_phrases])[None]
    owner = torch.cat([torch.full((start,), -1), phrase_of_token])
    total = position.shape[1]
    visible = torch.ones(total, total, dtype=torch.bool).tril()
    visible &= (owner[None] == -1) | (owner[None] == owner[:, None])
    return position, visible


def queries_on_keys(
    attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], queries: slice, keys: slice
) -> Tensor:
    """The scaled products of queries and keys of one layer, with rotary positions.

    Args:
        attention: The layer's attention module.
        hidden: (T, W), its normed input.
        rotary: Cosines and sines of the positions, each (1, T, D).
        queries: Which Q of the T positions ask.
        keys: Which K of the T positions are asked.

    Returns:
        (H, Q, K) float32.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    hidden = hidden.to(attention.q_proj.weight.dtype)
    query = _split_heads(attention.q_proj(hidden[queries]), attention.head_dim)
    key = _split_heads(attention.k_proj(hidden[keys]), attention.head_dim)
    cos, sin = rotary
    query, _ = apply_rotary_pos_emb(query, query, cos[:, queries], sin[:, queries])
    key, _ = apply_rotary_pos_emb(key, key, cos[:, keys], sin[:, keys])
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return (query[0].float() @ key[0].float().transpose(1, 2)) * attention.scaling


def _split_heads(projected: Tensor, head_dim: int) -> Tensor:
    """(T, H * D) -> (1, H, T, D)."""
    return projected.view(len(projected), -1, head_dim).transpose(0, 1)[None]
