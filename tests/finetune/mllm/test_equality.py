"""What training computes, saves and merges equals what is computed independently of it.

The independent computation takes each answer by itself: one conversation, one question at a time, nothing
padded, the answer's tokens put after the prompt that generation would read.
"""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken

from assistant.grammar import ABS, SEG, Turn
from assistant.mllm.loading import peft_deprecations_ignored
from assistant.mllm.local_model import MultimodalLLM
from finetune.image_record import ImageRecord, read_image_records
from finetune.mllm.adapter import save_adapter
from finetune.mllm.batches import BatchReader
from finetune.mllm.lora import LoraSettings, start_model
from finetune.mllm.merge import merge
from finetune.mllm.model import LLMWithSelector
from finetune.region_cache import ImageRegions
from tests.helpers import rectangles
from tests.helpers.tiny_models import tiny_llava, tiny_qwen3_vl, tiny_smolvlm

# What each template puts before an answer, and the token that ends one.
MODELS = {
    "qwen": (tiny_qwen3_vl, "", "<|im_end|>"),
    "qwen tied": (partial(tiny_qwen3_vl, tied=True), "", "<|im_end|>"),
    "smolvlm": (tiny_smolvlm, " ", "<end_of_utterance>"),
    "llava": (tiny_llava, " ", "</s>"),
}


@pytest.fixture(scope="module", params=MODELS)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return MODELS[family][0](tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(folder) -> MultimodalLLM:
    return MultimodalLLM.load(folder)


@pytest.fixture(scope="module")
def model(llm) -> LLMWithSelector:
    """The model in training, with LoRA and token rows that matter."""
    selector, lora = start_model(llm, LoraSettings(4, 8, 0.0), [regions_of(None)], seed=0)
    generator = torch.manual_seed(1)
    with torch.no_grad():
        for parameter in lora.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return LLMWithSelector(lora, selector, llm.seg, llm.abs).eval()


def regions_of(image) -> ImageRegions:
    rles = [rectangles.encode_rle(rectangles.square(k)) for k in range(4)]
    return ImageRegions(torch.randn(4, 14, generator=torch.manual_seed(0)), rles)


@pytest.fixture(scope="module")
def conversations(dataset) -> list[list[ImageRecord]]:
    """One with three questions about an image, a short one, and one with two images."""
    records = read_image_records(dataset[0])
    return [records[:3], records[3:4], [records[0], records[4], records[5]]]


def turns_of(conversation: list[ImageRecord]) -> list[Turn]:
    turns = []
    last_image = None
    for question in conversation:
        images = [] if question.image == last_image else [np.array(Image.open(question.image).convert("RGB"))]
        turns.append(Turn(question.record.question, question.record.answer, images))
        last_image = question.image
    return turns


def answer_alone(model, llm, family, turns: list[Turn]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Log probabilities of the tokens of the last answer, the states before its markers, and its tokens."""
    _, before, end = MODELS[family]
    *earlier, last = turns
    asked = [*earlier, Turn(last.question, None, last.images)]
    prompt = llm.prompt(asked)
    inputs = llm.encode(prompt, asked)
    options = llm.tokenizer_options(prompt)
    whole = llm.tokenizer(prompt + before + last.answer + end, **options).input_ids
    ids = whole[len(llm.tokenizer(prompt, **options).input_ids) :]
    start = inputs["input_ids"].shape[1]
    for name, values in inputs.items():
        if name == "input_ids":
            inputs[name] = torch.cat([values, torch.tensor([ids])], 1)
        elif values.shape == (1, start):  # the mask, and the kinds of tokens
            inputs[name] = torch.nn.functional.pad(values, (0, len(ids)), value=int(name == "attention_mask"))
    output = model.llm(**inputs, output_hidden_states=True)
    log_p = output.logits[0, start - 1 : -1].log_softmax(-1)
    places = [start - 1 + k for k, token in enumerate(ids) if token in (llm.seg, llm.abs)]
    return log_p[torch.arange(len(ids)), ids], output.hidden_states[-1][0, places], ids


@torch.no_grad()
def test_loss_and_states_are_those_of_each_answer_alone(model, llm, family, conversations):
    states = []
    handle = model.selector.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    try:
        output = model(BatchReader(llm, regions_of)(conversations))
    finally:
        handle.remove()
    answers = [
        answer_alone(model, llm, family, turns[: k + 1])
        for turns in map(turns_of, conversations)
        for k in range(len(turns))
    ]
    assert len(answers) == 7 and output.counts[0] == sum(len(ids) for _, _, ids in answers)
    torch.testing.assert_close(
        output.sums[0], -sum(log_p.sum() for log_p, _, _ in answers), rtol=1e-4, atol=1e-3
    )
    expected = torch.cat([marker_states for _, marker_states, _ in answers])
    torch.testing.assert_close(torch.cat(states), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_saved_and_merged_weights_compute_the_same(model, llm, folder, conversations, tmp_path):
    from accelerate import Accelerator
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    turns = [Turn("which one?", images=turns_of(conversations[0])[0].images)]
    inputs = llm.encode(llm.prompt(turns), turns)
    expected = model.llm(**inputs).logits
    tuned, merged = tmp_path / "tuned", tmp_path / "merged"
    tuned.mkdir()
    save_adapter(tuned, model, {"mllm": str(folder)}, None, model, Accelerator(cpu=True))

    plain = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in (SEG, ABS)])
    if len(tokenizer) > len(plain.get_input_embeddings().weight):
        plain.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with peft_deprecations_ignored():
        reloaded = PeftModel.from_pretrained(plain, tuned / "lora").eval()
    torch.testing.assert_close(reloaded(**inputs).logits, expected, rtol=1e-4, atol=1e-4)

    ours = MultimodalLLM.load(folder, adapter=tuned / "lora")
    torch.testing.assert_close(ours.model(**inputs).logits, expected, rtol=1e-3, atol=1e-3)

    merge(tuned, merged, dtype="float32")
    alone = AutoModelForImageTextToText.from_pretrained(merged).eval()
    torch.testing.assert_close(alone(**inputs).logits, expected, rtol=1e-3, atol=1e-3)
