"""What the pocket reasoner looks at: from the words of a question to the words that regions are for it.

    look = pocket.looker.look(view, ["mug", "sky"])

The LLM reads the picture's regions as words, and a phrase after them: "where is the mug". The queries of the phrase's
tokens against the keys of the regions, layer by layer, are its attention; a region's score goes to the pixels of its
mask. All regions are shown, not only sixteen. The phrases do not see each other: many cost one pass through the layers
that are asked for, and the pass ends at the deepest of them.
"""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.attention.maps import CONTRAST
from assistant.attention.prompt_attention import PromptAttention, Ranking
from assistant.errors import BadInput
from assistant.pocket.llm import FIRST, OPENING, PocketLLM
from assistant.sam.mask_ops import decode_rle
from assistant.weights import POCKET

LEAD = "\nwhere is the"
SIDE = 160  # px, about, of the longer side of the maps that regions are drawn on


class RegionPlaces:
    """N regions of a picture. masks: (N, h, w) bool."""

    def __init__(self, masks: Tensor):
        self.masks = masks

    def spread(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """(K, N) -> (K, H, W): each pixel the mean over the regions that hold it, 0 where none does."""
        flat = self.masks.flatten(1).to(values.dtype)
        maps = values @ flat / flat.sum(0).clamp(min=1)
        maps = maps.view(1, len(values), *self.masks.shape[1:])
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)[0]


