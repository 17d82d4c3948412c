"""The words in which a question asks: what it names, and whether it refers to what was said before.

    asked_things("is there a window and a cat?")      # ["window", "cat"]
    asked_things("the pet that barks")                # ["pet that barks"]
    refers_back("and the one next to it?")            # True: the language model must read earlier turns
    refers_back("and the flowers?")                   # False

The rules are for English.
"""

import re

from assistant.dialogue.followup_parser import CRITERIA, FILLER_WORDS, normalise

POLITE = (
    r"(?:and|also|then|now|next|please|ok|okay|so|well|but|hi|hello|hey|thanks|sorry|mum|of those|what about|"
    r"how about|anything else,? like|can you|could you|would you|will you|i wonder (?:if|whether)|"
    r"tell me (?:if|whether)|see (?:if|whether)|check (?:if|whether|for)|any chance|let me|help me|"
    r"do you know)"
)
REQUEST = (
    r"(?:where(?:['’]s| (?:is|are|can i (?:see|find)|would i find|do you see))|whereabouts (?:is|are)|"
    r"(?:is|are) (?:there|(?:this|that|these|those|it)(?= (?:the|an?|some|any)\b))|isn['’]?t there|"
    r"is(?= (?:any|some)(?:one|body)\b)|"
    r"aren['’]?t there|have you (?:spotted|seen)|there (?:is|are)|"
    r"(?:do|can|could|would) (?:you|we|i) (?:see|have|find|spot|notice)|"
    r"(?:have |has |you |you have )?got(?= (?:the|an?|any|some)\b)|"
    r"does (?:it|(?:the|this) (?:photo|picture|image)) (?:show|contain|have)|"
    r"i (?:(?:need|want|would like)(?: to (?:see|find|know where))?|mean|see|am looking for|"
    r"spy with my little eye)|"
    r"i['’]m looking for|looking for|"
    r"(?:show|give|find|get|tell|point|mark|segment|outline|locate|trace|highlight|select|detect|identify|spot|"
    r"see|cut|pick|look|colou?r|draw|add|choose|want)(?: me)?(?: (?:out|at|to|for|in|round|around))*|"
    r"(?:what|which (?:thing|object|one|region|part)s?)(?:['’]s| is| are| shows| show)"
    r"(?= (?:the|an?|any|some|this|that|my|your|called)\b)|only|just)"
)
OPENING = re.compile(rf"^(?:(?:{POLITE}|{REQUEST})\b[,.!:]? *)+", re.I)
DETERMINER = re.compile(
    r"^(?:(?:the|an?|some|any|no|every|all|each|my|your|both|this|these|those|of|whatever|whoever)\b *)+",
    re.I,
)
CLOSING = re.compile(
    r"(?:[ ,]*\b(?:please|here|there|too|as well|now|again|anywhere|visible|for me|if you can|you can find|"
    r"(?:in|on|of) (?:the|this|your) (?:picture|image|photo|photograph|scene)|in view|around|"
    r"(?:and |but )?nothing else)|[\s?!.,;:…])+$",
    re.I,
)
ITEM_JOINT = re.compile(
    r"\s*[,;\n]\s*(?:(?:and|or)\s+)?|\s+(?:and|or|&)\s+(?=(?:the|an?|some|any|my)\b)", re.I
)
SHORT_JOINT = re.compile(r"\s+(?:and|or|&)\s+", re.I)
CLAUSE = re.compile(r"^(?:what|who|which|where|why|how|when|whom|whose)\b", re.I)
# What makes more of a noun phrase than adjectives and a noun.
DESCRIPTION = re.compile(
    r"\b(?:that|which|who|whom|whose|where|when|to|for|with|of|in|on|at|from|by|used|made|you|like|under|over|"
    r"between|behind|near|beside|without|\w+(?<!th)ing)\b",
    re.I,
)
MAX_NOUN_PHRASE = 4  # words of a noun phrase without a description
MAX_QUOTED_LENGTH = 80  # characters of a question that a reply repeats
LEADING_WORDS = re.compile(
    r"^(?:(?:and|also|then|now|next|but|ok|okay|so|what about|how about)\b[, ]*)+", re.I
)
PRONOUN = re.compile(
    r"\b(?:(?<!what is )(?<!what might )(?<!thing is )(?<!where is )it|them|(?<!did )they|he|she|him|her|"
    r"the others?|others|other ones?|another|the rest|the same|once more|both(?! (?:the|an?)\b)|again|"
    r"(?:the|that|this|which)(?: \w+)? ones?(?! (?:who|that|which|with)\b)|"
    r"(?:these|those|this|that)(?= (?:is|are|too|and|or)\b|\W*$)|of (?:them|those|these))\b",
    re.I,
)
IMPERSONAL_IT = re.compile(
    r"\bit(?= (?:be )?(?:that|which|who|rains|pours|snows|is (?:hot|cold|dark|raining))\b)", re.I
)
# A pronoun after one of these means what stands before them: "something you open when it pours".
SUBORDINATE = re.compile(
    r"\b(?:that|which|who|whom|whose|when|while|if|because|before|after|so|until|unless|you|people|has|have)\b",
    re.I,
)
EXISTENCE = re.compile(
    r"(?:is|are|isn['’]?t|aren['’]?t|do|does|did|can|could|have|has|any|i wonder|tell me (?:if|whether)|"
    r"see (?:if|whether)|check (?:if|whether|for))\b(?! you (?:find|show|mark|segment|outline|point|please))",
    re.I,
)
# What stands before a subject in "the thing they sit on", but not in "and where do they sit?".
CONTACT_CLAUSE = re.compile(
    r"\w(?<!\bis)(?<!\bare)(?<!\bdo)(?<!\bdoes)(?<!\bdid)(?<!\bcan)(?<!\bwill)(?<!\bwould)(?<!\bhas)(?<!\bhave)$",
    re.I,
)


