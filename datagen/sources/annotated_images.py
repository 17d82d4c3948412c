"""Images with the masks and names of what they show, from what `datagen.sources.formats` reads.

index = open_index("coco", annotations, folder, None)
for image in AnnotatedImages(index, folder).read(drops):       # drops: a Counter of reasons
    image.keys(); image.rle(image.of("cup"))
"""

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from assistant.errors import BadInput
from assistant.images import image_size
from assistant.sam.mask_ops import merge_rles, rle_area, rle_of_segmentation
from datagen.sources.formats import BACKGROUND_NAMES
from datagen.sources.index import open_index
from datagen.sources.instance import Instance, lie_in, read_instance
from datagen.sources.rows import identity

MAX_REASONS_SHOWN = 8  # of why nothing can be used, in one line: the most frequent say enough
MAX_ITEMS_NAMED = 3  # of what was dropped for a reason: enough to look at
UNUSABLE_IMAGE = "photo: unreadable, or of another size than its annotations say"
SWAPPED_SIZE = "photo: width and height swapped in its annotations; used with those of the photo itself"

ANNOTATIONS_OF_IMAGE = "select number, category, about from annotations where picture = ? order by rowid"
SHARED_CATEGORY_IDS = "select number from categories group by number having count(distinct name) > 1"


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and what is known of it.

    Attributes:
        id: The image's number in the data set.
        file: Where it is.
        width, height: px.
        instances: What is annotated in it.
        categories: {key: the data set's category id}, of all of the data set's categories.
        absent: Categories that were looked for and are not there (LVIS). Where none is listed, those without
            an instance.
        partial: Categories of which not every instance is annotated (LVIS).
        parts: Categories that are parts of objects, of all of the data set's.
        synonyms: {key: other names}, of all of the data set's categories.
    """

    id: int
    file: Path
    width: int
    height: int
    instances: tuple[Instance, ...]
    categories: dict[str, int]
    absent: frozenset[str] = frozenset()
    partial: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    synonyms: dict[str, list[str]] = field(default_factory=dict, compare=False)

    def keys(self) -> list[str]:
        """The categories of the instances, sorted."""
        return sorted({instance.key for instance in self.instances})

    def of(self, key: str) -> list[Instance]:
        """The instances of a category, by annotation id."""
        return sorted((each for each in self.instances if each.key == key), key=lambda each: each.id)

    def lacks_masks(self) -> bool:
        """Whether some instance has a box and no mask."""
        return any(instance.segmentation is None for instance in self.instances)

    def rle(self, instances: Sequence[Instance]) -> dict[str, Any]:
        """The union of the masks of some instances, as {"size": [h, w], "counts": str}."""
        masks = []
        for instance in instances:
            assert instance.segmentation is not None  # boxes have become masks before questions are made
            masks.append(rle_of_segmentation(instance.segmentation, self.height, self.width))
        return merge_rles(masks)

    def area_share(self, rle: dict[str, Any]) -> float:
        """A mask's share of the image's area, 0 to 1."""
        return rle_area(rle) / (self.width * self.height)


class AnnotatedImages:
    """The images of a data set by file name, one at a time: none is in memory before its turn.

    What cannot be used is dropped, counted by reason, and named in `dropped_items`. An annotation that is
    dropped leaves its category in the image's `partial`: it is there, and not everything of it is outlined.

    Args:
        index: What `open_index` opens.
        folder: Where the image files are.
        names: Categories that can be asked about; annotations of others are dropped. None: all.
        boxes: Whether to take instances that have a box and no mask.
        unannotated: Whether to take images without annotations.
        parts: Whether all categories are parts of objects.

    Attributes:
        only: Numbers of the images to be read; None: all. See `datagen.sources.pick`.
        dropped_items: {reason: the first things that were dropped for it}.
    """

    def __init__(
        self,
        index: sqlite3.Connection,
        folder: Path,
        names: Container[str] | None = None,
        boxes: bool = False,
        unannotated: bool = False,
        parts: bool = False,
    ):
        self.index = index
        self.folder = folder
        self.names = names
        self.boxes = boxes
        self.unannotated = unannotated
        self.only: set[int] | None = None
        self.dropped_items: dict[str, list[str]] = {}
        self._keys: dict[int, str] = {}  # by category id
        self._parts: set[str] = set()
        self._synonyms: dict[str, list[str]] = {}
        for number, name, about in index.execute("select * from categories"):
            self._add_category(number, name, json.loads(about), parts)
        for (number,) in index.execute(SHARED_CATEGORY_IDS):
            del self._keys[number]  # of which nothing says which name is meant
        self._categories = {key: number for number, key in self._keys.items()}
        # Of annotations whose image cannot be read: they may be in any image.
        unplaced = index.execute("select distinct category from annotations where picture is null")
        self._unplaced = {self._keys[number] for (number,) in unplaced if number in self._keys}
        names = Counter(PurePosixPath(name).name for (name,) in index.execute("select name from images"))
        self._shared_names = {name for name, count in names.items() if count > 1}

    def path_in_set(self, file: Path) -> str:
        """What tells an image from all others of the data set.

        Args:
            file: Where it is.

        Returns:
            Its file name; where another folder has an image of that name, its path from the images' folder.
        """
        return _relative(file, self.folder) if file.name in self._shared_names else file.name

    def _add_category(self, number: int, name: str, about: dict[str, Any], is_part: bool) -> None:
        """Note a category; PACO writes parts as "mug:handle", others say so in the supercategory."""
        whole, _, part = name.partition(":")
        key = " ".join(f"{whole} {part}".replace("_", " ").split()).lower()
        self._keys[number] = key
        if is_part or part or str(about.get("supercategory", "")).upper() == "PART":
            self._parts.add(key)
        if isinstance(about.get("synonyms"), list):
            self._synonyms[key] = [
                str(word).split("_(")[0].replace("_", " ").lower() for word in about["synonyms"]
            ]

    def __len__(self) -> int:
        """The number of images, those that cannot be used included."""
        if self.only is not None:
            return len(self.only)
        return self.index.execute("select count(*) from images").fetchone()[0]

    def __iter__(self) -> Iterator[AnnotatedImage]:
        return self.read(Counter())

    def read(self, drops: Counter[str]) -> Iterator[AnnotatedImage]:
        """Read the images that can be used.

        Args:
            drops: Counts what cannot be used, by reason: an image without a file, an annotation without a
                mask.

        Raises:
            BadInput: None of them can be used.
        """
        for reason, item in self.index.execute("select * from skipped"):
            self._drop(drops, reason, item)
        orphans = "select count(*) from annotations where picture not in (select number from images)"
        drops += Counter({"annotation of an unknown image": self.index.execute(orphans).fetchone()[0]})
        is_empty = True
        for row in self.index.execute("select * from images order by name"):
            if self.only is not None and row[0] not in self.only:
                continue
            image = self._image(row, drops)
            if image is not None:
                is_empty = False
                yield image
        if is_empty:
            raise BadInput(
                f"none of the {len(self)} photos in {self.folder} can be used ({self._reasons(drops)}): do "
                "the photos, the annotations and the phrase bank belong together?"
            )

    def _reasons(self, drops: Counter[str]) -> str:
        """The most frequent reasons of what was dropped, each with the first thing that was."""
        reasons = []
        for reason, count in drops.most_common(MAX_REASONS_SHOWN):
            items = self.dropped_items.get(reason)
            reasons.append(f"{count} x {reason}" + (f", such as {items[0]}" if items else ""))
        return "; ".join(reasons)

    def _drop(self, drops: Counter[str], reason: str, item: str) -> None:
        """Count something that cannot be used, and note what it is if it is one of the first."""
        drops[reason] += 1
        items = self.dropped_items.setdefault(reason, [])
        if len(items) < MAX_ITEMS_NAMED and item not in items:
            items.append(item)

    def by_number(self, number: int) -> AnnotatedImage:
        """Return an image that `read` has given, by its number in the data set."""
        row = self.index.execute("select * from images where number = ?", (number,)).fetchone()
        image = self._image(row, Counter())
        if image is None:
            raise BadInput(f"{self.folder / row[1]} has changed during the run")
        return image

    def _image(self, row: tuple[Any, ...], drops: Counter[str]) -> AnnotatedImage | None:
        """An image with its usable instances; None where it cannot be used. row: of the table of images."""
        number, name, width, height, about = row
        file = self.folder / name
        if not is_file(file):
            self._drop(drops, "photo without a file", name)
            return None
        rows = list(self.index.execute(ANNOTATIONS_OF_IMAGE, (number,)))
        outlines = [json.loads(row) for _, _, row in rows]
        size = self._size(file, name, (height, width), outlines, drops)
        if size is None:
            return None
        instances, partial = self._instances(rows, outlines, name, size, drops)
        if not instances and not self.unannotated:
            drops["photo without usable annotations"] += 1
            return None
        listed = json.loads(about)
        return AnnotatedImage(
            id=number,
            file=file,
            width=size[1],
            height=size[0],
            instances=tuple(instances),
            categories=self._categories,
            absent=self._listed_keys(listed, "neg_category_ids"),
            partial=self._listed_keys(listed, "not_exhaustive_category_ids") | partial,
            parts=frozenset(self._parts),
            synonyms=self._synonyms,
        )

    def _listed_keys(self, about: dict[str, Any], field: str) -> frozenset[str]:
        """The categories that a field of an image lists."""
        numbers = about.get(field)
        known: list[Any] = [identity(number) for number in numbers] if isinstance(numbers, list) else []
        return frozenset(self._keys[number] for number in known if number in self._keys)

    def _size(
        self,
        file: Path,
        name: str,
        annotated: tuple[int | None, int | None],
        outlines: Sequence[dict[str, Any]],
        drops: Counter[str],
    ) -> tuple[int, int] | None:
        """The (height, width) of an image, where its annotations are of that size; else None.

        annotated: The same as the annotations say it; None where they do not.
        """
        try:
            size = image_size(file)
        except BadInput as error:
            self._drop(drops, UNUSABLE_IMAGE, str(error))
            return None
        if None in annotated or annotated == size:
            return size
        if annotated == size[::-1] and lie_in(outlines, size) and not lie_in(outlines, size[::-1]):
            self._drop(drops, SWAPPED_SIZE, name)
            return size
        (height, width), (annotated_height, annotated_width) = size, annotated
        sizes = f"{width}x{height}, its annotations say {annotated_width}x{annotated_height}"
        turned = ": was it turned since, or annotated without its EXIF orientation?"
        self._drop(drops, UNUSABLE_IMAGE, f"{name} is {sizes}" + turned * (annotated == size[::-1]))
        return None

    def _instances(
        self,
        rows: Sequence[tuple[Any, Any, str]],
        outlines: Sequence[dict[str, Any]],
        name: str,
        size: tuple[int, int],
        drops: Counter[str],
    ) -> tuple[list[Instance], frozenset[str]]:
        """The usable instances of an image, in the order of its annotations.

        Args:
            rows: (number, category, ...) of each annotation.
            outlines: What else is known of each.
            name: The image's.
            size: Its (height, width), px.
            drops: Counts what cannot be used.

        Returns:
            The instances, and the categories of which one cannot be used.
        """
        instances: dict[Any, Instance] = {}
        partial: set[str] = set()
        earlier: dict[Any, tuple[Any, str]] = {}
        for (number, category, about), row in zip(rows, outlines, strict=True):
            key = self._keys.get(category)
            item = name if number is None else f"annotation {number} of {name}"
            if key is None or key in BACKGROUND_NAMES:
                self._drop(drops, "annotation of no known name", item)
            elif self.names is not None and key not in self.names:
                drops[f"name without phrases: {key}"] += 1
            elif number is not None and earlier.get(number) == (category, about):
                self._drop(drops, "annotation: listed twice, and read once", item)
            else:
                found = read_instance(number, key, row, size, self.boxes)
                if number in instances:
                    found = "annotation: with the id of another"
                if isinstance(found, Instance):
                    instances[number] = found
                    earlier[number] = (category, about)
                else:
                    self._drop(drops, found, item)
                    partial.add(key)
        # What has no name may be of any category: none that is not outlined can be said to be absent.
        is_unnamed = any(category not in self._keys for _, category, _ in rows)
        possible = set(self._categories) if is_unnamed else self._unplaced
        partial |= possible - {each.key for each in instances.values()}
        return list(instances.values()), frozenset(partial)


def _relative(file: Path, folder: Path) -> str:
    """A file's path from a folder, or as it stands where it is elsewhere."""
    return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()


def is_file(path: Path) -> bool:
    """Whether there is such a file; also of a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_images(
    annotations: str | Path,
    folder: str | Path,
    names: Container[str] | None,
    drops: Counter[str],
    format: str = "coco",
) -> list[AnnotatedImage]:
    """Read all usable images of a small data set at once.

    Args:
        annotations: Their file or folder.
        folder: Where the image files are.
        names, drops: As `AnnotatedImages` and its `read` take them.
        format: One of `datagen.settings.FORMATS`.

    Raises:
        BadInput: The annotations cannot be read, or no image can be used.
    """
    index = open_index(format, Path(annotations), Path(folder), None)
    return list(AnnotatedImages(index, Path(folder), names).read(drops))


def seed_for(image: AnnotatedImage, *parts: object) -> int:
    """A seed from the image's name, so that its questions do not depend on which other images there are."""
    return zlib.crc32("/".join(map(str, (image.file.name, *parts))).encode())
