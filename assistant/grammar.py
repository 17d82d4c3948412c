"""The reply grammar: prose in which everything that was asked about is named and marked.

    parse("The umbrella [SEG] keeps the rain off; there is no bench [ABS].")
    # [Mention("umbrella", True, 13), Mention("bench", False, 62)]

`[SEG]` marks a target that is in the image, `[ABS]` one that was asked for and is not. A token is bound to
the phrase right before it. A phrase with a clause boundary of its own is quoted: `the "knife and fork"
[SEG]`. Boundary words are English; phrases may be of any script.
"""

from __future__ import annotations

import functools
import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from assistant.errors import BadInput

SEG, ABS = "[SEG]", "[ABS]"
UNNAMED = "it"  # the phrase of a target without a name
MAX_QUESTION_LENGTH = 4_000  # characters
SYSTEM_PROMPT = (
    "You look at a picture and point at what the user means. Answer in a sentence or two. Name each thing "
    f"that is meant and put {SEG} right after its name; if it is not in the picture, name it and put {ABS} "
    "instead. One mark for each thing, in the order of the question."
)

TOKEN = re.compile(r"\[(SEG|ABS)\]")
BOUNDARY = re.compile(
    r'[;!?…\n()\[\]{}"“”«»「」『』【】、。，；：！？｡､،؛؟।॥]|[.,:](?=\s|$)|[–—]|(?:^|(?<=\s))[-*•]+(?=\s)'
)
OPENING_QUOTES = {'"': '"', "”": "“", "»": "«", "」": "「", "』": "『"}  # {closing: opening}
# Dropped at the end of a phrase, because it is true of everything.
IN_THE_IMAGE = re.compile(r"(^|\s)in (the|this|your) (picture|image|photo|photograph|scene)$", re.I)
EDGES = " \t\r\n*_`~'‘’"  # dropped around a phrase: spaces, markdown, single quotes
BEFORE_TOKEN = EDGES + ":([{-–—（【："  # what may stand between a phrase and its token
INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # Unicode categories that a reader sees as nothing or as a space


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
# Also nouns or parts of names ("trash can", "hand saw"): a verb only after a subject, a modal, or at the very
# start.
MODALS = _words(
    "can could may might would should will must do does did cannot can't don't doesn't didn't couldn't"
)
POSSIBLE_VERBS = _words(
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
# What a phrase begins with that is a clause or a pronoun.
NO_NOUN_PHRASE = re.compile(
    r"(?:what|who|which|where|why|how|when|whom|whose|(?:some|any|every)(?:thing|one|body|where)|"
    r"it|i|we|they|you|is|are|does|do|can|could|would|should|might|may|will|have|has|to|there|please|"
    r"say (?:what|who|which|where)|(?:tell|let|show|give|find) me|see (?:if|whether))\b",
    re.I,
)
MAX_VERB_PHRASE = 5  # words after a modal in which the next name's determiner is looked for


@dataclass(frozen=True)
class Mention:
    """A marked target of a reply.

    Attributes:
        phrase: Its name.
        present: True for [SEG], False for [ABS].
        position: Index of the token's first character in the reply.
    """

    phrase: str
    present: bool
    position: int


@dataclass
class Turn:
    """A question and its reply.

    Attributes:
        question: The question.
        answer: The reply in this grammar; None while it is being answered.
        images: (H, W, 3) uint8 RGB each, new in this turn.
        shown: The targets of the answer, `assistant.answer.Target` each, for models that can be told of their
            masks; [] where those are not at hand.
    """

    question: str
    answer: str | None = None
    images: list[Any] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list, repr=False, compare=False)


def parse(reply: str) -> list[Mention]:
    """The targets that a reply marks, in its order; a token without words before it is called "it"."""
    mentions: list[Mention] = []
    start = 0
    for token in TOKEN.finditer(reply):
        phrase = _phrase_before(reply[start : token.start()], follows=bool(mentions))
        mentions.append(Mention(phrase, token[0] == SEG, token.start()))
        start = token.end()
    return mentions


