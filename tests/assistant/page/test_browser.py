"""What the page is made of, without a server: words, the worker, a session, what the browser sends, files."""

import html
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from assistant.answer import Answer, Target
from assistant.dialogue.class_list import read_names
from assistant.dialogue.conversation_file import Conversation, Exchange, dump, load
from assistant.dialogue.corrections import save_correction
from assistant.errors import BadInput
from assistant.export.colours import COLOURS
from assistant.grammar import Turn
from assistant.record import check_records, read_records
from assistant.sam.mask_ops import decode_rle, encode_rle
from tests.helpers.fake_assistant import PAINT, FakeAssistant, near, picture

pytest.importorskip("gradio", reason="gradio is not installed")
from assistant.page import canvas, words
from assistant.page.session import EVERYTHING, PHOTOS, Session
from assistant.page.work import Stopped, Worker, polite

RED, GREEN, BLUE = (near(picture(), PAINT[name]) for name in ("red", "green", "blue"))


def answer_of(*targets, text):
    return Answer(text, list(targets), (4, 6), None)


# -- words --------------------------------------------------------------------------------------------------------


def test_every_thing_typed_stays_text():
    hostile = "<img src=x onerror=alert(1)> **bold** `code` $$x$$ [a](javascript:b) &lt; <b>"
    coded = words.literal(hostile)
    assert not set("<>*`$[]()_\"'") & set(coded)
    assert html.unescape(coded) == hostile
    assert words.literal("one\ntwo\r\x00\u202e") == "one<br>two   "
    assert (
        html.unescape(words.literal("\U0001f469\u200d\U0001f680 à 你")) == "\U0001f469\u200d\U0001f680 à 你"
    )


def test_reply_has_the_colours_of_the_masks():
    mask = np.ones((4, 6), bool)
    reply = answer_of(
        Target("cup", True, 0.81, mask, [0]),
        Target("cup", True, 0.6, mask, [1]),
        Target("dog", False, 0.1, None, []),
        text="A cup and another cup, but no dog <here>.",
    )
    bubble = words.reply_bubble(reply)
    assert bubble.count("cup</span>") == 2 and bubble.count(COLOURS[0]) == 4 and bubble.count(COLOURS[1]) == 4
    assert "cup 81&#37;" in bubble and "cup &#40;2&#41; 60&#37;" in bubble
    assert '<span class="absent">not in the picture&#58; dog</span>' in bubble and "<here>" not in bubble
    assert "Not in the picture: dog" in words.summary(reply.targets) and "2 things outlined" in words.summary(
        reply.targets
    )


def test_a_reply_is_readable_while_it_is_written():
    assert "red ball" in words.partly("red ball [SEG], be") and "SEG" not in words.partly(
        "red ball [SEG], be"
    )
    assert "Looking" in words.partly("") and "<b>" not in words.partly("<b>")


# -- worker -------------------------------------------------------------------------------------------------------


def test_worker_tells_and_ends():
    worker = Worker()
    assert list(worker.run(lambda tell: tell("a", 1) or 5, threading.Event())) == [
        ("told", ("a", 1)),
        ("done", 5),
    ]
    with pytest.raises(BadInput, match="no"):
        list(worker.run(lambda tell: (_ for _ in ()).throw(BadInput("no")), threading.Event()))


def test_stopping_really_stops():
    worker, stop, steps = Worker(), threading.Event(), []

    def work(tell):
        for k in range(1000):
            steps.append(k)
            tell("step")
            if k == 3:
                stop.set()

    with pytest.raises(Stopped):
        list(worker.run(work, stop))
    assert steps == [0, 1, 2, 3, 4]
    gone, resumed = threading.Event(), threading.Event()
    watched = worker.run(
        lambda tell: (tell("first"), resumed.wait(10), tell("second"), steps.append("never")), gone
    )
    next(watched)
    watched.close()  # the visitor has gone
    resumed.set()
    assert worker.call(lambda: gone.is_set()) and "never" not in steps  # in its turn, after what was stopped


# -- a session ----------------------------------------------------------------------------------------------------


@pytest.fixture
def assistant():
    return FakeAssistant()


@pytest.fixture
def session(assistant):
    s = Session()
    s.add(assistant.open(picture()), "ball")
    return s


def ask(s, question):
    e = s.put(question)
    s.answered(e, s.ask(e))
    return s.answer


