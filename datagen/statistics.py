"""What a generated set holds, counted while it is written; as numbers, and as plots on a page.

statistics = Statistics()
statistics.add_image("simple")
statistics.add_record(record)
statistics.figures()                 # what statistics.json holds
statistics.page("questions")         # statistics.html
"""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from assistant.record import Record

if TYPE_CHECKING:
    from assistant.export.html_report import Sample

# Classes of a target's share of the image's area: (upper limit, name).
AREA_CLASSES = ((0.001, "below 0.001"), (0.01, "0.001 to 0.01"), (0.1, "0.01 to 0.1"), (2.0, "0.1 and more"))
MAX_CATEGORIES_PLOTTED = 40


@dataclass
class Statistics:
    """Counts only, so that it does not grow with the set."""

    questions: int = 0
    images: int = 0
    words: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    areas: Counter[str] = field(default_factory=Counter)
    absent: int = 0
    categories: Counter[str] = field(default_factory=Counter)
    phrases: set[str] = field(default_factory=set)
    words_per_question: Counter[int] = field(default_factory=Counter)
    targets_per_question: Counter[int] = field(default_factory=Counter)
    difficulties: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    dropped_items: dict[str, list[str]] = field(default_factory=dict)  # by reason, the first of them

    def add_image(self, difficulty: str) -> None:
        """Count an image that was asked about."""
        self.images += 1
        self.difficulties[difficulty] += 1

    def add_record(self, record: Record) -> None:
        """Count a question."""
        words = len(record.question.split())
        self.questions += 1
        self.words += words
        self.kinds[record.source["kind"]] += 1
        self.words_per_question[words] += 1
        self.targets_per_question[len(record.targets)] += 1
        self.categories.update(record.source["categories"])
        self.phrases.update(phrase for phrase in record.source["phrase_ids"] if phrase)
        for target, share in zip(record.targets, record.source["area_share"], strict=True):
            if target.rle is None:
                self.absent += 1
            else:
                self.areas[next(name for limit, name in AREA_CLASSES if share < limit)] += 1

    def figures(self) -> dict[str, Any]:
        """Return all counts, as statistics.json holds them."""
        figures: dict[str, Any] = {
            "questions": self.questions,
            "by_kind": dict(self.kinds.most_common()),
            "targets_present": self.areas.total(),
            "targets_absent": self.absent,
            "targets_by_area_share": {name: self.areas[name] for _, name in AREA_CLASSES},
            "by_category": dict(self.categories.most_common()),
            "phrases_used": len(self.phrases),
            "words_per_question": round(self.words / max(1, self.questions), 2),
            "questions_by_words": _in_order(self.words_per_question),
            "questions_by_targets": _in_order(self.targets_per_question),
            "photos": self.images,
            "photos_by_difficulty": dict(self.difficulties.most_common()),
            "drops": dict(self.drops.most_common()),
        }
        return figures | ({"dropped_items": self.dropped_items} if self.dropped_items else {})

    def page(self, title: str, samples: "Iterable[Sample]" = ()) -> str:
        """Return an HTML page with plots, which fetches nothing.

        Args:
            title: Of the page.
            samples: Questions to look at.
        """
        from assistant.export.charts import bars_svg
        from assistant.export.html_report import Report, Table, write_report_page

        figures = self.figures()
        plots = {
            "Questions by kind": figures["by_kind"],
            "Words of a question": figures["questions_by_words"],
            "Targets of a question": figures["questions_by_targets"],
            "Targets by their share of the photo's area": figures["targets_by_area_share"],
            "Photos by what is in them (simple: 2 to 5 categories, complex: 6 and more)": figures[
                "photos_by_difficulty"
            ],
            "What is asked about most": dict(self.categories.most_common(MAX_CATEGORIES_PLOTTED)),
        }
        sums = [
            (key.replace("_", " "), value) for key, value in figures.items() if not isinstance(value, dict)
        ]
        report = Report(
            title,
            about=["Questions about photos, with the masks of what they ask for."],
            headline=Table([], sums, "What it holds"),
            plots=[(name, bars_svg(name, counts)) for name, counts in plots.items()],
            tables=[Table([], self.drops.most_common(), "Dropped, and why")],
            samples=samples,
        )
        page = io.StringIO()
        write_report_page(page, report)
        return page.getvalue()


def _in_order(counts: Mapping[int, int]) -> dict[str, int]:
    """Counts in the order of what is counted, which becomes text as JSON wants it."""
    return {str(key): counts[key] for key in sorted(counts)}
