"""What a run reads: the annotated images through their index, and captions.

images = open_images(settings)
captions = read_captions(settings.captions)            # {file name: caption}
"""

from pathlib import Path

from assistant.errors import BadInput
from assistant.files import read_json
from datagen.composer.phrasebank import load_bank
from datagen.settings import Settings
from datagen.sources.annotated_images import AnnotatedImages
from datagen.sources.index import open_index

INDEX_FILE = "photos.sqlite"  # in the output folder


def open_images(settings: Settings) -> AnnotatedImages:
    """Open the data set of a run, through the index in its output folder.

    Raises:
        BadInput: The annotations or the phrase bank cannot be used.
    """
    index = open_index(settings.format, settings.annotations, settings.images, settings.out / INDEX_FILE)
    return AnnotatedImages(
        index,
        settings.images,
        names=load_bank(settings.bank) if settings.is_offline else None,
        boxes=settings.sam != "none",
        unannotated=settings.format == "none",
        parts=settings.parts,
    )


def read_captions(file: Path | None) -> dict[str, str]:
    """Read COCO's captions json as {file name: caption}; {} without a file.

    Raises:
        BadInput: The file is not COCO's captions json.
    """
    if file is None:
        return {}
    try:
        data = read_json(file)
        names = {row["id"]: row["file_name"] for row in data["images"]}
        return {names[row["image_id"]]: row["caption"] for row in data["annotations"]}
    except (KeyError, TypeError) as error:
        raise BadInput(f"{file} is not COCO's captions json ({error})") from None
