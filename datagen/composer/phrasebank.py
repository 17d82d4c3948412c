"""The phrase bank: what everyday objects are for, where they are and how they look, without their names.

    bank = load_bank("coco")             # {"umbrella": Entry(...), ...}
    bank["umbrella"].split("train")      # phrases that training may use; "held": the last two, kept out of it
    load_groups("coco")                  # questions that several categories answer ("what could I sit on?")

The banks are the TOML files in `datagen/composer/phrases/` (things/ is one bank in several files); the head
of coco.toml says how to add to them, and coco.groups.toml holds its groups. A phrase has one of three shapes:
a clause whose subject is what it describes ("that keeps the rain off"), a clause with another subject ("which
you open when it pours"), or a noun phrase with an indefinite article ("a canopy on a stick").
`Phrase.as_that`, `as_what`, `as_a` and `as_the` turn them into what a question needs.
"""

import functools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assistant.errors import BadInput
from datagen.composer.english import pluralise

PHRASES_FOLDER = Path(__file__).parent / "phrases"
HELD_PHRASES = 2  # of each entry, the last ones, are kept out of training


@dataclass(frozen=True)
class Phrase:
    """A description that does not name its category, or a question that several categories answer.

    Attributes:
        id: "umbrella/3": the entry's key and the number in its list.
        text: The phrase.
        category: Key of the entry, or of the group.
        also_true_of: Keys of further entries that it describes just as well.
        is_held: Whether it is kept out of training.
        is_person: Whether it describes people: "who", not "what".
    """

    id: str
    text: str
    category: str
    also_true_of: tuple[str, ...]
    is_held: bool
    is_person: bool = False

    @property
    def shape(self) -> str:
        """ "that", "which" or "noun"; see the head of this module."""
        return next((shape for shape in ("that", "which") if self.text.startswith(shape + " ")), "noun")

    @property
    def clause(self) -> str:
        """A clause without its first word: "keeps the rain off"; of a noun phrase, all of it."""
        return self.text.removeprefix(self.shape).lstrip()

    def as_that(self) -> str:
        """A clause after a noun: "that keeps the rain off", "who can tell a story"."""
        return f"{'who' if self.is_person else 'that'} {self.clause}"

    def as_what(self) -> str:
        """A clause that stands for the object: "what keeps the rain off", "who can tell a story"."""
        return f"{'who' if self.is_person else 'what'} {self.clause}"

    def as_a(self) -> str:
        """An indefinite description: "something that keeps the rain off", "a canopy on a stick"."""
        if self.shape == "noun":
            return self.text
        return f"{'someone' if self.is_person else 'something'} {self.as_that()}"

    def as_the(self) -> str:
        """A definite description where English has one: "the canopy on a stick"."""
        if self.shape != "noun":
            return f"{'the one' if self.is_person else 'the thing'} {self.as_that()}"
        linked = r"something (?=you |that |to |with |on |for |in |from |people |a |an |the )"
        if match := re.match(linked, self.text):
            return "the thing " + self.text[match.end() :]
        if match := re.match(r"(a|an|some) ", self.text):
            return "the " + self.text[match.end() :]
        return self.text


@dataclass(frozen=True)
class Entry:
    """A category of the bank.

    Attributes:
        key: The data set's own name.
        name: What a reply calls it.
        plural: The same for several.
        number: "count", "one", "plural", "set" or "mass"; the head of coco.toml says which is which.
        synonyms: Other names that a question may use.
        avoid: Further words that give the name away.
        group: The natural class that it belongs to.
        confused: Keys of categories whose labels people mix up with its own.
        companions: Keys of categories that belong in the same scene.
        phrases: Descriptions that do not name it.
        part_of: What it is a part of ("car"), if of anything.
        kind_of: The key, maybe in another bank, of what photos label it as (a baby as "person"), if of any.
        is_person: Whether it is a person: "who", not "what".
        is_vague: Whether it is not asked about in an image that also shows what it is confused with.
    """

    key: str
    name: str
    plural: str
    number: str
    synonyms: tuple[str, ...]
    avoid: tuple[str, ...]
    group: str
    confused: tuple[str, ...]
    companions: tuple[str, ...]
    phrases: tuple[Phrase, ...]
    part_of: str = ""
    kind_of: str = ""
    is_person: bool = False
    is_vague: bool = False

    def split(self, split: str) -> list[Phrase]:
        """Return the phrases of "train" or of "held".

        Raises:
            BadInput: There is no such split.
        """
        if split not in ("train", "held"):
            raise BadInput(f"the split is 'train' or 'held', not {split!r}")
        return [phrase for phrase in self.phrases if phrase.is_held == (split == "held")]

    def forbidden(self) -> list[str]:
        """Every word that would give the name away, plurals included."""
        names = [self.key, self.name, self.plural, *self.synonyms, *self.avoid]
        return sorted({word.lower() for name in names for word in (name, pluralise(name))})

    def gives_away(self, text: str) -> str | None:
        """Return the first forbidden word in a text, or None."""
        alternatives = "|".join(re.escape(word) for word in self.forbidden())
        match = re.search(rf"(?<![a-z])({alternatives})(?![a-z])", text.lower())
        return match[0] if match else None

    def mention(self, count: int = 1) -> str:
        """What a reply calls so many of it: "cup", "cups", "pair of scissors"."""
        if count > 1 or self.number == "set":
            return self.plural
        return f"pair of {self.plural}" if self.number == "plural" else self.name


