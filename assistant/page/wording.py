"""What the page says, as HTML in which nothing typed has power; each target has the colour of its mask.

gr.Chatbot(chat_messages(session))
gr.HTML(legend_line(session))
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from assistant.answer import Answer, Target
from assistant.grammar import is_noun_phrase, plural
from assistant.page.question import Question
from assistant.page.session import Session, View
from assistant.page.suggestions import suggest_questions

MAX_QUOTED_LENGTH = 600  # characters of a question or an answer that a bubble repeats
MAX_STORED_QUESTIONS = 50  # of a conversation, in the browser
MAX_REASONING_LENGTH = 4000  # characters of a model's reasoning that are shown
SUBJECT_COLOUR = "#14b8a6"  # of the target that a question is about; the page's teal
JOINERS = "\u200c\u200d"  # invisible characters that emoji, Persian and Hindi need


def escape(text: str) -> str:
    """The text written so that neither HTML nor Markdown finds anything in it; line breaks stay."""
    return "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    if character.isalnum() or character == " ":
        return character
    if character == "\n":
        return "<br>"
    if character.isprintable() or character in JOINERS:
        return f"&#{ord(character)};"
    return " "


def shorten(text: str) -> str:
    """The text, cut off after MAX_QUOTED_LENGTH characters."""
    return text[:MAX_QUOTED_LENGTH] + ("..." if len(text) > MAX_QUOTED_LENGTH else "")


@dataclass(frozen=True)
class NamedTarget:
    """A target as the page shows it.

    Attributes:
        target: The target.
        name: Its phrase, with a number behind it where an earlier target has the same.
        confidence: Its confidence as text, such as "81%".
        colour: The "#rrggbb" of its mask, the same as in the exports.
    """

    target: Target
    name: str
    confidence: str
    colour: str


def name_targets(targets: list[Target], colours: list[str]) -> list[NamedTarget]:
    """The targets with their names and colours ("#rrggbb" each)."""
    named = []
    counts: dict[str, int] = {}
    for target, colour in zip(targets, colours, strict=True):
        counts[target.phrase] = count = counts.get(target.phrase, 0) + 1
        name = target.phrase if count == 1 else f"{target.phrase} {count}"
        named.append(NamedTarget(target, name, f"{target.confidence:.0%}", colour))
    return named


def counted_name(row: NamedTarget) -> str:
    """The name of a target, with the number of its instances where there are several: "sheep (4)"."""
    count = len(row.target.instances)
    return f"{row.name} ({count})" if count > 1 else row.name


def missing_note(target: Target) -> str:
    """Why an absent target has no mask."""
    if target.seen:
        return "seen, but not outlined"
    return "not in the picture" if target.known else "a word I don't know"


def absence_label(row: NamedTarget) -> str:
    """What the legend says of an absent target: "no cup", "gong?", "nothing: what could I drink from"."""
    if row.target.seen:
        return f"{row.name} (not outlined)"
    if not row.target.known:
        return f"{row.name}?"
    return f"no {row.name}" if is_noun_phrase(row.name) else f"nothing: {row.name}"


def tag(text: str, target: Target, colour: str, hint: str = "", mark: str = "") -> str:
    """A text in the colour of a target's mask, or dashed where the target is absent.

    Args:
        text: The text.
        target: The target.
        colour: "#rrggbb".
        hint: Its tooltip.
        mark: A class that says which mask it names (canvas_words.js); "" for none.
    """
    title = f' title="{escape(hint)}"' if hint else ""
    if not target.present:
        return f'<span class="absent"{title}>{escape(text)}</span>'
    style = f"background:{colour}38;border-color:{colour}"
    return f'<span class="{f"found {mark}".strip()}"{title} style="{style}">{escape(text)}</span>'


def reply_bubble(answer: Answer, question: int = 0) -> str:
    """A reply with each target in the colour of its mask, and beneath it how confident the assistant is.

    Args:
        answer: The answer.
        question: Index of its question in the conversation.
    """
    named = name_targets(answer.targets, answer.colours)
    marks = [f"of-{question}-{number}" for number in range(len(named))]
    text = _coloured_text(answer.text, named, marks)
    if answer.reasoning:
        reasoning = escape(answer.reasoning[:MAX_REASONING_LENGTH])
        text = f'<details class="notes"><summary>What it thought</summary>{reasoning}</details>{text}'
    # The text and the legend say what is absent.
    notes = [
        tag(f"{counted_name(row)} {row.confidence}", row.target, row.colour, mark=mark)
        for row, mark in zip(named, marks, strict=True)
        if row.target.present
    ]
    if not notes:
        return text
    return f'{text}<br><span class="notes">{" ".join(notes)}</span>'


def _coloured_text(text: str, named: list[NamedTarget], marks: list[str]) -> str:
    """A reply's text with the first mention of each target, in their order, in its colour."""
    parts = []
    end = 0
    for row, mark in zip(named, marks, strict=True):
        written = (row.target.phrase, plural(row.target.phrase))  # "3 people" names the person
        found = [(text.lower().find(word.lower(), end), word) for word in written if word]
        found = [(at, word) for at, word in found if at >= 0]
        if not found:
            continue
        start, phrase = min(found, key=lambda place: (place[0], -len(place[1])))
        if row.target.present:
            hint = f"{row.confidence} sure that it is there"
        else:
            hint = missing_note(row.target) + (f", {row.confidence} for it" if row.target.known else "")
        parts.append(escape(text[end:start]))
        end = start + len(phrase)
        parts.append(tag(text[start:end], row.target, row.colour, hint, mark))
    return "".join(parts) + escape(text[end:])


