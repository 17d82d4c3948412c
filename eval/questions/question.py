"""One question of a benchmark whose truth is masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from assistant.record import Record


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
        key: Its unique name, and that of its file in `--predictions`.
        record: The question and its truth.
        image: The image file.
        groups: The groups that it is scored in, as "name: value".
    """

    key: int | str
    record: Record
    image: Path
    groups: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """How the result lists it when it cannot be used."""
        name = f"row {self.key + 1}" if isinstance(self.key, int) else self.key
        return f"{name}, {self.record.image}"
