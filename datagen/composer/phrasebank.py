"""The phrase bank: what everyday things are for, where they are and how they look, without their names.

    from datagen.composer.phrasebank import load
    bank = load("coco")                       # {"umbrella": Entry(...), ...}
    bank["umbrella"].split("train")           # phrases that training may use; "held": the last two, kept aside

    for question, category in phrase_examples("train", random.Random(0)): ...   # endless; needs no photos

The banks are the TOML files in `datagen/composer/phrases/` (things/ is one bank in several files); the head of coco.toml says how
to add to them. `coco.groups.toml` holds questions that several categories answer ("what could I sit on?"). A phrase comes in
one of three shapes: a clause whose subject is the thing ("that keeps the rain off"), one whose object it is ("which you
open when it pours"), or a noun phrase with an indefinite article ("a canopy on a stick"); `as_that`, `as_what`, `as_a`
and `as_the` turn them into what a question needs.
"""

import functools
import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assistant.errors import BadInput

FOLDER = Path(__file__).parent / "phrases"
HELD = 2  # the last so many phrases of each entry are kept out of training


@dataclass(frozen=True)
class Phrase:
    id: str  # "umbrella/3": the entry's key and the number in its list
    text: str  # without the bar and what follows it
    category: str  # key of the entry
    also: tuple[str, ...]  # keys of entries of which it is just as true
    held: bool  # kept out of training
    who: bool = False  # the thing is a person: "who", not "what"

    @property
    def shape(self) -> str:
        """ "that", "which" or "noun"."""
        return next((shape for shape in ("that", "which") if self.text.startswith(shape + " ")), "noun")


@dataclass(frozen=True)
class Entry:
    key: str  # the data set's own name
    name: str  # what a reply calls it
    plural: str
    number: str  # "count", "one", "plural", "set" or "mass": the head of coco.toml says which is which
    synonyms: tuple[str, ...]
    avoid: tuple[str, ...]
    group: str
    confused: tuple[str, ...]
    beside: tuple[str, ...]
    phrases: tuple[Phrase, ...]
    part_of: str = ""  # what it is a part of ("car"), if of anything
    who: bool = False  # a person
    vague: bool = False  # not asked about beside what it is confused with

    def split(self, split: str) -> list[Phrase]:
        """The phrases of "train" or of "held"."""
        if split not in ("train", "held"):
            raise BadInput(f"the split is 'train' or 'held', not {split!r}")
        return [phrase for phrase in self.phrases if phrase.held == (split == "held")]

    def forbidden(self) -> list[str]:
        """Every word that would give the name away, plurals included."""
        names = [self.key, self.name, self.plural, *self.synonyms, *self.avoid]
        return sorted({word.lower() for name in names for word in (name, pluralise(name))})

    def gives_away(self, text: str) -> str | None:
        """The first forbidden word in `text`, or None."""
        pattern = r"(?<![a-z])(%s)(?![a-z])" % "|".join(re.escape(word) for word in self.forbidden())
        found = re.search(pattern, text.lower())
        return found[0] if found else None

    def mention(self, count: int = 1) -> str:
        """What a reply calls so many of it: "cup", "cups", "pair of scissors"."""
        if count > 1 or self.number == "set":
            return self.plural
        return f"pair of {self.plural}" if self.number == "plural" else self.name


@dataclass(frozen=True)
class Group:
    key: str  # "seat"
    categories: tuple[str, ...]  # what is meant: every one that is there
    maybe: tuple[str, ...]  # categories that some would count and some would not
    questions: tuple[Phrase, ...]  # whole questions, as phrases without a category of their own

    def split(self, split: str) -> list[Phrase]:
        """The questions of "train" or of "held"."""
        return [question for question in self.questions if question.held == (split == "held")]


def _files(name: str, end: str) -> list[Path]:
    """The files of a bank, of those that end so: "coco", "things" (a folder), "street,coco" (the first one's entry counts
    where both have one), or the path of a .toml file."""
    files = []
    for part in name.split(","):
        path = Path(part) if part.endswith(".toml") else FOLDER / part
        if path.is_dir():
            groups = end == ".groups.toml"
            files += sorted(
                file for file in path.glob("*.toml") if file.name.endswith(".groups.toml") == groups
            )
        else:
            files.append(path.with_suffix(end))
    return files


@functools.cache
def load_groups(name: str = "coco") -> tuple[Group, ...]:
    """The groups, NAME.groups.toml, that go with a bank; none where a bank has no such file."""
    groups = []
    for path in _files(name, ".groups.toml"):
        if not path.exists():
            continue
        try:
            for key, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
                last = len(table["questions"]) - HELD
                questions = tuple(
                    Phrase(f"{key}/{number}", text, key, (), number >= last)
                    for number, text in enumerate(table["questions"])
                )
                groups.append(
                    Group(key, tuple(table["categories"]), tuple(table.get("maybe", ())), questions)
                )
        except (tomllib.TOMLDecodeError, KeyError, TypeError) as problem:
            raise BadInput(f"{path} is not a file of groups like coco.groups.toml: {problem}") from None
    return tuple(groups)


