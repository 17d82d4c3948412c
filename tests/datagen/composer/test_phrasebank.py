"""The phrase bank as data, and its phrases as questions."""

import itertools
import random
import re
from collections import Counter

import pytest

from assistant.errors import BadInput
from datagen.composer import phrasebank, wording
from datagen.composer.phrasebank import Phrase, load, load_groups, phrase_examples

# entries, phrases
LEAST = {
    "coco": (80, 18),
    "carparts": (18, 14),
    "clothing": (58, 13),
    "street": (40, 13),
    "things": (150, 12),
}
BANKS = {name: load(name) for name in LEAST}
BANK = BANKS["coco"]
SMALL = set(
    "a an the that which of in on with to you your and or for is it its by at from has something some".split()
)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) - SMALL


def test_coco_is_complete_and_rich():
    assert len(BANK) == 80
    assert min(len(entry.split("train")) for entry in BANK.values()) >= 16
    assert {len(entry.split("held")) for entry in BANK.values()} == {2}
    assert all(3 <= len(entry.beside) <= 8 for entry in BANK.values())


@pytest.mark.parametrize("name", sorted(BANKS))
def test_no_phrase_names_its_thing_or_is_misshapen(name):
    bank, (entries, phrases) = BANKS[name], LEAST[name]
    assert len(bank) >= entries and min(len(entry.phrases) for entry in bank.values()) >= phrases
    assert [fault for entry in bank.values() for fault in phrasebank.wrong_phrases(entry, bank)] == []
    assert {entry.number for entry in bank.values()} <= {"count", "one", "plural", "set", "mass"}


def test_every_file_is_in_a_bank_and_banks_can_be_joined():
    files = {
        path.parent.name if path.parent != phrasebank.FOLDER else path.stem
        for path in phrasebank.FOLDER.rglob("*.toml")
        if ".groups" not in path.name
    }
    assert files == set(LEAST)
    both = load("street,coco")
    assert both["car"] == BANKS["street"]["car"] and both["umbrella"].phrases == BANK["umbrella"].phrases
    assert len(both) == len(set(BANK) | set(BANKS["street"]))
    assert load_groups("street,coco") == load_groups("street") + load_groups("coco")


def test_faults_are_found():
    entry = BANK["umbrella"]
    for text, fault in [
        ("that people call a brolly", "names it"),
        ("a Parasol for the beach", "names it"),
        ("two umbrellas", "names it"),
        ("that the rain runs off", "begin with which"),
        ("it keeps the rain off", "begins with"),
        ("that keeps the rain off.", "stray"),
    ]:
        bad = phrasebank.Entry(
            **{**vars(entry), "phrases": (Phrase("umbrella/0", text, "umbrella", (), False),)}
        )
        assert any(fault in line for line in phrasebank.wrong_phrases(bad, BANK)), text


@pytest.mark.parametrize("name", sorted(BANKS))
def test_held_phrases_are_the_last_two_and_no_near_duplicates(name):
    texts = Counter(phrase.text.lower() for entry in BANKS[name].values() for phrase in entry.phrases)
    assert max(texts.values()) == 1, texts.most_common(3)
    for entry in BANKS[name].values():
        assert [phrase.held for phrase in entry.phrases] == [False] * (len(entry.phrases) - 2) + [True] * 2
        for held, trained in itertools.product(entry.split("held"), entry.split("train")):
            a, b = words(held.text), words(trained.text)
            assert len(a & b) / len(a | b) < 0.4, (held.text, trained.text)


def test_shapes_become_english():
    def phrase(text, category="umbrella"):
        return Phrase("x/0", text, category, (), False, who=category == "person")

    keeps, hold, noun = phrase("that keeps dry"), phrase("which you open"), phrase("a canopy on a stick")
    assert [phrasebank.as_a(each) for each in (keeps, hold, noun)] == [
        "something that keeps dry",
        "something that you open",
        "a canopy on a stick",
    ]
    assert [phrasebank.as_the(each) for each in (keeps, hold, noun)] == [
        "the thing that keeps dry",
        "the thing that you open",
        "the canopy on a stick",
    ]
    assert phrasebank.as_the(phrase("something to keep dry under")) == "the thing to keep dry under"
    assert phrasebank.as_the(phrase("something soft to hold")) == "something soft to hold"
    assert phrasebank.as_what(hold) == "what you open"
    assert phrasebank.as_a(phrase("that talks", "person")) == "someone who talks"
    assert [phrasebank.pluralise(word) for word in ("bus", "dish", "pastry", "toy")] == [
        "buses",
        "dishes",
        "pastries",
        "toys",
    ]
    assert [phrasebank.article(word) for word in ("apple", "uniform", "TV")] == [
        "an apple",
        "a uniform",
        "a TV",
    ]
    # A clause without its subject is a question of its own, one that lacks its object is not.
    assert "what" in wording.phrase_slots(keeps) and "what" not in wording.phrase_slots(hold)