def test_undo_and_edit_reach_the_models_memory(session):
    ask(session, "the red and the green one")
    ask(session, "remove the box")
    assert [t.phrase for t in session.answer.targets] == ["red ball"] and len(session.scene.turns) == 2
    assert session.take_back() == "remove the box"
    assert [t.phrase for t in session.answer.targets] == ["red ball", "green box"] and len(
        session.scene.turns
    ) == 1
    ask(session, "not the ball")
    assert [t.phrase for t in session.answer.targets] == ["green box"]
    session.take_back(0)
    assert session.answer is None and session.scene.turns == [] and session.scene.shown == []
    with pytest.raises(BadInput, match="nothing to take back"):
        session.take_back()


def test_photos_keep_their_own_turns(session, assistant):
    ask(session, "red")
    session.add(assistant.open(picture()[:, ::-1].copy()), "mirror")
    assert session.at == 1 and session.answer is None
    ask(session, "green")
    session.show_photo(0)
    assert session.answer.question == "red" and len(session.scene.turns) == 1
    with pytest.raises(BadInput, match="no such photo"):
        session.show_photo(5)
    session.choose(*(Path("again") for _ in range(PHOTOS - 2)))
    with pytest.raises(BadInput, match="at most"):
        session.choose(Path("one more"))
    assert len(session.pending) == PHOTOS - 2


def test_a_mask_is_selected_and_asked_about(session):
    ask(session, "red and green")
    session.select(1)
    e = session.put("what is this?")
    assert e.about.phrase == "green box"
    session.answered(e, session.ask(e))
    assert (session.answer.mask == GREEN).all() and "green box" in session.answer.text
    for number in (7, -1, "0", None, True, 1.0):
        session.select(number)
        assert session.chosen is None


def test_by_hand_new_refined_and_not_there(session):
    ask(session, "red and a bench")
    session.start_hand()
    session.hand.mark(session.scene, [[60, 150]], [1])
    assert [name for name, *_ in session.hand.found] == ["A 0.80", "B 0.60", "C 0.40"]
    assert (session.hand.found[0][1] == GREEN).all()
    with pytest.raises(BadInput, match="a name"):
        session.use(0, " ")
    session.use(0, "bench")  # it was there after all
    assert [(t.phrase, t.present) for t in session.answer.targets] == [("red ball", True), ("bench", True)]
    assert (
        "bench" in session.answer.text
        and session.exchange.corrected
        and "no bench" not in session.answer.text
    )

    session.select(1)
    session.start_hand()
    session.hand.mark(session.scene, [[10, 10]], [1])  # the sky belongs to it too
    assert [name for name, *_ in session.hand.found] == ["A 0.90", "B 0.80", "C 0.60", "D 0.40", "as drawn"]
    session.use(0, "")
    assert (session.answer.targets[1].mask == GREEN | BLUE).all()
    added, erased = np.zeros(GREEN.shape, bool), BLUE.copy()
    added[:5, :5] = True
    session.select(1)
    session.start_hand()
    session.hand.mark(session.scene, added=added, erased=erased)
    drawn = session.hand.found[-1]
    assert drawn[0] == "as drawn" and (drawn[1] == GREEN).all()

    session.look()
    session.select(0)
    session.not_there()
    assert [(t.phrase, t.present) for t in session.answer.targets] == [("red ball", False), ("bench", True)]
    assert session.scene.shown == session.answer.targets and "no red ball" in session.answer.text


def test_a_mask_by_hand_needs_no_question(session):
    session.start_hand()
    session.hand.mark(session.scene, box=[200, 100, 350, 239])
    session.use(0, "ball")
    assert session.answer.question == "Where is the ball?" and (session.answer.mask == RED).all()
    assert [t.phrase for t in ask(session, "remove the ball").targets] == []


def test_everything_and_classes(session):
    ask(session, "red")
    session.everything(0.5)
    assert (
        session.view == EVERYTHING
        and len(session.targets) == 3
        and session.targets[0].mask.sum() == BLUE.sum()
    )
    session.map_classes("red, bench\n2. blue")
    assert [(t.phrase, t.present) for t in session.targets] == [
        ("red", True),
        ("bench", False),
        ("blue", True),
    ]
    assert len(session.scene.turns) == 1  # the conversation does not notice
    session.map_classes("bench, zebra")  # the fake says nothing of zebras: neither there nor absent
    assert [t.phrase for t in session.targets] == ["bench"] and "said nothing of zebra" in words.legend(
        session
    )
    with pytest.raises(BadInput, match="empty"):
        session.map_classes(" ,, \n")


