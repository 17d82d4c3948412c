"""Phrases bound to their tokens, tokens typed by users without power, replies that read back."""

import random
import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from assistant.errors import BadInput
from assistant.grammar import (
    ABS,
    SEG,
    Mention,
    check_question,
    clean_phrase,
    counted,
    is_countable,
    is_noun_phrase,
    neutralise,
    parse,
    plain,
    plural,
    reply_for,
    singular,
)

SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<|endoftext|>",
    "</s>",
    "[INST]",
    "USER:",
    "<｜end｜>",
    SEG,
    ABS,
]


def mentioned(reply):
    return [(m.phrase, m.present) for m in parse(reply)]


@pytest.mark.parametrize(
    "reply, mentions",
    [
        (
            "The umbrella [SEG] keeps the rain off; there is no bench [ABS].",
            [("umbrella", True), ("bench", False)],
        ),
        ("I see the cup on the left [SEG]", [("cup on the left", True)]),
        ("a pen [SEG] and the sheet of paper [SEG]", [("pen", True), ("sheet of paper", True)]),
        ("umbrella [SEG], bench [ABS].", [("umbrella", True), ("bench", False)]),
        ("umbrella[SEG]bench[ABS]", [("umbrella", True), ("bench", False)]),
        ("That is the umbrella [SEG].", [("umbrella", True)]),
        ("It is [SEG].", [("it", True)]),
        ("Sure, [SEG].", [("it", True)]),
        ("[SEG]", [("it", True)]),
        ("[SEG] [SEG][ABS]", [("it", True), ("it", True), ("it", False)]),
        ("", []),
        ("Nothing of the kind.", []),
        ("There’s a fat cat [SEG] here, but I don’t see any dog [ABS].", [("fat cat", True), ("dog", False)]),
        ("Neither a dog [ABS] nor a cat [ABS]", [("dog", False), ("cat", False)]),
        ("There is no bear in the picture [ABS].", [("bear", False)]),
        ("You could sit on the bench [SEG].", [("bench", True)]),
        ("To stay dry you can use an umbrella [SEG]", [("umbrella", True)]),
        ("A man [SEG] sits on a chair [SEG].", [("man", True), ("chair", True)]),
        (
            "Take the cup [SEG] and throw it in the trash can on the left [SEG].",
            [("cup", True), ("trash can on the left", True)],
        ),
        ("a trash can [SEG]", [("trash can", True)]),
        ("the hand saw [SEG]", [("hand saw", True)]),
        ("The black and white cat [SEG]", [("black and white cat", True)]),
        (
            'the "knife and fork" [SEG] and “salt, pepper” [ABS]',
            [("knife and fork", True), ("salt, pepper", False)],
        ),
        ("The thing that is red [SEG]", [("thing that is red", True)]),
        ("What you need to cut it: the scissors [SEG]", [("scissors", True)]),
        ("**Umbrella** ([SEG]), a `bench` [ABS]", [("Umbrella", True), ("bench", False)]),
        (
            "- umbrella [SEG]\n- bench: [ABS]\n2. cup [SEG]",
            [("umbrella", True), ("bench", False), ("cup", True)],
        ),
        ("The 2.5 litre bottle [SEG]", [("2.5 litre bottle", True)]),
        ("the man's T-shirt [SEG]", [("man's T-shirt", True)]),
        ("雨伞[SEG]可以挡雨，长椅[ABS]。", [("雨伞", True), ("长椅", False)]),
        ("छाता [SEG], зонт слева [SEG]; مظلة [ABS]", [("छाता", True), ("зонт слева", True), ("مظلة", False)]),
    ],
)
def test_binding(reply, mentions):
    assert mentioned(reply) == mentions


def test_position_is_that_of_the_token():
    reply = "The umbrella [SEG]; no bench [ABS]."
    assert parse(reply) == [
        Mention("umbrella", True, reply.index(SEG)),
        Mention("bench", False, reply.index(ABS)),
    ]


def test_only_exact_tokens_are_live():
    assert parse("a cup [seg] [ SEG ] (SEG) [SEG [ABS") == []


@given(st.text())
def test_parse_takes_any_text(text):
    assert len(parse(text)) == len(re.findall(r"\[(?:SEG|ABS)\]", text))
    assert all(m.phrase.strip() == m.phrase != "" for m in parse(text))


@pytest.mark.parametrize(
    "reply, text",
    [
        (
            "The umbrella [SEG] keeps the rain off; there is no bench [ABS].",
            "The umbrella keeps the rain off; there is no bench.",
        ),
        ("Sure, [SEG].", "Sure."),
        ("[SEG]", ""),
        ("the cup ([SEG]) (a mug [SEG])", "the cup (a mug)"),
        ("([SEG] the cup)", "( the cup)"),
        ("cup [SEG]saucer[ABS]", "cup saucer"),
        ("a\n[SEG] b", "a b"),
        ("[S[SEG]EG] x", "x"),
        ("two  spaces", "two spaces"),
        ("cups [SEG] [SEG] [SEG].", "cups."),
    ],
)
def test_plain(reply, text):
    assert plain(reply) == text


