"""How well the pocket's taught names work as a concept segmenter, beside the pocket preset's own answers.

    python -m datagen --images DATA/coco/dev/images --annotations DATA/coco/dev/instances.json \\
        --split held --per-image 3 --pick 50 --out runs/questions
    python -m tests.helpers.pocket_concepts_scores --data runs/questions/records.jsonl

"as asked": the pocket preset answers the question. "told": it is asked "where is the NAME?", so that nothing
is left to understand. "concepts": the same names are looked for by `assistant.pocket.concepts`, as
`Scene.find` and the Classes tab do. All see the same proposals. It prints the table of docs/concepts.md.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from assistant.answer import Target
from assistant.dialogue.named_search import found_target
from assistant.images import open_image
from assistant.pocket.concepts import PocketConcepts
from assistant.record import Record
from assistant.sam.concepts import look_for
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.mask_ops import decode_rle
from assistant.scene import Assistant, Scene
from finetune.image_record import read_image_records

WAYS = ("as asked", "told", "concepts")


def answers(
    scene: Scene, opened: SamOpenedImage, concepts: PocketConcepts, record: Record
) -> Iterator[list[Target]]:
    """The targets that each of `WAYS` answers to a record."""
    scene.reset()
    for turn in record.history:
        scene.ask(turn.question)
    yield scene.ask(record.question).targets
    names = [target.phrase for target in record.targets]
    scene.reset()
    yield scene.ask(f"where is the {' and the '.join(names)}?").targets
    yield [found_target(name, look_for(concepts, opened, [name])[0], scene.threshold) for name in names]


def score(targets: list[Target], record: Record) -> tuple[float, bool]:
    """The IoU of the present targets with the truth, 1 for what is rightly denied; whether any is present."""
    shape = (record.height, record.width)
    truth, mask = np.zeros(shape, bool), np.zeros(shape, bool)
    for target in record.targets:
        if target.rle is not None:
            truth |= decode_rle(target.rle)
    for answered in targets:
        if answered.present and answered.mask is not None:
            mask |= answered.mask
    union = (mask | truth).sum()
    return float((mask & truth).sum() / union) if union else 1.0, bool(mask.any())


def table(scores: dict[str, list[tuple[float, bool, bool]]]) -> str:
    """The rows of the table: (IoU, whether anything is said to be there, whether it is) of each question."""
    lines = ["| way | questions | gIoU | gIoU where present | N_acc | T_acc |", "|---|---|---|---|---|---|"]
    for way, rows in scores.items():
        ious, said, there = (np.array(column) for column in zip(*rows, strict=True))
        figures = (ious.mean(), ious[there].mean(), (~said[~there]).mean(), said[there].mean())
        lines.append(f"| {way} | {len(rows)} | " + " | ".join(f"{value:.3f}" for value in figures) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="records")
    parser.add_argument("--images", type=int, default=50)
    options = parser.parse_args()
    assistant = Assistant.from_preset("pocket")
    concepts = PocketConcepts.load(assistant.pipeline.opener)
    scores: dict[str, list[tuple[float, bool, bool]]] = {way: [] for way in WAYS}
    groups = itertools.groupby(read_image_records(options.data), key=lambda row: row.image)
    for image, rows in itertools.islice(groups, options.images):
        scene = assistant.open(open_image(image))
        opened = SamOpenedImage(scene.opened.embedding, scene.proposals, scene.image)
        for row in rows:
            there = any(target.rle is not None for target in row.record.targets)
            for way, targets in zip(WAYS, answers(scene, opened, concepts, row.record), strict=True):
                scores[way].append((*score(targets, row.record), there))
        print(table(scores), flush=True)


if __name__ == "__main__":
    main()
