"""A local multimodal LLM on four tiny random models: states, adapters, streaming, bad input."""

from functools import partial
from pathlib import Path

import pytest
import torch

from assistant.grammar import ABS, SEG, Turn
from assistant.mllm.loading import peft_deprecations_ignored
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.reply_text import ReplyStreamer
from assistant.mllm.teacher_forcing import force_answer
from tests.helpers.conversations import ANSWER, CONVERSATIONS, WIDE_IMAGE, recorded_generation
from tests.helpers.refusals import refusal


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_states_and_margins_are_those_of_one_teacher_forced_pass(llm, turns):
    with recorded_generation(llm) as calls:
        reply = llm.reply(turns, temperature=0.8, seed=1, max_new_tokens=40)
    ((inputs, sequence),) = calls
    start, length = inputs["input_ids"].shape[1], sequence.shape[1]
    whole = {
        k: torch.nn.functional.pad(v, (0, length - start), value=int(k == "attention_mask"))
        for k, v in inputs.items()
        if k in ("attention_mask", "mm_token_type_ids")
    }
    whole |= {k: v for k, v in inputs.items() if "pixel" in k or "grid" in k}
    with torch.no_grad():
        out = llm.model(**whole | {"input_ids": sequence}, output_hidden_states=True)
    places = [k for k in range(start, length) if sequence[0, k] in (llm.seg, llm.abs)]
    log_p = out.logits[0].log_softmax(-1)
    assert len(places) >= 2 and reply.tokens == length - start
    config = llm.model.config
    assert getattr(config, "image_token_id", None) not in sequence[0, start:]
    assert reply.markers == [bool(sequence[0, k] == llm.seg) for k in places]
    assert reply.text.count(SEG) == sum(reply.markers)
    assert reply.text.count(ABS) == len(places) - sum(reply.markers)
    torch.testing.assert_close(
        reply.states, torch.stack([out.hidden_states[-1][0, k - 1] for k in places]), atol=2e-4, rtol=1e-3
    )
    torch.testing.assert_close(
        reply.margins,
        torch.stack([log_p[k - 1, llm.seg] - log_p[k - 1, llm.abs] for k in places]),
        atol=2e-4,
        rtol=1e-3,
    )


def test_a_reply_without_tokens_has_empty_states(folders):
    llm = MultimodalLLM.load(folders["qwen"])
    reply = llm.reply(CONVERSATIONS["one image"], max_new_tokens=3)
    assert reply.markers == [] and reply.states.shape == (0, 64) and reply.margins.shape == (0,)
    assert reply.states.dtype == reply.margins.dtype == torch.float32


def test_an_adapter_learns_is_saved_and_gives_the_same_reply_when_loaded(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    llm = MultimodalLLM.load(folder)
    forced = force_answer(llm, [Turn("What is there?", ANSWER, [WIDE_IMAGE])])
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        exclude_modules=".*vi(sion|sual).*",
        trainable_token_indices=llm.marker_rows(),
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    with peft_deprecations_ignored():
        tuned = get_peft_model(llm.model, lora)
    optimiser = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = tuned(**forced.inputs, labels=forced.labels).loss
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] / 5  # the frozen head of a random model allows no less
    tuned.save_pretrained(tmp_path)
    with torch.no_grad():
        hidden = tuned(**forced.inputs, output_hidden_states=True).hidden_states[-1]
    states = hidden[0, forced.marker_positions]

    question = [Turn("What is there?", images=[WIDE_IMAGE])]
    reply = MultimodalLLM.load(folder, adapter=tmp_path).reply(question)
    assert reply.text == ANSWER and reply.markers == [True, False]
    assert reply.margins[0] > 2 and reply.margins[1] < -2
    torch.testing.assert_close(reply.states, states, atol=5e-3, rtol=1e-2)


def test_sampling_repeats_with_its_seed_and_leaves_the_callers_random_state(folders):
    llm = MultimodalLLM.load(folders["smolvlm"])
    ask = partial(llm.reply, CONVERSATIONS["one image"], max_new_tokens=12, temperature=1.5)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = ask(seed=1), ask(seed=1), ask(seed=2)
    assert torch.rand(1) == expected
    assert first.text == again.text != other.text


def test_greedy_ignores_the_checkpoints_own_sampling_defaults(folders, tmp_path):
    llm = MultimodalLLM.load(folders["qwen"])
    plain = llm.reply(CONVERSATIONS["one image"], max_new_tokens=30).text
    llm.model.generation_config.update(
        repetition_penalty=5.0, do_sample=True, temperature=9.0, eos_token_id=2
    )
    llm.model.save_pretrained(tmp_path)
    llm.processor.save_pretrained(tmp_path)
    assert MultimodalLLM.load(tmp_path).reply(CONVERSATIONS["one image"], max_new_tokens=30).text == plain


def test_stream_brings_the_text_in_pieces(llm):
    pieces = []
    reply = llm.reply([Turn("What?")], temperature=1.0, seed=0, max_new_tokens=20, stream=pieces.append)
    assert "".join(pieces).strip() == reply.text and 5 < len(pieces) <= 20 and all(pieces)


