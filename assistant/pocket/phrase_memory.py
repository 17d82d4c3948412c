"""The phrase bank as a memory: which names a question may mean, by the sentence encoder.

    memory = PhraseMemory.load(pocket_file("phrases.safetensors"), encoder)
    meant = memory.recall("what keeps the rain off?", ["umbrella", "bed"])
    meant.similarities, meant.stranger                      # {"umbrella": 0.71, "bed": 0.2}, 0.35

The vectors of the bank's names, synonyms, phrases and questions are stored in `phrases.safetensors`, which
`python -m tests.helpers.pocket_phrases` writes. Phrases and questions that the bank holds out are not in it.
Things that the preset was not taught are in it too: a question that is nearer to one of them means no taught
name.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.pocket.sentence_encoder import SentenceEncoder
from assistant.weights import read_weights

MAX_PHRASES = 3  # of a name whose similarities are averaged: one alone may fit by chance
MAX_GROUP_QUESTIONS = 2  # the same of a group of names
SMALL_TALK_FILE = Path(__file__).parent / "small_talk.toml"
# Cosine from which a text asks for nothing, if it is so much nearer than any name.
MIN_TALK_SIMILARITY = 0.45
TALK_MARGIN = 0.2
NOT_SIMILAR = -1.0  # the least cosine


@dataclass
class PhraseTable:
    """What the memory holds, one entry for each vector.

    Attributes:
        owners: The name that each text stands for, the key of its group, or the reply to it.
        kinds: "name", "phrase", "group" or "talk".
        groups: {key: the names that its questions mean together}.
        checksum: Of the texts, hexadecimal.
    """

    owners: list[str]
    kinds: list[str]
    groups: dict[str, list[str]]
    checksum: str


@dataclass
class Recall:
    """How near a text is to the taught names.

    Attributes:
        similarities: {name: cosine in [-1, 1]}.
        group: The names of the group whose questions are nearer than any name by itself; [] without one.
        stranger: The cosine of the phrases of the nearest thing that was not taught.
        stranger_name: That of the nearest name of such a thing.
        talk: The reply to a text that asks for nothing; "" where it asks for something.
    """

    similarities: dict[str, float]
    group: list[str]
    stranger: float
    stranger_name: float
    talk: str


@dataclass
class _Rows:
    """Rows of vectors by what they belong to."""

    names: list[int] = field(default_factory=list)
    phrases: list[int] = field(default_factory=list)


class PhraseMemory:
    """Compares texts with the phrase bank.

    Args:
        encoder: The sentence encoder.
        table: What the vectors stand for.
        vectors: (N, 384) unit vectors.
    """

    def __init__(self, encoder: SentenceEncoder, table: PhraseTable, vectors: Tensor):
        self.encoder = encoder
        self.table = table
        self.vectors = vectors
        self._last: tuple[str, Tensor] | None = None
        self._rows: dict[str, _Rows] = {}
        self._group_rows: dict[str, list[int]] = {}
        self._talk_rows: list[int] = []
        for row, (owner, kind) in enumerate(zip(table.owners, table.kinds, strict=True)):
            if kind == "group":
                self._group_rows.setdefault(owner, []).append(row)
            elif kind == "talk":
                self._talk_rows.append(row)
            else:
                rows = self._rows.setdefault(owner, _Rows())
                (rows.names if kind == "name" else rows.phrases).append(row)

    @classmethod
    def load(cls, file: Path, encoder: SentenceEncoder) -> "PhraseMemory":
        """Load what `save` wrote. Raises BadInput where the file holds something else."""
        state, metadata = read_weights(file)
        try:
            table = PhraseTable(**json.loads(metadata["phrases"]))
            vectors = state["vectors"].float()
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"{file} holds no phrases of this version; fetch it again") from None
        return cls(encoder, table, vectors)

    def save(self, file: Path) -> None:
        """Write the vectors, in half precision, to a safetensors file."""
        from safetensors.torch import save_file

        with replace_whole(file) as path:
            metadata = {"phrases": json.dumps(vars(self.table), ensure_ascii=False)}
            save_file({"vectors": self.vectors.half().contiguous()}, path, metadata)

    def extended(self, names: Sequence[str]) -> "PhraseMemory":
        """The memory with names that it lacks, as those of a tuned adapter, each by its name alone."""
        new = [name for name in names if name not in self._rows]
        if not new:
            return self
        table = PhraseTable(
            [*self.table.owners, *new],
            [*self.table.kinds, *["name"] * len(new)],
            self.table.groups,
            self.table.checksum,
        )
        return PhraseMemory(self.encoder, table, torch.cat([self.vectors, self.encoder(new)]))

    def _encoded(self, text: str) -> Tensor:
        """The vector of a text; of the last one it is remembered."""
        if self._last is None or self._last[0] != text:
            self._last = (text, self.encoder([text])[0])
        return self._last[1]

    def recall(self, text: str, taught: Sequence[str]) -> Recall:
        """Compare a text with everything in the memory.

        Args:
            text: A question or a description.
            taught: The names that may be meant, each in the memory.

        Returns:
            The similarity of each name: that of its best synonym, of its best phrases, or of the best
            questions of a group that it belongs to, whichever is highest.
        """
        cosines = self.vectors @ self._encoded(text)
        by_name = {name: _best(cosines, rows.names) for name, rows in self._rows.items()}
        by_phrases = {
            name: _mean_of_best(cosines, rows.phrases, MAX_PHRASES) for name, rows in self._rows.items()
        }
        similarities = {name: max(by_name[name], by_phrases[name]) for name in taught}
        nearest = max(similarities.values(), default=NOT_SIMILAR)
        group: list[str] = []
        for key, questions in self._group_rows.items():
            cosine = _mean_of_best(cosines, questions, MAX_GROUP_QUESTIONS)
            members = [name for name in self.table.groups[key] if name in similarities]
            if members and cosine > nearest:
                nearest = cosine
                group = members
            for name in members:
                similarities[name] = max(similarities[name], cosine)
        strangers = self._rows.keys() - similarities.keys()
        return Recall(
            similarities,
            group,
            max((by_phrases[name] for name in strangers), default=NOT_SIMILAR),
            max((by_name[name] for name in strangers), default=NOT_SIMILAR),
            self._reply(cosines, nearest),
        )

    def _reply(self, cosines: Tensor, nearest: float) -> str:
        """The reply to what asks for nothing; `nearest`: the cosine of the nearest name."""
        if not self._talk_rows:
            return ""
        best = max(self._talk_rows, key=cosines.__getitem__)
        similarity = float(cosines[best])
        is_talk = similarity >= MIN_TALK_SIMILARITY and similarity >= nearest + TALK_MARGIN
        return self.table.owners[best] if is_talk else ""


def _best(cosines: Tensor, rows: list[int]) -> float:
    return float(cosines[rows].max()) if rows else NOT_SIMILAR


def _mean_of_best(cosines: Tensor, rows: list[int], count: int) -> float:
    return float(cosines[rows].topk(min(count, len(rows))).values.mean()) if rows else NOT_SIMILAR
