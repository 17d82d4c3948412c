"""A record with the file of its image."""

from dataclasses import dataclass
from pathlib import Path

from assistant.record import Record, image_path, read_records


@dataclass
class ImageRecord:
    """A question about an image.

    Attributes:
        record: The question, its answer and its targets.
        image: The image's file, resolved.
    """

    record: Record
    image: Path


def read_image_records(file: Path) -> list[ImageRecord]:
    """The records of a file with their images. Raises BadInput for a file that cannot be read."""
    return [ImageRecord(record, image_path(record, file).resolve()) for record in read_records(file)]
