"""What became of one image: the records made of it, what was dropped and why.

result = ImageResult(rows, {"implicit: too short": 2}, difficulty="simple")
cache.put(name, result.to_json())
result = ImageResult.from_json(cache.get(name))
"""

from dataclasses import dataclass, field
from typing import Any

from assistant.record import Record, from_dict

# Drops that end so are caused by a model that gave no answer; another run may get one.
UNANSWERED = ("no usable answer", "no second opinion")


@dataclass
class ImageResult:
    """What became of one image.

    Attributes:
        rows: Its records as JSON objects.
        drops: {reason: how often}, of what was tried and given up.
        difficulty: "single", "simple" or "complex" (`datagen.sources.pick.difficulty`); "" when the image was
            not asked about.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)
    difficulty: str = ""

    @property
    def is_final(self) -> bool:
        """Whether another run would make the same of the image."""
        return not any(drop.endswith(UNANSWERED) for drop in self.drops)

    @property
    def records(self) -> list[Record]:
        """The rows as records."""
        return [from_dict(row) for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the result cache holds."""
        return {"rows": self.rows, "drops": self.drops, "sort": self.difficulty}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "ImageResult":
        """Read what `to_json` gives."""
        return cls(row["rows"], row["drops"], row["sort"])
