"""A session without a server: asking, photos, masks by hand, everything, classes, files."""

import html
from pathlib import Path

import numpy as np
import pytest

from assistant.answer import Target
from assistant.dialogue.conversation_file import MAX_PHOTOS, dump, load
from assistant.dialogue.corrections import save_correction
from assistant.errors import BadInput
from assistant.page import wording
from assistant.page.canvas import canvas_props
from assistant.page.earlier_conversations import conversations_html
from assistant.page.example_search import find_similar
from assistant.page.save_tab import save_cut_out
from assistant.page.saved_conversation import reopen, reopen_text, set_aside, to_conversation
from assistant.page.session import MAX_ABSENT_BRIGHTNESS, MAX_SET_ASIDE, Session, View
from assistant.page.wording import conversation_rows, legend_line, unknown_words
from assistant.record import check_records, read_records
from assistant.sam.mask_ops import decode_rle, encode_rle
from tests.helpers.asking import ask, ask_question
from tests.helpers.fake_assistant import COLOURS, colour_mask, sample_image

RED, GREEN, BLUE = (colour_mask(sample_image(), COLOURS[name]) for name in ("red", "green", "blue"))


def phrases(targets):
    return [(target.phrase, target.present) for target in targets]


def names_of(session):
    return [candidate.name for candidate in session.manual.candidates]


def test_undo_and_edit_reach_the_memory_of_the_scene(session):
    ask(session, "the red and the green one")
    ask(session, "remove the box")
    assert [t.phrase for t in session.answer.targets] == ["red ball"] and len(session.scene.turns) == 2
    assert session.take_back() == "remove the box"
    assert [t.phrase for t in session.answer.targets] == ["red ball", "green box"]
    assert len(session.scene.turns) == 1
    ask(session, "not the ball")
    assert [t.phrase for t in session.answer.targets] == ["green box"]
    session.take_back(0)
    assert session.answer is None and session.scene.turns == [] and session.scene.shown == []
    with pytest.raises(BadInput, match="nothing to take back"):
        session.take_back()


def test_what_was_forgotten_comes_back(session):
    ask(session, "the red and the green one")
    ask(session, "remove the box")
    scene = session.scene
    session.forget(photos=False)
    assert session.scene is scene and session.questions == [] and scene.turns == []
    session.bring_back()
    assert [t.phrase for t in session.answer.targets] == ["red ball"] and len(scene.turns) == 2
    session.forget(photos=True)
    assert session.scene is None and session.can_bring_back
    session.bring_back()
    assert session.scene is scene and session.names == ["ball"] and len(session.questions) == 2
    assert not session.can_bring_back
    session.forget(photos=True)
    session.forget(photos=True)  # nothing is open: what was forgotten before stays
    assert session.can_bring_back
    session.queue_photos(Path("other.png"))
    assert not session.can_bring_back
    with pytest.raises(BadInput, match="nothing to bring back"):
        session.bring_back()


def test_a_question_that_is_edited_stays_until_the_new_one_is_asked(session):
    ask(session, "the red and the green one")
    session.select(0)
    ask(session, "what is this?")
    about = session.questions[1].about
    session.editing = 1
    assert len(session.questions) == 2 and session.answer.question == "what is this?"
    edited = session.add_question("and its colour?")
    assert session.questions[1:] == [edited] and edited.about is about and session.editing is None
    session.editing = 0
    assert session.add_question("blue").about is None and len(session.questions) == 1


def test_the_same_question_may_be_asked_twice(session):
    first, second = ask_question(session, "red"), ask_question(session, "red")
    assert session.questions.index(second) == 1 and first != second
    session.save_correction()
    ((_, history),) = session.corrections
    assert [turn.question for turn in history] == ["red"]
    session.recalled = first
    assert session.shown_question is first


def test_photos_have_their_own_turns(session, assistant):
    ask(session, "red")
    session.add_photo(assistant.open(sample_image()[:, ::-1].copy()), "mirror")
    assert session.photo == 1 and session.answer is None
    ask(session, "green")
    session.show_photo(0)
    assert session.answer.question == "red" and len(session.scene.turns) == 1
    with pytest.raises(BadInput, match="no such photo"):
        session.show_photo(5)
    session.queue_photos(*(Path("again") for _ in range(MAX_PHOTOS - 2)))
    with pytest.raises(BadInput, match="at most"):
        session.queue_photos(Path("one more"))
    assert len(session.pending) == MAX_PHOTOS - 2


def test_a_mask_is_selected_and_asked_about(session):
    ask(session, "red and green")
    session.select(1)
    question = session.add_question("what is this?")
    assert question.about.phrase == "green box"
    session.set_answer(question, session.ask(question))
    assert (session.answer.mask == GREEN).all() and "green box" in session.answer.text
    for index in (7, -1, "0", None, True, 1.0):
        session.select(index)
        assert session.selected_target is None