def _phrase_before(text: str, follows: bool = False) -> str:
    """The name at the end of `text`, which stands before a token.

    Args:
        text: From the token before, or the beginning of the reply.
        follows: Whether another token stands before the text, so that it may begin with the verb of that
            token's name.
    """
    text = text.rstrip(BEFORE_TOKEN)
    opening = OPENING_QUOTES.get(text[-1:])
    begin = text.rfind(opening, 0, -1) if opening else -1
    if begin >= 0:
        return " ".join(text[begin + 1 : -1].split()) or UNNAMED
    words = BOUNDARY.split(text)[-1].split()
    lower = [word.lower().replace("’", "'").strip("*_`~") for word in words]
    start, after_modal = _clause_start(lower)
    # "A man [SEG] sits on a chair [SEG]": all the words since the last token, and no boundary that we know.
    continues = follows and not start and len(words) == len(text.split())
    if after_modal or continues:  # a verb follows: "you could | sit on the bench"
        determiners = [
            k + 1 for k in range(start, min(start + MAX_VERB_PHRASE, len(lower))) if lower[k] in DETERMINERS
        ]
        start = determiners[0] if determiners else start + after_modal
    while start < len(lower) and (lower[start] in LEADING or _is_looking_for(lower, start)):
        start += 1
    return IN_THE_IMAGE.sub("", " ".join(words[start:])).strip(EDGES) or UNNAMED


def _clause_start(words: list[str]) -> tuple[int, bool]:
    """Where the last clause of some words begins, and whether a modal stands right before it."""
    start = 0
    after_modal = False
    for k, word in enumerate(words):
        is_last = k + 1 == len(words)
        if word in COORDINATORS:
            if not _joins_one_name(words, start, k):
                start, after_modal = k + 1, False
        elif word in VERBS or CONTRACTIONS.fullmatch(word):
            if not (k >= start + 2 and words[k - 1] in RELATIVES):  # "sign that is red" is one name
                start, after_modal = k + 1, False
        elif word in ("it", "them") and not is_last and not RELATIVES & set(words[start + 1 : k]):
            start, after_modal = k + 1, False  # "throw it | in the can"
        elif word in MODALS | POSSIBLE_VERBS and not is_last:
            if (k > 0 and words[k - 1] in SUBJECTS) or (k == start and word in IMPERATIVES):
                start, after_modal = k + 1, word in MODALS
    return start, after_modal


def _joins_one_name(words: list[str], start: int, k: int) -> bool:
    """Whether the coordinator at `k` is inside a name: "black and white cat", not "it is dry and the cup"."""
    before = [word for word in words[start:k] if word not in LEADING]
    is_last = k + 1 == len(words)
    return len(before) == 1 and before[0] not in SUBJECTS and not is_last and words[k + 1] not in DETERMINERS


def _is_looking_for(words: list[str], k: int) -> bool:
    """Whether the words at `k` are "looking for", "referring to" or the like, which are part of no name."""
    preposition = words[k + 1] if k + 1 < len(words) else ""
    return words[k] in ("looking", "referring", "pointing") and preposition in ("for", "at", "to")


def plain(reply: str) -> str:
    """The reply as a person reads it: no tokens, and no gaps or empty brackets where they stood."""
    while TOKEN.search(reply):  # taking a token out may bring the halves of another together
        reply = re.sub(r"\s*[(\[]?\[(SEG|ABS)\][)\]]?", _without_token, reply)
    reply = re.sub(r"[ \t]{2,}", " ", reply)
    reply = re.sub(r"[ \t]+([.,;:!?])", r"\1", reply)
    return re.sub(r"[,;:]+([.!?]|$)", r"\1", reply.strip().lstrip(".,;: "))


def plain_turn(turn: Turn) -> Turn:
    """A turn whose answer has no tokens, for models that do not write them."""
    if not turn.answer or not TOKEN.search(turn.answer):
        return turn
    return replace(turn, answer=plain(turn.answer))


def _without_token(match: re.Match[str]) -> str:
    """What stays of a token and its neighbours: a bracket of other text, or a space between words."""
    text = match[0].lstrip()
    after = match.string[match.end() : match.end() + 1]
    opens = text[:2] in ("([", "[[")
    closes = text[-2:] in ("])", "]]")
    if opens != closes:
        return " " + text[0] if opens else text[-1]
    return " " if after.isalnum() and text != match[0] else ""