def test_names_in_the_right_number():
    slots = wording.name_slots
    assert slots(BANK["knife"], 1)["a"] == "a knife" and slots(BANK["knife"], 2)["the"] == "the knives"
    assert slots(BANK["scissors"], 1) == {
        "a": "a pair of scissors",
        "the": "the scissors",
        "is": "are",
        "be": "is",
        "every": "all the scissors",
        "plural": "scissors",
    }
    assert slots(BANK["broccoli"], 3)["a"] == "some broccoli" and slots(BANK["broccoli"], 3)["is"] == "is"
    wheels, hood = BANKS["carparts"]["wheel"], BANKS["carparts"]["hood"]
    assert (
        slots(wheels, 1)["a"] == "wheels" and slots(wheels, 1)["be"] == "are" and wheels.mention() == "wheels"
    )
    assert "every" not in slots(hood, 1)
    assert BANK["skis"].mention() == "pair of skis" and BANK["mouse"].mention(2) == "computer mice"


def test_enough_templates_and_none_shared_by_the_splits():
    least = {
        "implicit": 25,
        "named": 15,
        "multi": 12,
        "position": 12,
        "class": 12,
        "exists": 12,
        "part": 12,
        "part_named": 12,
        "premise": 12,
        "then_which": 12,
        "then_next": 10,
        "then_others": 10,
        "then_else": 12,
        "then_only": 8,
        "then_without": 8,
        "then_same": 10,
    }
    for kind, number in least.items():
        kinds = wording.templates()[kind]
        assert len(set(kinds["train"])) == len(kinds["train"]) >= number
        assert kinds["held"] and not set(kinds["train"]) & set(kinds["held"])


@pytest.mark.parametrize("split", ["train", "held"])
def test_phrase_examples_are_even_repeatable_and_name_nothing(split):
    rows = list(itertools.islice(phrase_examples(split, random.Random(5)), 800))
    assert rows == list(itertools.islice(phrase_examples(split, random.Random(5)), 800))
    assert rows != list(itertools.islice(phrase_examples(split, random.Random(6)), 800))
    counts = [sum(key == other for _, other in rows) for key in BANK]
    assert set(counts) == {10}
    for question, key in rows:
        assert "{" not in question and "  " not in question and BANK[key].gives_away(question) is None, (
            question
        )
        own = [
            phrase for phrase in BANK[key].phrases if phrase.text.removeprefix(phrase.shape)[-12:] in question
        ]
        assert any(phrase.held == (split == "held") for phrase in own), question
    styles = {(question[0].isupper(), question[-1] in ".?") for question, _ in rows}
    assert len(styles) == 4


def test_bad_banks_and_splits_say_what_is_wrong(tmp_path):
    with pytest.raises(BadInput, match="no phrase bank"):
        load("nowhere")
    broken = tmp_path / "broken.toml"
    broken.write_text("[cup\n")
    with pytest.raises(BadInput, match="not valid TOML"):
        load(str(broken))
    lacking = tmp_path / "lacking.toml"
    lacking.write_text('[cup]\nname = "cup"\nphrases = ["a vessel"]\n')
    with pytest.raises(BadInput, match="lacks plural, group"):
        load(str(lacking))
    with pytest.raises(BadInput, match="train.*held"):
        BANK["cup"].split("test")


@pytest.mark.parametrize("name", sorted(BANKS))
def test_groups_ask_without_naming(name):
    bank, groups = BANKS[name], load_groups(name)
    texts = [question.text for group in groups for question in group.questions]
    assert len(set(texts)) == len(texts)
    for group in groups:
        members = [*group.categories, *group.maybe]
        assert group.categories and set(members) <= set(bank) and len(set(members)) == len(members)
        assert len(group.split("train")) >= 2 and len(group.split("held")) == 2
        for question in group.questions:
            for (
                key
            ) in group.categories:  # words for the whole group ("seat") are what such a question is made of
                names = {bank[key].key, bank[key].name, bank[key].plural, *bank[key].synonyms}
                assert not re.search(rf"\b({'|'.join(names)})s?\b", question.text), (key, question.text)
            assert not re.search(r"  |[^?a-z]$", question.text.lower()), question.text


def test_groups_are_many_and_missing_files_are_none(tmp_path):
    assert len(load_groups("coco")) >= 30 and len(load_groups("carparts")) >= 12
    assert load_groups(str(tmp_path / "mine.toml")) == ()
    (tmp_path / "bad.groups.toml").write_text("[seat]\ncategories = ['chair']\n")
    with pytest.raises(BadInput, match="questions"):
        load_groups(str(tmp_path / "bad.toml"))
