"""Phase 2 of the records stage: what the LLM reads in training is what it reads in use."""

import numpy as np
import pytest
import torch

from assistant.grammar import Turn
from assistant.pocket.llm import PocketLLM
from assistant.pocket.region_encoder import SHAPE_DIM, EncodedRegions, RegionEncoder
from finetune.pocket.examples import Example, TrainingQuestion
from finetune.pocket.language import read_batch
from tests.helpers.pocket_records import NAMES
from tests.helpers.tiny_smollm2 import WIDTH

NOTHING = np.zeros((1, 5), np.float32)


def question(name: str, history=()) -> TrainingQuestion:
    return TrainingQuestion(
        f"where is the {name}?", f"{name} [SEG].", [name], [True], NOTHING, NOTHING, list(history)
    )


@pytest.fixture
def llm(llm_folder):
    torch.manual_seed(0)
    llm = PocketLLM.load(llm_folder, None, RegionEncoder(WIDTH))
    llm.model = llm.model.float()
    return llm


@pytest.fixture
def regions():
    embeddings = torch.nn.functional.normalize(torch.randn(5, WIDTH), dim=-1)
    return EncodedRegions(embeddings, torch.zeros(5, SHAPE_DIM))


def state_in_use(llm, regions, turns):
    """The state that predicts the marker of "dog" in a reply to `turns`."""
    prompt = llm.prompt_embeddings(turns, llm.region_tokens(regions))
    inputs = torch.cat([prompt, llm.embed(llm.tokens("dog [SEG]")[:-1])])
    return llm.model.model(inputs_embeds=inputs[None]).last_hidden_state[0, -1]


def assert_close(a, b):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_training_sequence_reads_as_the_prompt_does(llm, regions):
    """A chat is what `prompt_embeddings` makes of its turns; other questions do not attend to each other."""
    questions = [question(name) for name in NAMES]
    history = [Turn(q.question, q.answer) for q in questions[:2]]
    last = Turn(questions[2].question)
    chat = read_batch(llm, [Example(regions, questions, is_chat=True)]).states[2]
    assert_close(chat, state_in_use(llm, regions, [*history, last]))
    single = read_batch(llm, [Example(regions, questions, is_chat=False)]).states[2]
    assert_close(single, state_in_use(llm, regions, [last]))


@torch.no_grad()
@pytest.mark.parametrize("is_chat", [True, False])
def test_history_is_read_and_not_learned(llm, regions, is_chat):
    history = [(q.question, q.answer) for q in map(question, NAMES[:2])]
    follow_up = question("dog", history)
    output = read_batch(llm, [Example(regions, [follow_up], is_chat)])
    assert output.tokens.tolist() == llm.tokens("dog [SEG].") + [llm.end_token]
    turns = [Turn(*turn) for turn in history]
    assert_close(output.states[0], state_in_use(llm, regions, [*turns, Turn(follow_up.question)]))