def neutralise(text: str, special: Sequence[str] = ()) -> str:
    """Take the power from every token in a text: "[seg]" -> "(seg)", "<|im_start|>" -> "‹¦im_start¦›".

    Our tokens are recognised in any case, width and spacing. Control characters other than tab and newline
    are removed; the rest of the text is unchanged. A second application changes nothing more.

    Args:
        text: What a user wrote.
        special: The special tokens of a tokenizer, recognised as they stand. A single character is ordinary
            text.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "", text)
    text = _neutralise_ours(text)
    tokens = sorted({token for token in special if len(token.strip()) > 1}, key=len, reverse=True)
    if tokens:
        pattern = re.compile("|".join(map(re.escape, tokens)))
        while pattern.search(text):
            text = pattern.sub(lambda match: _look_alike(match[0]), text)
    return text


def _neutralise_ours(text: str) -> str:
    """Replace the brackets of our tokens by round ones; the text's length does not change."""
    visible = [(k, letter) for k, character in enumerate(text) for letter in _as_read(character)]
    for match in re.finditer(r"\[(seg|abs)\]", "".join(letter for _, letter in visible)):
        first = visible[match.start()][0]
        last = visible[match.end() - 1][0]
        text = f"{text[:first]}({text[first + 1 : last]}){text[last + 1 :]}"
    return text


@functools.cache
def _as_read(character: str) -> str:
    """The character as a reader takes it, whatever its case or width; "" for spaces and invisible ones."""
    if unicodedata.category(character) in INVISIBLE:
        return ""
    return "".join(unicodedata.normalize("NFKC", character).casefold().split())


LOOK_ALIKES = str.maketrans("<>[]|{}", "‹›()¦()")
FULL_WIDTH_OFFSET = 0xFEE0  # from an ASCII character to its full-width form


def _look_alike(token: str) -> str:
    """A similar text that no tokenizer takes for the token."""
    alike = token.translate(LOOK_ALIKES)
    if alike != token:
        return alike
    k = next(k for k, character in enumerate(token) if not character.isspace())
    if "!" <= token[k] <= "~":
        other = chr(ord(token[k]) + FULL_WIDTH_OFFSET)
    else:
        other = "•" if token[k] == "·" else "·"
    return token[:k] + other + token[k + 1 :]


def check_question(text: str) -> str:
    """The question without surrounding space.

    Raises BadInput where it is empty or longer than 4,000 characters.
    """
    if not isinstance(text, str):
        raise BadInput(f"a question is text, not {type(text).__name__}")
    length = len(text.strip())
    if length > MAX_QUESTION_LENGTH:
        raise BadInput(f"the question has {length:,} characters: ask in at most {MAX_QUESTION_LENGTH:,}")
    if all(unicodedata.category(c) in INVISIBLE or unicodedata.category(c) == "Cs" for c in text):
        raise BadInput("the question is empty: say what to look for")
    return text.strip()


PRESENT_CLAUSES = ("I see {}", "that is {}", "look at {}", "you mean {}", "here is {}", "it is {}", "{}")
ABSENT_CLAUSES = (
    "there is {}",
    "I see {}",
    "I can see {}",
    "the picture has {}",
    "{} is in the picture",
)
CLAUSE_LINKS = ("; ", ", and ", ". ")


def clean_phrase(phrase: str) -> str:
    """The phrase as a reply can hold it: neutralised, on one line, with single quotes; "" becomes "it"."""
    return " ".join(re.sub('["“”«»「」『』]', "'", neutralise(phrase)).split()) or UNNAMED


def reply_for(targets: list[tuple[str, bool]], rng: random.Random | None = None) -> str:
    """Write a reply that names targets in their order.

    Args:
        targets: (phrase, whether it is present) each.
        rng: Varies the wording; None for always the same plain wording.

    Returns:
        The reply; `parse` gives the targets back, their phrases as `clean_phrase` has them.
    """
    groups: list[tuple[bool, list[str]]] = []  # neighbours that are all present or all absent
    for phrase, present in targets:
        if not groups or groups[-1][0] != present:
            groups.append((present, []))
        groups[-1][1].append(_quoted(clean_phrase(phrase)))
    if not groups:
        return "There is nothing to point at."
    return _varied_reply(groups, rng) if rng else _plain_reply(groups)


def reply_for_seen(phrases: list[str], also: bool = False) -> str:
    """Write a sentence that names targets which are in the image though no mask shows them.

    Args:
        phrases: At least one.
        also: Whether a sentence before it says what else is there.

    Returns:
        "I see the wire [ABS], which I cannot outline." The token says that there is no mask.
    """
    names = [_quoted(clean_phrase(phrase)) for phrase in phrases]
    items = [f"{'' if name == UNNAMED else 'the '}{name} {ABS}" for name in names]
    return f"I {'also ' if also else ''}see {_enumerated(items)}, which I cannot outline."


def reply_with_seen(targets: list[tuple[str, bool]], seen: list[str]) -> str:
    """Write a reply that names targets, and last those that no mask shows; see the two functions above."""
    sentences = [reply_for(targets)] if targets or not seen else []
    if seen:
        sentences.append(reply_for_seen(seen, also=any(present for _, present in targets)))
    return " ".join(sentences)


