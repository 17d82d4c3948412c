"""Which parts of a model in 4 bits are trained and computed in which precision."""

from collections import defaultdict

import pytest
import torch

from assistant.grammar import Turn
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.teacher_forcing import force_answer
from assistant.mllm.trained import SHAPE_DIM
from finetune.mllm.lora import LoraSettings, enable_activation_checkpointing, start_model
from finetune.mllm.model import LLMWithSelector
from finetune.region_cache import ImageRegions
from tests.helpers.conversations import WIDE_IMAGE

LORA = LoraSettings(rank=4, alpha=8, dropout=0.0)


def start(llm: MultimodalLLM) -> LLMWithSelector:
    """What a run trains, with activation checkpointing."""
    selector, lora_model = start_model(llm, LORA, [ImageRegions(torch.randn(8, 3 + SHAPE_DIM), [])], 0)
    enable_activation_checkpointing(llm.model)
    return LLMWithSelector(lora_model, selector, llm.seg, llm.abs)


def dtypes_by_part(model: LLMWithSelector) -> dict[str, set[torch.dtype]]:
    """{part of the model: precisions of its parameters}."""
    found: dict[str, set[torch.dtype]] = defaultdict(set)
    for name, parameter in model.llm.named_parameters():
        is_trained = "trained" if parameter.requires_grad else "frozen"
        found["vision" if "visual" in name else is_trained].add(parameter.dtype)
    return found


def test_what_is_not_in_four_bits_stays_in_bfloat16(qwen):
    """Without bitsandbytes: a model that only says that it is quantised."""
    llm = MultimodalLLM.load(qwen, dtype=torch.bfloat16)
    llm.model.is_quantized = True
    model = start(llm)
    dtypes = dtypes_by_part(model)
    assert dtypes == {"vision": {torch.bfloat16}, "frozen": {torch.bfloat16}, "trained": {torch.float32}}
    with model.autocast():
        assert torch.is_autocast_enabled("cpu")


def test_a_step_in_four_bits_computes_in_bfloat16(qwen):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra: pip install 'maskpick[bnb]'")
    llm = MultimodalLLM.load(qwen, dtype=torch.bfloat16, four_bit=True)
    model = start(llm)
    assert dtypes_by_part(model)["frozen"] == {torch.bfloat16, torch.uint8}
    computed: dict[str, set[torch.dtype]] = defaultdict(set)

    def record(name):
        return lambda module, args, output: computed[name].add(output.dtype)

    for name, module in llm.model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lora" not in name:
            module.register_forward_hook(record("vision" if "visual" in name else "layers"))
    forced = force_answer(llm, [Turn("What is there?", "A mug [SEG].", [WIDE_IMAGE])])
    with model.autocast():
        output = model.llm(**forced.inputs, labels=forced.labels, use_cache=False)
    output.loss.backward()
    assert computed == {"vision": {torch.bfloat16}, "layers": {torch.bfloat16}}
    assert output.logits.dtype == torch.bfloat16
    assert all(p.grad is not None for name, p in model.trained_parameters().items() if "lora_B" in name)
