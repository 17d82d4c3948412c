"""What kind of question the pocket preset is asked, as far as rules can say.

    parse_question("everything except the cup")       # Except(["cup"])
    parse_question("how many cups are there?")        # Count("cups")
    parse_question("is there no dog?")                # Ask(["is there a dog?"])
    parse_question("Hello!")                          # Talk("Hello! Ask me about ...")

The rules are for English and match a question from its first word to its last; every other question is
`Ask`, for the language model. `assistant.pocket.pipeline` answers each kind.
"""

import re
from dataclasses import dataclass

from assistant.dialogue.followup_parser import normalise
from assistant.pocket.asked_words import asked_things, stripped_opening
from assistant.pocket.languages import is_foreign
from assistant.pocket.question_splitter import split_question

MAX_LISTED = 20  # things of a list that are asked one by one
MAX_LISTED_WORDS = 6  # of a thing in a list
ENGLISH_ONLY = "I read English only. Please ask in English what to look for in the photo."
NOTHING_NAMED = "I do not know what to look for. Please name or describe something in the photo."


@dataclass(frozen=True)
class Ask:
    """Questions for the language model.

    Attributes:
        questions: One or more, in order; their answers are joined.
    """

    questions: list[str]


@dataclass(frozen=True)
class Talk:
    """Nothing is asked for.

    Attributes:
        reply: What to say.
        offers: Whether the reply goes on with what can be seen.
    """

    reply: str
    offers: bool = True


@dataclass(frozen=True)
class Except:
    """Everything but some things.

    Attributes:
        things: Their names; [] for everything.
    """

    things: list[str]


@dataclass(frozen=True)
class Background:
    """All that is not a thing."""


@dataclass(frozen=True)
class Count:
    """How many there are.

    Attributes:
        things: What is counted, as the user wrote it.
    """

    things: str


@dataclass(frozen=True)
class NameMainTarget:
    """What the photo, or the largest thing in it, is."""


@dataclass(frozen=True)
class NameAll:
    """All that is seen, each thing with its name."""


QuestionKind = Ask | Talk | Except | Background | Count | NameMainTarget | NameAll