@dataclass(frozen=True)
class Group:
    """Questions that several categories answer.

    Attributes:
        key: "seat".
        categories: Keys of what is meant: every one that an image shows.
        maybe: Keys of what some people would count and some would not.
        questions: Whole questions, as phrases without a category of their own.
    """

    key: str
    categories: tuple[str, ...]
    maybe: tuple[str, ...]
    questions: tuple[Phrase, ...]

    def split(self, split: str) -> list[Phrase]:
        """Return the questions of "train" or of "held"."""
        return [question for question in self.questions if question.is_held == (split == "held")]


@functools.cache
def load_bank(name: str = "coco") -> dict[str, Entry]:
    """Load a phrase bank.

    Args:
        name: A bank in `datagen/composer/phrases`, or any .toml file of that shape; several with commas
            between. Where several have an entry for a category, the first one's counts.

    Returns:
        {key: entry}.

    Raises:
        BadInput: There is no such bank, or it lacks something.
    """
    tables: dict[str, dict[str, Any]] = {}
    origins: dict[str, Path] = {}
    for path in _bank_files(name, ".toml"):
        file = _read_toml(path)
        # What stands above the first table goes for all of them.
        common = {field: value for field, value in file.items() if not isinstance(value, dict)}
        for key, table in file.items():
            if isinstance(table, dict) and key not in tables:
                tables[key] = common | table
                origins[key] = path
    confused = _symmetric(tables)
    return {key: _entry(origins[key], key, table, confused[key]) for key, table in tables.items()}


@functools.cache
def load_groups(name: str = "coco") -> tuple[Group, ...]:
    """Load the groups, NAME.groups.toml, that go with a bank; none where a bank has no such file.

    Args:
        name: As `load_bank` takes it.

    Raises:
        BadInput: A file of groups is not one.
    """
    groups: list[Group] = []
    for path in _bank_files(name, ".groups.toml"):
        if not path.exists():
            continue
        try:
            for key, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
                questions = tuple(
                    Phrase(f"{key}/{number}", text, key, (), is_held)
                    for number, text, is_held in _numbered(table["questions"])
                )
                categories = tuple(table["categories"])
                groups.append(Group(key, categories, tuple(table.get("maybe", ())), questions))
        except (tomllib.TOMLDecodeError, KeyError, TypeError) as problem:
            raise BadInput(f"{path} is not a file of groups like coco.groups.toml: {problem}") from None
    return tuple(groups)


def _bank_files(name: str, end: str) -> list[Path]:
    """The files of a bank that end in ".toml" or in ".groups.toml"; a folder is one bank in several files."""
    files: list[Path] = []
    for part in name.split(","):
        path = Path(part) if part.endswith(".toml") else PHRASES_FOLDER / part
        if path.is_dir():
            is_groups = end == ".groups.toml"
            candidates = sorted(path.glob("*.toml"))
            files += [file for file in candidates if file.name.endswith(".groups.toml") == is_groups]
        else:
            files.append(path.with_suffix(end))
    return files


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"there is no phrase bank {path}; name a .toml file of the shape of coco.toml"
        ) from None
    except tomllib.TOMLDecodeError as problem:
        raise BadInput(f"{path} is not valid TOML: {problem}") from None


def _symmetric(tables: dict[str, dict[str, Any]]) -> dict[str, set[str]]:
    """{key: what it is confused with}, in both directions, whichever table says so."""
    confused = {key: set(table.get("confused", ())) for key, table in tables.items()}
    for key, table in tables.items():
        for other in table.get("confused", ()):
            confused.setdefault(other, set()).add(key)
    return confused


def _numbered(lines: list[str]) -> Iterator[tuple[int, str, bool]]:
    """(number, line, whether it is kept out of training) of an entry's or a group's lines."""
    first_held = len(lines) - HELD_PHRASES
    for number, line in enumerate(lines):
        yield number, line, number >= first_held


def _entry(path: Path, key: str, table: dict[str, Any], confused: set[str]) -> Entry:
    """The entry of a table of the file `path`."""
    missing = [field for field in ("name", "plural", "group", "phrases") if field not in table]
    if missing:
        raise BadInput(f"{path}: [{key}] lacks {', '.join(missing)}")
    is_person = table.get("who", False)
    phrases = []
    for number, line, is_held in _numbered(table["phrases"]):
        text, _, others = line.partition("|")
        also_true_of = tuple(word.strip() for word in others.split(",") if word.strip())
        phrases.append(Phrase(f"{key}/{number}", text.strip(), key, also_true_of, is_held, is_person))
    return Entry(
        key=key,
        name=table["name"],
        plural=table["plural"],
        number=table.get("number", "count"),
        synonyms=tuple(table.get("synonyms", ())),
        avoid=tuple(table.get("avoid", ())),
        group=table["group"],
        confused=tuple(sorted(confused)),
        companions=tuple(table.get("beside", ())),
        phrases=tuple(phrases),
        part_of=table.get("part_of", ""),
        kind_of=table.get("kind_of", ""),
        is_person=is_person,
        is_vague=table.get("vague", False),
    )
