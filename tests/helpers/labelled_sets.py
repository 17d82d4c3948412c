"""Photos of coloured things to be labelled, and the set that was made of them.

write_photos(folder, ["a.png", "sub/b.jpg"])
set_files(out)                     # {path: content} of everything in the set
"""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.fake_assistant import sample_image

# What the stand-in for the models finds in a sample image, in this order, and what it does not.
CLASSES = ["red ball", "green box", "blue sky", "bench"]


def write_photos(folder: Path, names: list[str]) -> Path:
    """Sample images of the stand-in, each of another size; returns the folder."""
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample_image(120 + 8 * number, 180)).save(file, "PNG")  # JPEG would blur the colours
    return folder


def write_textures(folder: Path, count: int, side: int = 64) -> Path:
    """Small images of random blocks, for models that find anything; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        blocks = random.integers(0, 255, (4, 4, 3), np.uint8)
        pixels = blocks.repeat(side // 4, 0).repeat(side // 4, 1)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def set_files(out: Path) -> dict[str, bytes]:
    """The content of every file of a set, by its path in the folder."""
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}
