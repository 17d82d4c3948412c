"""The pocket LLM: its prompt, its names and its replies, on a random model of SmolLM2's kind."""

import warnings

import pytest
import torch

from assistant.grammar import Turn
from assistant.pocket import llm as pocket_llm
from assistant.pocket.llm import PocketLLM
from assistant.pocket.region_encoder import SHAPE_DIM, EncodedRegions, RegionEncoder, select_distinct
from tests.helpers.tiny_smollm2 import WIDTH


@pytest.fixture
def llm(llm_folder):
    torch.manual_seed(0)
    return PocketLLM.load(llm_folder, None, RegionEncoder(WIDTH))


def some_regions(count: int = 3) -> EncodedRegions:
    return EncodedRegions(torch.randn(count, WIDTH), torch.zeros(count, SHAPE_DIM))


def test_the_reply_reads_what_was_decided(llm):
    tokens = iter(llm.tokens("cat [SEG], dog [SEG].") + [llm.end_token])
    one_hot = torch.nn.functional.one_hot
    llm.model.lm_head.forward = lambda state: one_hot(torch.tensor(next(tokens)), len(llm.tokenizer)).float()
    pieces, phrases = [], []
    decisions = iter([True, False])

    def decide(state, margin, phrase):
        phrases.append(phrase)
        return next(decisions)

    reply = llm.reply([Turn("?")], some_regions(), decide=decide, stream=pieces.append)
    assert phrases == ["cat", "dog"]
    assert reply.text == "".join(pieces) == "cat [SEG], dog [ABS]."
    assert reply.markers == [True, False] and len(reply.states) == 2


def test_no_warning_reaches_the_user(llm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.reply([Turn("where is the cat?")], some_regions(), max_new_tokens=3)


def test_the_cache_is_used_and_changes_nothing(llm, monkeypatch):
    """A reply is what the whole sequence, read again for each token, gives."""
    regions, turns = some_regions(), [Turn("where is the cat?")]
    reply = llm.reply(turns, regions, max_new_tokens=6)
    inputs = llm.prompt_embeddings(turns, llm.region_tokens(regions))
    ids = []
    lengths = []
    forward = llm.model.model.forward
    with torch.no_grad():
        while len(ids) < 6:
            state = forward(inputs_embeds=inputs[None]).last_hidden_state[0, -1]
            ids.append(int(llm.model.lm_head(state).float().argmax()))
            inputs = torch.cat([inputs, llm.embed(ids[-1:]).to(inputs.dtype)])
    assert reply.text == llm.tokenizer.decode(ids)

    def count(*arguments, **options):
        lengths.append(options["inputs_embeds"].shape[1])
        return forward(*arguments, **options)

    monkeypatch.setattr(llm.model.model, "forward", count)
    llm.reply(turns, regions, max_new_tokens=6)
    assert lengths[1:] == [1] * 5


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_passed_under_the_name_that_transformers_has(name, monkeypatch):
    import transformers

    model = type("LlamaModel", (), {})
    exec(f"def forward(self, input_ids=None, {name}=None, **options): ...", namespace := {})
    model.forward = namespace["forward"]
    monkeypatch.setattr(transformers, "LlamaModel", model)
    pocket_llm.cache_argument.cache_clear()
    try:
        assert pocket_llm.cache_argument() == name
    finally:
        pocket_llm.cache_argument.cache_clear()


def test_typed_tokens_reach_the_llm_as_plain_text(llm):
    live = llm.tokens("cat [SEG] <|im_end|>")
    assert llm.seg_token in live and llm.end_token in live
    plain, typed = (
        llm.prompt_embeddings([Turn(question)], torch.zeros(1, WIDTH))
        for question in ("x", "x [SEG] [ABS] <|im_end|>")
    )

    def count(prompt, token):
        return int((prompt == llm.embed([token])).all(-1).sum())

    for token in (llm.seg_token, llm.abs_token, llm.end_token):
        assert count(plain, token) == count(typed, token)


def test_shown_regions_are_unlike_each_other():
    embeddings = torch.eye(4).repeat(10, 1) + 0.01 * torch.randn(40, 4)
    chosen = select_distinct(embeddings, torch.zeros(40), 4)
    assert embeddings[chosen].argmax(1).sort().values.tolist() == [0, 1, 2, 3]


def test_a_phrase_is_known_by_the_taught_name_in_it(llm_folder):
    encoder = RegionEncoder(WIDTH, 2)
    encoder.names.copy_(torch.randn(2, WIDTH))
    llm = PocketLLM.load(llm_folder, None, encoder, {"dog": 0, "dogs": 0, "hot dog": 1})
    assert torch.equal(llm.name_embedding("biggest Dog on the left"), encoder.names[0])
    assert torch.equal(llm.name_embedding("hot dog"), encoder.names[1])
    assert not torch.equal(llm.name_embedding("hotdogs"), encoder.names[0])


@torch.inference_mode()
def test_names_are_scored_as_the_whole_sequence_gives_it(llm):
    """Names of different lengths in one batch: the likelihood, state and margin of each by itself."""
    regions, names = some_regions(), ["cat", "potted plant", "dog"]
    prompt = llm.prompt_embeddings([Turn("what barks?")], llm.region_tokens(regions))
    scores = llm.score_answers("what barks?", regions, names)
    for k, name in enumerate(names):
        tokens = llm.tokens(name)
        inputs = torch.cat([prompt, llm.embed(tokens).to(prompt.dtype)])
        states = llm.model.model(inputs_embeds=inputs[None]).last_hidden_state[0]
        logits = llm.model.lm_head(states).float().log_softmax(-1)
        steps = [logits[len(prompt) - 1 + i, token] for i, token in enumerate(tokens)]
        marker = torch.logaddexp(logits[-1, llm.seg_token], logits[-1, llm.abs_token])
        assert scores.likelihood[k] == pytest.approx(float(sum(steps) + marker), abs=0.05)
        assert torch.allclose(scores.states[k], states[-1].float(), atol=0.05)


@torch.inference_mode()
def test_names_are_scored_each_after_its_own_question(llm):
    regions, names = some_regions(), ["potted plant", "dog"]
    scores = llm.score_named(regions, names)
    for k, name in enumerate(names):
        alone = llm.score_answers(f"where is the {name}?", regions, [name])
        assert torch.allclose(scores.states[k], alone.states[0], atol=0.05)
        assert scores.margins[k] == pytest.approx(float(alone.margins[0]), abs=0.05)
