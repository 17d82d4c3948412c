"""What a question took, on average: the cost that stands beside every score.

query_costs([{"seconds": 0.8, "calls": 1}, {"seconds": 0.6, "calls": 2}])
# {"seconds_per_query": 0.7, "calls_per_query": 1.5, "tokens_per_query": None, ...}
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

# Fields of a line that say what a question took, beside its seconds.
COUNTS = ("tokens", "read_tokens", "image_tokens", "calls", "passes")


def query_costs(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What the questions of some lines took.

    Args:
        lines: Lines of samples.jsonl. A field holds the value of a question, None where it is unknown, or a
            list of the values of several questions about one image.

    Returns:
        The fields of `eval.result.Result` that say it: the median of the seconds and the means of the counts,
        each None where nothing is known.
    """
    lines = list(lines)
    seconds = _values(lines, "seconds")
    costs: dict[str, Any] = {"seconds_per_query": float(np.median(seconds)) if seconds else None}
    for name in COUNTS:
        values = _values(lines, name)
        costs[f"{name}_per_query"] = float(np.mean(values)) if values else None
    return costs


def _values(lines: list[dict[str, Any]], name: str) -> list[float]:
    """The known values of a field."""
    values: list[float] = []
    for line in lines:
        value = line.get(name)
        values += [v for v in (value if isinstance(value, list) else [value]) if v is not None]
    return values