IRREGULAR_PLURALS = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
    "knife": "knives",
    "leaf": "leaves",
    "shelf": "shelves",
    "loaf": "loaves",
    "calf": "calves",
    "scarf": "scarves",
    "thief": "thieves",
    "wife": "wives",
    "wolf": "wolves",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
}
# Words on whose last letters one of those stands by chance.
REGULAR_PLURALS = _words("human german roman talisman ottoman caiman")
# Words that look like plurals: those that end like "glass" and "bus" do not, and need not stand here.
SINGULAR_IN_S = _words(
    "gas lens canvas atlas rhinoceros chaos christmas iris tennis basis chassis pelvis trellis clematis axis "
    "oasis mantis ibis debris specimen abdomen omen ramen"
)
PLURALS_IN_US = _words("menus emus gnus gurus tutus")
# Words with another plural than others of their last letters, and words with an e that the plural only hides.
WITH_OES = _words("potato tomato hero volcano torpedo buffalo mosquito")
IN_IE = _words(
    "tie pie movie cookie brownie zombie hoodie selfie smoothie magpie necktie calorie bowtie beanie birdie "
    "bootie collie doggie onesie plushie hoagie rookie veggie toastie porkpie die"
)
IN_USE = _words("fuse muse excuse")
IN_XE_AND_CHE = _words("axe pickaxe quiche moustache mustache ache headache avalanche")
AFTER_NOUN = re.compile(
    r" (?:of|on|in|at|to|with|without|by|from|for|behind|near|nearest|under|above|that|who|which) "
)
# Names of what has parts but no instances: two pieces of sky are not "2 skies".
MASS_NOUNS = _words(
    "sky skies grass water sea ocean sand snow ice mud dirt soil ground floor ceiling wall walls road street "
    "pavement sidewalk background surroundings hair skin fur food rice bread cheese broccoli salad "
    "soup sauce coffee tea milk juice wine beer furniture clothing clothes underwear swimwear equipment "
    "luggage jewelry jewellery cutlery tableware traffic foliage vegetation greenery hay gravel smoke fog "
    "fire light shade rain wood metal paper text it"
)


ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
FIRST_WORDS_OF_ONE = frozenset(["everything", *ORDINALS, "last"])
PAIRS = _words(
    "scissors skis glasses sunglasses trousers pants jeans shorts tights leggings binoculars pliers"
)


def is_countable(name: str) -> bool:
    """Whether what a name stands for comes in instances: "cup" and "slice of bread", but not "sky".

    "Second cup" means a single one.
    """
    words = AFTER_NOUN.split(name.lower())[0].split()
    return bool(words) and words[-1] not in MASS_NOUNS and words[0] not in FIRST_WORDS_OF_ONE


def _is_plural(noun: str) -> bool:
    """Whether a noun in lower case is a plural by its form: "cups", "people" and "scissors", not "bus"."""
    if noun in SINGULAR_IN_S:
        return False
    if noun.endswith(tuple(IRREGULAR_PLURALS.values())) or noun in PLURALS_IN_US:
        return True
    return noun.endswith("s") and not re.search("ss$|(?<![au])us$", noun)


def plural(name: str) -> str:
    """The plural of a name in English: "cup" -> "cups", "slice of bread" -> "slices of bread".

    A name that has one already, and one in other letters, is returned as it is.
    """
    head = AFTER_NOUN.split(name)[0]
    *_, noun = head.split(" ")
    lower, before, after = noun.lower(), head[: len(head) - len(noun)], name[len(head) :]
    if not re.search("[a-z]$", lower) or _is_plural(lower):
        return name
    for one, several in IRREGULAR_PLURALS.items():
        if lower.endswith(one) and lower not in REGULAR_PLURALS:
            return f"{before}{noun[: len(noun) - len(one)]}{several}{after}"
    if re.search(r"(?:s|x|z|ch|sh)$", lower) or lower in WITH_OES:
        return f"{before}{noun}es{after}"
    if re.search(r"[^aeiou]y$", lower):
        return f"{before}{noun[:-1]}ies{after}"
    return f"{before}{noun}s{after}"


