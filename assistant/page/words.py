"""What the page says, as HTML in which nothing typed has power, with each thing in the colour of its mask."""

import re

from assistant.answer import Answer, Target, colour_of
from assistant.page.session import CLASSES, EVERYTHING, HAND, LOOKING, Session

QUOTED = 600  # characters of a question that its bubble repeats


def literal(text: str) -> str:
    """`text` written so that neither HTML nor markdown reads anything into it; line breaks stay."""

    def code(c):
        if c.isalnum() or c == " ":
            return c
        if c == "\n":
            return "<br>"
        return (
            f"&#{ord(c)};" if c.isprintable() or c in "\u200c\u200d" else " "
        )  # joiners: emoji, Persian, Hindi

    return "".join(map(code, text))


def shorter(text: str) -> str:
    return text[:QUOTED] + ("..." if len(text) > QUOTED else "")


def named(targets: list[Target]) -> list[tuple]:
    """[(target, its name with a number if another has the same, its confidence as text, colour)] as in the exports."""
    rows, seen = [], {}
    for k, target in enumerate(targets):
        seen[target.phrase] = seen.get(target.phrase, 0) + 1
        name = target.phrase if seen[target.phrase] == 1 else f"{target.phrase} ({seen[target.phrase]})"
        rows.append((target, name, f"{target.confidence:.0%}", colour_of(k)))
    return rows


def tag(text: str, target: Target, colour: str, hint: str = "") -> str:
    title = f' title="{literal(hint)}"' if hint else ""
    if not target.present:
        return f'<span class="absent"{title}>{literal(text)}</span>'
    return f'<span class="found"{title} style="background:{colour}38;border-color:{colour}">{literal(text)}</span>'


def reply_bubble(answer: Answer) -> str:
    """The reply with each named thing in the colour of its mask, and beneath it how sure the assistant is."""
    parts, end, rows = [], 0, named(answer.targets)
    for target, _, sure, colour in rows:
        start = answer.text.lower().find(target.phrase.lower(), end)
        if target.phrase and start >= 0:
            before, end = literal(answer.text[end:start]), start + len(target.phrase)
            hint = f"{sure} sure that it is there" if target.present else f"not in the picture, {sure} for it"
            parts += [before, tag(answer.text[start:end], target, colour, hint)]
    notes = [
        tag(f"{name} {sure}" if target.present else f"not in the picture: {name}", target, colour)
        for target, name, sure, colour in rows
    ]
    text = "".join(parts) + literal(answer.text[end:])
    if answer.reasoning:
        thought = literal(answer.reasoning[:4000])
        text = f'<details class="notes"><summary>What it thought</summary>{thought}</details>{text}'
    return f'{text}<br><span class="notes">{" ".join(notes)}</span>' if notes else text


def partly(said: str) -> str:
    """A reply that is still being written; said: the model's own text so far, with its marks."""
    text = re.sub(r"\s*\[ABS\]", " (not there)", re.sub(r"\s*\[SEG\]", "", said)).strip(" .,")
    return f'<span class="busy">{literal(text) or "Looking"}</span>'


def summary(targets: list[Target]) -> str:
    """The line beneath the picture."""
    rows = named(targets)
    absent = [literal(name) for target, name, _, _ in rows if not target.present]
    count = sum(target.present for target, *_ in rows)
    line = f"{count} {'thing' if count == 1 else 'things'} outlined." if count else "Nothing is outlined."
    return f'{line} <span class="absent">Not in the picture: {", ".join(absent)}</span>' if absent else line


def legend(s: Session) -> str:
    """The line beneath the picture, whatever it shows."""
    if s.view == EVERYTHING:
        return f"{len(s.regions)} regions. Click one, then ask what it is."
    if s.view == HAND:
        return "Mark a thing on the picture, choose a candidate, name it, use it."
    if s.view == LOOKING:
        return f"Where the model looks for {literal(s.heat[0])}: the brighter, the more."
    if s.view == CLASSES and s.classes:
        missing = literal(", ".join(s.classes["unanswered"]))
        return summary(s.targets) + (f" The model said nothing of {missing}." if missing else "")
    return summary(s.answer.targets) if s.answer else ""


def chip_of(s: Session) -> str:
    """What the next question is about, "" where it is about the whole photo."""
    if s.editing is not None:
        return '<span class="notes">Editing this question: what follows it will be forgotten.</span>'
    if s.chosen is None:
        return ""
    colour = next(c for t, _, _, c in named(s.targets) if t is s.chosen)
    return f'<span class="notes">Your next question is about</span> {tag(s.chosen.phrase, s.chosen, colour)}'


def bubbles(s: Session) -> list[dict]:
    """The conversation for gr.Chatbot; each one's "id" is the number of its exchange."""
    out, photo = [], 0
    if s.scenes and not s.log:
        out.append({"role": "assistant", "content": "The photo is open. What are you looking for?"})
    for number, e in enumerate(s.log):
        asked = literal(shorter(e.question)) or "&#8230;"
        if e.about:
            asked = f'<span class="notes">about</span> {tag(e.about.phrase, e.about, "#14b8a6")}<br>{asked}'
        if e.photo != photo and len(s.scenes) > 1:
            asked = f'<span class="notes">Photo {e.photo + 1}</span><br>{asked}'
        photo = e.photo
        out.append({"role": "user", "content": asked, "id": number})
        said = reply_bubble(e.answer) if e.answer else partly(e.said) if e.waiting else literal(e.said)
        said += ' <span class="notes">corrected by hand</span>' if e.corrected else ""
        out.append({"role": "assistant", "content": said, "id": number})
    if s.note:
        out.append({"role": "assistant", "content": literal(s.note)})
    return out


def messages(s: Session) -> list[dict]:
    return [{"role": b["role"], "content": b["content"]} for b in bubbles(s)]