def test_markers_spelled_in_ordinary_tokens_are_neutralised(folders, monkeypatch):
    """They have no hidden state, so that nothing can be selected for them."""
    llm = MultimodalLLM.load(folders["qwen"])
    spelled = [i for part in ("a [", "SE", "G], no b [A", "BS] ") for i in llm.tokenizer(part).input_ids]
    ids = [*spelled, llm.seg, *llm.tokenizer(" and c").input_ids, llm.end_tokens[0]]
    assert llm.decode(ids) == "a [SEG], no b [ABS] [SEG] and c"
    generate = llm.model.generate

    def generate_ids(**inputs):
        output = generate(**inputs | {"max_new_tokens": len(ids), "min_new_tokens": len(ids)})
        start = inputs["input_ids"].shape[1]
        output.sequences = torch.cat([output.sequences[:, :start], torch.tensor([ids])], 1)
        return output

    monkeypatch.setattr(llm.model, "generate", generate_ids)
    reply = llm.reply([Turn("What?")])
    assert reply.text == "a (SEG), no b (ABS) [SEG] and c" and reply.markers == [True]
    assert len(reply.states) == 1


def test_stream_never_shows_half_a_character(folders):
    llm = MultimodalLLM.load(folders["qwen"])
    text, pieces = "the ümbrella ☂ [SEG] and 𝄞", []
    streamer = ReplyStreamer(llm.decode, pieces.append)
    streamer.put(torch.tensor([[1, 2]]))  # the prompt
    ids = llm.tokenizer(text).input_ids
    for i in [*ids, *llm.end_tokens]:
        streamer.put(torch.tensor([i]))
    streamer.end()
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces) and len(ids) > len(pieces) > 10


def test_token_rows_are_added_once(folders, tmp_path):
    for name, rows in (("qwen", 324), ("llava", 512)):  # LLaVA's spare rows are used
        llm = MultimodalLLM.load(folders[name])
        weight = llm.model.get_input_embeddings().weight
        assert len(weight) == rows
        torch.testing.assert_close(weight[llm.abs], weight[: llm.seg].mean(0))
        with torch.no_grad():
            llm.model.get_output_embeddings().weight[llm.seg] = 3.0
        llm.model.save_pretrained(tmp_path / name)
        llm.processor.save_pretrained(tmp_path / name)
        again = MultimodalLLM.load(tmp_path / name)
        assert (again.seg, again.abs) == (llm.seg, llm.abs)
        for getter in ("get_input_embeddings", "get_output_embeddings"):
            assert torch.equal(getattr(again.model, getter)().weight, getattr(llm.model, getter)().weight)


def test_what_cannot_be_loaded_is_one_clear_line(folders, tmp_path):
    assert "no folder" in refusal(lambda: MultimodalLLM.load(tmp_path / "absent"))
    assert "no folder" in refusal(lambda: MultimodalLLM.load("./absent"))
    assert "no folder" in refusal(lambda: MultimodalLLM.load(folders["qwen"], adapter=tmp_path / "absent"))
    assert "hub" in refusal(lambda: MultimodalLLM.load("nobody/no-such-model"))
    assert "cannot load" in refusal(lambda: MultimodalLLM.load(tmp_path))
    assert "adapter" in refusal(lambda: MultimodalLLM.load(folders["qwen"], adapter=tmp_path))
    short = tmp_path / "short"
    short.mkdir()
    for file in folders["llava"].iterdir():
        data = file.read_bytes()
        (short / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    assert "cannot load" in refusal(lambda: MultimodalLLM.load(short))
    if not torch.cuda.is_available():
        assert "GPU" in refusal(lambda: MultimodalLLM.load(folders["qwen"], device="cuda"))


def test_an_adapter_of_another_model_is_refused(folders, tmp_path):
    from peft import LoraConfig, get_peft_model

    other = MultimodalLLM.load(folders["smolvlm"])
    rows = {"embed_tokens": [5, 6]}
    lora = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows)
    with peft_deprecations_ignored():
        get_peft_model(other.model, lora).save_pretrained(tmp_path)
    assert "trained on another model" in refusal(
        lambda: MultimodalLLM.load(folders["smolvlm"], adapter=tmp_path)
    )
    assert "adapter" in refusal(lambda: MultimodalLLM.load(folders["qwen"], adapter=tmp_path))


def test_a_conversation_too_long_for_the_model_is_refused(folders):
    llm = MultimodalLLM.load(folders["llava"])
    assert "8,192" in refusal(lambda: llm.reply([Turn("umbrella " * 4000)]))


def test_turns_that_do_not_fit_the_call_are_a_mistake_of_the_program(folders):
    llm = MultimodalLLM.load(folders["llava"])
    with pytest.raises(ValueError, match="question to answer"):
        llm.reply([Turn("a", "b")])


def test_four_bit_weights_answer(folders):
    pytest.importorskip("bitsandbytes")
    llm = MultimodalLLM.load(folders["qwen"], four_bit=True)
    assert any(p.dtype == torch.uint8 for p in llm.model.parameters())
    assert llm.reply(CONVERSATIONS["one image"], max_new_tokens=4).tokens > 0


def test_four_bit_without_its_package_says_what_to_install(folders, monkeypatch):
    from transformers import AutoModelForImageTextToText

    def missing(*_, **__):
        raise ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", missing)
    assert "maskpick[bnb]" in refusal(lambda: MultimodalLLM.load(Path(folders["qwen"]), four_bit=True))