def stripped_opening(question: str) -> str:
    """The question without words that link it to the one before: "and the flowers?" -> "the flowers?"."""
    return LEADING_WORDS.sub("", question) or question


def refers_back(question: str) -> bool:
    """Whether a question can only be understood after the ones before it."""
    words = normalise(question).split()
    if all(word in FILLER_WORDS or word in CRITERIA for word in words):
        return True
    text = stripped_opening(question)
    for match in PRONOUN.finditer(text):
        if IMPERSONAL_IT.match(text, match.start()):
            continue
        before = OPENING.sub("", CLAUSE.sub("", text[: match.start()].strip()))
        is_contact_clause = CONTACT_CLAUSE.search(before) and match[0].lower() in ("they", "he", "she")
        if not is_contact_clause and not SUBORDINATE.search(before):
            return True
    return False


def asked_things(question: str) -> list[str]:
    """The noun phrases that a question asks for, without articles; [] where it asks in a clause."""
    rest = without_request(question)
    parts = [part for part in ITEM_JOINT.split(rest) if part.strip()]
    if all(len(part.split()) <= MAX_NOUN_PHRASE + 2 and not DESCRIPTION.search(part) for part in parts):
        parts = [piece for part in parts for piece in SHORT_JOINT.split(part)]
    things = [without_request(part) for part in parts]
    if not things or any(not thing or CLAUSE.match(thing) for thing in things):
        return []
    return things


def is_plain_name(thing: str) -> bool:
    """Whether a thing is called by a name, with adjectives at most, rather than described."""
    return len(thing.split()) <= MAX_NOUN_PHRASE and not DESCRIPTION.search(thing)


def asks_whether(question: str) -> bool:
    """Whether a question asks if something is there, rather than where it is."""
    return bool(EXISTENCE.match(stripped_opening(question)))


def without_request(text: str) -> str:
    """A text without polite words, the request and articles at its beginning, and without what ends it."""
    text = re.sub(r"^[^:,;]*:\s+(?=\S)", "", text)
    text = CLOSING.sub("", OPENING.sub("", text.strip()))
    return DETERMINER.sub("", text).strip(" .,:;?!\"'“”")


def own_words(question: str) -> str:
    """A short piece of a question that a reply can repeat."""
    words = CLOSING.sub("", stripped_opening(" ".join(question.split())))
    things = asked_things(question)
    if len(things) == 1:
        words = things[0]
    if len(words) > MAX_QUOTED_LENGTH:
        words = words[:MAX_QUOTED_LENGTH].rsplit(" ", 1)[0] + "…"
    return words