IN_THE_PHOTO = r"(?:in|on|of) (?:the|this) (?:photo|picture|image|scene)"
# {reply: patterns}; a question that one of them matches as a whole asks for nothing in the photo.
TALK: dict[str, tuple[str, ...]] = {
    "Hello! Ask me about something in the photo.": (
        r"(?:(?:hi|hello|hey|hiya|howdy|greetings|yo|good (?:morning|afternoon|evening|day))"
        r"(?: (?:there|you|all|everyone|again|friend|maskpick|computer|assistant))*)+"
        r"(?: how are you(?: doing)?)?",
    ),
    "I am ready to look.": (
        r"(?:how are you|how do you do|whats up|how is it going|hows it going)(?: (?:today|doing))*",
    ),
    "You are welcome.": (
        r"(?:(?:ok|okay|great|well|many|oh|perfect|good|nice) )*(?:thanks|thank you|thx|cheers|ta)"
        r"(?: (?:a lot|so much|very much|you|again|for (?:that|your help|the help)|"
        r"that was (?:great|helpful)))*",
    ),
    "Goodbye!": (r"(?:bye|goodbye|bye bye|see you(?: later| soon)?|good night|farewell)(?: now)?",),
    "I outline what you ask for in a photo. Name it or describe it.": (
        r"(?:who|what) are you|(?:what|how) can you (?:do|help)(?: me| for me)?|what do you do",
        r"help(?: me)?(?: please)?|how does (?:this|it) work|what is your name|whats your name",
        r"are you (?:an? )?(?:ai|robot|human|bot|there|chatgpt)",
    ),
    "All right.": (
        r"(?:ok|okay|yes|no|yeah|yep|nope|sure|fine|good|great|nice|cool|wow|lol|haha|perfect|awesome|"
        r"amazing|hm+|well|please|sorry|test|testing)(?: (?:ok|then|one|job|thanks))*",
        r"(?:what )?(?:a )?(?:nice|lovely|beautiful|great|good) (?:one|photo|picture|image|job|work)",
        r"i (?:like|love) (?:it|this|you|this photo|this picture)|never ?mind",
    ),
    "I cannot tell you that: I only outline what is in a photo.": (
        r"(?:please )?(?:tell|sing|write|make|give)(?: me| us)? (?:an? )?(?:\w+ )?"
        r"(?:joke|story|poem|song|essay|code)(?: \w+)*",
        r"what time is it(?: now)?|what day is (?:it|today)",
        r"(?:what is|whats|hows|how is) the (?:weather|time|date)(?: \w+)*",
        r"(?:why|when was|when did|how old|how much|how long|how far|what year)\b.*",
        r"(?:translate|summari[sz]e|calculate|explain)\b.*",
        r"what (?:does|do) (?:it|this|that|the \w+) say(?: \w+)*",
        r"(?:read|what is) (?:the|this) (?:text|writing)(?: \w+)*|read (?:the|this) sign(?: \w+)*",
    ),
}
TALK_PATTERNS = tuple((re.compile("|".join(patterns)), reply) for reply, patterns in TALK.items())
REQUEST = (
    r"(?:(?:please|now|and|ok|can you|could you|show|find|mark|segment|outline|select|highlight|give|cut out|"
    r"trace|detect|keep|take|pick|locate|see|mask|i (?:want|need|would like)|id like|let me see) "
    r"(?:me )?(?:please )?)*"
)
ALL = (
    r"(?:everything|anything|all|every|the whole|the entire|the)"
    r"(?: (?:of )?(?:the |these |those )?(?:things?|objects?|items?|photo|picture|image|scene|stuff|"
    rf"else|rest|here|it|them|this|{IN_THE_PHOTO}|that is))*"
)
EXCEPT_WORDS = (
    r"(?:except(?: for)?|excepting|excluding|but(?: not)?|apart from|aside from|other than|besides|"
    r"save(?: for)?|without|minus|(?:not counting|leaving out|ignoring)|"
    r"(?:that|which) (?:is|are) not|that['’]?s not|(?:that|which) (?:is|are)n['’]?t|not)"
)
EXCEPT_PATTERN = re.compile(f"{REQUEST}{ALL} {EXCEPT_WORDS} (.+)")
EVERYTHING_PATTERN = re.compile(
    rf"{REQUEST}(?:everything|all (?:(?:of )?(?:the )?)?(?:things|objects|items)|every (?:thing|object|item))"
    rf"(?: (?:here|there|you (?:see|can see|can find|find)|visible|please|{IN_THE_PHOTO}|that you see))*"
)
BACKGROUND_PATTERN = re.compile(
    rf"{REQUEST}(?:(?:where|what) is )?(?:(?:only|just) )?(?:the )?(?:whole |entire )?"
    rf"(?:back ?ground|backdrop)(?: (?:here|please|only|{IN_THE_PHOTO}))*"
)
COUNT_PATTERN = re.compile(
    r"(?:and |please |can you |could you |tell me |say )*"
    r"(?:how many|count(?: all)?(?: of)?(?: the)?|what is the number of|(?:the )?number of) (.+?)"
    r"(?: (?:are|do|can|could|is|did|does|have|has) "
    r"(?:there|you|we|i|they|visible|shown|the (?:photo|picture|image))"
    rf"(?: (?:see|find|have|show|count|contain|spot|here))?| are| is| {IN_THE_PHOTO}| here| please)*"
)
MAIN_THING_PATTERN = re.compile(
    r"(?:and |so |now |please )*(?:"
    r"what (?:is|are) (?:this|that|these|those|here)|whats (?:this|that|here)|what is it|whats it|"
    r"(?:tell me )?what (?:this|that) is|name (?:this|it)|identify (?:this|it)|what am i looking at|"
    r"(?:whats|what (?:is|does|do)) (?:in |on )?(?:(?:the|this) (?:photo|picture|image))(?: show)?|"
    r"what do you see|what can you see|what do we have here|"
    r"(?:what is|whats|show me|find|where is|segment|mark) "
    r"the (?:main|most important|central|biggest) (?:thing|object|subject)|"
    r"what kind of (?:thing|object|animal) is (?:this|that))"
    rf"(?: (?:here|there|called|thing|object|please|exactly|about|{IN_THE_PHOTO}))*"
)
NAME_ALL_PATTERN = re.compile(
    r"(?:and |so |now |please |can you |could you )*(?:"
    r"(?:what|which) (?:all )?(?:the )?(?:things|objects|items|stuff|else)|what all|"
    r"(?:list|name|label|identify|enumerate)(?: me)? (?:everything|all(?: (?:of )?(?:the )?(?:things|objects|"
    r"items|it))?|the (?:things|objects|items|contents)|every (?:thing|object|item)|what|"
    r"(?:the|this|my) (?:photo|picture|image|scene))|"
    r"describe (?:everything|(?:the|this|my) (?:photo|picture|image|scene)|what))"
    r"(?: (?:is|are|do|can|there|here|you|i|we|see|find|recogni[sz]e|shown|visible|that|in it|please|for me|"
    rf"{IN_THE_PHOTO}))*"
)
IS_THERE_NO = re.compile(
    r"(?:(?:is|are) there (?:no|not (?:an?|any))|(?:isn['’]?t|aren['’]?t) there (?:an?|any)|"
    r"(?:do|can) you (?:not |n['’]?t )?see no|there (?:is|are) no|there['’]s no|no|not (?:an?|any)) "
    r"(?!one\b|that\b|the\b|it\b|this\b)(?P<thing>[^.?!]+?)"
    r"(?:,? (?:right|is there|are there|here|anywhere|in (?:the|this) (?:photo|picture|image)))*[\s?!.]*",
    re.I,
)
NOBODY = re.compile(r"\b(?:nobody|no[ -]?one)\b", re.I)
LIST_JOINT = re.compile(r"\s*[\n;|]+\s*|\s+\.\s+|\s+/\s+")
BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.):]?(?=\s))?\s*")
REQUEST_OF_LIST = re.compile(
    r"^(?:please |can you )?(?:find|show|mark|segment|outline|detect|locate)\b[^:\n]*:\s*", re.I
)