def test_an_instance_is_selected_and_asked_about(session):
    ask(session, "red, and a pair of green ones")
    left, right = session.answer.targets[1].instances
    session.select(1, 1)
    assert session.subject.phrase == "green box 2" and (session.subject.mask == right).all()
    assert (session.selected_target.mask == GREEN).all()  # what is refined, or said to be absent
    session.select(1, 0)
    assert (session.subject.mask == left).all() and "green box 1" in wording.subject_line(session)
    session.select(1, 0)
    assert session.subject is None
    for instance in (None, 2, -1, True, "0"):
        session.select(1, instance)
        assert session.subject is session.selected_target
        session.select(1, instance)
    session.select(0, 0)
    assert session.subject is session.answer.targets[0]  # it has one instance only
    session.select(1, 1)
    question = session.add_question("what is this?")
    assert (question.about.mask == right).all()


def test_a_mask_made_by_hand_becomes_a_target(session):
    ask(session, "red and a bench")
    session.start_marking()
    session.manual.segment(session.scene, [[60, 150]], [1])
    assert names_of(session) == ["A 0.80", "B 0.60", "C 0.40"]
    assert (session.manual.candidates[0].mask == GREEN).all()
    with pytest.raises(BadInput, match="a name"):
        session.use_candidate(0, " ")
    session.use_candidate(0, "bench")  # it was there after all
    assert phrases(session.answer.targets) == [("red ball", True), ("bench", True)]
    assert session.shown_question.corrected
    assert "bench" in session.answer.text and "no bench" not in session.answer.text


def test_a_mask_is_refined_by_hand(session):
    ask(session, "red and green")
    session.select(1)
    session.start_marking()
    session.manual.segment(session.scene, [[10, 10]], [1])  # the sky belongs to it too
    assert names_of(session) == ["A 0.90", "B 0.80", "C 0.60", "D 0.40", "as drawn"]
    session.use_candidate(0, "")
    assert (session.answer.targets[1].mask == GREEN | BLUE).all()
    added, erased = np.zeros(GREEN.shape, bool), BLUE.copy()
    added[:5, :5] = True
    session.select(1)
    session.start_marking()
    session.manual.segment(session.scene, added=added, erased=erased)
    drawn = session.manual.candidates[-1]
    assert drawn.name == "as drawn" and (drawn.mask == GREEN).all()


def test_other_phrases_are_looked_for(session):
    ask(session, "red and a bench")
    assert session.searched_target is None
    with pytest.raises(BadInput, match="no phrases were looked for"):
        session.look_again("green")
    ask(session, "find a bench, and red")
    assert session.searched_target.phrase == "bench" and session.searched_target.searched == ["bench"]
    with pytest.raises(BadInput, match="give a name"):
        session.look_again(" , ")
    session.look_again("crate ,  green crate")
    bench = session.answer.targets[0]
    assert bench.present and (bench.mask == GREEN).all() and bench.searched == ["crate", "green crate"]
    assert session.scene.shown == session.answer.targets
    session.select(1)
    assert session.searched_target.phrase == "red ball"


def test_a_target_is_said_to_be_absent(session):
    ask(session, "red and green")
    session.select(0)
    session.mark_absent()
    assert phrases(session.answer.targets) == [("red ball", False), ("green box", True)]
    assert session.scene.shown == session.answer.targets and "no red ball" in session.answer.text


def test_a_mask_by_hand_needs_no_question(session):
    session.start_marking()
    session.manual.segment(session.scene, box=[200, 100, 350, 239])
    session.use_candidate(0, "ball")
    assert session.answer.question == "Where is the ball?" and (session.answer.mask == RED).all()
    assert [t.phrase for t in ask(session, "remove the ball").targets] == []


def test_everything_and_classes(session):
    ask(session, "red")
    session.show_everything(0.5)
    assert session.view == View.EVERYTHING and len(session.targets) == 3
    assert session.targets[0].mask.sum() == BLUE.sum()
    session.map_classes("red, bench\n2. blue")
    assert phrases(session.targets) == [("red", True), ("bench", False), ("blue", True)]
    assert len(session.scene.turns) == 1  # the conversation does not notice
    session.select(2)
    assert session.selected_target is session.targets[2]
    session.map_classes("bench, zebra")  # the fake says nothing of zebras: neither present nor absent
    assert [t.phrase for t in session.targets] == ["bench"]
    assert "said nothing of zebra" in legend_line(session)
    with pytest.raises(BadInput, match="empty"):
        session.map_classes(" ,, \n")