class PocketProbe:
    """ranking: which layers `attend` follows. tuned: {layer: attention module} whose queries and keys are used for
    looking in place of the LLM's own (the replies do not change), rows: {token: (W,) embedding} likewise."""

    def __init__(self, llm: PocketLLM, opener=None, ranking: Ranking | None = None):
        self.llm, self.opener, self._ranking = llm, opener, ranking
        self.layers = llm.model.config.num_hidden_layers
        self.tuned: dict[int, torch.nn.Module] = {}
        self.rows: dict[int, Tensor] = {}
        self.cache: dict | None = None  # what layers read of an image, while `reusing`

    @property
    def ranking(self) -> Ranking:
        if self._ranking is None:
            self._ranking = Ranking.load(POCKET / "attention.json")
        return self._ranking

    @ranking.setter
    def ranking(self, ranking: Ranking) -> None:
        self._ranking = ranking

    def open(self, image, cache_folder: Path | None = None):
        """A picture's regions; with `cache_folder`, opened once and read from there afterwards. BadInput: no picture."""
        from assistant.pocket.region_cache import kept_regions
        from assistant.weights import pocket_file, sha256_of

        return kept_regions(self.opener, sha256_of(pocket_file("sam.safetensors")), image, cache_folder)

    def size(self, view) -> tuple[int, int]:
        return view.size

    def region_rles(self, view) -> list[dict] | None:
        """COCO RLE of the view's regions."""
        return view.rles

    def attention(self, view, prompts: list[str], layers: list[int] | None = None) -> PromptAttention:
        """layers: which are looked at (None: all). Scores (P, L, H, N); gradients reach `tuned` and `rows`."""
        layers = list(range(self.layers)) if layers is None else sorted(layers)
        if layers[0] < 0 or layers[-1] >= self.layers:
            raise BadInput(f"there is no layer {layers[-1]}: this model has {self.layers}")
        with torch.no_grad():
            seen = self.llm.encoder(view.features)
            match = self.match(seen, prompts)
        if not len(view.features):
            heads = self.llm.model.config.num_attention_heads
            return PromptAttention(
                torch.zeros(len(prompts), len(layers), heads, 0), match, layers, self.places(view)
            )
        tokens = [self.llm.tokens(f" {p}") for p in prompts]
        key = (id(view), tuple(prompts), tuple(layers))
        if self.cache is None or self.rows:
            read = self.read(seen.words, tokens, layers)
        else:
            if key not in self.cache:
                with torch.no_grad():
                    # with the view, so that its id is not given to another
                    self.cache[key] = view, self.read(seen.words, tokens, layers)
            read = self.cache[key][1]
        return PromptAttention(self.scores(read, tokens, layers), match, layers, self.places(view))

    @contextlib.contextmanager
    def reusing(self) -> Iterator[None]:
        """While active, what the layers read of the same opened image and prompts is computed once."""
        outer = self.cache
        self.cache = {} if outer is None else outer
        try:
            yield
        finally:
            self.cache = outer

    def places(self, view) -> RegionPlaces:
        if self.cache is not None and id(view) in self.cache:
            return self.cache[id(view)][1]
        h, w = view.size
        step = max(1, round(max(h, w) / SIDE))
        masks = [decode_rle(rle)[::step, ::step] for rle in view.rles]
        none = np.zeros((0, -(-h // step), -(-w // step)), bool)
        places = RegionPlaces(torch.from_numpy(np.stack(masks) if masks else none))
        if self.cache is not None:
            self.cache[id(view)] = view, places
        return places

    def match(self, seen, prompts: list[str]) -> Tensor:
        """(P,): the best that any region bears the prompt's name rather than a taught one; words of the background,
        which are not taught, get the mean of the others."""
        stands = torch.tensor([p in CONTRAST for p in prompts])
        if not len(seen.words) or stands.all():
            return torch.ones(len(prompts))
        names = torch.stack([self.llm.name(p) for p, background in zip(prompts, stands) if not background])
        fits = (self.llm.encoder.match(seen.words, names)[..., 1] * 4).exp().amax(1)
        match = torch.full((len(prompts),), float(fits.mean()))
        match[~stands] = fits
        return match

    def read(self, words: Tensor, tokens: list[list[int]], layers: list[int]):
        """The LLM over regions as words (N, W) and prompts as tokens: what each of `layers` reads of them, normed, (T,
        W); rotary positions; where the regions and the prompts begin. Tuned queries and keys change nothing of it."""
        llm, model = self.llm, self.llm.model.model
        count = torch.tensor([len(t) for t in tokens])
        owner = torch.arange(len(tokens)).repeat_interleave(count)
        opening, lead = llm.tokens(OPENING + FIRST), llm.tokens(LEAD)
        length = llm.model.get_input_embeddings().weight[:1000].detach().norm(dim=-1).mean()
        phrases = [i for t in tokens for i in t]
        embedded = llm.embed(phrases)
        if self.rows:
            embedded = torch.stack([self.rows.get(i, e) for i, e in zip(phrases, embedded)])
        parts = [llm.embed(opening), words * length, llm.embed(lead), embedded]
        x = torch.cat([p.to(llm.model.dtype) for p in parts])[None]
        start = x.shape[1] - len(phrases)
        first = count.cumsum(0) - count
        position = torch.cat([torch.arange(start), start + torch.arange(len(phrases)) - first[owner]])[None]
        whose = torch.cat([torch.full((start,), -1), owner])
        sees = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        sees &= (whose[None] == -1) | (whose[None] == whose[:, None])
        rotary = model.rotary_emb(x, position_ids=position)
        normed = {}
        for k, layer in enumerate(model.layers[: layers[-1] + 1]):
            if k in layers:
                normed[k] = layer.input_layernorm(x[0])
            if k < layers[-1]:
                x = layer(
                    x, attention_mask=sees[None, None], position_embeddings=rotary, position_ids=position
                )
        return normed, rotary, slice(len(opening), len(opening) + len(words)), start

    def scores(self, read, tokens: list[list[int]], layers: list[int]) -> Tensor:
        """What `read` gave -> (P, L, H, N) float32."""
        normed, rotary, regions, start = read
        count = torch.tensor([len(t) for t in tokens])
        owner, rows = torch.arange(len(tokens)).repeat_interleave(count), []
        for k in layers:
            attention = self.tuned.get(k, self.llm.model.model.layers[k].self_attn)
            each = queries_on_keys(attention, normed[k], rotary, slice(start, None), regions)  # (H, T, N)
            rows.append(
                each.new_zeros(len(tokens), len(each), each.shape[2]).index_add(
                    0, owner, each.transpose(0, 1)
                )
            )
        return torch.stack(rows, 1) / count[:, None, None, None]

    def tunable_attention(self, layers: list[int]) -> dict[str, torch.nn.Parameter]:
        """What one-shot tuning trains first: queries and keys of `layers`, copies in float32."""
        for k in layers:
            own = copy.deepcopy(self.llm.model.model.layers[k].self_attn).float().requires_grad_(False)
            own.q_proj.requires_grad_(True), own.k_proj.requires_grad_(True)
            self.tuned[k] = own
        return {
            f"layers.{k}.{n}": p
            for k, m in self.tuned.items()
            for n, p in m.named_parameters()
            if p.requires_grad
        }

    def tunable_words(self, prompts: list[str]) -> dict[str, torch.nn.Parameter]:
        """What it trains then: embeddings of the prompts' tokens."""
        tokens = sorted({i for p in prompts for i in self.llm.tokens(f" {p}")})
        rows = self.llm.embed(tokens).detach().float()
        self.rows = {i: torch.nn.Parameter(row.clone()) for i, row in zip(tokens, rows)}
        return {f"rows.{i}": p for i, p in self.rows.items()}

    def restore(self, tuned: dict[str, Tensor]) -> None:
        """Take over what the two named; {} gives back the LLM's own."""
        self.tuned, self.rows = {}, {int(k[5:]): v.float() for k, v in tuned.items() if k.startswith("rows.")}
        for name, value in tuned.items():
            if name.startswith("layers."):
                _, k, *rest = name.split(".")
                if int(k) not in self.tuned:
                    self.tuned[int(k)] = copy.deepcopy(self.llm.model.model.layers[int(k)].self_attn).float()
                self.tuned[int(k)].get_parameter(".".join(rest)).data.copy_(value)


def queries_on_keys(
    attention, x: Tensor, rotary: tuple[Tensor, Tensor], queries: slice, keys: slice
) -> Tensor:
    """Scaled q . k of one layer with rotary positions, x (T, W) its normed input -> (H, Q, K) float32."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x = x.to(attention.q_proj.weight.dtype)
    split = lambda projected: projected.view(len(projected), -1, attention.head_dim).transpose(0, 1)[None]
    q, k = split(attention.q_proj(x[queries])), split(attention.k_proj(x[keys]))
    cos, sin = rotary
    q, _ = apply_rotary_pos_emb(q, q, cos[:, queries], sin[:, queries])
    k, _ = apply_rotary_pos_emb(k, k, cos[:, keys], sin[:, keys])
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return (q[0].float() @ k[0].float().transpose(1, 2)) * attention.scaling


def published_probe(llm: PocketLLM, opener) -> PocketProbe:
    """With the attention that was tuned and published for this preset; `restore({})` gives the LLM's own."""
    from safetensors.torch import load_file

    from assistant.weights import pocket_file

    probe = PocketProbe(llm, opener)
    if (POCKET / "attention.safetensors").exists():
        probe.restore(load_file(pocket_file("attention.safetensors")))
    return probe
