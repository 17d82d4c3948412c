"""JSON from a multimodal LLM: constrained to a schema while it is generated, with the probabilities of its choices.

    model = LocalModel(Reasoner.load("Qwen3-VL-4B-Instruct"))
    said = model.ask([Turn("what keeps the rain off?", images=[image])], SYSTEM, SCHEMA)
    read_json(said.text)                              # {"targets": [{"phrase": "umbrella", "marks": [3]}]}
    probabilities(said, b'"marks": .', lambda byte: byte != b"]")      # [.97]: that something stands in the list

`assistant.mllm.openai_client.RemoteModel` answers the same way from a server. A local model can only write what the schema allows
(llguidance masks every other token); what a server sends back is read with care (json_repair) and checked by the caller.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.mllm.local_model import MultimodalLLM
from assistant.pipeline import AttentionProbe

ALTERNATIVES = 20  # tokens whose probability is kept at each step, the most that servers tell
LONGEST_THOUGHT = 1024  # tokens of a model that thinks before it answers


class Step(NamedTuple):
    """One generated token: its bytes, and the probabilities of the likeliest tokens in its place, its own among them."""

    piece: bytes
    likely: dict[bytes, float]


@dataclass
class Said:
    """A JSON answer. tokens: all that were generated; steps: those of `text`, [] where their probabilities are unknown."""

    text: str
    reasoning: str = ""
    tokens: int = 0
    steps: list[Step] = field(default_factory=list)


def read_json(text: str):
    """The JSON value in a reply, also where it is fenced, followed by prose, or cut short (what is whole is kept);
    None where there is none."""
    from json_repair import repair_json

    start = min((k for k in (text.find("{"), text.find("[")) if k >= 0), default=None)
    if start is None:
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        pass
    whole = text.rfind("}") + 1 or len(text)  # what was cut off later may end in half a number
    try:
        value = repair_json(text[start:whole], return_objects=True, skip_json_loads=True)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict if text[start] == "{" else list) and value else None


def probability(said: Said, place: int, wanted: Callable[[bytes], bool]) -> float | None:
    """That the byte at `place` of the text is a `wanted` one, given the bytes before it; None where it is unknown.

    A token may hold several bytes, so the choice may fall in an earlier token than the one in which the byte stands
    ("[]" or "[" and then "3"): tokens from the one that holds the byte before it are followed, each likely one that
    reaches the place is counted, and what reaches it is taken for the whole.
    """
    end, reach, yes, no = 0, 1.0, 0.0, 0.0
    for step in said.steps:
        begin, end = end, end + len(step.piece)
        if end < place:
            continue
        offset = place - begin
        for piece, p in step.likely.items():
            if len(piece) > offset and piece[:offset] == step.piece[:offset]:
                yes, no = (
                    (yes + reach * p, no) if wanted(piece[offset : offset + 1]) else (yes, no + reach * p)
                )
        if end > place:
            break
        reach *= step.likely.get(step.piece, 0.0)
    return yes / (yes + no) if yes + no > 0 else None


def probabilities(said: Said, before: bytes, wanted: Callable[[bytes], bool]) -> list[float | None]:
    """`probability` at every place of the text that comes right after what the pattern `before` matches."""
    whole = b"".join(step.piece for step in said.steps)
    return [probability(said, match.end(), wanted) for match in re.finditer(before, whole)]


class StructuredLLM:
    """A `Reasoner` that answers in JSON."""

    def __init__(self, llm: MultimodalLLM):
        self.llm = llm
        self._probe: AttentionProbe | None = None
        self.name = llm.model.config.model_type
        try:
            from llguidance.hf import from_tokenizer

            self.tokens = from_tokenizer(llm.tokenizer, eos_token=llm.ends)
        except Exception as error:  # a tokenizer of a kind that it does not know
            raise BadInput(
                f"the answers of {self.name} cannot be constrained: {str(error).splitlines()[0][:160]}"
            ) from None

    def attention_probe(self) -> AttentionProbe:
        """The probe of the model, made once. Raises BadInput where the model exposes no attention."""
        from assistant.attention.chat_probe import ChatProbe

        if self._probe is None:
            self._probe = ChatProbe(self.llm)
        return self._probe

    def seen_size(self, image: np.ndarray) -> tuple[int, int]:
        """(w, h) px of a picture (H, W, 3) uint8 as the model sees it, where its processor makes it of a size of its own."""
        processor = self.llm.processor.image_processor
        seen = processor(images=[image], return_tensors="pt")
        if "image_grid_thw" not in seen:
            return image.shape[1], image.shape[0]
        _, h, w = seen["image_grid_thw"][0].tolist()
        return w * processor.patch_size, h * processor.patch_size

    @property
    def crops(self) -> bool:
        """Whether it cuts off what lies outside of a picture's middle square."""
        return bool(getattr(self.llm.processor.image_processor, "do_center_crop", False))

    def ask(
        self,
        turns: list[Turn],
        system: str,
        schema: dict,
        *,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Said:
        """The answer to the last turn, in the form of `schema` (JSON Schema) unless max_new_tokens cut it short."""
        prompt, thought, spent = self.llm.prompt(turns, system), "", 0
        constraint = Constraint(self.tokens, schema)
        with self.llm.lock:
            if prompt.rstrip().endswith("<think>"):  # a model that cannot but think first
                ids, _ = self.llm.generate(
                    prompt,
                    turns,
                    LONGEST_THOUGHT,
                    temperature,
                    seed,
                    stop_strings=["</think>"],
                    tokenizer=self.llm.tokenizer,
                )
                thought, spent = self.llm.spoken(ids).partition("</think>")[0].strip(), len(ids)
                prompt = f"{prompt.rstrip()}\n{thought}\n</think>\n\n"
            ids, _ = self.llm.generate(
                prompt, turns, max_new_tokens, temperature, seed, logits_processor=[constraint]
            )
        steps = [
            Step(self.tokens.decode_bytes([i]), likely)
            for i, likely in zip(ids, constraint.likely)
            if i not in self.llm.ends
        ]
        text = b"".join(step.piece for step in steps).decode(errors="replace")
        return Said(text, thought, spent + len(ids), steps)


class Constraint:
    """A logits processor (of one sequence) under which only text of a JSON schema can be written."""

    def __init__(self, tokens, schema: dict):
        from llguidance import LLMatcher

        # Spaces as json.dumps writes them, and none beside: a model that may go on with spaces sometimes does so for ever.
        style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        self.matcher = LLMatcher(
            tokens, LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=style)
        )
        self.tokens, self.likely, self.chances = tokens, [], None

    def __call__(self, ids, scores):
        import torch

        if self.chances is not None:
            taken = int(ids[0, -1])
            self.matcher.consume_token(taken)
            self.likely[-1].setdefault(
                self.tokens.decode_bytes([taken]), float(self.chances[taken])
            )  # where it is sampled
        if self.matcher.is_error():
            raise RuntimeError(self.matcher.get_error())
        allowed = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = torch.from_numpy(allowed.astype(bool)).to(scores.device)[: scores.shape[-1]]
        allowed = torch.nn.functional.pad(
            allowed, (0, scores.shape[-1] - len(allowed))
        )  # rows without a token
        scores = scores.masked_fill(~allowed, -torch.inf)
        self.chances = scores[0].float().softmax(-1)
        top = self.chances.topk(min(ALTERNATIVES, scores.shape[-1]))
        likely: dict[bytes, float] = {}
        for i, p in zip(top.indices.tolist(), top.values.tolist()):
            if p > 0:
                piece = self.tokens.decode_bytes([i])
                likely[piece] = likely.get(piece, 0.0) + p
        self.likely.append(likely)
        return scores
