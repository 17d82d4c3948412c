"""`report.html` of a training run: its curves, and the same validation questions as answered over time.

    report = TrainingReport(out, questions, ask)
    report.add(100, {"score": 0.4})
    report.write("Tuning pocket", settings, {"log.jsonl": ["loss"]})

`add` answers the questions with the weights as they are, and appends to OUT/val.jsonl.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assistant.export.charts import Curve, curve_svg
from assistant.export.html_report import Report, Sample, Table, write_report_file
from assistant.files import replace_whole
from assistant.grammar import parse
from assistant.pipeline import Selection
from assistant.sam.mask_ops import Rle, decode_rle, merge_rles
from finetune.image_record import ImageRecord

MAX_CHECKPOINTS_SHOWN = 6  # columns of answers that fit beside each other on a page
SHARES = ("score", "iou", "T_acc", "N_acc")  # the validation figures in [0, 1], which share a plot

# Answers a question about an image: the reply's text, and the mask of each target that it calls present.
Ask = Callable[[str, Path], tuple[str, list[Rle]]]


def present_masks(reply: str, selections: Sequence[Selection], rles: Sequence[Rle]) -> list[Rle]:
    """The masks of the targets that a reply calls present.

    Args:
        reply: In the reply grammar.
        selections: One for each marker of the reply.
        rles: The masks of the proposals that the selections name.

    Returns:
        For each present target, the union of its proposals.
    """
    mentions = parse(reply)
    return [
        merge_rles([rles[i] for i in selection.proposals])
        for selection, mention in zip(selections, mentions, strict=False)
        if mention.present
    ]


class TrainingReport:
    """Validation figures and answers by step, stored in `OUT/val.jsonl`, and the page made of them.

    Args:
        out: Folder of the run.
        questions: The validation questions that the page shows.
        ask: Answers a question with the weights as they are now.
    """

    def __init__(self, out: Path, questions: Sequence[ImageRecord], ask: Ask | None):
        self.out = out
        self.questions = questions
        self.ask = ask

    def rows(self) -> list[dict[str, Any]]:
        """The lines of `OUT/val.jsonl`, one per validation."""
        file = self.out / "val.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def add(self, step: int, figures: Mapping[str, float], write: bool = True) -> None:
        """Answer the questions and store the answers with the figures of a validation.

        Args:
            step: Number of training steps so far.
            figures: Validation figures by name.
            write: Whether this process stores them. All processes must answer, as the weights may be sharded.
        """
        assert self.ask is not None
        answers = [self.ask(question.record.question, question.image) for question in self.questions]
        if write:
            self._store(step, figures, answers)

    def _store(self, step: int, figures: Mapping[str, float], answers: list[tuple[str, list[Rle]]]) -> None:
        # A run that continues from an earlier checkpoint repeats the validations after it.
        rows = [row for row in self.rows() if row["step"] < step]
        rows.append({"step": step, **figures, "answers": answers})
        with replace_whole(self.out / "val.jsonl") as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        rounded = {k: round(v, 4) for k, v in figures.items()}
        print(f"validation at step {step}: {json.dumps(rounded)}", flush=True)

    def write(self, title: str, settings: Mapping[str, Any], curves: Mapping[str, Sequence[str]]) -> Path:
        """Write `OUT/report.html`.

        Args:
            title: Of the page.
            settings: Shown in a table that is folded away; None is left out.
            curves: {file of JSON lines in OUT: names of the figures in it, each drawn in a plot of its own}.

        Returns:
            The page's file.
        """
        rows = self.rows()
        logs = {file: _json_lines(self.out / file) for file in curves}
        plots = [plot for file, names in curves.items() for plot in _curves(logs[file], names)]
        report = Report(
            title,
            headline=_headline(rows),
            plots=[*_validation(rows), *plots],
            costs=_costs(logs.values()),
            samples=self._samples(rows),
            details=[Table([], [(name, value) for name, value in settings.items() if value is not None])],
        )
        return write_report_file(self.out / "report.html", report)

    def _samples(self, rows: list[dict[str, Any]]) -> Iterator[Sample]:
        """The questions with their true masks, and the answers at evenly spaced checkpoints."""
        if not rows:
            return
        columns = np.linspace(0, len(rows) - 1, min(MAX_CHECKPOINTS_SHOWN, len(rows)))
        checkpoints = [rows[i] for i in sorted({round(i) for i in columns})]
        for k, question in enumerate(self.questions):
            yield _question_card(question, k, checkpoints, len(self.questions))


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines; [] without one."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _shares_of(rows: list[dict[str, Any]]) -> list[str]:
    """The validation figures in [0, 1] that the rows have."""
    return [name for name in SHARES if any(row.get(name) is not None for row in rows)]


def _headline(rows: list[dict[str, Any]]) -> Table | None:
    """The validation figures at the first, the best and the last step; None without validations."""
    names = _shares_of(rows)
    if not names:
        return None
    scored = [row for row in rows if row.get(names[0]) is not None]
    chosen = {
        "first": scored[0],
        f"best {names[0]}": max(scored, key=lambda row: row[names[0]]),
        "last": scored[-1],
    }
    table = [[name, row["step"], *(row.get(each) for each in names)] for name, row in chosen.items()]
    return Table(["validation", "step", *names], table)


def _validation(rows: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """The validation figures by step, as one plot; [] without any."""
    names = _shares_of(rows)
    if not rows:
        return []
    lines = {name: [(row["step"], row.get(name)) for row in rows] for name in names}
    return [("Validation", curve_svg(Curve("Validation", "step", "share", lines)))]


def _curves(rows: list[dict[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """A plot of each figure of a log, but for those that it lacks."""
    for name in names:
        points = [(row["step"], row.get(name)) for row in rows]
        if points:
            yield name, curve_svg(Curve(name, "step", name, {name: points}, None))


def _costs(logs: Iterable[list[dict[str, Any]]]) -> Table:
    """How many steps the training took, and how long, as far as the logs say."""
    rows = [row for log in logs for row in log if "seconds" in row]
    if not rows:
        return Table([], [])
    last = max(rows, key=lambda row: row["step"])
    # A run that was continued counts its seconds from its own start.
    seconds = [row["seconds"] for row in rows]
    ends = [a for a, b in zip(seconds, seconds[1:], strict=False) if b < a] + [seconds[-1]]
    return Table([], [("steps", last["step"]), ("seconds", float(sum(ends)))])


def _question_card(
    question: ImageRecord, index: int, checkpoints: list[dict[str, Any]], count: int
) -> Sample:
    """One of a report's questions: its image with the true masks, then with those of each checkpoint."""
    from assistant.images import open_image

    image = open_image(question.image)
    present = [target for target in question.record.targets if target.rle]
    names = ", ".join(target.phrase for target in present)
    panels = [
        (f"truth: {names or 'absent'}", image, [decode_rle(target.rle) for target in present if target.rle])
    ]
    for row in checkpoints:
        if index < len(row["answers"]):
            reply, rles = row["answers"][index]
            panels.append((f"step {row['step']}: {reply}", image, [decode_rle(rle) for rle in rles]))
    group = f"The same {count} validation questions over time"
    return Sample(group, question.record.question, [], panels, ["present" if present else "absent"])
