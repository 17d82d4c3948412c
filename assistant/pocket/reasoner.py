"""The pocket reasoner: SmolLM2-135M with LoRA, which sees a picture as sixteen words it cannot spell.

Regions become embeddings (`RegionEncoder`), and the sixteen most different of them become input
embeddings of the LLM, trained to lie where the names of their things lie. The LLM answers in the
compact form of the reply grammar, `umbrella [SEG], bench [ABS].`; one state per token goes to the selector.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.grammar import ABS, SEG, Turn, neutralise
from assistant.pocket.vision import GEOMETRY, REGION
from assistant.reasoner import Reply

WORDS = 16  # regions shown to the LLM
EMBEDDING = 256  # size of a region's embedding
SYSTEM = "Name each thing asked for, then [SEG] if it is in the picture, else [ABS]."


class RegionEncoder(nn.Module):
    """(N, REGION) features -> (N, EMBEDDING), and from there to the LLM's input space."""

    def __init__(self, llm_width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(REGION))
        self.register_buffer("scale", torch.ones(REGION))
        self.encode = nn.Sequential(nn.Dropout(0.4), nn.Linear(REGION, 512), nn.GELU(), nn.Dropout(0.3),
                                    nn.Linear(512, EMBEDDING))
        self.to_words = nn.Linear(EMBEDDING, llm_width)
        self.thing = nn.Linear(EMBEDDING, 1)  # is this region a whole thing that people name?
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, features: Tensor) -> Tensor:
        return self.encode((features - self.mean) / self.scale)

    def name_logits(self, regions: Tensor, names: Tensor) -> Tensor:
        """Cosine of regions with the embeddings of names (C, width), scaled -> (N, C)."""
        words = F.normalize(self.to_words(regions), dim=-1)
        return self.log_scale.exp() * words @ F.normalize(names, dim=-1).T


def fast_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; emulated, it would be slower than float32."""
    return torch.cpu._is_avx512_bf16_supported()


def shape_features(features: Tensor) -> Tensor:
    """The geometry that `region_features` put last, (N, REGION) -> (N, GEOMETRY)."""
    return features[..., -GEOMETRY:]


def spread(regions: Tensor, thing: Tensor, count: int = WORDS) -> Tensor:
    """Indices of `count` regions, likely things first and no two alike: greedy on thing + distance to the chosen."""
    n = len(regions)
    if n <= count:
        return torch.arange(n)
    unit = F.normalize(regions, dim=-1)
    gain, alike = thing.sigmoid(), torch.zeros(n)
    chosen = []
    for _ in range(count):
        k = int((gain * (1 - alike)).argmax())
        chosen.append(k)
        alike = torch.maximum(alike, (unit @ unit[k]).clamp(min=0))
        alike[k] = 1
    return torch.tensor(chosen)


class PocketReasoner:
    def __init__(self, llm, tokenizer, encoder: RegionEncoder):
        self.llm, self.tokenizer, self.encoder = llm, tokenizer, encoder
        self.seg, self.abs = tokenizer.convert_tokens_to_ids([SEG, ABS])
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    @classmethod
    def load(cls, folder: Path, adapter: Path | None, encoder: RegionEncoder) -> "PocketReasoner":
        """folder: SmolLM2 as a transformers folder; adapter: a peft folder, None for the untuned model."""
        import warnings

        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = load_tokenizer(folder)
        llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if adapter is not None:
            from peft import PeftModel

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft reads an attribute that transformers is about to rename
                llm = PeftModel.from_pretrained(llm, adapter).merge_and_unload()
        if fast_bfloat16():
            llm = llm.to(torch.bfloat16)
        return cls(llm.eval(), tokenizer, encoder.eval())

    def embed(self, ids: list[int]) -> Tensor:
        return self.llm.get_input_embeddings()(torch.tensor(ids))

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def prompt(self, turns: list[Turn], words: Tensor) -> Tensor:
        """Input embeddings (L, 576) up to where the answer to the last turn begins; words (K, 576) go before the first."""
        special = self.tokenizer.all_special_tokens
        parts = [self.embed(self.tokens(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nIn the picture:")), words]
        for k, turn in enumerate(turns):
            opening = "\n" if k == 0 else "<|im_start|>user\n"
            parts.append(self.embed(self.tokens(f"{opening}{neutralise(turn.question, special)}<|im_end|>\n<|im_start|>assistant\n")))
            if turn.answer is not None:
                parts.append(self.embed(self.tokens(f"{turn.answer}<|im_end|>\n")))
        return torch.cat([p.to(self.llm.dtype) for p in parts])

    def words(self, regions: Tensor) -> Tensor:
        """What the LLM is shown of (N, EMBEDDING) region embeddings -> (K, 576), of the length of its own embeddings."""
        chosen = spread(regions, self.encoder.thing(regions)[:, 0])
        words = self.encoder.to_words(regions[chosen])
        length = self.llm.get_input_embeddings().weight[:1000].norm(dim=-1).mean()
        return F.normalize(words, dim=-1) * length

    @torch.inference_mode()
    def reply(self, turns: list[Turn], regions: Tensor, *, decide=None, max_new_tokens: int = 64,
              temperature: float = 0.0, seed: int | None = None, stream=None) -> Reply:
        """Answer the last turn; greedy at temperature 0, otherwise sampled.

        regions: (N, EMBEDDING). decide: called with a marker's state (576,) and margin, says whether the thing is
        there; what it says is what the LLM then reads back (None: the LLM's own choice). stream: receives each
        piece of text as it is decoded.
        """
        generator = torch.Generator()
        generator.manual_seed(seed) if seed is not None else generator.seed()
        x = self.prompt(turns, self.words(regions))[None]
        cache, ids, states, margins, shown = None, [], [], [], ""
        for _ in range(max_new_tokens):
            out = self.llm.model(inputs_embeds=x, past_key_values=cache, use_cache=True)
            cache, state = out.past_key_values, out.last_hidden_state[0, -1]
            logits = self.llm.lm_head(state).float()
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
                    token = self.seg if decide(states[-1], margins[-1]) else self.abs
            ids.append(token)
            text = self.tokenizer.decode(ids)
            if stream is not None and not text.endswith("\ufffd"):
                stream(text[len(shown):])
                shown = text
            x = self.embed([token]).to(self.llm.dtype)[None]
        markers = [t == self.seg for t in ids if t in (self.seg, self.abs)]
        width = self.llm.config.hidden_size
        return Reply(self.tokenizer.decode(ids), len(ids), markers,
                     torch.stack(states) if states else torch.zeros(0, width),
                     torch.stack(margins) if margins else torch.zeros(0))


def load_tokenizer(folder: Path):
    """SmolLM2's tokenizer with [SEG] and [ABS] as two more whole tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([SEG, ABS], special_tokens=True)
    return tokenizer
