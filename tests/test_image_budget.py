"""What models are shown of an image stays within bounds, however large it is and whatever it is shown for.

The models have random weights but the published processors and vocabularies; docs/larger-models.md names the
bounds of `BUDGETS`.
"""

import json
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from assistant.attention.chat_probe import MAX_TOKENS_PER_BATCH, ChatProbe
from assistant.attention.transformers_probe import ProbedImage
from assistant.grammar import Turn
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.structured_answer import StructuredAnswer
from assistant.mllm.structured_output import StructuredLLM
from assistant.mllm.trained import SHAPE_DIM, StandardisedSelector, TrainedOpenedImage, TrainedPipeline
from assistant.mllm.zero_shot import MAX_SHEETS, ZeroShotPipeline
from assistant.sam.image_opener import SamOpenedImage
from finetune.image_record import ImageRecord
from finetune.mllm.batches import encode_conversation
from tests.helpers.example_record import example_record
from tests.helpers.marked_image import INSTANCES, MarkedImageOpener, make_proposals
from tests.helpers.real_layouts import unconstrained


class Budget(NamedTuple):
    """Of one image: tokens in the text, and pixels that the vision tower reads."""

    tokens: int
    pixels: int


BUDGETS = {
    "qwen3_vl": Budget(1280, 1280 * 32 * 32),
    "qwen2_5_vl": Budget(1280, 1280 * 28 * 28),
    "llava": Budget(576, 336 * 336),
    "smolvlm": Budget(17 * 81, 17 * 384 * 384),
    "internvl": Budget(7 * 256, 7 * 448 * 448),
    "gemma3": Budget(256, 896 * 896),
}
# (H, W) by megapixels.
SIZES = [
    pytest.param((480, 640), id="0.3"),
    pytest.param((1414, 1414), id="2", marks=pytest.mark.slow),
    pytest.param((4032, 3024), id="12"),
    pytest.param((6048, 8064), id="48", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=BUDGETS)
def llm(request, real_layout) -> MultimodalLLM:
    return MultimodalLLM.load(real_layout(request.param))


@pytest.fixture(scope="module")
def structured(llm) -> StructuredLLM:
    return unconstrained(llm)


@pytest.fixture(scope="module")
def budget(llm) -> Budget:
    return BUDGETS[llm.model.config.model_type]


@cache
def image_of(height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.arange(width, dtype=np.uint8)[:, None], (height, width, 3)).copy()


@pytest.fixture(params=SIZES)
def image(request) -> np.ndarray:
    return image_of(*request.param)


@pytest.fixture
def shown(llm, monkeypatch) -> list[Any]:
    """The inputs of all that the model is shown."""
    recorded = []
    encode_batch = llm.encode_batch

    def record(texts, conversations):
        recorded.append(encode_batch(texts, conversations))
        return recorded[-1]

    monkeypatch.setattr(llm, "encode_batch", record)
    return recorded


def used(llm: MultimodalLLM, inputs: Any) -> Budget:
    """What the images of some inputs take in all."""
    frames = 2 if "image_grid_thw" in inputs else 1  # Qwen-VL repeats an image as the frames of a film
    tokens = int((inputs["input_ids"] == llm.model.config.image_token_id).sum())
    return Budget(tokens, inputs["pixel_values"].numel() // (3 * frames))


def assert_within(llm: MultimodalLLM, budget: Budget, inputs: Any, images: int) -> None:
    """Assert that so many images keep to the budget, and are shown at all."""
    tokens, pixels = used(llm, inputs)
    assert 0 < tokens <= images * budget.tokens
    assert 0 < pixels <= images * budget.pixels


def test_trained_answers(llm, budget, image, shown):
    selector = StandardisedSelector(llm.width, 3 + SHAPE_DIM).eval()
    opened = TrainedOpenedImage(None, make_proposals([]), image, features=torch.zeros(0, 3 + SHAPE_DIM))
    turns = [Turn("what is it?", "A [SEG].", [image]), Turn("and that?")]
    TrainedPipeline(None, llm, selector).ask(turns, opened, 0.5, max_new_tokens=1)
    (inputs,) = shown
    assert_within(llm, budget, inputs, images=1)


@pytest.mark.parametrize("selection", ["hybrid", "marks", "boxes"])
def test_answers_without_training(llm, structured, budget, image, shown, selection, monkeypatch):
    written = json.dumps({"targets": [{"phrase": "cup", "marks": [], "boxes": []}]})

    def ask(turns, system, schema, **options):
        llm.encode(llm.prompt(turns, system), turns)
        return StructuredAnswer(written)

    monkeypatch.setattr(structured, "ask", ask)
    opened = SamOpenedImage(None, make_proposals(INSTANCES.values()), image)
    ZeroShotPipeline(MarkedImageOpener(), structured, selection).ask([Turn("a cup?")], opened, 0.5)
    (inputs,) = shown
    assert_within(llm, budget, inputs, images=1 if selection == "boxes" else 1 + MAX_SHEETS)


def test_tuning(llm, budget, image, shown, tmp_path):
    record = example_record()
    regions = SimpleNamespace(features=torch.zeros(0, 3), rles=[])
    questions = [ImageRecord(record, tmp_path / "photo.png")] * 3
    encoded = encode_conversation(llm, questions, lambda file: regions, lambda file: image)
    assert_within(llm, budget, encoded.inputs, images=1)
    for inputs in shown:
        assert_within(llm, budget, inputs, images=1)


@torch.inference_mode()
def test_attention_maps(llm, budget, image, shown):
    prompts = ["cup", "spoon"] if image.size < 1e6 else ["cup"]
    attention = ChatProbe(llm).attention(ProbedImage(image), prompts, layers=[1])
    assert attention.scores.shape[:2] == (len(prompts), 1) and attention.scores.isfinite().all()
    for inputs in shown:
        rows = len(inputs["input_ids"])
        assert_within(llm, budget, inputs, images=rows)
        assert rows == 1 or inputs["input_ids"].numel() <= MAX_TOKENS_PER_BATCH


def test_fewer_pixels_where_they_are_asked_for(llm, budget, image):
    turns = [Turn("a cup?", images=[image])]
    usual = used(llm, llm.encode(llm.prompt(turns), turns))
    try:
        llm.show_pixels(400_000)
        fewer = used(llm, llm.encode(llm.prompt(turns), turns))
    finally:
        llm.show_pixels(None)
    has_one_size = llm.model.config.model_type in ("llava", "gemma3")
    assert fewer == usual if has_one_size else fewer.tokens <= min(512, usual.tokens)