def parse_question(question: str, known: bool = False) -> QuestionKind:
    """The kind of a question.

    Args:
        question: Any text.
        known: Whether it has a name that the preset was taught, so that it is not in a foreign language.
    """
    text = normalise(question)
    if not known and is_foreign(question):
        return Talk(ENGLISH_ONLY, offers=False)
    if not re.search(r"[a-z]{2}", text) and not any(c.isalpha() and not c.isascii() for c in text):
        return Talk(NOTHING_NAMED)
    for pattern, reply in TALK_PATTERNS:
        if pattern.fullmatch(text):
            return Talk(reply)
    if listed := _parse_list(question):
        return Ask([f"where is the {thing}?" for thing in listed])
    for parsed in (_parse_except(question, text), _parse_count(text)):
        if parsed:
            return parsed
    if BACKGROUND_PATTERN.fullmatch(text):
        return Background()
    if MAIN_THING_PATTERN.fullmatch(text):
        return NameMainTarget()
    if NAME_ALL_PATTERN.fullmatch(text):
        return NameAll()
    question = NOBODY.sub("no person", question)
    if match := IS_THERE_NO.fullmatch(stripped_opening(question).strip()):
        return Ask([f"is there a {match['thing'].strip()}?"])
    return Ask([stripped_opening(part) for part in split_question(question)])


def _parse_except(question: str, text: str) -> Except | None:
    """Parse "everything except the cup and the spoon"; "everything" alone excepts nothing."""
    if EVERYTHING_PATTERN.fullmatch(text):
        return Except([])
    if match := EXCEPT_PATTERN.fullmatch(text):
        # Once more in the question as it stands: `normalise` takes out the commas between things.
        named = re.split(rf"\b{EXCEPT_WORDS}\s", question, maxsplit=1, flags=re.I)[-1]
        return Except(asked_things(named) or [match[1]])
    return None


def _parse_count(text: str) -> Count | None:
    """Parse "how many cups are there?", but not "how many are there?"."""
    match = COUNT_PATTERN.fullmatch(text)
    if not match or match[1] in ("are", "are there", "of them", "things", "objects"):
        return None
    return Count(match[1])


def _parse_list(question: str) -> list[str]:
    """The things of a list that stands on lines, or between semicolons or single full stops; else []."""
    parts = [BULLET.sub("", part) for part in LIST_JOINT.split(REQUEST_OF_LIST.sub("", question.strip()))]
    names = [part.strip(" .,;") for part in parts]
    names = [re.sub(r"^(?:the|an?|some)\s+", "", name, flags=re.I) for name in names if name]
    is_list = len(names) > 1 and all(
        len(name.split()) <= MAX_LISTED_WORDS
        and not re.search(r"[?!:]", name)
        and asked_things(name) == [name]
        for name in names
    )
    return list(dict.fromkeys(names))[:MAX_LISTED] if is_list else []
