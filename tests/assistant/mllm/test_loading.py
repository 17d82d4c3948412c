"""Where and how a multimodal LLM is loaded: devices, precision, memory that does not suffice, tokens."""

import pytest
import torch

from assistant.errors import Note
from assistant.grammar import ABS, SEG, Turn
from assistant.loading.devices import may_spread
from assistant.loading.pipelines import load_pipeline
from assistant.mllm import loading, local_model
from assistant.mllm.grounding_prompts import marks_schema
from assistant.mllm.loading import default_dtype, device_maps, load_model
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.probe_loading import load_probe
from assistant.mllm.structured_output import StructuredLLM
from tests.helpers.conversations import WIDE_IMAGE
from tests.helpers.refusals import refusal
from tests.helpers.tiny_models import tiny_sam

ROWS = 322  # of the tiny Qwen3-VL, without [SEG] and [ABS]


def full(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


@pytest.mark.parametrize(
    "device, gpus, four_bit, spread, places",
    [
        ("cpu", 2, False, True, [{"": "cpu"}]),
        ("cuda:0", 2, False, True, ["auto"]),
        ("cuda:0", 1, False, True, [{"": "cuda:0"}, "auto"]),
        ("cuda:0", 1, True, True, [{"": "cuda:0"}]),  # no weights in 4 bits beside the GPU
        ("cuda:1", 2, False, False, [{"": "cuda:1"}]),
    ],
)
def test_where_a_model_may_lie(device, gpus, four_bit, spread, places, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert device_maps(device, four_bit, spread) == places


def test_only_a_gpu_that_nobody_numbered_is_left_for_others(monkeypatch):
    assert may_spread(None) and may_spread("cuda") and not may_spread("cuda:1") and not may_spread("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not may_spread(None)


def test_a_model_that_does_not_fit_is_spread_and_the_user_is_told(folders, monkeypatch):
    from_pretrained = loading._from_pretrained
    tried = []

    def small_gpu(name, device_map, dtype, four_bit):
        tried.append(device_map)
        if device_map != "auto":
            full()
        return from_pretrained(name, {"": "cpu"}, dtype, four_bit)

    monkeypatch.setattr(loading, "_from_pretrained", small_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.warns(Note, match="runs on the CPU"):
        load_model(folders["qwen"], "cuda:0", torch.float32, spread=True)
    assert tried == [{"": "cuda:0"}, "auto"]
    assert "--four-bit" in refusal(lambda: load_model(folders["qwen"], "cuda:0", torch.float32))


def test_an_adapter_needs_a_model_that_fits(folders, monkeypatch):
    model, processor = load_model(folders["qwen"])
    model.lm_head.to("meta")  # as accelerate leaves what waits in the CPU's memory
    monkeypatch.setattr(local_model, "load_model", lambda *options: (model, processor))
    line = refusal(lambda: MultimodalLLM.load(folders["qwen"], spread=True))
    assert "does not fit into the GPU" in line and "--four-bit" in line
    assert not MultimodalLLM.load(folders["qwen"], spread=True, markers=False).has_markers


@pytest.mark.parametrize(
    "device, has_bfloat16, dtype",
    [
        ("cpu", False, torch.float32),
        ("cuda:0", True, torch.bfloat16),
        ("cuda:0", False, torch.float16),  # such as a T4
    ],
)
def test_bfloat16_only_where_a_card_computes_in_it(device, has_bfloat16, dtype, monkeypatch):
    def is_supported(including_emulation=True):
        return has_bfloat16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert default_dtype(device) == dtype


def test_memory_that_does_not_suffice_for_new_tokens_is_one_line(folders, monkeypatch):
    monkeypatch.setattr(local_model, "add_markers", full)
    assert "to add tokens" in refusal(lambda: MultimodalLLM.load(folders["qwen"]))


def test_without_training_no_rows_are_added(folders, tmp_path):
    sam = str(tiny_sam(tmp_path))
    pipeline, _ = load_pipeline(str(folders["qwen"]), sam, selection="marks", device="cpu")
    llm = pipeline.model.llm
    assert len(llm.model.get_input_embeddings().weight) == ROWS and not llm.has_markers
    assert not {SEG, ABS} & llm.tokenizer.get_vocab().keys()
    with pytest.raises(ValueError, match="without tokens"):
        llm.reply([Turn("what?")])
    assert len(MultimodalLLM.load(folders["qwen"]).model.get_input_embeddings().weight) == ROWS + 2


def test_without_the_tokens_no_phrase_matches_better_than_another(folders):
    probe = load_probe(folders["qwen"])
    assert not probe.llm.has_markers
    attention = probe.attention(probe.open(WIDE_IMAGE), ["mug", "sky"])
    assert attention.match.tolist() == [0.5, 0.5]


def test_a_thought_gets_thousands_of_tokens_but_half_of_the_context(folders, monkeypatch):
    llm = MultimodalLLM.load(folders["qwen"], markers=False)
    model = StructuredLLM(llm)
    prompt, allowed = llm.prompt, []
    monkeypatch.setattr(llm, "prompt", lambda turns, system: prompt(turns, system) + "<think>\n")

    class Recorded(Exception):
        pass

    def generate(text, turns, max_new_tokens, *rest, **options):
        allowed.append(max_new_tokens)
        raise Recorded

    monkeypatch.setattr(llm, "generate", generate)
    for length in (8192, 262_144):
        monkeypatch.setattr(llm.model.config.get_text_config(), "max_position_embeddings", length)
        with pytest.raises(Recorded):
            model.ask([Turn("what?")], "", marks_schema([1]))
    assert allowed == [4096, 8192]
