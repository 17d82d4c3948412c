"""The phrase bank as data: rich, and naming nothing that it should describe."""

import itertools
import re
from collections import Counter

import pytest

from assistant.errors import BadInput
from datagen.composer import phrasebank
from datagen.composer.bank_faults import entry_faults
from datagen.composer.english import article, pluralise
from datagen.composer.phrasebank import Phrase, load_bank, load_groups

# {bank: (least entries, least phrases of an entry)}
LEAST = {
    "coco": (80, 18),
    "carparts": (18, 14),
    "clothing": (58, 13),
    "street": (40, 13),
    "things": (285, 12),
}
BANKS = {name: load_bank(name) for name in LEAST}
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
    assert all(3 <= len(entry.companions) <= 8 for entry in BANK.values())


@pytest.mark.parametrize("name", sorted(BANKS))
def test_no_phrase_names_its_category_or_is_misshapen(name):
    bank, (entries, phrases) = BANKS[name], LEAST[name]
    assert len(bank) >= entries and min(len(entry.phrases) for entry in bank.values()) >= phrases
    assert [fault for entry in bank.values() for fault in entry_faults(entry, bank)] == []
    assert {entry.number for entry in bank.values()} <= {"count", "one", "plural", "set", "mass"}


def test_every_file_is_in_a_bank_and_banks_can_be_joined():
    files = {
        path.parent.name if path.parent != phrasebank.PHRASES_FOLDER else path.stem
        for path in phrasebank.PHRASES_FOLDER.rglob("*.toml")
        if ".groups" not in path.name
    }
    assert files == set(LEAST)
    both = load_bank("street,coco")
    assert both["car"] == BANKS["street"]["car"] and both["umbrella"].phrases == BANK["umbrella"].phrases
    assert len(both) == len(set(BANK) | set(BANKS["street"]))
    assert load_groups("street,coco") == load_groups("street") + load_groups("coco")


def test_things_are_kinds_of_what_photos_label():
    kinds = {key: entry.kind_of for key, entry in BANKS["things"].items() if entry.kind_of}
    assert kinds == {"baby": "person", "rocking chair": "chair"} and set(kinds.values()) <= set(BANK)


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
        assert any(fault in line for line in entry_faults(bad, BANK)), text


@pytest.mark.parametrize("name", sorted(BANKS))
def test_held_phrases_are_the_last_two_and_no_near_duplicates(name):
    texts = Counter(phrase.text.lower() for entry in BANKS[name].values() for phrase in entry.phrases)
    assert max(texts.values()) == 1, texts.most_common(3)
    for entry in BANKS[name].values():
        assert [phrase.is_held for phrase in entry.phrases] == [False] * (len(entry.phrases) - 2) + [True] * 2
        for held, trained in itertools.product(entry.split("held"), entry.split("train")):
            a, b = words(held.text), words(trained.text)
            assert len(a & b) / len(a | b) < 0.4, (held.text, trained.text)


def test_shapes_become_english():
    def phrase(text, category="umbrella"):
        return Phrase("x/0", text, category, (), False, is_person=category == "person")

    keeps, hold, noun = phrase("that keeps dry"), phrase("which you open"), phrase("a canopy on a stick")
    assert [each.as_a() for each in (keeps, hold, noun)] == [
        "something that keeps dry",
        "something that you open",
        "a canopy on a stick",
    ]
    assert [each.as_the() for each in (keeps, hold, noun)] == [
        "the thing that keeps dry",
        "the thing that you open",
        "the canopy on a stick",
    ]
    assert phrase("something to keep dry under").as_the() == "the thing to keep dry under"
    assert phrase("something soft to hold").as_the() == "something soft to hold"
    assert hold.as_what() == "what you open"
    assert phrase("that talks", "person").as_a() == "someone who talks"
    assert [pluralise(word) for word in ("bus", "dish", "pastry", "toy")] == [
        "buses",
        "dishes",
        "pastries",
        "toys",
    ]
    assert [article(word) for word in ("apple", "uniform", "TV")] == [
        "an apple",
        "a uniform",
        "a TV",
    ]


def test_bad_banks_and_splits_say_what_is_wrong(tmp_path):
    with pytest.raises(BadInput, match="no phrase bank"):
        load_bank("nowhere")
    broken = tmp_path / "broken.toml"
    broken.write_text("[cup\n")
    with pytest.raises(BadInput, match="not valid TOML"):
        load_bank(str(broken))
    lacking = tmp_path / "lacking.toml"
    lacking.write_text('[cup]\nname = "cup"\nphrases = ["a vessel"]\n')
    with pytest.raises(BadInput, match="lacks plural, group"):
        load_bank(str(lacking))
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
