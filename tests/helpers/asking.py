"""Asking a question in a session of the page, as its handlers do."""

from assistant.answer import Answer
from assistant.page.question import Question
from assistant.page.session import Session


def ask(session: Session, text: str) -> Answer:
    """Ask a question about what the session shows; returns the answer."""
    question = ask_question(session, text)
    assert question.answer is not None
    return question.answer


def ask_question(session: Session, text: str) -> Question:
    """Ask a question about what the session shows; returns it with its answer."""
    question = session.add_question(text)
    session.set_answer(question, session.ask(question))
    return question