@functools.cache
def load(name: str = "coco") -> dict[str, Entry]:
    """The bank of that name in `datagen/composer/phrases`, several joined by commas, or any .toml file of that shape; key -> Entry."""
    tables, origin = {}, {}
    for path in _files(name, ".toml"):
        try:
            file = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadInput(
                f"there is no phrase bank {path}; name a .toml file of the shape of coco.toml"
            ) from None
        except tomllib.TOMLDecodeError as problem:
            raise BadInput(f"{path} is not valid TOML: {problem}") from None
        # What stands above the first table goes for all of them.
        common = {field: value for field, value in file.items() if not isinstance(value, dict)}
        for key, table in file.items():
            if isinstance(table, dict) and key not in tables:
                tables[key], origin[key] = common | table, path
    confused = {key: set(table.get("confused", ())) for key, table in tables.items()}
    for key in tables:
        for other in tables[key].get("confused", ()):
            confused.setdefault(other, set()).add(key)
    return {key: _entry(origin[key], key, table, confused[key]) for key, table in tables.items()}


def _entry(path: Path, key: str, table: dict, confused: set[str]) -> Entry:
    missing = [field for field in ("name", "plural", "group", "phrases") if field not in table]
    if missing:
        raise BadInput(f"{path}: [{key}] lacks {', '.join(missing)}")
    phrases = []
    for number, line in enumerate(table["phrases"]):
        text, _, also = line.partition("|")
        also = tuple(word.strip() for word in also.split(",") if word.strip())
        held = number >= len(table["phrases"]) - HELD
        phrases.append(Phrase(f"{key}/{number}", text.strip(), key, also, held, table.get("who", False)))
    return Entry(
        key,
        table["name"],
        table["plural"],
        table.get("number", "count"),
        tuple(table.get("synonyms", ())),
        tuple(table.get("avoid", ())),
        table["group"],
        tuple(sorted(confused)),
        tuple(table.get("beside", ())),
        tuple(phrases),
        table.get("part_of", ""),
        table.get("who", False),
        table.get("vague", False),
    )


def pluralise(word: str) -> str:
    """A regular English plural: "bus" -> "buses", "cherry" -> "cherries"; irregular ones stand in the file."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def article(noun: str) -> str:
    """`noun` with its indefinite article: "a cup", "an oven", "a uniform"."""
    vowel = re.match(r"[aeiou]", noun.lower()) and not re.match(r"(uni|use|eu|one|ukulele)", noun.lower())
    return ("an " if vowel else "a ") + noun


def as_that(phrase: Phrase) -> str:
    """A clause after a noun: "that keeps the rain off", "that you open when it pours", "who can tell a story"."""
    link = "who" if phrase.who else "that"
    return link + phrase.text.removeprefix(phrase.shape)


def as_what(phrase: Phrase) -> str:
    """A clause that stands for the thing: "what keeps the rain off", "who can tell a story"."""
    link = "who" if phrase.who else "what"
    return link + phrase.text.removeprefix(phrase.shape)


def as_a(phrase: Phrase) -> str:
    """An indefinite description: "something that keeps the rain off", "a canopy on a stick"."""
    if phrase.shape == "noun":
        return phrase.text
    return f"{'someone' if phrase.who else 'something'} {as_that(phrase)}"


def as_the(phrase: Phrase) -> str:
    """A definite description where English allows one: "the thing that keeps the rain off", "the canopy on a stick"."""
    if phrase.shape != "noun":
        return f"{'the one' if phrase.who else 'the thing'} {as_that(phrase)}"
    if found := re.match(
        r"something (?=you |that |to |with |on |for |in |from |people |a |an |the )", phrase.text
    ):
        return "the thing " + phrase.text[found.end() :]
    if found := re.match(r"(a|an|some) ", phrase.text):
        return "the " + phrase.text[found.end() :]
    return phrase.text


def wrong_phrases(entry: Entry, bank: dict[str, Entry]) -> list[str]:
    """What is wrong with an entry, one line a fault; an empty list for a good one. Shown by the tests."""
    faults = []
    for phrase in entry.phrases:
        if given := entry.gives_away(phrase.text):
            faults.append(f"{phrase.id}: '{phrase.text}' names it ({given})")
        if not re.match(r"(that|which|an?|something|some|someone|somebody|somewhere) ?", phrase.text):
            faults.append(
                f"{phrase.id}: '{phrase.text}' begins with neither that, which nor an indefinite article"
            )
        if found := re.match(
            r"that (an?|the|you|your|people|someone|somebody|everyone|he|she|they|it) ", phrase.text
        ):
            faults.append(
                f"{phrase.id}: 'that {found[1]} ...' is a clause whose object is the thing: begin with which"
            )
        if phrase.text != phrase.text.strip(" .?!,") or "  " in phrase.text:
            faults.append(f"{phrase.id}: '{phrase.text}' has stray punctuation or spaces")
        faults += [f"{phrase.id}: no entry {other!r}" for other in phrase.also if other not in bank]
    for other in (*entry.beside, *entry.confused):
        if other not in bank or other == entry.key:
            faults.append(f"{entry.key}: no other entry {other!r}")
    return faults


def phrase_examples(split: str, rng: random.Random, bank: str = "coco") -> Iterator[tuple[str, str]]:
    """Endless (question, category key) pairs from phrases alone, categories and phrases evenly; "train" or "held"."""
    from datagen.composer.wording import implicit_question

    entries = load(bank)
    while True:
        for key in rng.sample(sorted(entries), len(entries)):
            yield implicit_question(rng.choice(entries[key].split(split)), split, rng), key
