"""The reply grammar: prose in which every thing asked about is named and marked.

    parse("The umbrella [SEG] keeps the rain off; there is no bench [ABS].")
    # [Mention("umbrella", True, 13), Mention("bench", False, 62)]

`[SEG]` marks a thing that is there, `[ABS]` one that was asked for and is not in the picture. A token is bound to the
phrase right before it. A phrase that holds a clause boundary of its own is quoted: `the "knife and fork" [SEG]`.
Boundary words are English; phrases may be of any script.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from assistant.errors import BadInput

SEG, ABS = "[SEG]", "[ABS]"
MAX_QUESTION = 4_000  # characters
SYSTEM_PROMPT = (
    "You look at a picture and point at what the user means. Answer in a sentence or two. Name each thing that is "
    f"meant and put {SEG} right after its name; if it is not in the picture, name it and put {ABS} instead. "
    "One mark for each thing, in the order of the question."
)

TOKEN = re.compile(r"\[(SEG|ABS)\]")
BOUNDARY = re.compile(
    r'[;!?…\n()\[\]{}"“”«»「」『』【】、。，；：！？｡､،؛؟।॥]|[.,:](?=\s|$)|[–—]|(?:^|(?<=\s))[-*•]+(?=\s)'
)
QUOTES = {'"': '"', "”": "“", "»": "«", "」": "「", "』": "『"}  # closing: opening
PLACE = re.compile(
    r"(^|\s)in (the|this|your) (picture|image|photo|photograph|scene)$", re.I
)  # true of everything
EDGES = " \t\r\n*_`~'‘’"  # around a name: spaces, markdown, single quotes
INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # categories a reader sees as nothing or as a space


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words("the a an this these those my your his her its our their some any no not another such")
LEADING = DETERMINERS | _words(
    "nothing neither both that also only just then here there clearly probably likely either even still me "
    "at for to of on in with by from like as into about and or but"
)
COORDINATORS = _words("and or but nor while whereas because so then")
VERBS = _words(
    "is are was were be been am isn't aren't has have had see sees seeing contains includes means finds "
    "called named keeps needs wants uses holds shows"
)
# Also nouns or parts of names ("trash can", "hand saw"): a verb only after a subject, a modal, or at the very start.
MODALS = _words(
    "can could may might would should will must do does did cannot can't don't doesn't didn't couldn't"
)
MAYBE = _words(
    "find found need want use mean saw look looked looking spot notice recommend suggest choose pick take "
    "try call keep hold show mark"
)
IMPERATIVES = _words("look find use take try choose notice")
SUBJECTS = _words(
    "i you we they he she it this that there one who what which please to not i'd you'd i'll you'll "
    "can could may might would should will must cannot can't don't doesn't didn't couldn't"
)
RELATIVES = _words("who that which")
CONTRACTIONS = re.compile(r"(it|that|this|there|here|what|where|he|she|who|i|you|we|they)['’](s|re|m|ve)")


@dataclass(frozen=True)
class Mention:
    """One marked thing of a reply. position: index of the token's first character in the reply."""

    phrase: str
    present: bool
    position: int


@dataclass
class Turn:
    """One question and its reply (None while it is being answered). images: (H, W, 3) uint8, new in this turn."""

    question: str
    answer: str | None = None
    images: list = field(default_factory=list)


def parse(reply: str) -> list[Mention]:
    """The things that a reply marks, in its order; a token without words before it is called "it"."""
    mentions, start = [], 0
    for token in TOKEN.finditer(reply):
        phrase = _phrase_before(reply[start : token.start()], follows=bool(mentions))
        mentions.append(Mention(phrase, token[0] == SEG, token.start()))
        start = token.end()
    return mentions