def streaming_bubble(reply: str) -> str:
    """A reply that is still being written; reply: what the model has written so far, with its marks."""
    text = re.sub(r"\s*\[SEG\]", "", reply)
    text = re.sub(r"\s*\[ABS\]", " (not there)", text).strip(" .,")
    return f'<span class="busy">{escape(text) or "Looking"}</span>'


def summary_line(targets: list[Target]) -> str:
    """How many things are outlined; the legend says which, and which are absent."""
    count = sum(len(target.instances) for target in targets)
    return f"{count} {'thing' if count == 1 else 'things'} outlined." if count else "Nothing is outlined."


def unknown_words(targets: list[Target]) -> str:
    """A sentence on the targets whose words are not known, as HTML; "" where all are."""
    words = [f"'{escape(target.phrase)}'" for target in targets if not target.known]
    if not words:
        return ""
    listed = " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return f" I don't know the word{'s' if len(words) > 1 else ''} {listed}."


def legend_line(session: Session) -> str:
    """The line beneath the picture, whatever the picture shows."""
    if session.view == View.EVERYTHING:
        return f"{len(session.regions)} regions. Click one, then ask what it is."
    if session.view == View.BY_HAND:
        return "Mark a thing in the picture, pick an outline, name it and add it to the answer."
    if session.view == View.ATTENTION and session.attention:
        phrase = escape(session.attention.phrase)
        return f"Where the model looks for {phrase}. Brighter means more attention."
    if session.view == View.CLASSES and session.class_map:
        unanswered = escape(", ".join(session.class_map.unanswered))
        note = f" The model said nothing of {unanswered}." if unanswered else ""
        return summary_line(session.targets) + note + unknown_words(session.targets)
    return summary_line(session.answer.targets) if session.answer else ""


def subject_line(session: Session) -> str:
    """What the next question is about; "" where it is about the whole photo."""
    if session.editing is not None:
        return '<span class="notes editing">Sending this removes the replies after it.</span>'
    subject = session.subject
    if subject is None or session.selected is None:
        return ""
    colour = session.colours[session.selected]
    return f'<span class="notes">Your next question is about</span> {tag(subject.phrase, subject, colour)}'


@dataclass(frozen=True)
class Bubble:
    """A bubble of the chat.

    Attributes:
        role: "user" or "assistant".
        content: HTML.
        question: Index of the question that it belongs to; None for a notice.
        suggestions: Questions to ask next, as buttons.
    """

    role: str
    content: str
    question: int | None = None
    suggestions: tuple[str, ...] = ()


def bubbles(session: Session) -> list[Bubble]:
    """The conversation as the chat shows it."""
    rows = []
    photo = 0
    for index, question in enumerate(session.questions):
        names_photo = question.photo != photo and len(session.scenes) > 1
        photo = question.photo
        rows.append(Bubble("user", _question_bubble(question, names_photo), index))
        rows.append(Bubble("assistant", _answer_bubble(question, index), index))
    if opened := _opened_bubble(session):
        rows.append(opened)
    if session.notice:
        rows.append(Bubble("assistant", escape(session.notice)))
    return rows


def _opened_bubble(session: Session) -> Bubble | None:
    """What is said of a photo that nothing was asked about, with suggestions; None for another photo."""
    if session.scene is None or any(question.photo == session.photo for question in session.questions):
        return None
    which = "The photo" if not session.questions else f"Photo {session.photo + 1}"
    suggestions = tuple(suggest_questions(session.scene.names_seen))
    return Bubble("assistant", f"{which} is open. What are you looking for?", suggestions=suggestions)


def _question_bubble(question: Question, names_photo: bool) -> str:
    """A question, with what it is about; names_photo: whether to say which photo it is about."""
    text = escape(shorten(question.text)) or "&#8230;"
    if question.about:
        subject = tag(question.about.phrase, question.about, SUBJECT_COLOUR)
        text = f'<span class="notes">about</span> {subject}<br>{text}'
    if names_photo:
        text = f'<span class="notes">Photo {question.photo + 1}</span><br>{text}'
    return text


def _answer_bubble(question: Question, index: int) -> str:
    """The answer to a question, or what stands in its place; index: of the question in the conversation."""
    if question.answer:
        text = reply_bubble(question.answer, index)
    else:
        text = streaming_bubble(question.status) if question.waiting else escape(question.status)
    return text + (' <span class="notes">corrected by hand</span>' if question.corrected else "")


def conversation_rows(session: Session) -> list[list[str]]:
    """The answered questions as [question, answer], as the browser stores them."""
    return [
        [shorten(question.text), shorten(question.answer.text)]
        for question in session.questions
        if question.answer is not None
    ][-MAX_STORED_QUESTIONS:]


def chat_messages(session: Session) -> list[dict[str, Any]]:
    """The conversation for gr.Chatbot."""
    return [
        {
            "role": bubble.role,
            "content": bubble.content,
            "options": [{"value": question} for question in bubble.suggestions],
        }
        for bubble in bubbles(session)
    ]
