"""What the browser is sent of the picture, and what it sends back."""

import base64
import html
import io

import numpy as np
import pytest
from PIL import Image

from assistant.errors import BadInput
from assistant.export.colours import COLOURS
from assistant.page.canvas import (
    MAX_PREVIEW_SIDE,
    as_data_url,
    canvas_props,
    mask_opacity,
    proposals_prop,
)
from assistant.page.canvas_prompts import read_prompts
from assistant.page.wording import chat_messages, legend_line
from tests.helpers.asking import ask
from tests.helpers.fake_assistant import COLOURS as PAINTS
from tests.helpers.fake_assistant import colour_mask, sample_image

RED, GREEN, BLUE = (colour_mask(sample_image(), PAINTS[name]) for name in ("red", "green", "blue"))


def test_prompts_are_read():
    prompts = read_prompts(
        {"points": [[0.5, 0.25, 1], [1, 0, 0]], "box": [0, 0, 0.5, 1], "added": None}, (100, 200)
    )
    assert prompts == {"points": [[100, 25], [200, 0]], "labels": [1, 0], "box": [0, 0, 100, 100]}
    mask = np.zeros((100, 200), bool)
    mask[20:60, 30:90] = True
    layer = np.dstack([np.zeros((100, 200, 3), np.uint8), mask.astype(np.uint8) * 255])
    painted = read_prompts({"added": as_data_url(Image.fromarray(layer))}, (100, 200))["added"]
    assert (painted == mask).all()


@pytest.mark.parametrize(
    "data",
    [
        {"points": [[0.5, 2, 1]]},
        {"points": "all"},
        {"points": [[0, 0, 1]] * 101},
        {"points": [[10**400, 0, 1]]},
        {"box": [0, 0, float("nan"), 1]},
        {"box": 5},
        {"added": "data:image/png;base64,AAAA"},
        {"added": "file:///x"},
        {"erased": 5},
        {"points": [[True, 0, 1]]},
    ],
)
def test_bad_prompts_are_refused(data):
    with pytest.raises(BadInput):
        read_prompts(data, (100, 200))


def test_the_canvas_gets_colours_and_no_photo_twice(session):
    ask(session, "red and a bench")
    first, second = canvas_props(session), canvas_props(session)
    assert first["photo"]["width"] == 360 and "photo" not in second
    assert [(m["name"], m["present"], m["colour"]) for m in first["masks"]] == [
        ("red ball", True, COLOURS[0]),
        ("bench", False, COLOURS[1]),
    ]


def test_the_words_of_an_answer_say_which_masks_they_name(session):
    ask(session, "red")
    ask(session, "green and a bench")
    assert canvas_props(session)["question"] == 1
    session.recalled = session.questions[0]
    assert canvas_props(session)["question"] == 0
    words = [bubble["content"] for bubble in chat_messages(session) if bubble["role"] == "assistant"]
    assert words[0].count('class="found of-0-0"') == 2 and words[1].count('class="found of-1-0"') == 2
    session.show_everything(0.5)
    assert canvas_props(session)["question"] is None


def decode_runs(prop):
    values = np.arange(max(map(len, prop["runs"]))) % 2
    planes = [np.repeat(values[: len(runs)], runs) for runs in prop["runs"]]
    return [plane.reshape(prop["height"], prop["width"]).astype(bool) for plane in planes]


def test_proposals_are_sent_small(session, assistant):
    sent = decode_runs(proposals_prop(session.scene.proposals))
    assert [(plane == mask).all() for plane, mask in zip(sent, (RED, GREEN, BLUE), strict=True)] == [True] * 3
    large = assistant.open(sample_image(1201, 1800)).proposals
    prop = proposals_prop(large)
    assert max(prop["width"], prop["height"]) <= MAX_PREVIEW_SIDE
    sent = decode_runs(prop)
    assert [plane.mean() for plane in sent] == pytest.approx([m.mean() for m in large.masks], abs=0.01)
    assert sent[2][0].all()  # the sky begins in the first pixel


def test_instances_are_outlined_counted_and_numbered(session):
    ask(session, "red, and a pair of green ones")
    ball, boxes = canvas_props(session)["masks"]
    assert "count" not in ball and boxes["count"] == 2
    left, right = decode_runs(boxes["instances"])
    assert ((left | right) == GREEN).all() and not (left & right).any()
    for plane, (x, y) in zip((left, right), boxes["instances"]["at"], strict=True):
        assert plane[int(y * plane.shape[0]), int(x * plane.shape[1])]  # its number stands inside
    png = Image.open(io.BytesIO(base64.b64decode(boxes["png"].split(",")[1])))
    alpha = np.asarray(png)[..., -1]
    edge = np.flatnonzero(right.any(axis=0))[0]
    assert (alpha[130:210, edge] == 255).all()  # the border between them
    assert legend_line(session) == "3 things outlined."
    bubble = html.unescape(chat_messages(session)[-1]["content"])
    assert "green box (2) 92%" in bubble and "red ball 92%" in bubble


def test_a_mask_has_a_rim_around_a_translucent_inside():
    alpha = np.asarray(mask_opacity(RED, (360, 240)))[..., 1]
    assert ((alpha > 0) == RED).all() and alpha[168, 252] == 127 and alpha.max() == 255


def test_an_attention_map_has_its_own_colours(session):
    ask(session, "red")
    session.show_attention()
    (layer,) = canvas_props(session)["masks"]
    assert layer["raw"] and layer["name"] == "red ball" and session.targets == []


def test_the_attention_map_of_an_absent_thing_does_not_shine(session):
    ask(session, "bench")
    session.show_attention()
    assert session.attention.phrase == "bench" and session.attention.brightness == 0.12
    ask(session, "bench and red")
    session.show_attention()
    assert session.attention.phrase == "red ball" and session.attention.brightness == 1
