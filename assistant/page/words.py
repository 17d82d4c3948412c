"""Answers as HTML in which nothing that anyone typed has power, with each thing in the colour of its mask."""

import re

from assistant.answer import Answer, Target, colour_of

QUOTED = 600  # characters of a question that its bubble repeats


def literal(text: str) -> str:
    """`text` written so that neither HTML nor markdown reads anything into it; line breaks stay."""

    def code(c):
        if c.isalnum() or c == " ":
            return c
        if c == "\n":
            return "<br>"
        return f"&#{ord(c)};" if c.isprintable() or c in "\u200c\u200d" else " "  # joiners: emoji, Persian, Hindi

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
