"""The pocket reasoner: SmolLM2-135M with LoRA, which sees a picture as sixteen words it cannot spell.

Each region becomes a word in the LLM's input space, trained to lie where the name of its thing lies
(`RegionEncoder`); the LLM is shown the sixteen that differ most. The LLM answers in the
compact form of the reply grammar, `umbrella [SEG], bench [ABS].`; one state per token goes to the selector.
"""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.grammar import ABS, SEG, Turn, neutralise
from assistant.pipeline import Reply
from assistant.pocket.region_features import GEOMETRY, REGION

WORDS = 16  # regions shown to the LLM
HIDDEN = 256
SHAPE = GEOMETRY + 1  # geometry and how much of a thing it is
OPENING, FIRST = "<|im_start|>user\n", "In the picture:"


class Seen(NamedTuple):
    """What is known of the N regions of one picture."""

    words: Tensor  # (N, llm_width) unit vectors in the LLM's input space
    shape: Tensor  # (N, SHAPE)

    @property
    def thing(self) -> Tensor:
        """(..., N) logits: is it a whole thing that people name?"""
        return self.shape[..., -1] * 4


class RegionEncoder(nn.Module):
    """(N, REGION) features -> Seen: a word in the LLM's input space for each region. names: how many it was taught;
    their embeddings stay in `names` (C, llm_width), to tell "a cup" from "as likely a bowl"."""

    def __init__(self, llm_width: int, names: int = 0):
        super().__init__()
        self.register_buffer("mean", torch.zeros(REGION))
        self.register_buffer("scale", torch.ones(REGION))
        self.register_buffer("names", torch.zeros(names, llm_width))
        self.encode = nn.Sequential(
            nn.Dropout(0.4), nn.Linear(REGION, 512), nn.GELU(), nn.Dropout(0.3), nn.Linear(512, HIDDEN)
        )
        self.to_words = nn.Linear(HIDDEN, llm_width)
        self.thing = nn.Linear(HIDDEN, 1)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, features: Tensor) -> Seen:
        hidden = self.encode((features - self.mean) / self.scale)
        words = F.normalize(self.to_words(hidden), dim=-1)
        return Seen(words, torch.cat([shape_features(features), self.thing(hidden) / 4], -1))

    def name_logits(self, words: Tensor, names: Tensor) -> Tensor:
        """Cosine of words (N, W) with the embeddings of names (C, W), scaled -> (N, C)."""
        return self.log_scale.exp() * words @ F.normalize(names, dim=-1).T

    def match(self, words: Tensor, phrases: Tensor) -> Tensor:
        """Words (N, W) against phrases (M, W) -> (M, N, 2): scaled cosine / 4, and log-probability among the taught
        names / 4 (0 where none were taught)."""
        score = self.name_logits(words, phrases).T
        if not len(self.names):
            return torch.stack([score / 4, torch.zeros_like(score)], -1)
        every = self.name_logits(words, self.names).logsumexp(1)
        return torch.stack([score / 4, (score - every).clamp(-16, 0) / 4], -1)


