"""Keeps a reply to what was asked: an absent thing is called by words of the question.

    items = honest_items("is there a window?", "is there a window?", mentions, selections, llm, vocabulary)
    write_reply(items, offer(things))      # 'I do not know what "window" [ABS] means. I can see: cat.'

The language model answers "the pet that barks" with "cat [ABS]" where it guesses wrong. Of what is absent,
only what the question names is said to be absent. Three answers are kept apart: it is there; it is not there;
it is not known what is meant, which has `Selection.known` False.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from assistant.grammar import UNNAMED, Mention, is_noun_phrase, marked, reply_for
from assistant.pipeline import Reply, Selection
from assistant.pocket.asked_words import asked_things, asks_whether, is_plain_name, own_words
from assistant.pocket.llm import PocketLLM
from assistant.pocket.question_reading import Asked
from assistant.pocket.vocabulary import GENERIC_NOUNS, Vocabulary, comparable

# Words that a phrase may have beside the name, as answers about one of several things do.
POSITION_WORDS = frozenset(
    "the a an of on at in to left right top bottom middle center centre smallest biggest largest small "
    "smaller big bigger larger leftmost rightmost upper lower pair other".split()
)


@dataclass(frozen=True)
class Item:
    """A target of a reply.

    Attributes:
        phrase: Its name.
        present: Whether it is in the image.
        selection: What it points at; its `known` says whether the question was understood.
        guess: The unknown word that the phrase is a guess for; "" for every other target.
        in_own_words: Whether the phrase is taken from the question, as nobody named what is absent.
        asked: What it answers, where the question was read before the picture was; else None.
    """

    phrase: str
    present: bool
    selection: Selection
    guess: str = ""
    in_own_words: bool = False
    asked: Asked | None = None


def honest_items(
    question: str,
    heard: str,
    mentions: Sequence[Mention],
    selections: Sequence[Selection],
    llm: PocketLLM,
    vocabulary: Vocabulary,
) -> list[Item]:
    """The targets of the language model's reply to one question, called by what was asked.

    Args:
        question: The question.
        heard: The text whose words may name what is absent: the question, after earlier turns where it refers
            to them.
        mentions: The marked phrases of the reply.
        selections: One for each of them.
        llm: The language model, which knows its taught names.
        vocabulary: The words for those names.

    Returns:
        At least one item, in the order of the reply. What is absent and was not named is called by the words
        of the question; things that the reply leaves out and whose names nobody taught come last.
    """
    things = asked_things(question)
    items: list[Item] = []
    unmatched: list[int] = []  # indices of items whose phrase nobody named
    for mention, selection in zip(mentions, selections, strict=False):
        phrase = _named_phrase(mention.phrase, heard, llm, vocabulary)
        if phrase is not None and not mention.present:
            phrase = _as_asked(phrase, things, llm, vocabulary)
        if phrase is None:
            unmatched.append(len(items))
        elif not mention.present and llm.row_of(phrase) is None and _is_unknown(phrase, vocabulary):
            selection = replace(selection, known=False)
        items.append(Item(phrase or mention.phrase, mention.present, selection))
    rows = [llm.row_of(item.phrase) for k, item in enumerate(items) if k not in unmatched]
    remaining = [thing for thing in things if not _is_answered(thing, rows, items, vocabulary)]
    if len(things) == len(items):
        remaining = [things[k] for k in unmatched]
    if len(remaining) >= len(unmatched):
        for k, thing in zip(unmatched, remaining, strict=False):
            items[k] = _in_own_words(items[k], thing, vocabulary, may_guess=not asks_whether(question))
        forgotten = remaining[len(unmatched) :]
    else:
        items = _merged(items, unmatched, own_words(question))
        forgotten = []
    unknown = [thing for thing in forgotten if _is_unknown(thing, vocabulary)]
    items += [Item(thing, False, Selection(0.0, [], known=False)) for thing in unknown]
    return items or [Item(own_words(question) or UNNAMED, False, Selection(0.0, [], known=False))]


def _named_phrase(phrase: str, heard: str, llm: PocketLLM, vocabulary: Vocabulary) -> str | None:
    """The phrase, without what nobody said of the thing; None where nobody named the thing itself."""
    words = set(comparable(phrase).split())
    heard_words = set(comparable(heard).split())
    if words and words <= heard_words | POSITION_WORDS and not words <= POSITION_WORDS:
        return phrase
    row = llm.row_of(phrase)
    if row is None or not vocabulary.is_named(row, heard):
        return None
    names = {word for name in vocabulary.names[row] for word in name.split()}
    return phrase if words <= heard_words | POSITION_WORDS | names else llm.plain_names()[row]


def _as_asked(phrase: str, things: Sequence[str], llm: PocketLLM, vocabulary: Vocabulary) -> str:
    """What is absent in the words of the question: "loo" where the language model says "toilet".

    "Is anyone there?" has no such words.
    """
    row = llm.row_of(phrase)
    if row is None or any(comparable(phrase) in comparable(thing) for thing in things):
        return phrase
    return next(
        (
            thing
            for thing in things
            if is_plain_name(thing) and is_noun_phrase(thing) and vocabulary.is_named(row, thing)
        ),
        phrase,
    )


def _is_answered(thing: str, rows: list[int | None], items: list[Item], vocabulary: Vocabulary) -> bool:
    """Whether one of the named items of a reply answers to a thing."""
    asked = comparable(thing)
    return any(row is not None and vocabulary.is_named(row, thing) for row in rows) or any(
        comparable(item.phrase) in asked for item in items
    )


def _is_unknown(thing: str, vocabulary: Vocabulary) -> bool:
    """Whether a thing is called by a word that the vocabulary lacks, or only by what it looks like."""
    if not is_plain_name(thing):
        return False
    *_, noun = comparable(thing).split() or [""]
    return noun in GENERIC_NOUNS or not vocabulary.knows(thing)


def _in_own_words(item: Item, thing: str, vocabulary: Vocabulary, may_guess: bool) -> Item:
    """An item that nobody named, called by the words of the question.

    What is present stays so, as a guess where the word is not known; "is there a snake?" asks for no guess.
    """
    is_unknown = _is_unknown(thing, vocabulary)
    if not item.present or (is_unknown and not may_guess):
        item = replace(item, present=False)
        selection = replace(item.selection, known=not is_unknown)
        return replace(item, phrase=thing, selection=selection, in_own_words=True)
    if is_unknown:
        return replace(item, guess=thing, selection=replace(item.selection, known=False))
    return item


def _merged(items: list[Item], unmatched: list[int], words: str) -> list[Item]:
    """The items with all absent ones that nobody named as a single one, called by the question's words."""
    absent = [k for k in unmatched if not items[k].present]
    if not absent:
        return items
    items = list(items)
    items[absent[0]] = replace(items[absent[0]], phrase=words or UNNAMED, in_own_words=True)
    return [item for k, item in enumerate(items) if k not in absent[1:]]


