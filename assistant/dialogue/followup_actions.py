"""What a follow-up asks to do with the masks of the last answer, or with a marked part of the image.

    Remove("cup")                        # "now remove the cup"
    Choose("left")                       # "and the one on the left?"
    ChooseNumber(2)                      # "the second one"
    FindBeside("near", "spoon")          # "the spoon next to it"

`assistant.dialogue.followup_parser` makes these actions of a question, `assistant.dialogue.followups` carries
them out.
"""

from dataclasses import dataclass
from typing import Literal

# What singles one instance out among several.
Criterion = Literal[
    "left",
    "right",
    "top",
    "bottom",
    "middle",
    "smallest",
    "largest",
    "smaller",
    "larger",
    "tallest",
    "shortest",
]
# Where something lies, as seen from a marked part of the image.
Direction = Literal["near", "left", "right", "above", "below"]

# Criteria that stand after the noun; the others stand before it.
POSITION_PHRASES: dict[str, str] = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}


def in_words(noun: str, criterion: Criterion) -> str:
    """A noun with a criterion: "cup on the left", "largest cup"."""
    position = POSITION_PHRASES.get(criterion)
    return f"{noun} {position}" if position else f"{criterion} {noun}"


@dataclass(frozen=True)
class Remove:
    """Take a target out of what is shown.

    Attributes:
        phrase: Its name; None to take out everything.
    """

    phrase: str | None


@dataclass(frozen=True)
class Keep:
    """Show some of the targets and nothing else.

    Attributes:
        phrases: Their names.
    """

    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Add:
    """Find a target and show it beside what is shown.

    Attributes:
        phrase: Its name as the user wrote it.
    """

    phrase: str


@dataclass(frozen=True)
class Again:
    """Show the same again."""


@dataclass(frozen=True)
class Others:
    """Show all instances of the target shown last, except the one that is shown."""


@dataclass(frozen=True)
class Another:
    """Show another instance of the target shown last.

    Attributes:
        criterion: What singles it out; None for the next best.
    """

    criterion: Criterion | None = None


@dataclass(frozen=True)
class Choose:
    """Show one instance of a target.

    Attributes:
        criterion: What singles it out.
        phrase: The target's name, None for the one shown last.
    """

    criterion: Criterion
    phrase: str | None = None


@dataclass(frozen=True)
class ChooseNumber:
    """Show the instance with a number.

    Attributes:
        number: From 1; -1 for the last.
        side: Where counting begins: "left", "right", "top" or "bottom"; None for reading order.
        phrase: The target's name, None for the one shown last.
    """

    number: int
    side: Criterion | None = None
    phrase: str | None = None


FollowUp = Remove | Keep | Add | Again | Others | Another | Choose | ChooseNumber


@dataclass(frozen=True)
class NameRegion:
    """Say what the marked part of the image is."""


@dataclass(frozen=True)
class FindBeside:
    """Find something in a direction of the marked part of the image.

    Attributes:
        direction: Where it lies.
        noun: What to look for, None for whatever is there.
    """

    direction: Direction
    noun: str | None = None