def test_an_example_is_found_in_other_photos(session, assistant):
    with pytest.raises(BadInput, match="select a mask"):
        session.find_alike("", print)
    ask(session, "red")
    session.select(0)
    with pytest.raises(BadInput, match="no other photo"):
        session.find_alike("", print)
    mirrored = picture()[:, ::-1].copy()
    session.add(assistant.open(mirrored), "mirror")
    session.add(assistant.open(np.zeros((50, 50, 3), np.uint8)), "night")
    session.show_photo(0)
    session.select(0)
    assert session.find_alike("beach ball", lambda *news: None) == 2 and session.at == 1
    assert (session.answer.mask == near(mirrored, PAINT["red"])).all() and session.answer.targets[
        0
    ].phrase == "beach ball"
    session.show_photo(2)
    assert not session.answer.present and "Nothing here is like" in session.answer.text
    session.show_photo(1)
    assert ask(session, "remove the ball").targets == []  # what was found is followed up like any answer


def test_where_it_looks_is_drawn(session):
    with pytest.raises(BadInput, match="ask for something first"):
        session.attend()
    ask(session, "red")
    session.attend()
    (layer,) = canvas.shown(session)["masks"]
    assert layer["raw"] and layer["name"] == "red ball" and session.targets == []


def test_class_names_are_read():
    assert read_names("1. road\n- sky; car, Car\tbike | tram ") == ["road", "sky", "car", "bike", "tram"]
    with pytest.raises(BadInput, match="at most 200"):
        read_names(",".join(f"n{k}" for k in range(201)))
    with pytest.raises(BadInput, match="characters"):
        read_names("x" * 81)


# -- what the browser sends ---------------------------------------------------------------------------------------


def test_prompts_are_checked():
    prompt = canvas.read_prompt(
        {"points": [[0.5, 0.25, 1], [1, 0, 0]], "box": [0, 0, 0.5, 1], "added": None}, (100, 200)
    )
    assert prompt == {"points": [[100, 25], [200, 0]], "labels": [1, 0], "box": [0, 0, 100, 100]}
    mask = np.zeros((100, 200), bool)
    mask[20:60, 30:90] = True
    layer = np.dstack([np.zeros((100, 200, 3), np.uint8), mask.astype(np.uint8) * 255])
    painted = canvas.read_prompt({"added": canvas.as_url(Image.fromarray(layer))}, (100, 200))["added"]
    assert (painted == mask).all()
    for bad in (
        {"points": [[0.5, 2, 1]]},
        {"points": "all"},
        {"points": [[0, 0, 1]] * 101},
        {"box": [0, 0, float("nan"), 1]},
        {"box": 5},
        {"added": "data:image/png;base64,AAAA"},
        {"added": "file:///x"},
        {"erased": 5},
        {"points": [[True, 0, 1]]},
    ):
        with pytest.raises(BadInput):
            canvas.read_prompt(bad, (100, 200))


def test_the_canvas_gets_colours_and_no_photo_twice(session):
    ask(session, "red and a bench")
    first, second = canvas.shown(session), canvas.shown(session)
    assert first["photo"]["width"] == 360 and "photo" not in second
    assert [(m["name"], m["present"], m["colour"]) for m in first["masks"]] == [
        ("red ball", True, COLOURS[0]),
        ("bench", False, COLOURS[1]),
    ]
    alpha = np.asarray(canvas.outlined(RED, (360, 240)))[..., 1]
    assert (
        ((alpha > 0) == RED).all() and alpha[168, 252] == 127 and alpha.max() == 255
    )  # a rim around a see-through inside


# -- files --------------------------------------------------------------------------------------------------------


def test_a_conversation_reopens(session, assistant):
    ask(session, "red and a bench")
    session.select(0)
    e = session.put("what is this?")
    session.answered(e, session.ask(e))
    saved = load(dump(session.conversation()))
    other = Session()
    other.reopen(saved, [assistant.open(image) for _, image in saved.photos])
    assert [x.question for x in other.log] == ["red and a bench", "what is this?"] and other.names == ["ball"]
    assert (other.answer.mask == RED).all() and (other.log[1].about.mask == RED).all()
    assert [(t.phrase, t.present) for t in other.log[0].answer.targets] == [
        ("red ball", True),
        ("bench", False),
    ]
    assert len(other.scene.turns) == 2 and [t.phrase for t in ask(other, "remove it").targets] == []