def write_reply(items: Sequence[Item], seen: str, reply: Reply) -> tuple[Reply, list[Selection]]:
    """Write a reply that names some items.

    Args:
        items: The items; of those with one phrase the first counts.
        seen: What it offers where something was not found or not understood; see `named_targets.offer`.
        reply: The language model's, whose costs and states are kept.

    Returns:
        The reply, and a selection for each of its markers.
    """
    kept: dict[str, Item] = {}
    for item in items:
        kept.setdefault(item.phrase.lower(), item)
    sentences: list[str] = []
    named: list[tuple[str, bool]] = []
    for item in kept.values():
        sentence = _own_sentence(item)
        if sentence is None:
            named.append((item.phrase, item.present))
            continue
        if named:
            sentences.append(reply_for(named))
            named = []
        sentences.append(sentence)
    offers = bool(sentences) or any(item.in_own_words for item in kept.values())
    if named:
        sentences.append(reply_for(named))
    if offers and seen:
        sentences.append(seen)
    return replace(
        reply,
        text=" ".join(sentences),
        markers=[item.present for item in kept.values()],
        written=written(list(kept.values())),
    ), [item.selection for item in kept.values()]


def written(items: Sequence[Item]) -> str:
    """The items in the short form in which the language model itself writes."""
    return ", ".join(marked(item.phrase, item.present) for item in items) + "."


def _own_sentence(item: Item) -> str | None:
    """A sentence of its own for what is not simply there or not there."""
    if item.guess:
        return f'I do not know what "{item.guess}" means; it may be the {marked(item.phrase, item.present)}.'
    if not item.selection.known:
        return f"I do not know what {_in_quotes(item.phrase)} means."
    if not item.present and not is_noun_phrase(item.phrase):
        return f"I see nothing that answers {_in_quotes(item.phrase)}."
    return None


def _in_quotes(phrase: str) -> str:
    mark = marked(phrase, False)
    name, token = mark.rsplit(" ", 1)
    quoted = name if name.startswith('"') else f'"{name}"'
    return f"{quoted} {token}"
