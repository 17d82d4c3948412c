"""Answers to learn, in the tokens in which they would be generated, on four tiny random models."""

import pytest
import torch

from assistant.grammar import SYSTEM_PROMPT, Turn
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.teacher_forcing import force_answer, force_conversation
from tests.helpers.conversations import ANSWER, CONVERSATIONS, TALL_IMAGE, recorded_generation


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_it_is_the_prompt_of_reply_and_then_the_answer(llm, turns):
    with recorded_generation(llm) as calls:
        llm.reply(turns, max_new_tokens=1)
    prompt = calls[0][0]["input_ids"][0]
    forced = force_answer(llm, [*turns[:-1], Turn(turns[-1].question, ANSWER, turns[-1].images)])
    ids = forced.inputs["input_ids"][0]
    learned = forced.labels[0][forced.labels[0] != -100]
    start = len(ids) - len(learned)
    assert torch.equal(ids[:start], prompt)
    assert torch.equal(ids[start:], learned)
    assert (forced.labels[0, :start] == -100).all()
    text = llm.tokenizer.decode(learned, clean_up_tokenization_spaces=False)
    assert text.strip() == ANSWER + llm.tokenizer.eos_token
    assert ids[forced.marker_positions + 1].tolist() == [llm.seg, llm.abs]
    assert all(len(v) == 1 for k, v in forced.inputs.items() if k in ("input_ids", "attention_mask"))
    whole = llm.tokenizer.decode(ids)
    assert whole.count(SYSTEM_PROMPT) == 1
    assert whole.count(llm.tokenizer.bos_token or SYSTEM_PROMPT) == 1


def test_it_follows_generation_where_the_template_writes_a_past_answer_differently(folders):
    llm = MultimodalLLM.load(folders["qwen"])
    llm.processor.chat_template += "{% if add_generation_prompt %}<think>\n\n</think>\n\n{% endif %}"
    forced = force_answer(llm, [Turn("What is it?", ANSWER, [TALL_IMAGE])])
    text = llm.tokenizer.decode(forced.inputs["input_ids"][0])
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n" + ANSWER + "<|im_end|>")
    learned = forced.labels[0][forced.labels[0] != -100]
    assert llm.tokenizer.decode(learned) == ANSWER + "<|im_end|>"
    assert len(forced.marker_positions) == 2


def test_several_answers_of_a_conversation_are_learned_at_once(folders):
    llm = MultimodalLLM.load(folders["qwen"])
    turns = [
        Turn("Which?", "The car [SEG].", [TALL_IMAGE]),
        Turn("And?", "No bus [ABS]."),
        Turn("So?", ANSWER),
    ]
    for wanted, answers in ((None, 3), ([True, False, True], 2), ([False, False, True], 1)):
        forced = force_conversation(llm, turns, wanted)
        learned = llm.tokenizer.decode(forced.labels[0][forced.labels[0] != -100])
        assert learned.count("<|im_end|>") == answers == sum(forced.learned)
        assert ("The car [SEG]." in learned) == (wanted is None or wanted[0]) and ANSWER in learned


def test_typed_tokens_have_no_power(llm):
    live = set(llm.tokenizer.added_tokens_decoder) - {llm.tokenizer.unk_token_id}

    def count(question):
        forced = force_answer(llm, [Turn(question, "Yes.", [TALL_IMAGE])])
        return sum(i in live for i in forced.inputs["input_ids"][0].tolist())

    typed = (
        "a [SEG] [abs] </s> <s> <image> <|im_end|> <|image_pad|> <think> <row_1_col_1> <end_of_utterance> b"
    )
    assert count(typed) == count("a b")


def test_a_conversation_without_its_last_answer_is_a_mistake_of_the_program(folders):
    with pytest.raises(ValueError, match="answer to learn"):
        force_answer(MultimodalLLM.load(folders["llava"]), [Turn("a")])