def test_a_large_conversation_is_shrunk_or_refused(monkeypatch):
    from assistant.dialogue import conversation_file as conversation

    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    talk = Conversation([("noise", noise)], [])
    whole = len(dump(talk))
    monkeypatch.setattr(conversation, "LARGEST", whole - 1)
    assert len(dump(talk)) < whole and load(dump(talk)).photos[0][1].shape == noise.shape
    monkeypatch.setitem(conversation.PIXELS, "photos", 39_999)
    with pytest.raises(BadInput, match="more than 39,999 pixels"):
        load(dump(talk))
    monkeypatch.setattr(conversation, "LARGEST", 1000)
    with pytest.raises(BadInput, match="fewer or smaller photos"):
        dump(talk)


def small_file():
    image = np.zeros((20, 30, 3), np.uint8)
    answer = Answer(
        "I see it.", [Target("it", True, 0.5, np.ones((20, 30), bool), [])], (20, 30), image, "what?"
    )
    return dump(Conversation([("a", image)], [Exchange(0, "what?", answer)]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_broken_file_is_one_line(data):
    table = json.loads(small_file())
    place, path = table, []
    while isinstance(place, dict | list) and place and (not path or data.draw(st.booleans())):
        key = (
            data.draw(st.sampled_from(sorted(place)))
            if isinstance(place, dict)
            else data.draw(st.integers(0, len(place) - 1))
        )
        path.append((place, key))
        place = place[key]
    holder, key = path[-1]
    value = data.draw(
        st.one_of(
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
    )
    holder[key] = value
    try:
        load(json.dumps(table))
    except BadInput as error:
        assert "\n" not in str(error) and len(str(error)) < 400


def test_masks_cannot_unfold_without_end(monkeypatch):
    from assistant.dialogue import conversation_file as conversation

    whole = small_file()
    monkeypatch.setitem(conversation.PIXELS, "masks", 599)
    with pytest.raises(BadInput, match="its masks have more than 599"):
        load(whole)
    with pytest.raises(BadInput, match="more masks than"):
        small_file()


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
def test_no_conversation_is_one_line(text):
    with pytest.raises(BadInput, match="no conversation that can be reopened"):
        load(text)


def test_corrections_are_records(session, tmp_path):
    ask(session, "red and a bench")
    ask(session, "add the green one")
    session.select(0)
    session.not_there()
    session.save_correction()
    session.save_correction()
    assert len(session.corrections) == 1
    for _ in range(2):  # again replaces, it does not double
        file = save_correction(tmp_path, *session.corrections[0])
    (record,) = read_records(file)
    assert check_records(file) == [] and record.question == "add the green one"
    assert [t.phrase for t in record.targets if t.rle is None] == ["red ball"]
    assert (decode_rle(next(t.rle for t in record.targets if t.rle)) == GREEN).all()
    assert [turn.question for turn in record.history] == ["red and a bench"]
    other = Answer("", [Target("x", True, 1, GREEN, [])], GREEN.shape, picture(), "x?")
    save_correction(tmp_path, other, [Turn("before", "y [SEG].")])
    assert len(read_records(file)) == 2 and len(list((tmp_path / "images").iterdir())) == 1
    for bad in (
        Answer("", [], (4, 4), np.zeros((4, 4, 3), np.uint8), "x"),
        Answer("", other.targets, GREEN.shape, None, "x"),
    ):
        with pytest.raises(BadInput, match="training record"):
            save_correction(tmp_path, bad)
    (tmp_path / "no").write_text("")
    with pytest.raises(BadInput, match="choose another folder"):
        save_correction(tmp_path / "no", other)


def test_rle_of_the_fake_is_exact():
    assert (decode_rle(encode_rle(RED)) == RED).all()


def test_hostile_files_and_questions_end_in_one_polite_line(assistant, tmp_path):
    from tests.helpers.hostile import KINDS, hostile_files, hostile_questions

    refused, worker = 0, Worker()
    good = tmp_path / "good.png"
    Image.fromarray(picture()[::4, ::4].copy()).save(good)
    cases = [(f, "red") for f in hostile_files(tmp_path / "hostile", 2 * len(KINDS))] + [
        (good, q) for q in hostile_questions(150)
    ]
    for file, question in cases:
        try:
            answer = worker.call(lambda: assistant.open(file).ask(question))
            assert isinstance(words.reply_bubble(answer), str) and isinstance(
                words.summary(answer.targets), str
            )
        except Exception as error:
            refused += 1
            said = polite(error, file)
            assert "went wrong" not in said and "\n" not in said and str(tmp_path) not in said, (
                file.name,
                question[:60],
                said,
            )
    assert 15 < refused < len(cases) - 60
