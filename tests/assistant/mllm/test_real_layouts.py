"""Published processors, templates and vocabularies: lessons, confidence, and what is seen of an image."""

import json
import math

import numpy as np
import pytest
import torch

from assistant.attention.chat_probe import ChatProbe
from assistant.attention.transformers_probe import ProbedImage
from assistant.grammar import Turn
from assistant.mllm.coordinates import THOUSAND, frame_of
from assistant.mllm.grounding_prompts import boxes_schema, read_targets
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.structured_answer import StructuredAnswer
from assistant.mllm.structured_output import StructuredLLM
from assistant.mllm.teacher_forcing import force_answer, force_conversation
from assistant.mllm.zero_shot import ZeroShotPipeline
from assistant.sam.image_opener import SamOpenedImage
from tests.helpers.conversations import ANSWER, TALL_IMAGE, WIDE_IMAGE
from tests.helpers.marked_image import MarkedImageOpener, make_proposals
from tests.helpers.real_layouts import LAYOUTS, unconstrained

END_TOKENS = {
    "qwen3_vl": "<|im_end|>",
    "qwen2_5_vl": "<|im_end|>",
    "llava": "</s>",
    "smolvlm": "<end_of_utterance>",
    "internvl": "<|im_end|>",
    "gemma3": "<end_of_turn>",
}


@pytest.fixture(scope="module", params=LAYOUTS)
def llm(request, real_layout) -> MultimodalLLM:
    return MultimodalLLM.load(real_layout(request.param))


@pytest.fixture(scope="module")
def structured(llm) -> StructuredLLM:
    return unconstrained(llm)


def test_every_answer_of_a_conversation_is_learned_as_it_would_be_generated(llm):
    turns = [
        Turn("Which?", "The car [SEG].", [TALL_IMAGE]),
        Turn("And here?", "I see no bus [ABS]", [WIDE_IMAGE]),
        Turn("So?", ANSWER),
    ]
    forced = force_conversation(llm, turns)
    assert forced.learned == [True, True, True]
    ids, labels = forced.inputs["input_ids"][0], forced.labels[0]
    end = llm.tokenizer.convert_tokens_to_ids(END_TOKENS[llm.model.config.model_type])
    assert end in llm.end_tokens
    for k, turn in enumerate(turns):
        asked = [*turns[:k], Turn(turn.question, None, turn.images)]
        prompt = llm.encode(llm.prompt(asked), asked)["input_ids"][0]
        assert torch.equal(ids[: len(prompt)], prompt)
        length = int((labels[len(prompt) :] == end).nonzero()[0, 0])
        answer = slice(len(prompt), len(prompt) + length)
        assert torch.equal(labels[answer], ids[answer])
        learned = llm.tokenizer.decode(labels[answer], clean_up_tokenization_spaces=False)
        # After a marker Llama's tokenizer begins a new word: "[SEG] ." for "[SEG]."
        assert learned.split("[SEG]")[0].strip() == turn.answer.split("[SEG]")[0].strip()
        assert "".join(learned.split()) == "".join(turn.answer.split())
        labels = labels.clone()
        labels[: answer.stop + 1] = -100
    assert (labels == -100).all()
    markers = [i for i in forced.labels[0].tolist() if i in (llm.seg, llm.abs)]
    assert markers == [llm.seg, llm.abs, llm.seg, llm.abs]


def test_both_sides_of_a_photo_are_seen_whatever_it_is_shown_for(llm):
    """A processor that crops would not show them."""
    photo = np.full((60, 240, 3), 90, np.uint8)
    changed = photo.copy()
    changed[:, :24] = changed[:, -24:] = 250
    pixels = {}
    for name, image in (("photo", photo), ("changed", changed)):
        asked = [Turn("What is it?", images=[image])]
        learned = force_answer(llm, [Turn("What is it?", ANSWER, [image])])
        shown = [llm.encode(llm.prompt(asked), asked), learned.inputs]
        shown.append(llm.encode(llm.prompt(asked), [Turn("What is it?", images=[llm.image_fit.fit(image)])]))
        pixels[name] = [inputs["pixel_values"] for inputs in shown]
        assert all(torch.equal(pixels[name][0], other) for other in pixels[name][1:])
    assert (pixels["photo"][0] != pixels["changed"][0]).float().mean() > 0.02


