"""Follow-ups are parsed into actions; what the rules do not cover is left to the language model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.dialogue.followup_actions import (
    Add,
    Again,
    Another,
    Choose,
    ChooseNumber,
    FindBeside,
    Keep,
    NameRegion,
    Others,
    Remove,
)
from assistant.dialogue.followup_parser import (
    CRITERIA,
    bare_noun,
    match_name,
    parse_followup,
    parse_region_question,
)


@pytest.mark.parametrize(
    "question, action",
    [
        ("and the one on the left?", Choose("left")),
        ("Only the smaller one.", Choose("smaller")),
        ("and the second one?", ChooseNumber(2)),
        ("the 3rd cup from the left, please", ChooseNumber(3, "left", "cup")),
        ("number two", ChooseNumber(2)),
        ("show me the last one", ChooseNumber(-1)),
        ("second from the right", ChooseNumber(2, "right")),
        ("first, the dog", None),
        ("number 0", None),
        ("not that one, the smaller", Another("smaller")),
        ("Not that one!", Another()),
        ("no, another one", Another()),
        ("the other one", Others()),
        ("whereabouts are the others?", Others()),
        ("not that one, the others.", Others()),
        ("nothing but the cup, please", Keep(("cup",))),
        ("Keep the cup and the spoon, drop the rest.", Keep(("cup", "spoon"))),
        ("once more, please, where?", Again()),
        ("make that the left-hand one only", Choose("left")),
        ("is there a knife, too?", None),
        ("everything just named except the spoon", Remove("spoon")),
        ("how about a knife?", None),
        ("now remove the cup", Remove("cup")),
        ("please hide the spoons", Remove("spoon")),
        ("remove it", Remove("spoon")),
        ("not the cup", Remove("cup")),
        ("forget everything", Remove(None)),
        ("add the knife", Add("knife")),
        ("also the knife", None),
        ("the plate too", None),
        ("which one is bigger?", Choose("larger")),
        ("the cup in the middle", Choose("middle", "cup")),
        # for the model:
        ("is there a dog?", None),
        ("what's left?", None),
        ("the small dog", None),
        ("remove the table", None),
        ("", None),
        ("what is on the table?", None),
        ("¿y la de la izquierda?", None),
        ("左边的那个", None),
        ("what is the right tool for it?", None),
    ],
)
def test_followups_are_parsed(question, action):
    assert parse_followup(question, ["cup", "spoon"]) == action
    assert parse_followup(question, []) is None


@pytest.mark.parametrize(
    "question, action",
    [
        ("what is this?", NameRegion()),
        ("What's it called?", NameRegion()),
        ("the cup next to it", FindBeside("near", "cup")),
        ("is there a spoon to the left of this?", FindBeside("left", "spoon")),
        ("what is under it?", FindBeside("below")),
        ("who is that", NameRegion()),
        ("what is it made of?", None),
        ("where is the handle?", None),
        ("", None),
    ],
)
def test_questions_about_a_region_are_parsed(question, action):
    assert parse_region_question(question) == action


def test_names_are_matched_by_their_words():
    names = ["red cup", "blue cup", "wine glass"]
    assert match_name("the red cups", names) == "red cup"
    assert match_name("glass", names) == "wine glass"
    assert match_name("the cup", names) is None  # two of them
    assert match_name("the one", names) is None


@pytest.mark.parametrize("phrase", ["cup", "cup on the left", "smaller cup", "other cup", "the leftmost cup"])
def test_what_singles_an_instance_out_is_dropped(phrase):
    assert bare_noun(phrase) == "cup"


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(
            st.sampled_from([*CRITERIA, *"the one on not that remove cup spoon it also , ? and too".split()]),
            max_size=9,
        ).map(" ".join),
    ),
    st.lists(st.text(max_size=12), max_size=4),
)
def test_any_text_is_parsed(question, names):
    action = parse_followup(question, names)
    assert action is None or names
    if isinstance(action, Remove | Choose):
        assert action.phrase is None or action.phrase in names
    if isinstance(action, Keep):
        assert set(action.phrases) <= set(names)
    if isinstance(action, Choose | Another):
        assert action.criterion in (None, *CRITERIA.values())
    parse_region_question(question)
