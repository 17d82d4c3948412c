"""Parses questions that refer to the masks of the last answer: "now remove the cup", "only the smaller one".

    parse_followup("and the one on the left?", ["cup"])          # Choose("left")
    parse_followup("the second one from the right", ["cup"])     # ChooseNumber(2, "right")
    parse_followup("not that one, the smaller", ["cup"])         # Another("smaller")
    parse_followup("now remove the cup", ["cup", "spoon"])       # Remove("cup")
    parse_followup("only the cup", ["cup", "spoon"])             # Keep(("cup",))
    parse_followup("add the spoon", ["cup"])                     # Add("spoon")
    parse_region_question("the cup next to it")                  # FindBeside("near", "cup")
    parse_region_question("what is this?")                       # NameRegion()

The rules are for English. A question that they do not cover from its first word to its last is None: it goes
to the language model. `assistant.dialogue.followups` carries the actions out.
"""

import re

from assistant.dialogue.followup_actions import (
    Add,
    Again,
    Another,
    Choose,
    ChooseNumber,
    Criterion,
    Direction,
    FindBeside,
    FollowUp,
    Keep,
    NameRegion,
    Others,
    Remove,
)
from assistant.grammar import ORDINALS, singular

CRITERION_WORDS: dict[Criterion, str] = {
    "left": "left leftmost lefthand",
    "right": "right rightmost righthand",
    "top": "top topmost upper uppermost highest higher",
    "bottom": "bottom bottommost lower lowest lowermost",
    "middle": "middle central centre center",
    "smallest": "smallest tiniest littlest",
    "largest": "largest biggest hugest",
    "smaller": "small smaller little tiny",
    "larger": "big bigger large larger",
    "tallest": "tallest tall taller",
    "shortest": "shortest shorter",
}
CRITERIA: dict[str, Criterion] = {
    word: criterion for criterion, words in CRITERION_WORDS.items() for word in words.split()
}
# Criteria that also mean something else ("what's left?", "right."), unless one of POINTING_WORDS is near.
AMBIGUOUS_CRITERIA = ("left", "right", "top", "middle", "little", "big")
POINTING_WORDS = set("the one ones on at in to".split())
CARDINALS = "one two three four five six seven eight nine ten".split()
NUMBER_PATTERN = re.compile(
    rf"(?:number|no|nr) (?P<cardinal>\d{{1,2}}|{'|'.join(CARDINALS)})\b|"
    rf"\b(?P<ordinal>{'|'.join(ORDINALS)}|last|\d{{1,2}}(?:st|nd|rd|th))\b"
)
FROM_SIDE_PATTERN = re.compile(r"\b(?:from|counting from|starting from) (?:the )?(left|right|top|bottom)\b")
# Words that change nothing about which instance is meant.
FILLER_WORDS = set(
    "and the a an one ones only just what about is are which on at in to of side hand please now that those "
    "these this it them show me keep i mean meant no so then ok okay but actually rather thing instead where "
    "whats wheres there let see by itself alone make next want need narrow down could can you do mark find "
    "as well far too sorry give".split()
)
PRONOUNS = set("it that this one them those these".split())
# What may stand before and after the request itself.
LEADING_WORDS = re.compile(
    r"(?:and|now|then|ok|okay|please|no|so|but|actually|well|sorry|next|good|thanks|yes|"
    r"of (?:those|them|these)|too many|not all of them|on second thoughts|(?:can|could|would|will) you|"
    r"can i see|show(?: me)?|let me see|give me|mark|outline|select|find|where(?: exactly)? (?:is|are)|"
    r"wheres|whereabouts (?:is|are)|(?:what|how) about|"
    r"which(?: one| of them)? is|i (?:mean|meant|want|need)) "
)
TRAILING_WORDS = re.compile(r" (?:please|too|as well|now|instead|then|again|sorry)$")
KEEP_PATTERN = re.compile(
    r"(?:only|just|keep|nothing but|nothing except|i (?:only|just) (?:want|need|meant)|make (?:it|that)|"
    r"leave everything out but|narrow it down to) (.+)|"
    r"(.+) (?:only|alone|by (?:itself|themselves)|and nothing else)"
)
REMOVE_PATTERN = re.compile(
    r"(?:remove|delete|drop|hide|erase|forget|discard|exclude|skip|leave out|take (?:away|out|off)|"
    r"get rid of|without|except|not|ignore|i (?:did not|didnt|dont|do not) (?:want|mean|need)|"
    r"(?:all|everything)(?: of (?:that|them|it))?(?: just named)? (?:but|except|without)|"
    r"the same without) (.+)|take (.+) away"
)
ANOTHER_PATTERN = re.compile(
    r"(?:(?:not|wrong|isnt|its not|it isnt|thats not) (?:it|that|this|the)?(?: one| right)?|wrong|no|"
    r"another(?: one)?|(?:try |show me |show )?another(?: one)?)((?: .*)?)"
)
OTHERS_PATTERN = re.compile(
    r"(?:(?:not|everything but|all but) (?:that|this|it)(?: one)? )?(?:the |all the |all )?"
    r"(?:others?|other ones?|rest(?: of (?:them|those))?|remaining(?: ones?)?)"
)
# "also the spoon" is left out: it asks where the spoon is, which the model answers.
ADD_PATTERN = re.compile(r"(?:add|plus|include|as well as) (.+)")
AGAIN_PATTERN = re.compile(
    r"(?:(?:show|point at|point to|outline|select|mark|segment|trace|cut|colour|color|draw|find|see|"
    r"where(?: exactly)? (?:is|are)|give me the mask of) )?(?:it|them|that|those|this|these)"
    r"(?: (?:to me|out|in))?(?: again| once more)?|once more(?: please)?(?: where)?|again|where(?: again)?"
)
QUESTION_OPENING = r"(?:(?:and|now|then|ok|okay|please|so|but|can you|could you|well) )*"
NAME_PATTERN = re.compile(
    QUESTION_OPENING
    + r"(?:what|who|which)(?: kind of| sort of)?(?: \w+)?(?: is| are|s| do you (?:call|see)|)"
    r"(?: (?:it|this|that|here|these|those|there))?(?: \w+)?(?: called)?|"
    r"(?:tell me what|name) (?:it|this|that)(?: is)?"
)
# A question that matches NAME_PATTERN asks for a name only if it has no other words ("what colour is it?").
NAME_QUESTION_WORDS = set(
    "what whats who which kind sort of is are s do you call see it this that here these those there thing "
    "object called name tell me".split()
)
BESIDE_PATTERN = re.compile(
    QUESTION_OPENING
    + r"(?:(?:where|what|which|who|find|show me|show|is there|are there|and|wheres|whats)\s+)?(?:is |are )?"
    r"(?:the |a |an |any |some )?(?P<noun>.*?) ?(?:is |are |that is |thats )?"
    r"(?:(?:to|on) the (?P<side>left|right) of|(?P<bare_side>left|right) of|"
    r"(?P<near>next to|near|beside|by|closest to|nearest to|close to)|(?P<above>above|over)|"
    r"(?P<below>below|under|beneath|underneath)) "
    r"(?:it|this|that|them|these|those)"
)
INDEFINITE_NOUNS = ("", "thing", "one", "object", "what", "there", "anything", "something")


