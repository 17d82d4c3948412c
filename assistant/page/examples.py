"""The photos that a visitor can begin with, from the wheel of scikit-image.

examples = save_examples(folder)             # [Example(file, question)]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

JPEG_QUALITY = 92  # of the saved photos


@dataclass(frozen=True)
class Example:
    """A photo and a question about it.

    Attributes:
        file: The photo; its name is the alternative text.
        question: The question.
    """

    file: Path
    question: str


@dataclass(frozen=True)
class SourceImage:
    """An image of `skimage.data`: its name there, a question about it, and what it shows."""

    name: str
    question: str
    description: str


SOURCE_IMAGES = (
    SourceImage(
        "astronaut", "Find the person, and is there a bear?", "A smiling astronaut in an orange suit"
    ),
    SourceImage(
        "chelsea", "Which animal is purring, and is there a dog?", "A tabby cat looking at the camera"
    ),
    SourceImage(
        "coffee", "What could I drink from, and is there a dog?", "A cup of coffee with a spoon on a table"
    ),
    SourceImage("camera", "Who is taking a picture, and is there a bird?", "A man behind a camera in a park"),
)


def save_examples(folder: Path) -> list[Example]:
    """Write the example photos into a folder as JPEG."""
    import skimage.data
    from PIL import Image

    examples = []
    for source in SOURCE_IMAGES:
        file = folder / f"{source.description}.jpg"
        Image.fromarray(getattr(skimage.data, source.name)()).save(file, quality=JPEG_QUALITY)
        examples.append(Example(file, source.question))
    return examples
