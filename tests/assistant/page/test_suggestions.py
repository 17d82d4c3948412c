"""The questions that are suggested once a photo is open."""

import pytest

from assistant.page.suggestions import PLAIN_QUESTIONS, suggest_questions
from assistant.page.wording import chat_messages
from tests.helpers.asking import ask
from tests.helpers.fake_assistant import sample_image


@pytest.mark.parametrize(
    "names, questions",
    [
        ([], PLAIN_QUESTIONS),
        (
            ["dining table", "cup", "spoon"],
            ["What could I drink from?", "Find the dining table and the spoon.", "Is there a dog?"],
        ),
        (["dog"], ["Which animal is it?", "Where is the dog?", "Is there a bicycle?"]),
        (["dog", "bicycle"], ["Which animal is it?", "Find the bicycle.", "Is there an elephant?"]),
        (["vase"], ["Where is the vase?", "What is this?", "Is there a dog?"]),
        (["vase", "book"], ["Where is the vase?", "Find the book.", "Is there a dog?"]),
    ],
)
def test_questions_come_from_what_is_seen(names, questions):
    assert suggest_questions(names) == questions


def suggested(session):
    return [option["value"] for message in chat_messages(session) for option in message["options"]]


def test_a_photo_is_suggested_for_until_it_was_asked_about(session, assistant):
    assert suggested(session) == ["Where is the red ball?", "Find the green box.", "Is there a dog?"]
    ask(session, "red")
    assert suggested(session) == []
    session.add_photo(assistant.open(sample_image()[:60]), "sky")
    assert suggested(session)[0] == "Where is the blue sky?"
    assert "Photo 2 is open" in chat_messages(session)[-1]["content"]
    session.show_photo(0)
    assert suggested(session) == []
