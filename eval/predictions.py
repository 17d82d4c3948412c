"""Another model's answers, from a folder: the same questions, the same protocols, in the same table.

    python -m eval reasonseg --root ReasonSeg --split val --predictions lisa-7b --out runs/eval/lisa-7b

The folder holds, for every question, KEY.png (nonzero = foreground; all zero = "it is not there"), or one
`predictions.json` {"KEY": RLE | [RLE, ...] | null}; null = "it is not there". KEY is the benchmark's name
of the question: what `samples.jsonl` calls `key`.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from assistant.answer import Answer, Target
from assistant.errors import BadInput
from assistant.record import from_rle


class Predictions:
    """Answers as `Scene.ask` gives them, without words. weights: the checksum of the whole folder's content."""

    def __init__(self, folder: Path):
        self.folder, self.table, file = folder, None, folder / "predictions.json"
        files = [file] if file.exists() else sorted(folder.glob("*.png"))
        if not files:
            raise BadInput(f"--predictions {folder} has neither predictions.json nor KEY.png files")
        digest = hashlib.sha256()
        for each in files:
            digest.update(each.name.encode() + each.read_bytes())
        self.weights = {"predictions": digest.hexdigest()}
        if file.exists():
            try:
                self.table = json.loads(file.read_text())
            except ValueError as error:
                raise BadInput(f"{file} is not JSON ({error})") from None
            if not isinstance(self.table, dict):
                raise BadInput(f"{file} must be an object {{KEY: RLE, list of RLE or null}}")

    def answer(self, key: int | str, size: tuple[int, int]) -> Answer:
        """BadInput where there is no prediction of that name, or it has another size than the picture."""
        masks = [m for m in self._masks(str(key)) if m.any()]
        for mask in masks:
            if mask.shape != size:
                raise BadInput(
                    f"the prediction is {mask.shape[1]}x{mask.shape[0]}, the picture {size[1]}x{size[0]}"
                )
        targets = [Target("it", True, 1.0, mask, []) for mask in masks] or [
            Target("it", False, 0.0, None, [])
        ]
        return Answer("", targets, size, None)

    def _masks(self, key: str) -> list[np.ndarray]:
        from PIL import Image

        if self.table is not None:
            if key not in self.table:
                raise BadInput(f"no prediction called {key} in {self.folder / 'predictions.json'}")
            found = self.table[key]
            return [from_rle(rle) for rle in (found if isinstance(found, list) else [found] if found else [])]
        file = self.folder / f"{key}.png"
        if not file.exists():
            raise BadInput(f"no prediction {file}")
        try:
            with Image.open(file) as opened:
                mask = np.asarray(opened)  # palette numbers as stored
        except OSError as error:
            raise BadInput(f"{file} cannot be read: {error}") from None
        return [mask.reshape(*mask.shape[:2], -1)[..., :3].any(2)]
