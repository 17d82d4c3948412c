"""`report.html` of a training: its curves, and the same ten validation questions as they were answered over time."""

import json
from pathlib import Path

import numpy as np

from assistant.export.html_report import END, Curve, Picture, begin, card, svg, table
from assistant.files import replace_whole
from assistant.grammar import parse

COLUMNS = 6  # times at which a question is shown


def decoded(rles: list[dict]) -> list[np.ndarray]:
    from pycocotools import mask as coco_mask

    return [coco_mask.decode(rle).astype(bool) for rle in rles]


def merge(rles: list[dict]) -> dict:
    """The union of masks, as it can be written to JSON."""
    from pycocotools import mask as coco_mask

    union = coco_mask.merge(rles)
    return {"size": list(union["size"]), "counts": union["counts"].decode()}


def pointed_at(reply: str, found: list, rles: list[dict]) -> list[dict]:
    """The masks of a reply's things that are there: of each, the union of the proposals `rles` that its Found names."""
    return [merge([rles[i] for i in f.proposals]) for f, m in zip(found, parse(reply)) if m.present]


class Progress:
    """Validation figures and answers by step, kept in `OUT/val.jsonl` as they come.

    ask: a function from (question, image path) to (reply text, [RLE of each target that is there]).
    """

    def __init__(self, out: Path, shown: list, ask):
        self.out, self.shown, self.ask = out, shown, ask

    def rows(self) -> list[dict]:
        file = self.out / "val.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def add(self, step: int, figures: dict[str, float], write: bool = True) -> None:
        """write: whether this process is the one that keeps them (all of them answer: weights may be spread)."""
        answers = [self.ask(one.record.question, one.image) for one in self.shown]
        if write:
            self._keep(step, figures, answers)

    def _keep(self, step: int, figures: dict, answers: list[tuple[str, list[dict]]]) -> None:
        rows = [
            row for row in self.rows() if row["step"] < step
        ]  # of a run that goes on: what it had done already
        rows.append({"step": step, **figures, "answers": answers})
        with replace_whole(self.out / "val.jsonl") as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = {k: round(v, 4) for k, v in figures.items()}
        print(f"validation at step {step}: {json.dumps(said)}", flush=True)

    def report(self, title: str, settings: dict, curves: dict[str, list[str]]) -> Path:
        """curves: {file of JSON lines in OUT: the figures of it to draw, each in its own curve}."""
        rows = self.rows()
        with replace_whole(self.out / "report.html") as path, path.open("w", encoding="utf-8") as page:
            page.write(begin(title))
            page.write(table([(k, v) for k, v in settings.items() if v is not None]))
            if rows:
                names = [k for k in ("score", "iou", "T_acc", "N_acc") if any(k in row for row in rows)]
                page.write(
                    "<h2>Validation</h2>"
                    + svg(
                        Curve(
                            "Validation",
                            "step",
                            "share",
                            {k: [(row["step"], row.get(k)) for row in rows] for k in names},
                        )
                    )
                )
            for file, figures in curves.items():
                log = self.out / file
                lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
                for name in figures:
                    points = [(line["step"], line.get(name)) for line in lines]
                    if points:
                        page.write(f"<h2>{name}</h2>" + svg(Curve(name, "step", name, {name: points}, None)))
            self._questions(page, rows)
            page.write(END)
        return self.out / "report.html"

    def _questions(self, page, rows: list[dict]) -> None:
        from assistant.images import open_image

        if not rows or not self.shown:
            return
        page.write(f"<h2>The same {len(self.shown)} validation questions over time</h2>")
        some = [
            rows[i]
            for i in sorted({round(i) for i in np.linspace(0, len(rows) - 1, min(COLUMNS, len(rows)))})
        ]
        for k, one in enumerate(self.shown):
            image = open_image(one.image)
            truth = [t.rle for t in one.record.targets if t.rle]
            there = ", ".join(t.phrase for t in one.record.targets if t.rle)
            panels = [(f"truth: {there or 'not there'}", image, decoded(truth))]
            panels += [
                (f"step {row['step']}: {row['answers'][k][0]}", image, decoded(row["answers"][k][1]))
                for row in some
                if k < len(row["answers"])
            ]
            page.write(card(Picture("", one.record.question, [], panels)))
