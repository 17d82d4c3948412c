"""The photos of a folder, and what each is called in the labelled set.

for photo in photos_in(Path("photos"), Path("labelled")):
    photo.file, photo.name, photo.stem             # photos/a/cat.jpg, "a/cat.jpg", "a/cat"
    photo.path_in(out, IMAGES)                     # labelled/images/a/cat.jpg
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from assistant.errors import BadInput, NotWritten
from assistant.images import images_under

IMAGES = "images"  # folder of the photos in a labelled set
# Folders of what is made of each photo, and the ending of its file there.
RESULTS, LABELS, LABEL_MAPS, OVERLAYS = ".results", "labels", "label_maps", "overlays"
ENDINGS = {RESULTS: ".json", LABELS: ".txt", LABEL_MAPS: ".png", OVERLAYS: ".jpg"}
IMAGE_IN_MAKING = re.compile(r"\..+\.\d+\.maskpick")  # a file in the folder of images, until it is whole


@dataclass(frozen=True)
class Photo:
    """A photo.

    Attributes:
        file: Its path.
        name: Its path in the set's folder of images, with slashes. It is its path in the folder of the
            photos, but where two differ in their endings only.
    """

    file: Path
    name: str

    @property
    def stem(self) -> str:
        """The name without its ending: that of no other photo."""
        return self.name.removesuffix(Path(self.name).suffix)

    def path_in(self, out: Path, folder: str) -> Path:
        """Where a file about the photo is in a labelled set; folder: `IMAGES`, or one of `ENDINGS`."""
        return out / folder / (self.name if folder == IMAGES else self.stem + ENDINGS[folder])


def photos_in(folder: Path, out: Path) -> list[Photo]:
    """The photos of a folder and of the folders in it, sorted by path.

    Args:
        folder: The folder.
        out: The folder of the labelled set. What is written there is no photo.

    Raises:
        BadInput: There are none.
    """
    written = [(out / name).resolve() for name in ENDINGS]
    if out.resolve() != folder.resolve() and (out / IMAGES).resolve() != folder.resolve():
        written.append((out / IMAGES).resolve())
    taken: set[str] = set()
    photos = []
    for file in images_under(folder):
        if any(place in file.resolve().parents for place in written):
            continue
        photo = Photo(file, file.relative_to(folder).as_posix())
        number = 1
        while photo.stem.lower() in taken:  # cat.jpg and cat.png would share one text file
            number += 1
            photo = Photo(file, f"{_stem_of(file, folder)}-{number}{file.suffix}")
        taken.add(photo.stem.lower())
        photos.append(photo)
    if not photos:
        raise BadInput(f"there is no photo in {folder}")
    return photos


def _stem_of(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def add_image(photo: Photo, out: Path, was_ours: bool | None) -> bool:
    """Put a photo into the set's folder of images, without a second copy where the disk allows it.

    Args:
        photo: The photo.
        out: The folder of the labelled set.
        was_ours: Whether what is in its place was put there by an earlier run; None where none is known.

    Returns:
        Whether what is in its place now was put there by us; not where the photo lies there itself.

    Raises:
        BadInput: Another photo is in its place.
    """
    place = photo.path_in(out, IMAGES)
    if place.exists():
        if place.samefile(photo.file) or filecmp.cmp(place, photo.file, shallow=False):
            # Without a known run it is a photo that lies there itself, or of a run that was killed.
            return not _is_same_path(place, photo.file) if was_ours is None else was_ours
        if not was_ours:
            raise BadInput(f"{place} is another photo: choose another folder for --out")
    temporary = place.with_name(f".{place.name}.{os.getpid()}.maskpick")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        _link(photo.file.resolve(), temporary)
        os.replace(temporary, place)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror or str(error), str(place)) from None
    return True


def _is_same_path(one: Path, other: Path) -> bool:
    """Whether two paths name the same entry of the same folder, and not two links to one file."""
    return one.name == other.name and one.parent.samefile(other.parent)


def _link(file: Path, place: Path) -> None:
    """Link a file: a name of its own for the same bytes, a symbolic link, or else a copy."""
    try:
        os.link(file, place)
    except OSError:
        try:
            place.symlink_to(file)
        except OSError:
            shutil.copyfile(file, place)