@given(st.text(alphabet="SEGAB[]() .x\n"))
def test_plain_holds_no_token(text):
    assert parse(plain(text)) == []


@pytest.mark.parametrize(
    "typed, safe",
    [
        ("[SEG]", "(SEG)"),
        ("[seg] [Abs]", "(seg) (Abs)"),
        ("[ S E G ]", "( S E G )"),
        ("[S\u200bEG]", "(S\u200bEG)"),
        ("［ＳＥＧ］", "(ＳＥＧ)"),
        ("[ſeg]", "(ſeg)"),
        ("[S\x00EG]", "(SEG)"),
        ("[S[SEG]EG]", "[S(SEG)EG]"),
        ("[[SEG]]", "[(SEG)]"),
        ("<image> is <b>", "‹image› is <b>"),
        ("<|im_start|>system", "‹¦im_start¦›system"),
        ("<<image>image>", "<‹image›image>"),
        ("[INST] hi", "(INST) hi"),
        ("USER: hi", "ＵSER: hi"),
        ("a\r\nb\rc\td\x07\x1b[31m", "a\nb\nc\td[31m"),
        ("a[3] = {x}; 1 < 2", "a[3] = {x}; 1 < 2"),
        ("what keeps the rain off?", "what keeps the rain off?"),
        ("Où est l'été? 雨伞 👩‍👧", "Où est l'été? 雨伞 👩‍👧"),
    ],
)
def test_neutralise(typed, safe):
    assert neutralise(typed, SPECIAL) == safe


PIECES = [
    "[",
    "]",
    "S",
    "E",
    "G",
    "s",
    "A",
    "B",
    " ",
    "\u200b",
    "\x00",
    "［",
    "ſ",
    SEG,
    ABS,
    "<",
    ">",
    "|",
    "image",
    "<image>",
    "<|im_start|>",
    "im_end",
    "US",
    "ER:",
    "/s",
    "\r",
    "\n",
    "x",
    "\ud800",
]


def folded(text):
    letters = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in letters if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf"))


@settings(max_examples=200)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@example("[S[S[SEG]EG]EG]")
@example("[[A[ABS]BS]")
def test_nothing_live_is_left(text):
    safe = neutralise(text, SPECIAL)
    assert "[seg]" not in folded(safe) and "[abs]" not in folded(safe)
    assert not any(token in safe for token in SPECIAL)
    assert parse(safe) == []
    assert neutralise(safe, SPECIAL) == safe
    safe.encode("utf-8")
    assert not any(unicodedata.category(c) == "Cc" for c in safe if c not in "\t\n")


ANY = st.characters(exclude_characters="·•", exclude_categories=["Cs", "Cc"])


@given(st.text(), st.lists(st.text(ANY, min_size=2)))
def test_any_special_strings(text, special):
    special = [s for s in special if len(s.strip()) > 1]
    safe = neutralise(" ".join([text, *special, *special]), special)
    assert not any(token in safe for token in special)
    assert neutralise(safe, special) == safe


@given(st.text(alphabet=st.characters(exclude_characters="[]［］﹇﹈\r", exclude_categories=["Cc", "Cs"])))
def test_ordinary_text_is_unchanged(text):
    assert neutralise(text) == text


def test_check_question():
    assert check_question("  what?\n") == "what?"
    assert check_question("?" * 4000) == "?" * 4000
    for empty in ("", " \n\t", "\u200b \x00"):
        with pytest.raises(BadInput, match="empty"):
            check_question(empty)
    with pytest.raises(BadInput, match="100,000 characters.*4,000"):
        check_question("x" * 100_000)
    with pytest.raises(BadInput, match="int"):
        check_question(5)


def test_replies_read_well():
    assert (
        reply_for([("umbrella", True), ("bench", False)]) == "I see the umbrella [SEG], but no bench [ABS]."
    )
    assert reply_for([("cup", True), ("pen", True), ("knife and fork", True)]) == (
        "I see the cup [SEG], the pen [SEG] and the knife and fork [SEG]."
    )
    assert reply_for([("it", True), ("it", False)]) == "I see it [SEG], but nothing like it [ABS]."
    assert reply_for([("road", True), ("buses", False), ("car", True), ("sky", False), ("dogs", False)]) == (
        "I see the road [SEG], but no buses [ABS]; I see the car [SEG], but no sky [ABS] and no dogs [ABS]."
    )
    assert reply_for([("buses", False)]) == "I see no buses [ABS]."
    assert reply_for([("man who is sitting, left", True)]) == 'I see the "man who is sitting, left" [SEG].'
    assert parse(reply_for([])) == []
    varied = {reply_for([("cup", True), ("pen", False)], random.Random(k)) for k in range(100)}
    assert len(varied) > 30 and len({r[:6] for r in varied}) > 5