@pytest.mark.parametrize("size", [(3000, 2000), (300, 500)])
def test_a_box_around_what_is_shown_is_a_box_in_the_photo(llm, structured, size, monkeypatch):
    """The model sees a bright rectangle in what it is shown, and writes its corners as its family does."""
    height, width = size
    photo = np.zeros((height, width, 3), np.uint8)
    box = [width * 0.6, height * 0.1, width * 0.9, height * 0.3]
    photo[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])] = 255
    kind = llm.model.config.model_type

    def ask(turns, system, schema, **options):
        (image,) = turns[0].images
        assert structured.image_fit.fit(image) is image
        high, wide = image.shape[:2]
        extent = {"llava": (1, 1), "qwen2_5_vl": (wide, high)}.get(kind, (1000, 1000))
        if kind == "qwen2_5_vl":  # in px of what the vision tower reads
            _, rows, columns = llm.encode(llm.prompt(turns), turns)["image_grid_thw"][0].tolist()
            extent = (columns * 14, rows * 14)
        y, x = (image.min(2) > 200).nonzero()
        corners = [x.min() / wide, y.min() / high, (x.max() + 1) / wide, (y.max() + 1) / high]
        written = [float(corner * extent[k % 2]) for k, corner in enumerate(corners)]
        region = {"bbox_2d": written, "point_2d": written[:2]}
        return StructuredAnswer(json.dumps({"targets": [{"phrase": "sign", "boxes": [region]}]}))

    monkeypatch.setattr(structured, "ask", ask)
    opener = MarkedImageOpener([])
    opened = SamOpenedImage(None, make_proposals([]), photo)
    ZeroShotPipeline(opener, structured, "boxes").ask([Turn("the sign?")], opened, 0.5)
    ((_, prompted),) = opener.prompts
    assert prompted == pytest.approx(box, abs=max(size) / 500)


@torch.inference_mode()
def test_attention_is_read_where_the_image_changes(llm):
    probe = ChatProbe(llm)
    photo = np.random.default_rng(0).integers(90, 150, (224, 448, 3), dtype=np.uint8)
    changed = photo.copy()
    changed[64:128, 320:384] = np.random.default_rng(1).integers(0, 255, (64, 64, 3))
    before, after = (probe.attention(ProbedImage(image), ["cup"]) for image in (photo, changed))
    change = (after.scores - before.scores).abs().mean((0, 1, 2))
    change_map = after.places.to_pixels(change[None], (224, 448))[0]
    row, column = np.unravel_index(int(change_map.argmax()), change_map.shape)
    assert abs(row - 96) <= 48 and abs(column - 352) <= 48
    assert change_map[64:128, 320:384].mean() > 2 * change_map.mean()


def write(llm: MultimodalLLM, text: str, before: str, other: dict[str, float]) -> None:
    """Let the model write a text, in the tokens of its vocabulary.

    Args:
        llm: Gets a hook on its output layer.
        text: What it writes.
        before: The part of the text after which it might have written something else.
        other: The probabilities of the tokens that it might have written there.
    """
    steps = []
    written = ""
    for token in llm.tokenizer(text, add_special_tokens=False).input_ids:
        is_choice = written.endswith(before)
        piece = llm.tokenizer.decode([token])
        steps.append(other | {piece: 1 - sum(other.values())} if is_choice else {piece: 1.0})
        written += piece
    ids = [
        {llm.tokenizer(piece, add_special_tokens=False).input_ids[0]: p for piece, p in step.items()}
        for step in steps
    ]
    remaining = iter([*ids, {llm.end_tokens[0]: 1.0}])

    def replace_logits(module, args, output):
        logits = torch.full_like(output, -100.0)
        for token, p in next(remaining).items():
            logits[..., token] = math.log(p)
        return logits

    llm.model.get_output_embeddings().register_forward_hook(replace_logits)


BOX = {"bbox_2d": [1, 2, 30, 40], "point_2d": [9, 9]}


@pytest.mark.parametrize("name", ["qwen3_vl", "smolvlm"])
@pytest.mark.parametrize(
    "boxes, other, confidence", [([], {" [": 0.1, " [{": 0.2}, 0.3), ([BOX], {" []": 0.4, " [": 0.1}, 0.6)]
)
def test_confidence_where_an_empty_list_is_one_token(real_layout, name, boxes, other, confidence):
    """In these vocabularies " []", " [" and " [{" are one token each."""
    llm = MultimodalLLM.load(real_layout(name))
    assert all(len(llm.tokenizer(piece).input_ids) == 1 for piece in (" []", " [", " [{"))
    text = json.dumps({"thought": "x", "targets": [{"phrase": "bench", "boxes": boxes}]})
    write(llm, text, '"boxes":', other)
    schema = boxes_schema(frame_of(THOUSAND, (60, 80)))
    answer = StructuredLLM(llm).ask([Turn("a bench?")], "Look.", schema)
    assert answer.text == text
    targets, _ = read_targets(answer, "boxes")
    assert [(target.regions, target.confidence) for target in targets] == [(boxes, pytest.approx(confidence))]
