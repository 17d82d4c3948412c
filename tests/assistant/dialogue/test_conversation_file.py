"""A conversation becomes a file and comes back; every other file is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.answer import Answer, Target
from assistant.dialogue import conversation_file
from assistant.dialogue.conversation_file import Conversation, Exchange, dump, load
from assistant.errors import BadInput
from tests.helpers.fake_assistant import COLOURS, colour_mask, sample_image

# A file that the program wrote at commit 48e4087: two exchanges about the 96 x 144 image of `sample_image`.
OLD_FILE = Path(__file__).parents[2] / "data" / "conversation_48e4087.json"


def small_file():
    image = np.zeros((20, 30, 3), np.uint8)
    target = Target("it", True, 0.5, np.ones((20, 30), bool), [])
    answer = Answer("I see it.", [target], (20, 30), image, "what?")
    return dump(Conversation([("a", image)], [Exchange(0, "what?", answer)]))


def test_a_conversation_comes_back():
    image = sample_image()
    red = colour_mask(image, COLOURS["red"])
    is_left = np.arange(red.shape[1]) < 252  # the middle of the ball
    halves = [red & is_left, red & ~is_left]
    targets = [
        Target("red ball", True, 0.9, red, [1], instances=halves),
        Target("bench", False, 0.2, None, [], searched=["bench", "seat"]),
        Target("zither", False, 0.0, None, [], known=False),
        Target("wire", False, 0.8, None, [], seen=True),
    ]
    answer = Answer("I see the red ball, but no bench.", targets, red.shape, image, "red and a bench?")
    exchange = Exchange(0, answer.question, answer, red, "the cook", corrected=True)
    saved = Conversation([("ball", image)], [exchange])
    ((name, photo),), (exchange,) = load(dump(saved)).photos, load(dump(saved)).exchanges
    assert name == "ball" and np.abs(photo.astype(int) - image).mean() < 2
    assert (exchange.photo, exchange.question, exchange.answer.text) == (0, answer.question, answer.text)
    assert (exchange.about == red).all() and (exchange.answer.mask == red).all()
    assert exchange.about_phrase == "the cook" and exchange.corrected
    assert np.array_equal(exchange.answer.targets[0].instances, halves)
    assert exchange.answer.searched == [[], ["bench", "seat"], [], []]
    assert [(t.phrase, t.present, t.confidence, t.known, t.seen) for t in exchange.answer.targets] == [
        ("red ball", True, 0.9, True, False),
        ("bench", False, 0.2, True, False),
        ("zither", False, 0.0, False, False),
        ("wire", False, 0.8, True, True),
    ]


def test_a_file_of_an_earlier_version_opens():
    saved = load(OLD_FILE.read_bytes())
    ((name, photo),) = saved.photos
    image = sample_image(96, 144)
    red = colour_mask(image, COLOURS["red"])
    assert name == "ball" and photo.shape == image.shape
    assert np.abs(photo.astype(int) - image).mean() < 2
    first, second = saved.exchanges
    assert first.question == "the red one, and is there a bench?" and first.about is None
    assert first.answer.text == "I see the red ball, but no bench."
    assert [(t.phrase, t.present, t.confidence) for t in first.answer.targets] == [
        ("red ball", True, 0.92),
        ("bench", False, 0.12),
    ]
    assert second.question == "what is this?" and second.answer.text == "This looks like: red ball (80%)."
    assert (first.answer.mask == red).all() and (second.about == red).all()
    again = json.loads(dump(saved))
    written = json.loads(OLD_FILE.read_bytes())
    assert again["exchanges"] == written["exchanges"] and list(again) == list(written)


def test_a_large_conversation_is_shrunk_or_refused(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    conversation = Conversation([("noise", noise)], [])
    whole = len(dump(conversation))
    monkeypatch.setattr(conversation_file, "MAX_FILE_LENGTH", whole - 1)
    assert len(dump(conversation)) < whole
    assert load(dump(conversation)).photos[0][1].shape == noise.shape
    monkeypatch.setattr(conversation_file, "MAX_PHOTO_PIXELS", 39_999)
    with pytest.raises(BadInput, match="more than 39,999 pixels"):
        load(dump(conversation))
    monkeypatch.setattr(conversation_file, "MAX_FILE_LENGTH", 1000)
    with pytest.raises(BadInput, match="fewer or smaller photos"):
        dump(conversation)


def test_the_masks_of_a_file_are_bounded(monkeypatch):
    whole = small_file()
    monkeypatch.setattr(conversation_file, "MAX_MASK_PIXELS", 599)
    with pytest.raises(BadInput, match="its masks have more than 599"):
        load(whole)
    with pytest.raises(BadInput, match="more masks than"):
        small_file()
    table = json.loads(whole)
    (target,) = table["exchanges"][0]["targets"]
    target["instances"] = [target["rle"]] * 2
    monkeypatch.setattr(conversation_file, "MAX_MASK_PIXELS", 1799)
    with pytest.raises(BadInput, match="its masks have more than 1,799"):
        load(json.dumps(table))
    monkeypatch.setattr(conversation_file, "MAX_MASK_PIXELS", 1800)
    assert len(load(json.dumps(table)).exchanges[0].answer.targets[0].instances) == 2
    for wrong in (["a"] * 21, [3], ["x" * 10_001]):
        target["searched"] = wrong
        with pytest.raises(BadInput, match="searched of target 1"):
            load(json.dumps(table))
    del target["searched"]
    for wrong, message in (([target["rle"]] * 301, "301 instances"), ([3, 4], "right kind")):
        target["instances"] = wrong
        monkeypatch.setattr(conversation_file, "MAX_MASK_PIXELS", 10**9)
        with pytest.raises(BadInput, match=message):
            load(json.dumps(table))


ANY_VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
    st.just([]),
    st.just({}),
    st.just({"size": [20, 30], "counts": "junk"}),
    st.just([[[]]]),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_broken_file_is_refused_in_one_line(data):
    table = json.loads(small_file())
    place, path = table, []
    while isinstance(place, dict | list) and place and (not path or data.draw(st.booleans())):
        if isinstance(place, dict):
            key = data.draw(st.sampled_from(sorted(place)))
        else:
            key = data.draw(st.integers(0, len(place) - 1))
        path.append((place, key))
        place = place[key]
    holder, key = path[-1]
    holder[key] = data.draw(ANY_VALUE)
    try:
        load(json.dumps(table))
    except BadInput as error:
        assert "\n" not in str(error) and len(str(error)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"maskpick": 1}',
        '{"maskpick": 1, "photos": [], "exchanges": []}',
        b"\xff\xfe",
        "PK\x03\x04",
        '{"maskpick": NaN, "photos": [], "exchanges": []}',
    ],
)
def test_other_files_are_refused_in_one_line(text):
    with pytest.raises(BadInput, match="no conversation that can be reopened"):
        load(text)
