"""Which samples of a run a person should look at, drawn for the report."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from eval.metrics import iou
from eval.report import Picture

EACH = 8  # samples a group


def pick(lines: list[dict], each: int = EACH) -> dict[str, list[dict]]:
    """Worst, typical (nearest the median) and best answers about something that is there, then both presence errors."""
    there = [line for line in lines if "error" not in line and line["targets"]]
    score = {line["key"]: iou(*line["pair"]) for line in there}
    ranked = sorted(there, key=lambda line: (score[line["key"]], line["key"]))
    middle = float(np.median(list(score.values()))) if there else 0.0
    outlined = [line for line in ranked if line["said"]]
    return {
        "Worst, of those that it outlined": outlined[:each],
        "Typical": sorted(ranked, key=lambda line: (abs(score[line["key"]] - middle), line["key"]))[:each],
        "Best": ranked[::-1][:each],
        "There, but called absent": [line for line in ranked if not line["said"]][:each],
        "Absent, but outlined": [
            line for line in lines if "error" not in line and not line["targets"] and line["said"]
        ][:each],
    }


def sample_pictures(lines: list[dict], questions: list) -> Iterator[Picture]:
    """The picked samples, one at a time: the truth, the answer by target, the proposals that it chose, and those that
    a perfect choice would have taken: what separates a poor choice from poor proposals."""
    from pycocotools import mask as coco_mask

    from assistant.images import open_image

    def unpack(rles: list[dict]) -> list[np.ndarray]:
        return [coco_mask.decode(rle).astype(bool) for rle in rles]

    by_key = {question.key: question for question in questions}
    for group, picked in pick(lines).items():
        for line in picked:
            question = by_key[line["key"]]
            record = question.record
            try:
                image = open_image(question.image)
            except (
                BadInput
            ):  # the picture went away between two runs; the sample's words still tell something
                image = np.full((record.height, record.width, 3), 127, np.uint8)
            present = [t for t in line["answered"] if t["present"]]
            words = [f"asked: {line['question']}", f"answered: {line['answer']}"]
            words += [f"note: {line['trouble']}"] if line["trouble"] else []
            words += [
                f"{t['phrase']}: {'present' if t['present'] else 'absent'}, confidence {t['confidence']:.2f}, "
                f"proposals {t['proposals']}"
                for t in line["answered"]
            ]
            if line["oracle"]:
                words.append(
                    "best choice possible: "
                    + ", ".join(f"{v:.2f} of {k}" for k, v in line["oracle"].items())
                    + f"; with proposals {line['chosen']}"
                )
            wanted = ", ".join(t.phrase + ("" if t.rle is not None else " (absent)") for t in record.targets)
            said = ", ".join(t["phrase"] for t in present) or "nothing there"
            panels = [
                (f"truth: {wanted}", image, unpack([t.rle for t in record.targets if t.rle is not None])),
                (f"answer: {said}", image, unpack([t["rle"] for t in present])),
            ]
            used = [rle for rles in line["used"] for rle in rles]
            panels += [("proposals that it chose", image, unpack(used))] if used else []
            panels += (
                [("the best choice of proposals", image, unpack(line["best"]))] if line["chosen"] else []
            )
            title = f"IoU {iou(*line['pair']):.2f}   {', '.join(line['groups'])}   {Path(record.image).name}"
            yield Picture(group, title, words, panels)
