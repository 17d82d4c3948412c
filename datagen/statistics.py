"""What a generated set holds, counted while it is written; as numbers, and as plots on a page."""

import html
from collections import Counter
from dataclasses import dataclass, field

from assistant.record import Record

AREAS = ((0.001, "below 0.001"), (0.01, "0.001 to 0.01"), (0.1, "0.01 to 0.1"), (2.0, "0.1 and more"))


@dataclass
class Statistics:
    """Counts only: it does not grow with the set."""

    questions: int = 0
    photos: int = 0
    words: int = 0
    kinds: Counter = field(default_factory=Counter)
    areas: Counter = field(default_factory=Counter)
    absent: int = 0
    categories: Counter = field(default_factory=Counter)
    phrases: set = field(default_factory=set)
    lengths: Counter = field(default_factory=Counter)  # words of a question
    targets: Counter = field(default_factory=Counter)  # of a question
    sorts: Counter = field(default_factory=Counter)  # of photos
    drops: Counter = field(default_factory=Counter)

    def photo(self, sort: str) -> None:
        self.photos += 1
        self.sorts[sort] += 1

    def record(self, record: Record) -> None:
        words = len(record.question.split())
        self.questions, self.words = self.questions + 1, self.words + words
        self.kinds[record.source["kind"]] += 1
        self.lengths[words] += 1
        self.targets[len(record.targets)] += 1
        self.categories.update(record.source["categories"])
        self.phrases.update(phrase for phrase in record.source["phrase_ids"] if phrase)
        for target, share in zip(record.targets, record.source["area_share"]):
            if target.rle is None:
                self.absent += 1
            else:
                self.areas[next(name for least, name in AREAS if share < least)] += 1

    def figures(self) -> dict:
        ordered = lambda counts: {str(key): counts[key] for key in sorted(counts)}
        return {
            "questions": self.questions,
            "by_kind": dict(self.kinds.most_common()),
            "targets_present": self.areas.total(),
            "targets_absent": self.absent,
            "targets_by_area_share": {name: self.areas[name] for _, name in AREAS},
            "by_category": dict(self.categories.most_common()),
            "phrases_used": len(self.phrases),
            "words_per_question": round(self.words / max(1, self.questions), 2),
            "questions_by_words": ordered(self.lengths),
            "questions_by_targets": ordered(self.targets),
            "photos": self.photos,
            "photos_by_difficulty": dict(self.sorts.most_common()),
            "drops": dict(self.drops.most_common()),
        }

    def page(self, title: str) -> str:
        """An HTML page with plots, nothing to fetch."""
        from assistant.export.html_report import STYLE, bars, table

        figures = self.figures()
        plots = [
            ("Questions by kind", figures["by_kind"]),
            ("Words of a question", figures["questions_by_words"]),
            ("Targets of a question", figures["questions_by_targets"]),
            ("Targets by their share of the picture's area", figures["targets_by_area_share"]),
            (
                "Photos by what is in them (simple: 2 to 5 categories, complex: 6 and more)",
                figures["photos_by_difficulty"],
            ),
            ("What is asked about most", dict(self.categories.most_common(40))),
        ]
        sums = [
            (key.replace("_", " "), value) for key, value in figures.items() if not isinstance(value, dict)
        ]
        return (
            f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>{table(sums)}"
            + "".join(f"<h2>{html.escape(name)}</h2>{bars(name, counts)}" for name, counts in plots)
            + "<h2>Given up, and why</h2>"
            + table(self.drops.most_common())
            + "</html>\n"
        )
