"""Teacher forcing: answers that an LLM is to learn, in the tokens in which it would have to generate them.

    forced = force_answer(llm, [Turn("what keeps the rain off?", "The umbrella [SEG].", [image])])
    llm.model(**forced.inputs, labels=forced.labels).loss

Every chat template writes an answered turn in its own way, and thinking models write past answers differently
from what was generated. What generation would see is what counts here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assistant.grammar import Turn
from assistant.mllm.local_model import MultimodalLLM

IGNORED_LABEL = -100  # of tokens that are read but not learned, as torch's cross-entropy has it


@dataclass
class ForcedAnswer:
    """A conversation of which the last answer is learned.

    Attributes:
        inputs: Inputs of the model, a batch of one.
        labels: (1, L) int64, `IGNORED_LABEL` outside the answer and the token that ends it.
        marker_positions: (n,) int64, the positions whose hidden states predict the answer's [SEG] and [ABS].
    """

    inputs: Any
    labels: Tensor
    marker_positions: Tensor


@dataclass
class ForcedConversation:
    """A conversation of which several answers are learned.

    Attributes:
        inputs: Inputs of the model, a batch of one.
        labels: (1, L) int64, `IGNORED_LABEL` where nothing is learned. After a past answer it is the token
            that ends an answer, whatever the template writes there.
        learned: For each turn, whether its answer is learned.
    """

    inputs: Any
    labels: Tensor
    learned: list[bool]


def force_answer(llm: MultimodalLLM, turns: list[Turn]) -> ForcedAnswer:
    """The tokens that `MultimodalLLM.reply` would have to generate after the last question.

    Args:
        llm: Its processor and chat template are used, and its model for the device and precision of the
            inputs.
        turns: A conversation whose last turn has the answer to learn.
    """
    *earlier, last = turns
    if last.answer is None:
        raise ValueError("the last turn needs the answer to learn")
    answer = last.answer.strip()
    prompt = llm.prompt([*earlier, Turn(last.question, None, last.images)])
    answered = llm.prompt([*earlier, Turn(last.question, answer, last.images)])
    text = prompt + _completion(llm, prompt, answered, answer)
    prompt_ids = llm.tokenizer(prompt, **llm.tokenizer_options(prompt)).input_ids
    text_ids = llm.tokenizer(text, **llm.tokenizer_options(text)).input_ids
    learned = len(text_ids) - _common_length(prompt_ids, text_ids)
    inputs = llm.encode(text, turns)
    labels = inputs["input_ids"].clone()
    # Count from the end: an image takes positions that the text does not show, but none follows the prompt.
    labels[:, : labels.shape[1] - learned] = IGNORED_LABEL
    is_marker = (labels[0] == llm.seg) | (labels[0] == llm.abs)
    return ForcedAnswer(inputs, labels, is_marker.nonzero()[:, 0] - 1)


def _completion(llm: MultimodalLLM, prompt: str, answered: str, answer: str) -> str:
    """What generation would add to `prompt`: the answer, what the template puts before it, an end token.

    Args:
        llm: Its end tokens are used.
        prompt: The conversation up to where the answer begins.
        answered: The same conversation with the answer, as the template writes it.
        answer: The answer.
    """
    before, written, after = answered.removeprefix(prompt).partition(answer)
    end_tokens = llm.tokenizer.convert_ids_to_tokens(llm.end_tokens)
    places = {after.index(end): end for end in end_tokens if end in after}
    end = places[min(places)] if places else llm.tokenizer.eos_token
    follows_prompt = answered.startswith(prompt) and written
    return (before if follows_prompt else "") + answer + end


def _common_length(first: list[int], second: list[int]) -> int:
    """The number of tokens that two sequences have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def force_conversation(
    llm: MultimodalLLM, turns: list[Turn], wanted: list[bool] | None = None
) -> ForcedConversation:
    """A conversation of which several answers are learned at once.

    Args:
        llm: See `force_answer`.
        turns: All with answers.
        wanted: Which answers are to be learned; None for all. The last one always is.

    Returns:
        The conversation. An answer is not learned if its tokens, or those before it, are others once it is
        past.
    """
    whole = force_answer(llm, turns)
    labels = whole.labels
    learned = []
    for k in range(len(turns) - 1):
        if wanted and not wanted[k]:
            learned.append(False)
            continue
        part = force_answer(llm, turns[: k + 1])
        ids = part.inputs["input_ids"][0]
        # Without the end token, instead of which some templates (LLaVA-1.5's) go on with the next question.
        answered = len(ids) - 1
        is_beginning = torch.equal(ids[:answered], whole.inputs["input_ids"][0, :answered])
        if is_beginning:
            is_learned = part.labels[0] != IGNORED_LABEL
            labels[0, : len(ids)][is_learned] = part.labels[0][is_learned]
        learned.append(is_beginning)
    return ForcedConversation(whole.inputs, labels, [*learned, True])