def _phrase_before(text: str, follows: bool = False) -> str:
    """The name that `text` ends with; `follows` another token, whose name may still have its verb here."""
    text = text.rstrip(EDGES + ":([{-–—（【：")
    opening = QUOTES.get(text[-1:])
    begin = text.rfind(opening, 0, -1) if opening else -1
    if begin >= 0:
        return " ".join(text[begin + 1 : -1].split()) or "it"
    words = BOUNDARY.split(text)[-1].split()
    low = [word.lower().replace("’", "'").strip("*_`~") for word in words]
    start, modal = 0, False
    for k, word in enumerate(low):
        last = k + 1 == len(low)
        if word in COORDINATORS:
            # "black and white cat" is one name; "it is dry and the cup" is not
            before = [w for w in low[start:k] if w not in LEADING]
            pair = (
                len(before) == 1 and before[0] not in SUBJECTS and not last and low[k + 1] not in DETERMINERS
            )
            if not pair:
                start, modal = k + 1, False
        elif word in VERBS or CONTRACTIONS.fullmatch(word):
            if not (k >= start + 2 and low[k - 1] in RELATIVES):  # "sign that is red" is one name
                start, modal = k + 1, False
        elif (
            word in ("it", "them") and not last and not RELATIVES & set(low[start + 1 : k])
        ):  # "throw it | in the can"
            start, modal = k + 1, False
        elif word in MODALS | MAYBE and not last:
            if (k > 0 and low[k - 1] in SUBJECTS) or (k == start and word in IMPERATIVES):
                start, modal = k + 1, word in MODALS
    bare = follows and not start and len(words) == len(text.split())  # "A man [SEG] sits on a chair [SEG]"
    if modal or bare:  # a verb follows: "you could | sit on the bench"
        stops = [k + 1 for k in range(start, min(start + 5, len(low))) if low[k] in DETERMINERS]
        start = stops[0] if stops else start + modal
    while start < len(low) and (
        low[start] in LEADING
        or (
            low[start] in ("looking", "referring", "pointing")
            and low[start + 1 :][:1] in (["for"], ["at"], ["to"])
        )
    ):
        start += 1
    return PLACE.sub("", " ".join(words[start:])).strip(EDGES) or "it"


def plain(reply: str) -> str:
    """The reply as a person reads it: no tokens, and no gaps or empty brackets where they stood."""
    while TOKEN.search(reply):  # taking one out may bring the halves of another together
        reply = re.sub(r"\s*[(\[]?\[(SEG|ABS)\][)\]]?", _left_over, reply)
    reply = re.sub(r"[ \t]{2,}", " ", reply)
    reply = re.sub(r"[ \t]+([.,;:!?])", r"\1", reply)
    return re.sub(r"[,;:]+([.!?]|$)", r"\1", reply.strip().lstrip(".,;: "))


def _left_over(found: re.Match) -> str:
    """What stays of a token and its neighbours: a bracket that belongs to other text, or a space between words."""
    text, after = found[0].lstrip(), found.string[found.end() : found.end() + 1]
    opens, closes = text[:2] in ("([", "[["), text[-2:] in ("])", "]]")
    if opens != closes:
        return " " + text[0] if opens else text[-1]
    return " " if after.isalnum() and text != found[0] else ""