def fast_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; emulated, it would be slower than float32."""
    return torch.cpu._is_avx512_bf16_supported()


def shape_features(features: Tensor) -> Tensor:
    """The geometry that `region_features` put last, (N, REGION) -> (N, GEOMETRY)."""
    return features[..., -GEOMETRY:]


def spread(unit: Tensor, thing: Tensor, count: int = WORDS) -> Tensor:
    """Indices of `count` of the unit vectors (N, W), likely things first and no two alike: greedy on thing times
    distance to the chosen."""
    n = len(unit)
    if n <= count:
        return torch.arange(n)
    gain, alike = thing.sigmoid(), torch.zeros(n)
    chosen = []
    for _ in range(count):
        k = int((gain * (1 - alike)).argmax())
        chosen.append(k)
        alike = torch.maximum(alike, (unit @ unit[k]).clamp(min=0))
        alike[k] = 1
    return torch.tensor(chosen)


class PocketLLM:
    """forms: {phrase in lower case: row of the encoder's names}, all the ways to say each taught name."""

    def __init__(self, model, tokenizer, encoder: RegionEncoder, forms: dict[str, int] | None = None):
        self.model, self.tokenizer, self.encoder, self.forms = model, tokenizer, encoder, forms or {}
        self.common = model.get_input_embeddings().weight[:20000].detach().float().mean(0)
        self.seg, self.abs = tokenizer.convert_tokens_to_ids([SEG, ABS])
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    @classmethod
    def load(
        cls, folder: Path, adapter: Path | None, encoder: RegionEncoder, forms: dict[str, int] | None = None
    ) -> "PocketLLM":
        """folder: SmolLM2 as a transformers folder; adapter: a peft folder, None for the untuned model."""
        import warnings

        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = load_tokenizer(folder)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if adapter is not None:
            from peft import PeftModel

            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # peft reads an attribute that transformers is about to rename
                model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        if fast_bfloat16():
            model = model.to(torch.bfloat16)
        return cls(model.eval(), tokenizer, encoder.eval(), forms)

    def embed(self, ids: list[int]) -> Tensor:
        return self.model.get_input_embeddings()(torch.tensor(ids))

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def name(self, phrase: str) -> Tensor:
        """Where a region that bears this name would lie, (576,) float: the taught name that the phrase holds, else the
        mean of its tokens' input embeddings less what all tokens share."""
        row = self.row(phrase)
        return self.spelled(phrase) if row is None else self.encoder.names[row]

    def row(self, phrase: str) -> int | None:
        """Which of the encoder's names a phrase holds, the longest form if several."""
        held = [f for f in self.forms if re.search(rf"\b{re.escape(f)}\b", phrase.lower())]
        return self.forms[max(held, key=len)] if held else None

    def spelled(self, phrase: str) -> Tensor:
        """(576,) float: the mean of a phrase's input embeddings, less what all tokens share."""
        return self.embed(self.tokens(f" {phrase}")).detach().float().mean(0) - self.common

    def question(self, text: str) -> str:
        """The part of the chat from a question's text up to where its answer begins."""
        return f"{neutralise(text, self.tokenizer.all_special_tokens)}<|im_end|>\n<|im_start|>assistant\n"

    def prompt(self, turns: list[Turn], words: Tensor) -> Tensor:
        """Input embeddings (L, 576) up to where the answer to the last turn begins; words (K, 576) go before the first."""
        parts = [self.embed(self.tokens(OPENING + FIRST)), words]
        for k, turn in enumerate(turns):
            parts.append(
                self.embed(self.tokens(("\n" if k == 0 else OPENING) + self.question(turn.question)))
            )
            if turn.answer is not None:
                parts.append(self.embed(self.tokens(f"{turn.answer}<|im_end|>\n")))
        return torch.cat([p.to(self.model.dtype) for p in parts])

    def words(self, seen: Seen) -> Tensor:
        """What the LLM is shown of a picture's regions -> (K, 576), of the length of its own embeddings."""
        length = self.model.get_input_embeddings().weight[:1000].detach().norm(dim=-1).mean()
        return seen.words[spread(seen.words, seen.thing)] * length

    @torch.inference_mode()
    def reply(
        self,
        turns: list[Turn],
        seen: Seen,
        *,
        decide=None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int | None = None,
        stream=None,
    ) -> Reply:
        """Answer the last turn; greedy at temperature 0, otherwise sampled.

        decide: called with a marker's state (576,), its margin and the phrase before it, says whether the thing is
        there; what it says is what the LLM then reads back (None: the LLM's own choice). stream: receives each
        piece of text as it is decoded.
        """
        generator = torch.Generator()
        generator.manual_seed(seed) if seed is not None else generator.seed()
        x = self.prompt(turns, self.words(seen))[None]
        cache, ids, states, margins, shown, said = None, [], [], [], "", 0
        for _ in range(max_new_tokens):
            out = self.model.model(inputs_embeds=x, past_key_values=cache, use_cache=True)
            cache, state = out.past_key_values, out.last_hidden_state[0, -1]
            logits = self.model.lm_head(state).float()
            if temperature > 0:
                token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
            else:
                token = int(logits.argmax())
            if token == self.end:
                break
            if token in (self.seg, self.abs):
                states.append(state.float())
                margins.append(logits[self.seg] - logits[self.abs])
                if decide is not None:
                    phrase = self.tokenizer.decode(ids[said:]).strip(" ,.")
                    token = self.seg if decide(states[-1], margins[-1], phrase) else self.abs
                said = len(ids) + 1
            ids.append(token)
            text = self.tokenizer.decode(ids)
            if stream is not None and not text.endswith("\ufffd"):
                stream(text[len(shown) :])
                shown = text
            x = self.embed([token]).to(self.model.dtype)[None]
        markers = [t == self.seg for t in ids if t in (self.seg, self.abs)]
        width = self.model.config.hidden_size
        return Reply(
            self.tokenizer.decode(ids),
            len(ids),
            markers,
            torch.stack(states) if states else torch.zeros(0, width),
            torch.stack(margins) if margins else torch.zeros(0),
        )


def load_tokenizer(folder: Path):
    """SmolLM2's tokenizer with [SEG] and [ABS] as two more whole tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([SEG, ABS], special_tokens=True)
    return tokenizer
