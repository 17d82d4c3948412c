"""Label maps as records: images/NAME.* and labels/NAME.png, whose pixels are class numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.grammar import reply_for
from assistant.images import image_size, images_by_stem
from assistant.mask_images import open_label_map
from assistant.record import Record, RecordTarget
from assistant.sam.mask_ops import encode_rle


def from_label_maps(
    folder: str | Path, names: dict[int, str], prefix: str = "", per_question: int = 8, seed: int = 0
) -> Iterator[Record]:
    """Read one record per image: which of some classes are in it? Half of them are, where that can be.

    Args:
        folder: The folder that holds images/ and labels/.
        names: {class number: name}; a class with several numbers has one mask. Numbers without a name are
            void, and `source["ignore"]` is their RLE, or None.
        prefix: What is put before an image's path from `folder`.
        per_question: Number of classes that are asked for.
        seed: The choice of classes depends on it and on the image's name alone.

    Raises:
        BadInput: There are no label maps, or one cannot be read or has no image.
    """
    folder = Path(folder)
    files = sorted((folder / "labels").glob("*.png"))
    if not files:
        raise BadInput(f"no labels/*.png in {folder}")
    images = images_by_stem(folder / "images")
    for file in files:
        image = images.get(file.stem)
        if image is None:
            raise BadInput(f"no image in {folder / 'images'} for {file.name}")
        labels = _read_labels(file, image)
        present = sorted({names[number] for number in np.unique(labels).tolist() if number in names})
        absent = [name for name in sorted(set(names.values())) if name not in present]
        asked = _choose(present, absent, per_question, random.Random(f"{seed} {file.stem}"))
        void = ~np.isin(labels, list(names))
        yield Record(
            f"{prefix}images/{image.name}",
            labels.shape[1],
            labels.shape[0],
            f"Which of these are in the picture: {', '.join(asked)}?",
            reply_for([(name, name in present) for name in asked]),
            [_target(name, labels, names, name in present) for name in asked],
            {
                "dataset": folder.name,
                "file": file.name,
                "ignore": encode_rle(void) if void.any() else None,
            },
        )


def _read_labels(file: Path, image: Path) -> np.ndarray:
    """The class numbers of a label map, (H, W), as they are stored: a palette is for display only."""
    labels = open_label_map(file)
    if labels.shape != image_size(image):
        raise BadInput(f"{file} has shape {labels.shape}, not its image's height and width")
    return labels


def _choose(present: list[str], absent: list[str], count: int, rng: random.Random) -> list[str]:
    """Draw `count` names in random order: half of them present, and more where too few are absent."""
    wanted = max((count + 1) // 2, count - len(absent))
    chosen = rng.sample(present, min(len(present), wanted))
    chosen += rng.sample(absent, min(len(absent), count - len(chosen)))
    rng.shuffle(chosen)
    return chosen


def _target(name: str, labels: np.ndarray, names: dict[int, str], present: bool) -> RecordTarget:
    """The target of one class."""
    if not present:
        return RecordTarget(name, None)
    numbers = [number for number, other in names.items() if other == name]
    return RecordTarget(name, encode_rle(np.isin(labels, numbers)))
