"""JSON from a multimodal LLM on this machine: constrained to a schema while it is generated.

    model = StructuredLLM(MultimodalLLM.load("Qwen3-VL-4B-Instruct"))
    answer = model.ask([Turn("what keeps the rain off?", images=[image])], system, schema)

llguidance excludes every token that the schema does not allow. See `assistant.mllm.structured_answer` for how
the answer is read, and for models on a server.
"""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.model_image import ImageFit
from assistant.mllm.structured_answer import (
    MAX_ANSWER_TOKENS,
    MAX_THINKING_TOKENS,
    StructuredAnswer,
    TokenStep,
)
from assistant.pipeline import AttentionProbe

MAX_ALTERNATIVES = 20  # tokens whose probability is recorded at each step, the most that servers tell
# Of a model's context that thoughts may take, at most.
MAX_THINKING_SHARE = 0.5


class StructuredLLM:
    """A multimodal LLM that answers in JSON; a `structured_answer.StructuredModel`.

    Args:
        llm: The model.
        max_tokens: Tokens that it may write for an answer, and as many for the thought before it; None for
            `MAX_ANSWER_TOKENS` and `MAX_THINKING_TOKENS`.

    Attributes:
        name: The model's type in transformers, such as "qwen3_vl".

    Raises:
        BadInput: llguidance does not support the model's tokenizer.
    """

    def __init__(self, llm: MultimodalLLM, max_tokens: int | None = None):
        self.llm = llm
        self._max_tokens = max_tokens
        self.name: str = llm.model.config.model_type
        self._probe: AttentionProbe | None = None
        try:
            from llguidance.hf import from_tokenizer

            self._guide_tokenizer = from_tokenizer(llm.tokenizer, eos_token=llm.end_tokens)
        except Exception as error:  # a tokenizer of a kind that it does not know
            raise BadInput(
                f"the answers of {self.name} cannot be constrained: {str(error).splitlines()[0][:160]}"
            ) from None

    @property
    def image_fit(self) -> ImageFit:
        """How the model is shown images."""
        return self.llm.image_fit

    def input_size(self, image: np.ndarray) -> tuple[int, int]:
        """The size to which the processor resizes an image that `image_fit` made, if it keeps its shape.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (width, height) px.
        """
        processor = self.llm.processor.image_processor
        inputs = processor(images=[image], return_tensors="pt", **self.image_fit.processor_options)
        if "image_grid_thw" not in inputs:
            return image.shape[1], image.shape[0]
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        return columns * processor.patch_size, rows * processor.patch_size

    @property
    def _thinking_tokens(self) -> int:
        """Number of tokens that a thought may take."""
        if self._max_tokens is not None:
            return self._max_tokens
        length = self.llm.context_length
        if length is None:
            return MAX_THINKING_TOKENS
        return min(MAX_THINKING_TOKENS, int(length * MAX_THINKING_SHARE))

    def attention_probe(self) -> AttentionProbe:
        """The probe of the model, made once. Raises BadInput where the model exposes no attention."""
        from assistant.attention.chat_probe import ChatProbe

        if self._probe is None:
            self._probe = ChatProbe(self.llm)
        return self._probe

    def networks(self) -> dict[str, nn.Module]:
        """See `structured_answer.StructuredModel`."""
        return {"LLM": self.llm.model}

    def ask(
        self,
        turns: list[Turn],
        system: str,
        schema: dict[str, Any],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> StructuredAnswer:
        """See `structured_answer.StructuredModel`; the answer follows the schema unless it is cut off."""
        prompt = self.llm.prompt(turns, system)
        max_new_tokens = max_new_tokens or self._max_tokens or MAX_ANSWER_TOKENS
        thought = ""
        tokens = read_tokens = image_tokens = 0
        constraint = Constraint(self._guide_tokenizer, schema)
        with self.llm.lock:
            if prompt.rstrip().endswith("<think>"):  # a model that cannot be kept from thinking first
                ids, output = self.llm.generate(
                    prompt,
                    turns,
                    self._thinking_tokens,
                    temperature,
                    seed,
                    stop_strings=["</think>"],
                    tokenizer=self.llm.tokenizer,
                )
                thought = self.llm.decode(ids).partition("</think>")[0].strip()
                tokens += len(ids)
                read_tokens += output.sequences.shape[1] - len(ids)
                image_tokens += self.llm.count_image_tokens(output.sequences)
                prompt = f"{prompt.rstrip()}\n{thought}\n</think>\n\n"
            ids, output = self.llm.generate(
                prompt, turns, max_new_tokens, temperature, seed, logits_processor=[constraint]
            )
            tokens += len(ids)
            read_tokens += output.sequences.shape[1] - len(ids)
            image_tokens += self.llm.count_image_tokens(output.sequences)
        steps = [
            TokenStep(self._guide_tokenizer.decode_bytes([i]), likely)
            for i, likely in zip(ids, constraint.likely, strict=True)
            if i not in self.llm.end_tokens
        ]
        text = b"".join(step.token for step in steps).decode(errors="replace")
        return StructuredAnswer(
            text,
            thought,
            tokens,
            steps,
            read_tokens=read_tokens,
            image_tokens=image_tokens,
            is_cut=len(ids) >= max_new_tokens,
            thinks=bool(thought),
        )


class Constraint:
    """A logits processor under which one sequence can only be JSON that follows a schema.

    Args:
        tokenizer: llguidance's view of the model's tokenizer.
        schema: JSON schema.

    Attributes:
        likely: For each step, the probabilities of the likeliest tokens by their bytes.
    """

    def __init__(self, tokenizer: Any, schema: dict[str, Any]):
        from llguidance import LLMatcher

        # Spaces as json.dumps writes them and no others: a model that may write more spaces sometimes never
        # stops.
        style: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=style)
        self._matcher = LLMatcher(tokenizer, grammar)
        self._tokenizer = tokenizer
        self.likely: list[dict[bytes, float]] = []
        self._last_probabilities: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Exclude the tokens that the schema does not allow next.

        Args:
            ids: (1, L) int64, the sequence so far.
            scores: (1, V) logits of the next token.

        Returns:
            (1, V) logits, -inf where a token is excluded.
        """
        if self._last_probabilities is not None:
            taken = int(ids[0, -1])
            self._matcher.consume_token(taken)
            # A sampled token need not be among the likeliest.
            token = self._tokenizer.decode_bytes([taken])
            self.likely[-1].setdefault(token, float(self._last_probabilities[taken]))
        if self._matcher.is_error():
            raise RuntimeError(self._matcher.get_error())
        scores = scores.masked_fill(~self._allowed(scores), -torch.inf)
        self._last_probabilities = scores[0].float().softmax(-1)
        self.likely.append(self._likeliest(self._last_probabilities))
        return scores

    def _allowed(self, scores: Tensor) -> Tensor:
        """(V,) bool, the tokens that the schema allows next. A model may have more rows than tokens."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little").astype(bool))
        allowed = allowed.to(scores.device)[: scores.shape[-1]]
        return F.pad(allowed, (0, scores.shape[-1] - len(allowed)))

    def _likeliest(self, probabilities: Tensor) -> dict[bytes, float]:
        """The largest of the probabilities (V,), by the bytes of their tokens.

        Tokens of the same bytes are added up.
        """
        top = probabilities.topk(min(MAX_ALTERNATIVES, len(probabilities)))
        likely: dict[bytes, float] = {}
        for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            if p > 0:
                token = self._tokenizer.decode_bytes([i])
                likely[token] = likely.get(token, 0.0) + p
        return likely
