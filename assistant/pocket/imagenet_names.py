"""What people call the 1,000 classes of ImageNet, which the pocket preset's vision model tells apart.

    everyday = everyday_names()
    everyday.names[everyday.rows[207]]          # "dog": class 207 is the golden retriever
    everyday.kinds["bird"]                      # names whose things are birds too: ["chicken", "duck", ...]

`imagenet_names.toml` holds them and may be changed by hand. The classes are those of ImageNet-1k, in its
order, which is that of their synsets' ids.
"""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput

NAMES_FILE = Path(__file__).parent / "imagenet_names.toml"
IMAGENET_CLASSES = 1000
NO_NAME = -1  # in `EverydayNames.rows`


@dataclass(frozen=True)
class EverydayNames:
    """Everyday names of ImageNet's classes.

    Attributes:
        names: The names, each once.
        rows: (1000,) int64, index of each class's name in `names`; `NO_NAME` for a class without one.
        kinds: {name: names whose things it is right for as well}; both are among `names`.
    """

    names: list[str]
    rows: np.ndarray
    kinds: dict[str, list[str]]


@functools.cache
def everyday_names() -> EverydayNames:
    """The names of `imagenet_names.toml`; see `read_names`."""
    return read_names(NAMES_FILE)


def read_names(file: Path) -> EverydayNames:
    """Read a file of names.

    Args:
        file: A file of the shape of `imagenet_names.toml`.

    Returns:
        Its names, in the order of the file.

    Raises:
        BadInput: It is not such a file, a class stands in it twice or not at all, or a kind is no name.
    """
    try:
        table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        classes: dict[str, list[str]] = table["names"]
        left_out = [synset for reason in table["left_out"] for synset in reason["classes"]]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as problem:
        raise BadInput(f"{file} is not a file of names like {NAMES_FILE.name}: {problem}") from None
    names = list(classes)
    row_of: dict[str, int] = {}
    for synset, row in [
        *((synset, row) for row, name in enumerate(names) for synset in classes[name]),
        *((synset, NO_NAME) for synset in left_out),
    ]:
        if synset in row_of:
            raise BadInput(f"{file}: the class {synset} stands there twice")
        row_of[synset] = row
    if len(row_of) != IMAGENET_CLASSES:
        raise BadInput(
            f"{file} has {len(row_of)} classes, not {IMAGENET_CLASSES}: list those without a name in left_out"
        )
    kinds: dict[str, list[str]] = table.get("kinds", {})
    for name in [*kinds, *(kind for narrower in kinds.values() for kind in narrower)]:
        if name not in classes:
            raise BadInput(f"{file}: kinds has {name!r}, which is no name of a class")
    return EverydayNames(names, np.array([row_of[synset] for synset in sorted(row_of)], np.int64), kinds)
