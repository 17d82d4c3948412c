"""Mutated JSON: what other programs and hands make of annotation files.

    for text in mutated_texts(table, count=100, seed=0): ...       # each with one to three mutations

The same seed gives the same texts.
"""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

ODD_VALUES = [
    None,
    "",
    "12",
    "x",
    "a\0b",
    "\ud800",
    "../x",
    0,
    -1,
    1,
    2,
    7.5,
    10**9,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    False,
    [],
    {},
    [None],
    [[]],
    [[1, 2, 3]],
    {"size": [10**6, 10**6], "counts": "o" * 50},
    {"size": [60, 80], "counts": [10, -5, 4795]},
    {"size": [60, 80], "counts": "PPPPPPPP"},
    [[0, 0, 3e8, 3e8, 10, 50]],
    [0, 0, 40, 0, 40, 30, 0, 30],
]

Place = tuple[Any, Any]  # (a list or an object, the index or key of a value in it)


def mutated_texts(table: Any, count: int, seed: int) -> Iterator[bytes]:
    """Mutate a JSON value.

    Args:
        table: The value.
        count: How many texts to give.
        seed: Another seed gives others.

    Yields:
        The text of a file, in UTF-8 unless the text was mutated too.
    """
    rng = random.Random(seed)
    for _ in range(count):
        mutated = deepcopy(table)
        for _ in range(rng.randint(1, 3)):
            places = list(_places(mutated))
            if places:
                _mutate(*rng.choice(places), rng)
        yield _as_text(mutated, rng)


def _places(value: Any) -> Iterator[Place]:
    """Every place of a value in a JSON value."""
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _mutate(parent: Any, key: Any, rng: random.Random) -> None:
    """Change, delete or double one value."""
    action = rng.random()
    if action < 0.15:
        del parent[key]
    elif action < 0.25 and isinstance(parent, list):
        parent.insert(key, deepcopy(parent[key]))
    elif action < 0.35 and isinstance(parent[key], int | float):
        parent[key] = parent[key] * rng.choice((-1, 10, 1000, 0.1))
    else:
        parent[key] = deepcopy(rng.choice(ODD_VALUES))


def _as_text(value: Any, rng: random.Random) -> bytes:
    """A value as a file; one in ten has a byte order mark, another encoding, or ends early."""
    text = json.dumps(value)
    kind = rng.random()
    if kind < 0.03:
        return text.encode("utf-8-sig")
    if kind < 0.05:
        return text.encode("utf-16")
    if kind < 0.07:
        return (text + "杯").encode("gbk")
    if kind < 0.1:
        return text[: rng.randrange(len(text))].encode()
    return text.encode()
