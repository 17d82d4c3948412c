"""What the page says: nothing typed has power, and each target has the colour of its mask."""

import html

import numpy as np
import pytest

from assistant.answer import Answer, Target
from assistant.export.colours import COLOURS
from assistant.page import wording
from assistant.page.earlier_conversations import EarlierPanel, conversations_html
from assistant.page.session import Session


def answer_of(*targets, text):
    return Answer(text, list(targets), (4, 6), None)


def test_everything_typed_stays_text():
    hostile = "<img src=x onerror=alert(1)> **bold** `code` $$x$$ [a](javascript:b) &lt; <b>"
    escaped = wording.escape(hostile)
    assert not set("<>*`$[]()_\"'") & set(escaped)
    assert html.unescape(escaped) == hostile
    assert wording.escape("one\ntwo\r\x00\u202e") == "one<br>two   "
    joined = "\U0001f469\u200d\U0001f680 à 你"
    assert html.unescape(wording.escape(joined)) == joined


def test_a_reply_has_the_colours_of_the_masks():
    mask = np.ones((4, 6), bool)
    reply = answer_of(
        Target("cup", True, 0.81, mask, [0]),
        Target("cup", True, 0.6, mask, [1]),
        Target("dog", False, 0.1, None, []),
        text="A cup and another cup, but no dog <here>.",
    )
    bubble = wording.reply_bubble(reply)
    assert bubble.count("cup</span>") == 2
    assert bubble.count(COLOURS[0]) == 4 and bubble.count(COLOURS[1]) == 4
    assert "cup 81&#37;" in bubble and "cup 2 60&#37;" in bubble
    assert bubble.count("dog") == 1 and "<here>" not in bubble  # absence is told once
    assert wording.summary_line(reply.targets) == "2 things outlined."


def test_several_instances_are_coloured_by_their_plural():
    mask = np.ones((4, 6), bool)
    reply = answer_of(
        Target("person", True, 0.9, mask, [0]), Target("cup", True, 0.8, mask, [1]), text="2 people, 3 cups."
    )
    bubble = wording.reply_bubble(reply)
    assert ">people</span>" in bubble and ">cups</span>" in bubble


@pytest.mark.parametrize(
    "phrase, known, seen, label",
    [
        ("cup", True, False, "no cup"),
        ("gong", False, False, "gong?"),
        ("what could I drink from", True, False, "nothing: what could I drink from"),
        ("wire", True, True, "wire (not outlined)"),
    ],
)
def test_the_legend_says_what_is_absent(phrase, known, seen, label):
    target = Target(phrase, False, 0.1, None, [], known=known, seen=seen)
    [row] = wording.name_targets([target], COLOURS[:1])
    assert wording.absence_label(row) == label


def test_a_reply_is_readable_while_it_is_written():
    bubble = wording.streaming_bubble("red ball [SEG], be")
    assert "red ball" in bubble and "SEG" not in bubble
    assert "(not there)" in html.unescape(wording.streaming_bubble("bench [ABS]"))
    assert "Looking" in wording.streaming_bubble("") and "<b>" not in wording.streaming_bubble("<b>")


def test_only_questions_and_answers_of_the_browser_are_shown():
    stored = [[["where?", "<b>here</b>"]], 5, [["broken"], [1, 2]], [["what?", "that"]]]
    text = conversations_html(Session(), stored)
    assert text.index("what&#63;") < text.index("where&#63;") and "<b>" not in text
    assert text.count("<dl>") == 2 and "Reopen" not in text
    assert conversations_html(Session(), "<script>") == conversations_html(Session(), []) == ""


def test_a_conversation_replaces_its_earlier_state():
    class Stored(EarlierPanel):
        def __init__(self):
            """Without a page, which storing does not need."""

    panel, session = Stored(), Session()
    session.add_question("red?").answer = answer_of(text="There.")
    before = [[["old", "one"]]]
    first, box, text = panel.store(session, before)
    assert first == [*before, [["red?", "There."]]]
    assert box.visible and "old" in text and "red" not in text  # its own is not an earlier one
    session.add_question("blue?").answer = answer_of(text="No.")
    assert panel.store(session, first)[0] == [*before, [["red?", "There."], ["blue?", "No."]]]
    stored, box, text = panel.store(Session(), None)
    assert stored == [] and text == "" and not box.visible
