"""Images with labelled instances and no questions, which teach the pocket preset names alone.

    voc = read_named_set(Path("DATA/voc/train/instances.json"), is_complete=True)
    voc.instances                     # {image: [("dog", RLE), ...]}
    rules = name_rules()
    rules.merged["mug"]               # "cup"

Where a set is not complete, only what is labelled is known: nothing else in its images is a negative.
"""

import argparse
import functools
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assistant.errors import BadInput
from assistant.files import read_json
from assistant.sam.mask_ops import Rle
from finetune.pocket.examples import every_tenth
from finetune.pocket.instances import NamedRle, read_instances

NAMES_FILE = Path(__file__).with_name("names.toml")
MIN_INSTANCES_OF_NAME = 5  # a name with fewer in a set is not learned from it


@dataclass(frozen=True)
class NameRules:
    """How the names of data sets are used; what `names.toml` holds.

    Attributes:
        merged: {name in a data set: the name that is taught for it}.
        ambiguous: {name: further names that may be right where it is labelled}.
        background: Names that are often seen without a label in images of sets that do not have them.
    """

    merged: dict[str, str]
    ambiguous: dict[str, set[str]]
    background: set[str]


@functools.cache
def name_rules() -> NameRules:
    """Read `names.toml`."""
    table = tomllib.loads(NAMES_FILE.read_text(encoding="utf-8"))
    ambiguous: dict[str, set[str]] = {}
    for group in table["ambiguous"]:
        for name in group["names"]:
            ambiguous.setdefault(name, set()).update(set(group["names"]) - {name})
    for name, contained in table["contained"].items():
        ambiguous.setdefault(name, set()).update(contained)
    return NameRules(table["merged"], ambiguous, set(table["background"]["names"]))


@dataclass(frozen=True)
class NamedSet:
    """The labelled images of one data set.

    Attributes:
        instances: {image: its instances}, in the order of the paths.
        aside: The same of the images that are kept aside.
        unlabelled: {image: the part of it of which nothing is known}, where there is one.
        is_complete: Whether every instance of the set's names is labelled.
    """

    instances: dict[Path, list[NamedRle]]
    aside: dict[Path, list[NamedRle]]
    unlabelled: dict[Path, Rle]
    is_complete: bool

    @property
    def names(self) -> set[str]:
        """The names of all instances."""
        return {name for of_image in self.instances.values() for name, _ in of_image}


def read_named_set(file: Path, is_complete: bool) -> NamedSet:
    """Read a data set.

    Every tenth image, in the order of the file names, is kept aside.

    Args:
        file: COCO's instances.json; the images are in the folder `images` beside it. An image's `ignore` may
            give an RLE of which nothing is known.
        is_complete: Whether every instance of the file's names is labelled.

    Raises:
        BadInput: The file is not COCO's, or no name has enough instances.
    """
    merged = name_rules().merged
    folder = file.parent / "images"
    by_file = read_instances(file)
    held_out = set(every_tenth(sorted(by_file)))
    all_images = {
        folder / name: [(merged.get(word, word), rle) for word, rle in by_file[name]]
        for name in sorted(by_file)
    }
    instances = {image: rows for image, rows in all_images.items() if image.name not in held_out}
    counts = Counter(word for of_image in instances.values() for word, _ in of_image)
    rare = {word for word, count in counts.items() if count < MIN_INSTANCES_OF_NAME}
    # An image with a rare name is left out: it would be background there.
    instances = {
        image: of_image
        for image, of_image in instances.items()
        if of_image and not rare & {word for word, _ in of_image}
    }
    if not instances:
        raise BadInput(
            f"{file} teaches nothing: no name has {MIN_INSTANCES_OF_NAME} instances in training images"
        )
    unlabelled = {
        folder / image["file_name"]: image["ignore"]
        for image in read_json(file)["images"]
        if image.get("ignore") and folder / image["file_name"] in instances
    }
    known = {word for of_image in instances.values() for word, _ in of_image}
    aside = {image: rows for image, rows in all_images.items() if image.name in held_out}
    aside = {image: [row for row in rows if row[0] in known] for image, rows in aside.items()}
    return NamedSet(instances, aside, unlabelled, is_complete)


def add_named_set_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name sets to a command line."""
    parser.add_argument(
        "--outlined",
        type=Path,
        nargs="*",
        default=[],
        help="COCO instances.json files beside a folder `images`, without questions, in which every "
        "instance of their names is labelled",
    )
    parser.add_argument(
        "--salient",
        type=Path,
        nargs="*",
        default=[],
        help="the same where only some instances are labelled: nothing else in the images is a negative",
    )


def read_named_sets(outlined: Sequence[Path], salient: Sequence[Path]) -> list[NamedSet]:
    """Read complete sets and then incomplete ones. Raises BadInput where a file cannot be read."""
    return [
        *(read_named_set(file, is_complete=True) for file in outlined),
        *(read_named_set(file, is_complete=False) for file in salient),
    ]
