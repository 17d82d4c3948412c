"""The language model of the pocket preset: SmolLM2-135M with LoRA, which reads regions as input embeddings.

    llm = PocketLLM.load(smollm2_folder(), adapter, encoder, phrase_rows)
    reply = llm.reply([Turn("what keeps the rain off?")], encoder(features))

Each region of an image becomes one input embedding (`RegionEncoder`), and the LLM reads the sixteen that
differ most. It answers in a compact form of the reply grammar, `umbrella [SEG], bench [ABS].`; the hidden
state that predicts each marker goes to the selector.
"""

import contextlib
import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from assistant.grammar import ABS, SEG, Turn, neutralise
from assistant.pipeline import Reply
from assistant.pocket.precision import has_fast_bfloat16
from assistant.pocket.region_encoder import EncodedRegions, RegionEncoder, select_distinct

USER_TURN = "<|im_start|>user\n"  # opens a turn of the user in SmolLM2's chat template
END_OF_TURN = "<|im_end|>"
REGIONS_INTRODUCTION = "In the picture:"  # stands before the regions' embeddings, in the first turn
# The first tokens of a byte-pair encoding are the most frequent ones; averages are taken over them.
MEAN_SAMPLE_TOKENS = 20_000  # for the mean embedding, which is what all tokens share
LENGTH_SAMPLE_TOKENS = 1_000  # for the usual length of an embedding
NAMED_QUESTION = "where is the {}?"
MAX_NEW_TOKENS = 64
UNFINISHED_CHARACTER = "\ufffd"  # what the tokenizer decodes the first bytes of a character to

# Decides whether a target is present, from the state (W,) that predicts its marker, the margin log p([SEG]) -
# log p([ABS]), and the phrase before the marker.
Decision = Callable[[Tensor, Tensor, str], bool]


@functools.cache
def cache_argument() -> str:
    """The argument for the key-value cache: `cache` in transformers 5.24, `past_key_values` before."""
    from transformers import LlamaModel

    parameters = inspect.signature(LlamaModel.forward).parameters
    return "past_key_values" if "past_key_values" in parameters else "cache"


@contextlib.contextmanager
def without_rename_warnings() -> Iterator[None]:
    """While active, peft may read an attribute that transformers is about to rename without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def load_tokenizer(folder: Path) -> Any:
    """SmolLM2's tokenizer with [SEG] and [ABS] as two more tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([SEG, ABS], special_tokens=True)
    return tokenizer


