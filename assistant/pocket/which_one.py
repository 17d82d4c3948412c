"""Reads questions that mean one of several things of a kind.

    parse_which_one("the second cup from the left")     # WhichOne("where is the cup?", (Ordinal(2, "left"),))
    parse_which_one("the man in red next to the dog")   # (Beside("near", "dog"), Colour("red"))
    parse_which_one("the cups on the left")             # None: several are meant

A language model of 135 million parameters does not tell the left one from the right one. So rules take what
singles one instance out from the question; the rest asks for all of them, and
`assistant.pocket.instance_choice` measures which one is meant. The rules are for English.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from assistant.dialogue.followup_actions import POSITION_PHRASES, Criterion, Direction, in_words
from assistant.dialogue.followup_parser import CRITERIA, number_of
from assistant.grammar import ORDINALS, plural, singular
from assistant.pocket.asked_words import CLOSING, DETERMINER, without_request
from assistant.pocket.colours import COLOUR_WORDS


@dataclass(frozen=True)
class Place:
    """The instance that lies or is so: the leftmost, the largest.

    Attributes:
        criterion: What is measured.
    """

    criterion: Criterion


@dataclass(frozen=True)
class Ordinal:
    """The instance with a number, counted from a side.

    Attributes:
        number: From 1; -1 for the last.
        side: Where counting begins.
    """

    number: int
    side: Criterion = "left"


@dataclass(frozen=True)
class Colour:
    """The instance with most of a colour.

    Attributes:
        name: A key of `colours.COLOURS`.
        negated: Whether the one with least of it is meant.
    """

    name: str
    negated: bool = False


@dataclass(frozen=True)
class Beside:
    """The instance that lies so to something else.

    Attributes:
        direction: Where the instance lies, as seen from the other thing.
        noun: The other thing.
        negated: Whether the instance must not lie there.
    """

    direction: Direction
    noun: str
    negated: bool = False


@dataclass(frozen=True)
class Between:
    """The instance that lies between two other things.

    Attributes:
        nouns: Both of them, or the plural of one noun.
    """

    nouns: tuple[str, ...]


Condition = Place | Ordinal | Colour | Beside | Between


@dataclass(frozen=True)
class WhichOne:
    """One of several things of a kind.

    Attributes:
        question: Asks for all of them.
        conditions: What singles one out, each at least once met by it.
        words: The conditions in words, for the reply: "{} on the left" with the name in the place of "{}".
    """

    question: str
    conditions: tuple[Condition, ...]
    words: str = "{}"


def other_nouns(conditions: Sequence[Condition]) -> list[str]:
    """What the other things are called to which conditions relate the one that is meant."""
    nouns: list[str] = []
    for condition in conditions:
        if isinstance(condition, Beside):
            nouns.append(condition.noun)
        elif isinstance(condition, Between):
            nouns += condition.nouns
    return nouns


_SIDE = "left|right|top|bottom|middle|cent(?:er|re)"
_ORDINAL = rf"{'|'.join(ORDINALS)}|last|1st|2nd|3rd|[4-9]th"
_COLOUR = "|".join(COLOUR_WORDS)
_SIZES: tuple[Criterion, ...] = ("smallest", "largest", "smaller", "larger", "tallest", "shortest")
_PLACE_WORDS = "|".join(word for word, criterion in CRITERIA.items() if criterion not in _SIZES)
_SIZE_WORDS = "|".join(word for word, criterion in CRITERIA.items() if criterion in _SIZES)
_SIZE = "smallest|tiniest|littlest|largest|biggest|hugest|tallest|shortest"
_PICTURE = r"(?: (?:in|of) (?:the|this) (?:photo|picture|image|scene))?"
_ARTICLE = r"(?:the|an?|its|his|her|their|that|this) "
_PLACE_NOUN = rf"(?:far |very |extreme )*(?:{_SIDE})\b"  # "the far right" is no thing
_CLOTHES = r"(?: (?:jacket|shirt|t-shirt|top|coat|dress|sweater|jumper|hoodie|suit|clothes|outfit|uniform))?"

# What may end a noun phrase; each is tried until none matches.
_ENDINGS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(rf"{pattern}{_PICTURE}$", re.I))
    for kind, pattern in (
        (
            "ordinal",
            rf"(?:the )?(?P<ordinal>{_ORDINAL})(?: one)? (?:from|on|at|counting from) (?:the )?"
            r"(?P<side>left|right|top|bottom)",
        ),
        ("side", r"(?:from|counting from|counted from) (?:the )?(?P<side>left|right|top|bottom)"),
        (
            "place",
            rf"(?:furthest|farthest|most|nearest|closest)(?: to)?(?: the)? (?P<criterion>{_SIDE})"
            r"(?: (?:edge|side|corner))?",
        ),
        (
            "place",
            rf"(?:on|at|in|to|towards?) (?:the |its )?(?:far |very |extreme )?(?P<criterion>{_SIDE})"
            r"(?:[- ]hand)?(?: (?:side|edge|corner|part))?",
        ),
        (
            "place",
            r"(?:(?:that|which|who) (?:looks?|is|seems?|appears?) )?(?:the )?"
            rf"(?P<criterion>{_SIZE})(?: one)?",
        ),
        ("largest", r"(?:that|which|who) takes? up the most (?:room|space)"),
        ("middle", r"between the (?:other two|others)"),
        (
            "between",
            rf"(?:in )?between (?:{_ARTICLE}|both |the two )(?:two )?(?P<first>[a-z][a-z' -]*?)"
            rf"(?: and {_ARTICLE}(?P<second>[a-z][a-z' -]*))?",
        ),
        (
            "colour",
            r"(?:(?:that|which|who) (?:is|are)(?P<not>n['’]?t| not)? |(?P<never>not ))"
            rf"(?P<colour>{_COLOUR})",
        ),
        (
            "colour",
            rf"(?:in|wearing|with|dressed in)(?: an?| the)? (?P<colour>{_COLOUR})"
            rf"(?: and (?:{_COLOUR}))?{_CLOTHES}",
        ),
        (
            "beside",
            r"(?P<not>not )?(?:(?:(?:(?:to|on|at) (?:the )?)?(?P<left>left|right)(?:[- ]hand)?(?: side)? of|"
            r"(?P<above>above|over|on top of)|(?P<below>below|beneath|underneath|under)|"
            r"next to|near(?:est)?(?: to)?|beside|by|close(?:st)? to|behind|in front of|on) "
            rf"{_ARTICLE}(?!{_PLACE_NOUN})|(?:holding|carrying|riding|wearing|with) (?:{_ARTICLE})?)"
            r"(?P<noun>[a-z][a-z' -]*)",
        ),
    )
)
_BESIDE = next(pattern for kind, pattern in _ENDINGS if kind == "beside")
# What is left of a clause when its condition is taken out: "that is", "furthest", "to the".
_LEFT_OVER = re.compile(
    r"(?:[ ,]+(?:that|which|who|(?:that|who|which)['’]s|is|are|looks?|seems?|appears?|the|to|on|at|in|"
    r"furthest|farthest|most|nearest|closest|far|standing|sitting|lying|walking|placed|located|parked))+$",
    re.I,
)
# What may stand before the noun.
_BEGINNINGS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(rf"(?:{pattern})\b[ -]+(?=\S)", re.I))
    for kind, pattern in (
        ("ordinal", rf"(?P<ordinal>{_ORDINAL})"),
        ("place", rf"(?:far |very |most )?(?P<criterion>{_PLACE_WORDS})(?:[- ]hand)?(?: most)?"),
        ("place", f"(?P<criterion>{_SIZE_WORDS})"),
        ("largest", "nearest|closest|foremost|frontmost"),
        ("smallest", "furthest|farthest|most distant"),
        ("colour", rf"(?P<colour>{_COLOUR})(?: and (?:{_COLOUR}))?"),
    )
)
# "Looking at the people, which is the tallest?", "of the cups, the one on the left".
_AMONG = re.compile(
    r"^(?:looking at|out of|of|among|amongst|considering|given)(?: all)? (?P<things>.+?),? "
    r"(?:(?:which|what|who)(?: one)?(?: of them)? is|"
    r"(?:point (?:at|to)|show me|mark|find|pick|choose|outline|segment|locate)|(?<=, )(?=the .*\bone\b))\s*"
    r"(?P<which>(?:the )?.+)$",
    re.I,
)
# "the smaller of the two dogs", "the left one of the cups"
_OF = re.compile(
    r"^(?:the )?(?P<which>[a-z][a-z -]*?)(?: one)? of (?:the |these |those )"
    r"(?:two |three |four |five |six |many )?(?P<things>.+)$",
    re.I,
)
# "which cup is the biggest?"
_WHICH = re.compile(r"^(?:which|what) (?P<things>.+?) (?:is|looks) (?P<which>.+)$", re.I)
_ONE = re.compile(r"^(?:the )?(?P<before>.*?)\bone\b(?P<after>.*)$", re.I)
_NOUN = re.compile(r"[a-z][a-z' -]*", re.I)
_NO_NOUN = re.compile(
    r"^(?:of|in|on|at|to|from|near|by)\b|"
    r"\b(?:what|which|who|where|is|are|do|does|can|one|ones|thing|things|it|this|that|everything|all|and|or|over)\b",
    re.I,
)
MAX_NOUN_WORDS = 4
SPOKEN_SIZES = {"largest": "biggest", "larger": "bigger"}  # of a criterion, where it is not its own word


def parse_which_one(question: str) -> WhichOne | None:
    """What singles one thing of a kind out in a question.

    Args:
        question: Any text.

    Returns:
        None where the question does not ask for one thing by such a condition.
    """
    text = CLOSING.sub("", question.strip())
    if match := _AMONG.match(text):
        conditions = _conditions_alone(match["which"])
        if not conditions:
            return None
        things = re.sub(r"^(?:of )?(?:all )?(?:the )?things? in (?:view|sight)\s*", "thing ", match["things"])
        if things.lower().startswith("thing "):
            return WhichOne(f"find the {things}", conditions, _in_words(conditions))
        # "Of the red cups, the one on the left" is the leftmost of those that are red.
        rest, further = _without_conditions(DETERMINER.sub("", things))
        conditions = (*conditions, *further)
        return WhichOne(f"where is the {singular(rest)}?", conditions, _in_words(conditions))
    noun_phrase = without_request(text)
    if match := _OF.match(noun_phrase):
        conditions = _conditions_alone(match["which"])
        rest, further = _without_conditions(match["things"])
        if conditions and singular(rest) != rest:
            conditions = (*conditions, *further)
            return WhichOne(f"where is the {singular(rest)}?", conditions, _in_words(conditions))
    if match := _WHICH.match(noun_phrase):
        noun_phrase = f"{match['things']} {match['which']}"
    rest, conditions = _without_conditions(noun_phrase)
    if not conditions or not _NOUN.fullmatch(rest) or len(rest.split()) > MAX_NOUN_WORDS:
        return None
    if _NO_NOUN.search(rest):
        return None
    if plural(rest) == rest and singular(rest) != rest:
        return None
    return WhichOne(f"where is the {rest}?", conditions, _in_words(conditions))


def _conditions_alone(text: str) -> tuple[Condition, ...]:
    """The conditions in a text that names nothing: "the one on the left", "the biggest", "on the right"."""
    one = _ONE.match(text)
    phrases = [f"{one['before']} thing {one['after']}"] if one else [f"{text} thing", f"thing {text}"]
    for phrase in phrases:
        rest, conditions = _without_conditions(DETERMINER.sub("", " ".join(phrase.split())))
        if rest.lower() == "thing":
            return conditions
    return ()


def _without_conditions(text: str) -> tuple[str, tuple[Condition, ...]]:
    """A noun phrase without its article, taken apart into the noun and the conditions."""
    conditions: list[Condition] = []
    side: Criterion | None = None  # from which an ordinal counts that is still to come
    while taken := _last_condition(text):
        kind, found, text = taken
        if kind == "side":
            side = CRITERIA[str(found["side"]).lower()]
            continue
        if kind == "ordinal":
            found["side"] = found.get("side") or side or "left"
            side = None
        conditions.append(_condition(kind, found))
    return text, tuple(conditions) if side is None else ()  # "the cup from the left" singles nothing out


def _last_condition(text: str) -> tuple[str, dict[str, str | None], str] | None:
    """The kind, the groups and the rest of a text whose end, or else beginning, is a condition."""
    for patterns in (_ENDINGS, _BEGINNINGS):
        for kind, pattern in patterns:
            if patterns is _BEGINNINGS:
                match = pattern.match(text)
            else:
                match = _match_at_end(pattern, text, earliest=kind == "beside")
            if match is None or not (text[: match.start()].strip(" ,") or text[match.end() :]):
                continue
            if kind == "colour" and _is_of_another(text[: match.start()], match[0]):
                continue
            found = match.groupdict()
            before = text[: match.start()].rstrip(" ,")
            if kind == "beside" and before.lower().endswith(" not"):
                found["not"], before = "not", before[: -len(" not")]
            return kind, found, f"{_LEFT_OVER.sub('', before)} {text[match.end() :]}".strip(" ,")
    return None


def _match_at_end(pattern: re.Pattern[str], text: str, earliest: bool) -> re.Match[str] | None:
    """The match of a pattern up to the end of a text that begins at the last possible word.

    With `earliest` it begins at the first one that leaves a noun before it: "left of the person holding the
    umbrella" is left of a person, whom another question then finds by the umbrella.
    """
    starts = [space.end() for space in re.finditer(r"[ ,]+", text)]
    if not earliest:
        starts = [0, *starts][::-1]
    return next((match for start in starts if (match := pattern.match(text, start))), None)


def _is_of_another(before: str, colour: str) -> bool:
    """Whether a colour is that of the other thing: in "the cup right of the man in red", the man is red."""
    beside = _match_at_end(_BESIDE, before + colour, earliest=True)
    return beside is not None and beside.start() < len(before)


def _condition(kind: str, found: dict[str, str | None]) -> Condition:
    """The condition that a pattern found."""
    if kind == "ordinal":
        return Ordinal(number_of(str(found["ordinal"]).lower()), CRITERIA[str(found["side"]).lower()])
    if kind == "colour":
        return Colour(
            COLOUR_WORDS[str(found["colour"]).lower()], bool(found.get("not") or found.get("never"))
        )
    if kind == "between":
        nouns = (found["first"], found["second"])
        return Between(tuple(noun.strip() for noun in nouns if noun))
    if kind == "beside":
        direction: Direction = "above" if found.get("above") else "below" if found.get("below") else "near"
        if found.get("left"):
            direction = "left" if str(found["left"]).lower() == "left" else "right"
        return Beside(direction, str(found["noun"]).strip(), bool(found["not"]))
    return Place(CRITERIA[(found.get("criterion") or kind).lower()])


def _in_words(conditions: Sequence[Condition]) -> str:
    """The conditions in words around "{}", which stands for the name."""
    words = "{}"
    order = (Colour, Place, Ordinal, Beside, Between)  # "the second biggest red {}"
    for condition in sorted(conditions, key=lambda condition: order.index(type(condition))):
        match condition:
            case Place(criterion) if criterion in POSITION_PHRASES:
                words = in_words(words, criterion)
            case Place(criterion):
                words = f"{SPOKEN_SIZES.get(criterion, criterion)} {words}"
            case Ordinal(-1, side):
                words = f"last {words} from the {side}"
            case Ordinal(number, side):
                words = f"{ORDINALS[number - 1]} {words} from the {side}"
            case Colour(name, negated):
                words = f"{'not ' if negated else ''}{name} {words}"
            case Beside() | Between():
                pass  # the reply need not repeat it
    return words