def test_a_class_whose_word_is_not_known_is_not_denied(session):
    session.map_classes("red, quark, bench")
    assert legend_line(session) == "1 thing outlined. I don't know the word 'quark'."
    assert [(layer["name"], layer.get("label")) for layer in canvas_props(session)["masks"]] == [
        ("red", None),
        ("quark", "quark?"),
        ("bench", "no bench"),
    ]
    assert "I don't know the words 'a' or 'b'" in unknown_words(
        [Target(name, False, 0.5, None, [], known=False) for name in "ab"]
    )
    ask(session, "quark")
    assert "a word I don't know" in html.unescape(wording.reply_bubble(session.answer))
    session.show_attention()
    assert session.attention.brightness == MAX_ABSENT_BRIGHTNESS < 0.5


def test_an_example_is_found_in_other_photos(session, assistant):
    with pytest.raises(BadInput, match="select a mask"):
        find_similar(session, "", print)
    ask(session, "red")
    session.select(0)
    with pytest.raises(BadInput, match="no other photo"):
        find_similar(session, "", print)
    mirrored = sample_image()[:, ::-1].copy()
    session.add_photo(assistant.open(mirrored), "mirror")
    session.add_photo(assistant.open(np.zeros((50, 50, 3), np.uint8)), "night")
    session.show_photo(0)
    session.select(0)
    assert find_similar(session, "beach ball", lambda *values: None) == 2 and session.photo == 1
    assert (session.answer.mask == colour_mask(mirrored, COLOURS["red"])).all()
    assert session.answer.targets[0].phrase == "beach ball"
    assert session.answer.text == "Closest match for the beach ball (70%). It may be something else."
    session.show_photo(2)
    assert not session.answer.present and "Nothing here is like" in session.answer.text
    session.show_photo(1)
    assert ask(session, "remove the ball").targets == []  # what was found is followed up like any answer


def test_attention_needs_a_target(session):
    with pytest.raises(BadInput, match="ask for something first"):
        session.show_attention()
    ask(session, "red")
    session.show_attention()
    assert session.view == View.ATTENTION and session.attention.phrase == "red ball"


def test_a_conversation_reopens(session, assistant):
    ask(session, "red and a bench")
    session.select(0)
    ask(session, "what is this?")
    saved = load(dump(to_conversation(session)))
    other = Session()
    reopen(other, saved, [assistant.open(image) for _, image in saved.photos])
    assert [question.text for question in other.questions] == ["red and a bench", "what is this?"]
    assert other.names == ["ball"]
    assert (other.answer.mask == RED).all() and (other.questions[1].about.mask == RED).all()
    assert phrases(other.questions[0].answer.targets) == [("red ball", True), ("bench", False)]
    assert len(other.scene.turns) == 2 and [t.phrase for t in ask(other, "remove it").targets] == []


def test_earlier_conversations_reopen(session, assistant):
    ask(session, "red and a bench")
    set_aside(session)
    rows = conversation_rows(session)
    (first,) = session.set_aside
    session.clear()
    set_aside(session)  # nothing was asked
    assert session.set_aside == [first] and first.rows == rows
    assert "Reopen" in conversations_html(session, [rows])
    reopen_text(session, session.set_aside_at(0).file.read_text(), assistant.open)
    assert (session.answer.mask == RED).all() and len(session.scene.turns) == 1
    ask(session, "remove it")
    set_aside(session)
    for number in range(MAX_SET_ASIDE):
        session.questions = []
        ask(session, "green " * (number + 1))
        set_aside(session)
    assert len(session.set_aside) == MAX_SET_ASIDE and not first.file.exists()
    for index in (-1, MAX_SET_ASIDE, None, True, "0"):
        with pytest.raises(BadInput, match="cannot be reopened"):
            session.set_aside_at(index)
    files = [other.file for other in session.set_aside]
    session.forget_set_aside()
    assert session.set_aside == [] and not any(file.exists() for file in files)
    ask(session, "blue")
    set_aside(session)
    session.end()  # the visitor is gone
    assert session.set_aside == [] and not any(files[0].parent.iterdir())


def test_corrections_are_saved_once(session, tmp_path):
    ask(session, "red and a bench")
    ask(session, "add the green one")
    session.select(0)
    session.mark_absent()
    session.save_correction()
    session.save_correction()
    assert len(session.corrections) == 1
    file = save_correction(tmp_path, *session.corrections[0])
    (record,) = read_records(file)
    assert check_records(file) == [] and record.question == "add the green one"
    assert [t.phrase for t in record.targets if t.rle is None] == ["red ball"]
    assert (decode_rle(next(t.rle for t in record.targets if t.rle)) == GREEN).all()
    assert [turn.question for turn in record.history] == ["red and a bench"]


def test_only_a_mask_that_is_shown_is_cut_out(session, tmp_path):
    ask(session, "red and a bench")
    assert save_cut_out(session, 0, tmp_path).name == "red-ball.png"
    for number, reason in ((1, "nothing is outlined for bench"), (2, "not shown"), (None, "not shown")):
        with pytest.raises(BadInput, match=reason):
            save_cut_out(session, number, tmp_path)


def test_the_rle_of_the_fake_is_exact():
    assert (decode_rle(encode_rle(RED)) == RED).all()
