"""Reads what refers to the masks of the last answer: "now remove the cup", "only the smaller one", "not that one".

    read("and the one on the left?", ["cup"])            # FollowUp("choose", "", "left")
    read("not that one, the smaller", ["cup"])           # FollowUp("other", "", "smaller")
    read("now remove the cup", ["cup", "spoon"])         # FollowUp("drop", "cup")
    read("only the cup", ["cup", "spoon"])               # FollowUp("keep", "cup")
    read("add the spoon", ["cup"])                       # FollowUp("add", "spoon")
    read_about("the cup next to it")                     # ("near", "cup")
    read_about("what is this?")                          # ("name", "")

Rules, in English. What they do not read in full is None: it goes to the model.
"""

import re
from dataclasses import dataclass

PICKS = {
    name: pick
    for pick, names in {
        "left": "left leftmost lefthand",
        "right": "right rightmost righthand",
        "top": "top topmost upper uppermost highest higher",
        "bottom": "bottom bottommost lower lowest lowermost",
        "middle": "middle central centre center",
        "smallest": "smallest tiniest littlest",
        "largest": "largest biggest hugest",
        "smaller": "small smaller little tiny",
        "larger": "big bigger large larger",
    }.items()
    for name in names.split()
}
FILLER = set(
    "and the a an one ones only just what about is are which on at in to of side hand please now that those these this "
    "it them show me keep i mean meant no so then ok okay but actually rather thing instead where whats wheres there "
    "let see by itself alone make next want need narrow down could can you do mark find as well far too sorry give".split()
)
# What may stand before and after the matter itself.
LEAD = re.compile(
    r"(?:and|now|then|ok|okay|please|no|so|but|actually|well|sorry|next|good|thanks|yes|of (?:those|them|these)|"
    r"too many|not all of them|on second thoughts|(?:can|could|would|will) you|can i see|show(?: me)?|let me see|give me|"
    r"mark|outline|select|find|where(?: exactly)? (?:is|are)|wheres|whereabouts (?:is|are)|(?:what|how) about|"
    r"which(?: one| of them)? is|i (?:mean|meant|want|need)) "
)
TRAIL = re.compile(r" (?:please|too|as well|now|instead|then|again|sorry)$")
KEEP = re.compile(
    r"(?:only|just|keep|nothing but|nothing except|i (?:only|just) (?:want|need|meant)|make (?:it|that)|"
    r"leave everything out but|narrow it down to) (.+)|(.+) (?:only|alone|by (?:itself|themselves)|and nothing else)"
)
DROP = re.compile(
    r"(?:remove|delete|drop|hide|erase|forget|discard|exclude|skip|leave out|take (?:away|out|off)|get rid of|without|"
    r"except|not|ignore|i (?:did not|didnt|dont|do not) (?:want|mean|need)|(?:all|everything)(?: of (?:that|them|it))?"
    r"(?: just named)? (?:but|except|without)|the same without) (.+)|take (.+) away"
)
OTHER = re.compile(
    r"(?:(?:not|wrong|isnt|its not|it isnt|thats not) (?:it|that|this|the)?(?: one| right)?|wrong|no|another(?: one)?|"
    r"(?:try |show me |show )?another(?: one)?)((?: .*)?)"
)
OTHERS = re.compile(
    r"(?:(?:not|everything but|all but) (?:that|this|it)(?: one)? )?(?:the |all the |all )?"
    r"(?:others?|other ones?|rest(?: of (?:them|those))?|remaining(?: ones?)?)"
)
ADD = re.compile(
    r"(?:add|plus|include|as well as) (.+)"
)  # "also the spoon" asks for the spoon: that is the model's
AGAIN = re.compile(
    r"(?:(?:show|point at|point to|outline|select|mark|segment|trace|cut|colour|color|draw|find|see|"
    r"where(?: exactly)? (?:is|are)|give me the mask of) )?(?:it|them|that|those|this|these)(?: (?:to me|out|in))?"
    r"(?: again| once more)?|once more(?: please)?(?: where)?|again|where(?: again)?"
)
POINTING = set("the one ones on at in to".split())
START = r"(?:(?:and|now|then|ok|okay|please|so|but|can you|could you|well) )*"
IT = set("it that this one them those these".split())
NAME = re.compile(
    START + r"(?:what|who|which)(?: kind of| sort of)?(?: \w+)?(?: is| are|s| do you (?:call|see)|)"
    r"(?: (?:it|this|that|here|these|those|there))?(?: \w+)?(?: called)?|"
    r"(?:tell me what|name) (?:it|this|that)(?: is)?"
)
NAMED = set(
    "what whats who which kind sort of is are s do you call see it this that here these those there thing object "
    "called name tell me".split()
)
RELATION = re.compile(
    START
    + r"(?:(?:where|what|which|who|find|show me|show|is there|are there|and|wheres|whats)\s+)?(?:is |are )?"
    r"(?:the |a |an |any |some )?(.*?) ?(?:is |are |that is |thats )?(?:(?:to|on) the (left|right) of|(left|right) of|"
    r"(next to|near|beside|by|closest to|nearest to|close to)|(above|over)|(below|under|beneath|underneath)) "
    r"(?:it|this|that|them|these|those)"
)


