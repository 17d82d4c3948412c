"""Finds what is like one outlined example in the other photos of a conversation.

session.select(0)
count = find_similar(session, "mug", report)
"""

from __future__ import annotations

from assistant.answer import Answer, Target
from assistant.errors import BadInput
from assistant.grammar import clean_phrase
from assistant.page.question import Question
from assistant.page.session import Session
from assistant.page.worker import ReportFunction

MAX_LABEL_LENGTH = 200  # characters of the name of an example


def find_similar(session: Session, label: str, report: ReportFunction) -> int:
    """Find what is like the selected target in each of the other photos, as answered questions about them.

    Args:
        session: The session; it shows the first of the other photos then.
        label: The name of the target; "" to go by its appearance alone.
        report: Called before each photo, see `Worker.run`.

    Returns:
        The number of photos that were searched.

    Raises:
        BadInput: No mask is selected, or there is no other photo.
    """
    example = session.selected_target
    example_photo = session.photo
    if example is None:
        raise BadInput("select a mask first: click on it, or make one by hand")
    others = [photo for photo in range(len(session.scenes)) if photo != example_photo]
    if not others:
        raise BadInput('there is no other photo yet: add those to search with "Add photos"')
    label = " ".join(label.split())[:MAX_LABEL_LENGTH]
    found = []
    for photo in others:
        report("photo", photo)
        found.append(_search(session, example, example_photo, photo, label))
    session.questions += found
    for photo in others:
        session.restore_turns(photo)
    session.show_photo(others[0])
    session.reset_view()
    return len(others)


def _search(session: Session, example: Target, example_photo: int, photo: int, label: str) -> Question:
    """What is like the example in one photo, as an answered question."""
    assert example.mask is not None
    scene = session.scenes[photo]
    phrase = clean_phrase(label or example.phrase)
    mask, score = scene.segment_like(session.scenes[example_photo].image, example.mask, label or None)
    present = bool(mask.any())
    confidence = float(min(max(score, 0.0), 1.0))
    target = Target(phrase, present, confidence, mask if present else None, [])
    question = f"Find what is like the {phrase} in photo {example_photo + 1}."
    if present:
        text = f"Closest match for the {phrase} ({confidence:.0%}). It may be something else."
    else:
        text = f"Nothing here is like the {phrase}."
    answer = Answer(text, [target], scene.size, scene.image, question)
    return Question(photo, question, answer=answer, waiting=False)