def normalise(text: str) -> str:
    """Lower-case words with single spaces and without punctuation: "What's that?" -> "whats that"."""
    joined = re.sub(r"['’]|(?<=left)-(?=hand)|(?<=right)-(?=hand)", "", text.lower())
    return " ".join(re.sub(r"[^\w\s]", " ", joined).split())


def bare_noun(phrase: str) -> str:
    """A phrase without what singles one instance out: "cup on the left", "smaller cup" -> "cup"."""
    phrase = re.sub(
        rf"^(?:(?:the|other|nearest|furthest|{'|'.join(CRITERIA)})\s+)+(?=\w)", "", phrase, flags=re.I
    )
    return re.sub(
        r"(?<=\w)\s+(?:(?:on|at|in|to) the (?:far )?(?:left|right|top|bottom|middle)"
        r"|(?:nearest|closest|furthest|farthest) (?:to|from|away) .*)$",
        "",
        phrase,
        flags=re.I,
    )


def match_name(text: str, names: list[str]) -> str | None:
    """The name that a text means.

    Args:
        text: What the user calls it, such as "the cups".
        names: What it may mean.

    Returns:
        The name with the same words, or else the only one that has all the words of the text or its last
        word; None where there is no such name, or several.
    """
    asked = [singular(word) for word in normalise(text).split() if word not in FILLER_WORDS]
    if not asked:
        return None
    known = [(name, [singular(word) for word in normalise(name).split()]) for name in names]
    exact = [name for name, words in known if words == asked]
    if exact:
        return exact[0]
    close = [
        name
        for name, words in known
        if words and (set(asked) <= set(words) or words[-1:] == asked[-1:] == asked)
    ]
    return close[0] if len(close) == 1 else None


def parse_followup(question: str, names: list[str]) -> FollowUp | None:
    """What a question asks to do with the targets that are shown.

    Args:
        question: Any text.
        names: The phrases of the targets that are shown, in their order.

    Returns:
        The action; None for a question to the language model, and always where nothing is shown.
    """
    if not names:
        return None
    text = normalise(question)
    first_word = text.split(" ")[0]
    if added := _parse_add(text):
        return added
    while True:
        if action := _parse_others(text) or _parse_again(text, first_word):
            return action
        if match := REMOVE_PATTERN.fullmatch(text):
            return _parse_removed(match[1] or match[2], names)
        if choice := _parse_number(text, names) or _parse_choice(text, names) or _parse_keep(text, names):
            return choice
        shorter = LEADING_WORDS.sub("", text, count=1) if LEADING_WORDS.match(text) else text
        shorter = TRAILING_WORDS.sub("", shorter)
        if shorter == text:
            return None
        text = shorter


