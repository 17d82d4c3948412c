"""The published lists of images for few-shot episodes, of PFENet and of HSNet.

    keep_listed(queries, [Path("val.txt")])             # queries.showing holds what the lists name

PFENet's lists (Tian et al. 2020) have a line "IMAGE LABEL" of two paths for each image, HSNet's (Min et al.
2021) "STEM__NUMBER" for each category in an image, numbered from 1. What a list names is taken as it is,
however small the category is in the image.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from assistant.errors import BadInput
from assistant.files import read_text
from eval.benchmarks.fewshot_data import EpisodeImages

Listed = dict[str, set[int] | None]  # {an image's stem: its listed categories, or None for all in it}


def read_lists(files: Sequence[Path]) -> Listed:
    """Read lists of either kind. Raises BadInput for any other line, and for lists without one."""
    listed: Listed = {}
    for file in files:
        if not file.is_file():
            raise BadInput(f"no list at {file}: give a text file of PFENet or HSNet")
        for number, line in enumerate(read_text(file).splitlines(), 1):
            words = line.split()
            if not words:
                continue
            stem, marker, category = words[0].rpartition("__")
            if len(words) == 1 and marker and category.isdecimal() and int(category):
                known = listed.setdefault(stem, set())
                if known is not None:
                    known.add(int(category) - 1)
            elif len(words) == 2 and "." in words[0]:
                listed[PurePosixPath(words[0]).stem] = None
            else:
                raise BadInput(
                    f"line {number} of {file} is neither IMAGE LABEL (PFENet) nor STEM__NUMBER (HSNet)"
                )
    if not listed:
        raise BadInput(f"{files[0]} lists no image")
    return listed


def keep_listed(images: EpisodeImages, files: Sequence[Path]) -> None:
    """Leave in `showing` what the lists name.

    Args:
        images: They are changed in place.
        files: Lists of PFENet or HSNet.

    Raises:
        BadInput: A file is no such list, or names an image that is not there.
    """
    listed = read_lists(files)
    numbers = {path.stem: number for number, path in enumerate(images.paths)}
    missing = sorted(listed.keys() - numbers.keys())
    if missing:
        raise BadInput(
            f"{len(missing)} of {len(listed)} listed images are not among the images, such as {missing[0]}: "
            "does the list belong to --root?"
        )
    showing: dict[int, list[int]] = {}
    for stem, categories in sorted(listed.items()):
        number = numbers[stem]
        for category in range(len(images.names)) if categories is None else sorted(categories):
            shows = number in images.showing.get(category, ())
            if categories is not None or shows or images.read(number, category)[0].any():
                showing.setdefault(category, []).append(number)
    images.showing = showing