@dataclass(frozen=True)
class FollowUp:
    """act: drop | keep | choose | other | others | add | again; phrase: the name it is about (keep: names, a line each;
    drop: "*" = all), "" = what was shown last; pick: a value of PICKS, or ""."""

    act: str
    phrase: str = ""
    pick: str = ""


def words_of(text: str) -> str:
    """Lower case words with single spaces, no punctuation: "What's that?" -> "whats that"."""
    joined = re.sub(r"['’]|(?<=left)-(?=hand)|(?<=right)-(?=hand)", "", text.lower())
    return " ".join(re.sub(r"[^\w\s]", " ", joined).split())


def bare(phrase: str) -> str:
    """What a phrase names, without what singles one out: "cup on the left", "smaller cup", "other cup" -> "cup"."""
    phrase = re.sub(
        rf"^(?:(?:the|other|nearest|furthest|{'|'.join(PICKS)})\s+)+(?=\w)", "", phrase, flags=re.I
    )
    return re.sub(
        r"(?<=\w)\s+(?:(?:on|at|in|to) the (?:far )?(?:left|right|top|bottom|middle)"
        r"|(?:nearest|closest|furthest|farthest) (?:to|from|away) .*)$",
        "",
        phrase,
        flags=re.I,
    )


def singular(word: str) -> str:
    return re.sub(r"(?<=\w\w)(?<!s)s$", "", word)


def name_in(text: str, names: list[str]) -> str | None:
    """The one of `names` that `text` (words) means, by all its words or its last one; None where none or several do."""
    asked = [singular(w) for w in words_of(text).split() if w not in FILLER]
    if not asked:
        return None
    known = [(name, [singular(w) for w in words_of(name).split()]) for name in names]
    exact = [name for name, words in known if words == asked]
    close = [
        name
        for name, words in known
        if words and (set(asked) <= set(words) or words[-1:] == asked[-1:] == asked)
    ]
    return exact[0] if exact else close[0] if len(close) == 1 else None


def read(question: str, names: list[str]) -> FollowUp | None:
    """What `question` asks to do with the things shown, `names` (at least one); None where it is for the model."""
    if not names:
        return None
    whole = text = words_of(question)
    if found := ADD.fullmatch(re.sub(r"^(?:and|now|please|ok) ", "", text)):
        phrase = re.sub(r"^(?:the|an?|some|any)\s+", "", found[1])
        if not set(phrase.split()) & {"other", "others", "rest"} and not set(phrase.split()) <= IT | FILLER:
            return FollowUp("add", phrase)
    while True:  # down to the matter
        if OTHERS.fullmatch(text):
            return FollowUp("others")
        if found := OTHER.fullmatch(text):
            rest = [w for w in found[1].split() if w not in FILLER]
            if rest in (["others"], ["other"], ["rest"]):
                return FollowUp("others")
            if not rest:
                return FollowUp("other")
            if len(rest) == 1 and rest[0] in PICKS:
                return FollowUp("other", "", PICKS[rest[0]])
        if AGAIN.fullmatch(text) and text != whole.split(" ")[0]:
            return FollowUp("again")
        if found := DROP.fullmatch(text):
            return _read_drop(found[1] or found[2], names)
        chosen = _read_choice(text, names)
        if chosen:
            return chosen
        if found := KEEP.fullmatch(text):
            parts = re.split(r" and |, ", re.sub(r" (?:drop|forget) the rest$", "", found[1] or found[2]))
            kept = [name_in(part, names) for part in parts]
            if kept and all(kept):
                return FollowUp("keep", "\n".join(kept))
        shorter = TRAIL.sub("", LEAD.sub("", text, count=1) if LEAD.match(text) else text)
        if shorter == text:
            return None
        text = shorter


def _read_drop(what: str, names: list[str]) -> FollowUp | None:
    words = set(what.split())
    if words <= {"everything", "all", "them", "it", "of", "that"} and words & {"everything", "all", "them"}:
        return FollowUp("drop", "*")
    if words <= IT | FILLER:
        return FollowUp("drop", names[-1])
    name = name_in(what, names)
    return FollowUp("drop", name) if name else None


def _read_choice(text: str, names: list[str]) -> FollowUp | None:
    """One pick, filler, and at most the name of something shown: "and the left one?", "only the smaller cup"."""
    words = [w for w in text.split() if w not in FILLER]
    picks = [w for w in words if w in PICKS]
    if len(picks) != 1:
        return None
    others = " ".join(w for w in words if w not in PICKS)
    ambiguous = picks[0] in ("left", "right", "top", "middle", "little", "big")
    if not others and ambiguous and not POINTING & set(text.split()):
        return None  # "what's left?", "right."
    if not others:
        return FollowUp("choose", "", PICKS[picks[0]])
    name = name_in(others, names)
    return FollowUp("choose", name, PICKS[picks[0]]) if name else None


def read_about(question: str) -> tuple[str, str] | None:
    """(relation, noun) of a question about a marked part of the picture: name | near | left | right | above | below;
    noun: "" for "what is next to it?". None where it is for the model."""
    text = words_of(question)
    if found := RELATION.fullmatch(text):
        noun = (
            ""
            if found[1] in ("thing", "one", "object", "what", "there", "anything", "something")
            else found[1]
        )
        kind = found[2] or found[3] or (found[4] and "near") or (found[5] and "above") or "below"
        return kind, noun
    if NAME.fullmatch(text) and set(text.split()) <= NAMED:
        return "name", ""
    return None