def singular(name: str) -> str:
    """What `plural` makes a name of: "zebras" -> "zebra". Other names, and those of pairs, are unchanged."""
    *_, noun = AFTER_NOUN.split(name)[0].split(" ")
    lower = noun.lower()
    if lower in PAIRS or not _is_plural(lower):
        return name
    for one, several in IRREGULAR_PLURALS.items():
        if lower.endswith(several) and lower.removesuffix(several) + one not in REGULAR_PLURALS:
            return name.replace(noun, noun[: len(noun) - len(several)] + one, 1)
    return name.replace(noun, _without_ending(noun), 1)


def _without_ending(noun: str) -> str:
    """A regular plural without its ending."""
    lower = noun.lower()
    if lower.endswith("ies") and lower[:-1] not in IN_IE:
        return noun[:-3] + "y"
    hides_no_e = lower[:-2] in WITH_OES | SINGULAR_IN_S or (
        re.search(r"(?:ss|(?<![oa])us|x|ch|sh|[tz]z)es$", lower) and lower[:-1] not in IN_XE_AND_CHE | IN_USE
    )
    return noun[:-2] if hides_no_e else noun[:-1]


def counted(reply: str, counts: Sequence[int], always: bool = False) -> str:
    """A reply that tells how many instances there are: "I see the cup [SEG]." -> "I see 3 cups [SEG]."

    Args:
        reply: In this grammar.
        counts: The number of instances of each of its targets, in their order.
        always: Whether a number is told for a single instance too.

    Returns:
        The reply with a number before each target that has several instances and is named in a sentence that
        says what is seen, as `reply_for` writes it. What a model says in other words is left alone.
    """
    for mention, count in reversed(list(zip(parse(reply), counts, strict=False))):
        if not mention.present or (count < 2 and not always):
            continue
        before = reply[: mention.position].rstrip()
        sentence = re.split(r"(?<=[.!?;]) ", before)[-1]
        article = before.removesuffix(mention.phrase)
        if re.match(r"I (?:also )?see ", sentence) and article != before and article.endswith("the "):
            name = singular(mention.phrase) if count == 1 else plural(mention.phrase)
            reply = f"{article[:-4]}{count} {name} {reply[mention.position :]}"
    return reply


def is_noun_phrase(phrase: str) -> bool:
    """Whether a phrase can follow "I see no": "cup" can, "what could jump" and "something red" cannot."""
    return not NO_NOUN_PHRASE.match(phrase)


def marked(phrase: str, present: bool) -> str:
    """A phrase with its token, quoted where `parse` would not find it otherwise."""
    return f"{_quoted(clean_phrase(phrase))} {SEG if present else ABS}"


def _plain_reply(groups: list[tuple[bool, list[str]]]) -> str:
    """ "I see the cup [SEG], but no pen [ABS]; I see the ..."; "there is no" would be wrong of plurals."""
    reply = ""
    for k, (present, names) in enumerate(groups):
        link = "I see " if k == 0 else ", but " if k % 2 else "; I see "
        reply += link + _listed(names, present, "the " if present else "no ")
    return reply + "."


def _varied_reply(groups: list[tuple[bool, list[str]]], rng: random.Random) -> str:
    """The same in the words of `PRESENT_CLAUSES` and `ABSENT_CLAUSES`."""
    clauses = []
    for present, names in groups:
        clause = rng.choice(PRESENT_CLAUSES if present else ABSENT_CLAUSES)
        article = "the " if present else "no "
        if present and clause == "{}":
            article = rng.choice(("the ", ""))
        listed = _listed(names, present, article)
        # A clause that starts with a name keeps it as it is, without a capital.
        starts_with_name = clause.startswith("{}") and (article == "" or listed.startswith("it "))
        clauses.append((clause.format(listed), starts_with_name))
    link = rng.choice(CLAUSE_LINKS)
    reply = ""
    for clause, starts_with_name in clauses:
        is_sentence_start = not reply or link == ". "
        if is_sentence_start and not starts_with_name:
            clause = clause[0].upper() + clause[1:]
        reply += (link if reply else "") + clause
    return reply + "."


def _listed(names: list[str], present: bool, article: str) -> str:
    """The names with their tokens, one after the other; "it" takes no article."""
    before_unnamed = "" if present else "nothing like "
    token = SEG if present else ABS
    items = [f"{before_unnamed if name == UNNAMED else article}{name} {token}" for name in names]
    return _enumerated(items)


def _enumerated(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _quoted(name: str) -> str:
    """The name, in quotes where `parse` would not find it otherwise."""
    clauses = ("", "I see the ", "there is no ")
    is_found = all(_phrase_before(f"{clause}{name} ") == name for clause in clauses)
    return name if is_found else f'"{name}"'