WORDS = [
    "cup",
    "the",
    "a",
    "no",
    "is",
    "that",
    "who",
    "and",
    "or",
    "can",
    "see",
    "find",
    "look",
    "it",
    "you",
    "in",
    "on",
    "picture",
    "left",
    "red,",
    "one.",
    "-",
    "—",
    "trash",
    "like",
    "[",
    "(x)",
    '"so"',
    "nothing",
    "雨伞",
    "não",
    "it's",
]
PHRASE = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), st.text(max_size=12)
)


@settings(max_examples=200)
@given(st.lists(st.tuples(PHRASE, st.booleans()), max_size=5), st.one_of(st.none(), st.integers(0, 10_000)))
def test_parse_gives_back_what_reply_for_was_given(targets, seed):
    reply = reply_for(targets, None if seed is None else random.Random(seed))
    assert mentioned(reply) == [(clean_phrase(phrase), present) for phrase, present in targets]
    assert "\n" not in reply and not reply[0].isspace()


@given(
    st.text(
        st.characters(exclude_categories=["C", "Z"], exclude_characters='"“”«»「」『』［］[]﹇﹈'), min_size=1
    )
)
def test_ordinary_phrases_are_kept_as_they_are(phrase):
    assert clean_phrase(phrase) == phrase


@pytest.mark.parametrize(
    "singular, several",
    [
        ("cup", "cups"),
        ("wine glass", "wine glasses"),
        ("bus", "buses"),
        ("cherry", "cherries"),
        ("toy", "toys"),
        ("person", "people"),
        ("policeman", "policemen"),
        ("human", "humans"),
        ("sheep", "sheep"),
        ("scissors", "scissors"),
        ("slice of bread", "slices of bread"),
        ("person on the left", "people on the left"),
        ("dogs", "dogs"),
        ("potato", "potatoes"),
        ("scarf", "scarves"),
        ("photo", "photos"),
        ("policemen", "policemen"),
        ("雨伞", "雨伞"),
        ("route 66", "route 66"),
    ],
)
def test_plurals(singular, several):
    assert plural(singular) == several


@pytest.mark.parametrize(
    "name",
    "bus gas lens canvas octopus iris potato shoe hero piano tie cherry movie box axe watch quiche house "
    "vase nose horse blouse tortoise fireman grandchild person glove knife scarf calf corgi menu sofa dress "
    "bicycle toy fuse mouse".split(),
)
def test_a_plural_is_undone(name):
    assert singular(plural(name)) == name != plural(name)
    assert singular(name) == name and plural(plural(name)) == plural(name)


def test_what_comes_in_instances():
    assert all(is_countable(name) for name in ("cup", "slice of bread", "cups", "雨伞", "cat in the grass"))
    assert not any(
        is_countable(name) for name in ("sky", "green grass", "everything except the cup", "it", "second cup")
    )


def test_a_reply_tells_how_many_instances_there_are():
    reply = reply_for([("cup", True), ("pen", True), ("dog", False), ("person", True)])
    told = counted(reply, [3, 1, 0, 2])
    assert told == "I see 3 cups [SEG] and the pen [SEG], but no dog [ABS]; I see 2 people [SEG]."
    assert [mention.present for mention in parse(told)] == [True, True, False, True]
    assert counted(reply_for([("cup", True)]), [1]) == "I see the cup [SEG]."
    assert counted(reply_for([("cup", True)]), [1], always=True) == "I see 1 cup [SEG]."
    assert counted("I see the zebras [SEG].", [1], always=True) == "I see 1 zebra [SEG]."
    assert counted("I see the buses [SEG].", [1], always=True) == "I see 1 bus [SEG]."
    assert counted("I see the bus [SEG].", [1], always=True) == "I see 1 bus [SEG]."
    assert [singular(name) for name in ("scissors", "TVs")] == ["scissors", "TV"]
    model = "The cup [SEG] is on the table [SEG]; it may be the mug [SEG]."
    assert counted(model, [2, 2, 2]) == model  # a sentence of another form is left alone
    assert counted("Ah. I also see the cup [SEG].", [2]) == "Ah. I also see 2 cups [SEG]."
    assert counted(reply_for([("it", True)]), [2]) == "I see it [SEG]."


@pytest.mark.parametrize(
    "phrase, is_one",
    [
        ("cup", True),
        ("sailing boat", True),
        ("saying on the wall", True),
        ("something red", False),
        ("what could jump", False),
        ("say what divides a loaf", False),
        ("let me see the sink", False),
        ("see whether there is a kite", False),
        ("would you find a kite", False),
    ],
)
def test_only_a_noun_phrase_can_follow_no(phrase, is_one):
    assert is_noun_phrase(phrase) == is_one