def neutralise(text: str, special: Sequence[str] = ()) -> str:
    """Text in which no token has power: "[seg]" -> "(seg)", "<|im_start|>" -> "‹¦im_start¦›"; the rest is unchanged.

    Our tokens are found in any case, width and spacing, the strings in `special` (a tokenizer's) as they are; of
    those, a single character is ordinary text and stays. Control characters other than tab and
    newline are removed. Applying it twice changes nothing more.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "", text)
    seen = [(k, f) for k, c in enumerate(text) for f in _seen(c)]
    for found in re.finditer(r"\[(seg|abs)\]", "".join(f for _, f in seen)):
        first, last = seen[found.start()][0], seen[found.end() - 1][0]
        text = f"{text[:first]}({text[first + 1 : last]}){text[last + 1 :]}"  # the length, and so every index, stays
    tokens = sorted({s for s in special if len(s.strip()) > 1}, key=len, reverse=True)
    if tokens:
        pattern = re.compile("|".join(map(re.escape, tokens)))
        while pattern.search(text):
            text = pattern.sub(lambda m: _defuse(m[0]), text)
    return text


@functools.cache
def _seen(character: str) -> str:
    """The character as a reader takes it, whatever its case or width; "" for spaces and invisible ones."""
    if unicodedata.category(character) in INVISIBLE:
        return ""
    return "".join(unicodedata.normalize("NFKC", character).casefold().split())


DEFUSED = str.maketrans("<>[]|{}", "‹›()¦()")


def _defuse(token: str) -> str:
    """A look-alike that no tokenizer takes for the token."""
    alike = token.translate(DEFUSED)
    if alike != token:
        return alike
    k = next(k for k, c in enumerate(token) if not c.isspace())
    wide = chr(ord(token[k]) + 0xFEE0) if "!" <= token[k] <= "~" else "•" if token[k] == "·" else "·"
    return token[:k] + wide + token[k + 1 :]


def check_question(text: str) -> str:
    """The question without surrounding space; BadInput where it is empty or longer than 4,000 characters."""
    if not isinstance(text, str):
        raise BadInput(f"a question is text, not {type(text).__name__}")
    if len(text.strip()) > MAX_QUESTION:
        raise BadInput(f"the question has {len(text.strip()):,} characters: ask in at most {MAX_QUESTION:,}")
    if all(unicodedata.category(c) in INVISIBLE or unicodedata.category(c) == "Cs" for c in text):
        raise BadInput("the question is empty: say what to look for")
    return text.strip()


def chat_messages(turns: list[Turn], special: Sequence[str] = (), system: str = SYSTEM_PROMPT) -> list[dict]:
    """Turns in the chat format of transformers' processors: the system prompt, then user and assistant in turn.

    A turn's images come before its text, as {"type": "image"}; the arrays are passed to the processor in the same
    order. What the user wrote is neutralised, what the assistant said is kept with its tokens.
    """

    def text(value: str) -> dict:
        return {"type": "text", "text": value}

    messages = [{"role": "system", "content": [text(system)]}]
    for turn in turns:
        pictures = [{"type": "image"} for _ in turn.images]
        messages.append({"role": "user", "content": [*pictures, text(neutralise(turn.question, special))]})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": [text(turn.answer)]})
    return messages


HERE = ("I see {}", "that is {}", "look at {}", "you mean {}", "here is {}", "it is {}", "{}")
GONE = ("there is {}", "I see {}", "I can see {}", "the picture has {}", "{} is in the picture")


def clean_phrase(phrase: str) -> str:
    """The phrase as a reply can hold it: neutralised, on one line, double quotes as single ones; "" becomes "it"."""
    return " ".join(re.sub('["“”«»「」『』]', "'", neutralise(phrase)).split()) or "it"


def reply_for(targets: list[tuple[str, bool]], style_rng=None) -> str:
    """A reply that names the (phrase, present) pairs in their order: `parse` gives them back, as `clean_phrase`s.

    style_rng: a random.Random that varies the wording; the same plain wording without one.
    """
    groups: list[tuple[bool, list[str]]] = []
    for phrase, present in targets:
        if not groups or groups[-1][0] != present:
            groups.append((present, []))
        groups[-1][1].append(_quoted(clean_phrase(phrase)))
    if not groups:
        return "There is nothing to point at."
    if not style_rng:  # "there is no" would be wrong of plurals
        said = [_listed(names, present, "the " if present else "no ") for present, names in groups]
        return (
            "".join(
                f"{'I see ' if k == 0 else ', but ' if k % 2 else '; I see '}{text}"
                for k, text in enumerate(said)
            )
            + "."
        )
    clauses = []
    for present, names in groups:
        template = style_rng.choice(HERE if present else GONE)
        article = (
            style_rng.choice(("the ", "")) if present and template == "{}" else "the " if present else "no "
        )
        listed = _listed(names, present, article)
        own_start = not template.startswith("{") or (article != "" and not listed.startswith("it "))
        clauses.append((template.format(listed), own_start))
    link, reply = style_rng.choice(("; ", ", and ", ". ")), ""
    for clause, own_start in clauses:  # a clause that starts with a name keeps it as it is
        capital = own_start and (not reply or link == ". ")
        reply += (link if reply else "") + (clause[0].upper() + clause[1:] if capital else clause)
    return reply + "."


def _listed(names: list[str], present: bool, article: str) -> str:
    """The marked names, one after the other."""
    own = "" if present else "nothing like "  # before "it", which takes no article
    items = [f"{own if name == 'it' else article}{name} {SEG if present else ABS}" for name in names]
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _quoted(name: str) -> str:
    bare = all(_phrase_before(before + name + " ") == name for before in ("", "I see the ", "there is no "))
    return name if bare else f'"{name}"'
