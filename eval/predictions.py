"""Another model's answers, from a folder: the same questions, the same protocols, in the same table.

    python -m eval reasonseg --root ReasonSeg --split val --predictions lisa-7b --out runs/eval/lisa-7b

The folder holds, for every question, KEY.png, or one `predictions.json` {"KEY": RLE | [RLE, ...] | null}.
In a KEY.png what is not black is foreground (`assistant.mask_images`). All black, and null, say that it is
not in the image. KEY is the benchmark's name of the question: what `samples.jsonl` calls `key`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from assistant.answer import Answer, Target
from assistant.errors import BadInput
from assistant.files import read_json
from assistant.mask_images import open_mask
from assistant.sam.mask_ops import decode_rle


class Predictions:
    """Masks of questions in a folder, as answers without words.

    Attributes:
        folder: The folder.
        weights: {"predictions": sha256 of the folder's whole content}.
    """

    def __init__(self, folder: Path):
        """Raises BadInput where the folder holds no predictions, or they cannot be read."""
        self.folder = folder
        json_file = folder / "predictions.json"
        files = [json_file] if json_file.exists() else sorted(folder.glob("*.png"))
        if not files:
            raise BadInput(f"--predictions {folder} has neither predictions.json nor KEY.png files")
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.name.encode() + file.read_bytes())
        self.weights = {"predictions": digest.hexdigest()}
        self._table = _read_table(json_file) if json_file.exists() else None

    def answer(self, key: int | str, size: tuple[int, int]) -> Answer:
        """The prediction of one question, a present target per mask that is not empty.

        Args:
            key: The benchmark's name of the question.
            size: (height, width) in pixels of the image.

        Raises:
            BadInput: There is no prediction of that name, or it has another size than the image.
        """
        masks = [mask for mask in self._masks(str(key)) if mask.any()]
        for mask in masks:
            if mask.shape != size:
                raise BadInput(
                    f"the prediction is {mask.shape[1]}x{mask.shape[0]}, the image {size[1]}x{size[0]}"
                )
        targets = [Target("it", True, 1.0, mask, []) for mask in masks]
        return Answer("", targets or [Target("it", False, 0.0, None, [])], size, None)

    def _masks(self, key: str) -> list[np.ndarray]:
        """The masks of a question, (H, W) bool each."""
        if self._table is None:
            return [_read_png(self.folder / f"{key}.png")]
        if key not in self._table:
            raise BadInput(f"no prediction called {key} in {self.folder / 'predictions.json'}")
        rles = self._table[key] or []
        return [decode_rle(rle) for rle in (rles if isinstance(rles, list) else [rles])]


def _read_table(file: Path) -> dict[str, Any]:
    """The content of a predictions.json."""
    table = read_json(file)
    if not isinstance(table, dict):
        raise BadInput(f"{file} must be an object {{KEY: RLE, list of RLE or null}}")
    return table


def _read_png(file: Path) -> np.ndarray:
    """The foreground of a PNG, (H, W) bool."""
    if not file.exists():
        raise BadInput(f"no prediction {file}")
    return open_mask(file)