class PocketLLM:
    """SmolLM2 and the region encoder through which it reads images.

    Args:
        model: A `LlamaForCausalLM`, or a peft model around one in training.
        tokenizer: See `load_tokenizer`.
        encoder: The region encoder.
        phrase_rows: {phrase in lower case: row of `encoder.names`}, every form of each taught name.
        unspoken: Those of the phrases that the LLM was not taught to answer with.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        encoder: RegionEncoder,
        phrase_rows: dict[str, int] | None = None,
        unspoken: frozenset[str] = frozenset(),
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.phrase_rows = phrase_rows or {}
        self.unspoken = unspoken
        self.common_embedding = self._token_embeddings(MEAN_SAMPLE_TOKENS).float().mean(0)
        self.seg_token, self.abs_token = tokenizer.convert_tokens_to_ids([SEG, ABS])
        self.end_token = tokenizer.convert_tokens_to_ids(END_OF_TURN)

    @classmethod
    def load(
        cls,
        folder: Path,
        adapter: Path | None,
        encoder: RegionEncoder,
        phrase_rows: dict[str, int] | None = None,
        unspoken: frozenset[str] = frozenset(),
    ) -> "PocketLLM":
        """Load it for answering.

        Args:
            folder: SmolLM2 as a transformers folder.
            adapter: A peft folder; None for the untuned model.
            encoder, phrase_rows, unspoken: As of the class.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = load_tokenizer(folder)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if adapter is not None:
            from peft import PeftModel

            with without_rename_warnings():
                model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        if has_fast_bfloat16():
            model = model.to(torch.bfloat16)
        return cls(model.eval(), tokenizer, encoder.eval(), phrase_rows, unspoken)

    def embed(self, ids: list[int]) -> Tensor:
        """The input embeddings (len(ids), W) of tokens."""
        return self.model.get_input_embeddings()(torch.tensor(ids))

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, without any that a chat template adds."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _token_embeddings(self, count: int) -> Tensor:
        return self.model.get_input_embeddings().weight[:count].detach()

    def embedding_length(self) -> Tensor:
        """The usual length of an input embedding, (), to which unit vectors of regions are scaled."""
        return self._token_embeddings(LENGTH_SAMPLE_TOKENS).norm(dim=-1).mean()

    # ------------------------------------------------------------------------------ names

    def name_embedding(self, phrase: str) -> Tensor:
        """Where the embedding of a region with this name should lie, (W,) float32.

        That of the taught name that the phrase contains, else `mean_token_embedding`.
        """
        row = self.row_of(phrase)
        return self.mean_token_embedding(phrase) if row is None else self.encoder.names[row]

    def row_of(self, phrase: str) -> int | None:
        """The row of the taught name that a phrase contains, by its longest form; None if there is none."""
        contained = [
            form for form in self.phrase_rows if re.search(rf"\b{re.escape(form)}\b", phrase.lower())
        ]
        return self.phrase_rows[max(contained, key=len)] if contained else None

    def plain_names(self) -> dict[int, str]:
        """{row: its plain name}, the first of the forms of each taught name."""
        names: dict[int, str] = {}
        for phrase, row in self.phrase_rows.items():
            names.setdefault(row, phrase)
        return names

    def mean_token_embedding(self, phrase: str) -> Tensor:
        """The mean of a phrase's input embeddings less what all tokens share, (W,) float32."""
        return self.embed(self.tokens(f" {phrase}")).detach().float().mean(0) - self.common_embedding

    # ------------------------------------------------------------------------------ prompts

    def question_text(self, question: str) -> str:
        """The part of the chat from a question up to where its answer begins."""
        text = neutralise(question, self.tokenizer.all_special_tokens)
        return f"{text}{END_OF_TURN}\n<|im_start|>assistant\n"

    def prompt_embeddings(self, turns: list[Turn], region_tokens: Tensor) -> Tensor:
        """The prompt up to where the answer to the last turn begins.

        Args:
            turns: The conversation; the last turn has no answer.
            region_tokens: (K, W), see `region_tokens`; they stand before the first question.

        Returns:
            (L, W) input embeddings in the model's dtype.
        """
        parts = [self.embed(self.tokens(USER_TURN + REGIONS_INTRODUCTION)), region_tokens]
        for k, turn in enumerate(turns):
            opening = "\n" if k == 0 else USER_TURN
            parts.append(self.embed(self.tokens(opening + self.question_text(turn.question))))
            if turn.answer is not None:
                parts.append(self.embed(self.tokens(f"{turn.answer}{END_OF_TURN}\n")))
        return torch.cat([part.to(self.model.dtype) for part in parts])

    def region_tokens(self, regions: EncodedRegions) -> Tensor:
        """The regions that the LLM reads (K, W), each of the length of an input embedding."""
        shown = select_distinct(regions.embeddings, regions.objectness)
        return regions.embeddings[shown] * self.embedding_length()

    # ------------------------------------------------------------------------------ replies

    @torch.inference_mode()
    def reply(
        self,
        turns: list[Turn],
        regions: EncodedRegions,
        *,
        decide: Decision | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        seed: int | None = None,
        stream: Callable[[str], object] | None = None,
    ) -> Reply:
        """Answer the last turn.

        Args:
            turns: The conversation; the last turn has no answer.
            regions: The encoded regions of the image.
            decide: Decides each marker; the LLM then reads what was decided. None for the LLM's own choice.
            max_new_tokens: Number of tokens at most.
            temperature: 0 for the most likely token, otherwise that of sampling.
            seed: Of sampling; None for another one each time.
            stream: Receives each piece of the text as it is decoded.

        Returns:
            The reply with the state, the margin and the choice at each of its markers.
        """
        from transformers import DynamicCache

        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        draft = _ReplyDraft(self, decide, stream)
        inputs = self.prompt_embeddings(turns, self.region_tokens(regions))[None]
        cache = {cache_argument(): DynamicCache(config=self.model.config)}
        for _ in range(max_new_tokens):
            output = self.model.model(inputs_embeds=inputs, use_cache=True, **cache)
            state = output.last_hidden_state[0, -1]
            logits = self.model.lm_head(state).float()
            token = _next_token(logits, temperature, generator)
            if token == self.end_token:
                break
            token = draft.add(token, state, logits)
            inputs = self.embed([token]).to(self.model.dtype)[None]
        return draft.finish()

    @torch.inference_mode()
    def score_answers(self, question: str, regions: EncodedRegions, names: Sequence[str]) -> "NameScores":
        """Score names as the answer to a question, all of them in two passes.

        Args:
            question: A question without earlier turns.
            regions: The encoded regions of the image.
            names: At least one name.
        """
        prompt = self.prompt_embeddings([Turn(question)], self.region_tokens(regions))
        last = self.tokens(self.question_text(question))[-1:]
        return self._score(prompt[:-1], [last] * len(names), [self.tokens(name) for name in names])

    @torch.inference_mode()
    def score_named(self, regions: EncodedRegions, names: Sequence[str]) -> "NameScores":
        """Score names as if each was asked for by itself ("where is the cup?"); see `score_answers`."""
        opening = self.embed(self.tokens(USER_TURN + REGIONS_INTRODUCTION))
        prompt = torch.cat([opening, self.region_tokens(regions)]).to(self.model.dtype)
        questions = [self.tokens("\n" + self.question_text(NAMED_QUESTION.format(name))) for name in names]
        return self._score(prompt, questions, [self.tokens(name) for name in names])

    def _score(self, prompt: Tensor, questions: list[list[int]], names: list[list[int]]) -> "NameScores":
        """Score names (M token lists), each after its own tokens that follow the prompt (L, W)."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        self.model.model(inputs_embeds=prompt[None], use_cache=True, **{cache_argument(): cache})
        cache.batch_repeat_interleave(len(names))
        rows = [question + name for question, name in zip(questions, names, strict=True)]
        longest = max(map(len, rows))
        # What a row is filled up with stands after its name, which cannot see it.
        ids = torch.tensor([row + [self.end_token] * (longest - len(row)) for row in rows])
        inputs = self.model.get_input_embeddings()(ids).to(self.model.dtype)
        output = self.model.model(inputs_embeds=inputs, use_cache=True, **{cache_argument(): cache})
        scores = [
            self._score_row(states, ids[k], len(questions[k]), len(rows[k]))
            for k, states in enumerate(output.last_hidden_state)
        ]
        likelihoods, states, margins = zip(*scores, strict=True)
        return NameScores(torch.stack(likelihoods), torch.stack(states), torch.stack(margins))

    def _score_row(self, states: Tensor, ids: Tensor, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """The likelihood of the tokens from `start` to `end`, and the state and margin of what follows."""
        logits = self.model.lm_head(states[start - 1 : end]).float().log_softmax(-1)
        likelihood = logits[:-1].gather(1, ids[start:end, None]).sum()
        marker = torch.logaddexp(logits[-1, self.seg_token], logits[-1, self.abs_token])
        margin = logits[-1, self.seg_token] - logits[-1, self.abs_token]
        return likelihood + marker, states[end - 1].float(), margin


class NameScores(NamedTuple):
    """What the LLM says of M names as the answer to a question.

    Attributes:
        likelihood: (M,) float32, the log-probability that it answers with the name.
        states: (M, W) float32, the state that predicts the marker after each.
        margins: (M,) float32, log p([SEG]) - log p([ABS]) there.
    """

    likelihood: Tensor
    states: Tensor
    margins: Tensor


def _next_token(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """The most likely token at temperature 0, otherwise a sampled one; logits: (vocabulary,)."""
    if temperature > 0:
        return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
    return int(logits.argmax())


class _ReplyDraft:
    """The reply as far as it is generated."""

    def __init__(self, llm: PocketLLM, decide: Decision | None, stream: Callable[[str], object] | None):
        self.llm = llm
        self.decide = decide
        self.stream = stream
        self.ids: list[int] = []
        self.states: list[Tensor] = []
        self.margins: list[Tensor] = []
        self.phrase_start = 0  # index of the token after the last marker
        self.streamed = ""

    def add(self, token: int, state: Tensor, logits: Tensor) -> int:
        """Append a token, which is decided first if it is a marker; returns the token to read next."""
        if token in (self.llm.seg_token, self.llm.abs_token):
            token = self._mark(token, state, logits)
        self.ids.append(token)
        text = self.llm.tokenizer.decode(self.ids)
        if self.stream is not None and not text.endswith(UNFINISHED_CHARACTER):
            self.stream(text[len(self.streamed) :])
            self.streamed = text
        return token

    def _mark(self, token: int, state: Tensor, logits: Tensor) -> int:
        self.states.append(state.float())
        self.margins.append(logits[self.llm.seg_token] - logits[self.llm.abs_token])
        if self.decide is not None:
            phrase = self.llm.tokenizer.decode(self.ids[self.phrase_start :]).strip(" ,.")
            present = self.decide(self.states[-1], self.margins[-1], phrase)
            token = self.llm.seg_token if present else self.llm.abs_token
        self.phrase_start = len(self.ids) + 1
        return token

    def finish(self) -> Reply:
        """The reply of all tokens so far."""
        seg, absent = self.llm.seg_token, self.llm.abs_token
        width = self.llm.model.config.hidden_size
        return Reply(
            self.llm.tokenizer.decode(self.ids),
            len(self.ids),
            [token == seg for token in self.ids if token in (seg, absent)],
            torch.stack(self.states) if self.states else torch.zeros(0, width),
            torch.stack(self.margins) if self.margins else torch.zeros(0),
        )