def _parse_add(text: str) -> Add | None:
    """Parse "add the spoon", but neither "add it" nor "add the others"."""
    match = ADD_PATTERN.fullmatch(re.sub(r"^(?:and|now|please|ok) ", "", text))
    if not match:
        return None
    phrase = re.sub(r"^(?:the|an?|some|any)\s+", "", match[1])
    words = set(phrase.split())
    if words & {"other", "others", "rest"} or words <= PRONOUNS | FILLER_WORDS:
        return None
    return Add(phrase)


def _parse_others(text: str) -> Others | Another | None:
    """Parse "the others", "not that one" and "another one, the smaller"."""
    if OTHERS_PATTERN.fullmatch(text):
        return Others()
    match = ANOTHER_PATTERN.fullmatch(text)
    if not match:
        return None
    rest = [word for word in match[1].split() if word not in FILLER_WORDS]
    if rest in (["others"], ["other"], ["rest"]):
        return Others()
    if not rest:
        return Another()
    return Another(CRITERIA[rest[0]]) if len(rest) == 1 and rest[0] in CRITERIA else None


def _parse_again(text: str, first_word: str) -> Again | None:
    """Parse "show it again" and "once more", but not a question of a single word such as "where"."""
    return Again() if AGAIN_PATTERN.fullmatch(text) and text != first_word else None


def _parse_removed(what: str, names: list[str]) -> Remove | None:
    """Parse what follows "remove": everything, the target shown last, or a name."""
    words = set(what.split())
    everything = {"everything", "all", "them"}
    if words <= everything | {"it", "of", "that"} and words & everything:
        return Remove(None)
    if words <= PRONOUNS | FILLER_WORDS:
        return Remove(names[-1])
    name = match_name(what, names)
    return Remove(name) if name else None


def _parse_choice(text: str, names: list[str]) -> Choose | None:
    """Parse one criterion, fillers and at most one name: "and the left one?", "only the smaller cup"."""
    words = [word for word in text.split() if word not in FILLER_WORDS]
    criteria = [word for word in words if word in CRITERIA]
    if len(criteria) != 1:
        return None
    criterion = CRITERIA[criteria[0]]
    others = " ".join(word for word in words if word not in CRITERIA)
    if not others:
        ambiguous = criteria[0] in AMBIGUOUS_CRITERIA and not POINTING_WORDS & set(text.split())
        return None if ambiguous else Choose(criterion)
    name = match_name(others, names)
    return Choose(criterion, name) if name else None


def _parse_number(text: str, names: list[str]) -> ChooseNumber | None:
    """Parse "the second one", "number 2", "the last cup" and "the second cup from the right"."""
    numbers = list(NUMBER_PATTERN.finditer(text))
    if len(numbers) != 1:
        return None
    side = FROM_SIDE_PATTERN.search(text)
    rest = FROM_SIDE_PATTERN.sub(" ", NUMBER_PATTERN.sub(" ", text))
    others = " ".join(word for word in rest.split() if word not in FILLER_WORDS)
    name = match_name(others, names) if others else None
    is_pointing = side or numbers[0]["cardinal"] or POINTING_WORDS & set(rest.split())
    if (others and name is None) or not is_pointing:  # "first, the dog": the dog is not shown
        return None
    number = number_of(numbers[0]["cardinal"] or numbers[0]["ordinal"])
    start = CRITERIA[side[1]] if side else None
    return ChooseNumber(number, start, name) if number else None


def number_of(word: str) -> int:
    """ "second", "2nd", "two" and "2" are 2, "last" is -1."""
    if word == "last":
        return -1
    for words in (ORDINALS, CARDINALS):
        if word in words:
            return words.index(word) + 1
    return int(re.sub(r"\D", "", word))


def _parse_keep(text: str, names: list[str]) -> Keep | None:
    """Parse "only the cup" and "keep the cup and the spoon, drop the rest"."""
    match = KEEP_PATTERN.fullmatch(text)
    if not match:
        return None
    parts = re.split(r" and |, ", re.sub(r" (?:drop|forget) the rest$", "", match[1] or match[2]))
    kept = [name for part in parts if (name := match_name(part, names))]
    return Keep(tuple(kept)) if len(kept) == len(parts) else None


def parse_region_question(question: str) -> NameRegion | FindBeside | None:
    """What a question about a marked part of the image asks; None where the language model answers it."""
    text = normalise(question)
    if match := BESIDE_PATTERN.fullmatch(text):
        noun = None if match["noun"] in INDEFINITE_NOUNS else match["noun"]
        return FindBeside(_direction(match), noun)
    if NAME_PATTERN.fullmatch(text) and set(text.split()) <= NAME_QUESTION_WORDS:
        return NameRegion()
    return None


def _direction(match: re.Match[str]) -> Direction:
    """The direction in a match of BESIDE_PATTERN."""
    side = match["side"] or match["bare_side"]
    if side:
        return "left" if side == "left" else "right"
    if match["near"]:
        return "near"
    return "above" if match["above"] else "below"
