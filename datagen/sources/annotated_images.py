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
from pathlib import Path
from typing import Any

from assistant.errors import BadInput
from assistant.sam.mask_ops import merge_rles, rle_area, rle_of_segmentation
from datagen.sources.formats import BACKGROUND_NAMES
from datagen.sources.index import open_index

MAX_REASONS_SHOWN = 8  # of why nothing can be used, in one line: the most frequent say enough


@dataclass(frozen=True)
class Instance:
    """One object of a category.

    Attributes:
        id: The annotation's.
        key: The category: the data set's name for it, in lower case; also the key of its entry in the phrase
            bank.
        segmentation: COCO polygons [[x, y, ...], ...] or RLE, in px; None while only the box is known.
        box: (x, y, width, height), px.
        area: px.
        crowd: Whether it stands for several objects that are not separated.
    """

    id: int
    key: str
    segmentation: list | dict | None
    box: tuple[float, float, float, float]
    area: float
    crowd: bool

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the box's centre, px."""
        return self.box[0] + self.box[2] / 2, self.box[1] + self.box[3] / 2


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

    Args:
        index: What `open_index` opens.
        folder: Where the image files are.
        names: Categories that can be asked about; annotations of others are dropped. None: all.
        boxes: Whether to take instances that have a box and no mask.
        unannotated: Whether to take images without annotations.
        parts: Whether all categories are parts of objects.

    Attributes:
        only: Numbers of the images to be read; None: all. See `datagen.sources.pick`.

    Raises:
        BadInput: Two images have the same name.
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
        self._keys: dict[int, str] = {}  # by category id
        self._parts: set[str] = set()
        self._synonyms: dict[str, list[str]] = {}
        for number, name, about in index.execute("select * from categories"):
            self._add_category(number, name, json.loads(about), parts)
        self._categories = {key: number for number, key in self._keys.items()}
        duplicate = index.execute("select name from images group by name having count(*) > 1").fetchone()
        if duplicate:
            raise BadInput(f"two images are called {duplicate[0]}")

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
        orphans = "select count(*) from annotations where picture not in (select number from images)"
        drops += Counter({"annotation of an unknown image": self.index.execute(orphans).fetchone()[0]})
        is_empty = True
        for number, name, width, height, about in self.index.execute("select * from images order by name"):
            if self.only is not None and number not in self.only:
                continue
            image = self._image(number, self.folder / name, width, height, json.loads(about), drops)
            if not image.file.is_file():
                drops["photo without a file"] += 1
            elif not image.instances and not self.unannotated:
                drops["photo without usable annotations"] += 1
            else:
                is_empty = False
                yield image
        if is_empty:
            reasons = ", ".join(
                f"{count} x {reason}" for reason, count in drops.most_common(MAX_REASONS_SHOWN)
            )
            raise BadInput(
                f"none of the {len(self)} photos in {self.folder} can be used ({reasons}): do the photos, "
                "the annotations and the phrase bank belong together?"
            )

    def by_number(self, number: int) -> AnnotatedImage:
        """Return an image by its number in the data set."""
        row = self.index.execute("select * from images where number = ?", (number,)).fetchone()
        _, name, width, height, about = row
        return self._image(number, self.folder / name, width, height, json.loads(about), Counter())

    def _image(
        self, number: int, file: Path, width: int, height: int, about: dict[str, Any], drops: Counter[str]
    ) -> AnnotatedImage:
        """An image with its usable instances."""

        def keys(field: str) -> frozenset[str]:
            return frozenset(self._keys[n] for n in about.get(field, ()) if n in self._keys)

        return AnnotatedImage(
            id=number,
            file=file,
            width=width,
            height=height,
            instances=tuple(self._instances(number, drops)),
            categories=self._categories,
            absent=keys("neg_category_ids"),
            partial=keys("not_exhaustive_category_ids"),
            parts=frozenset(self._parts),
            synonyms=self._synonyms,
        )

    def _instances(self, image_number: int, drops: Counter[str]) -> Iterator[Instance]:
        """The usable instances of an image, in the order of the annotations."""
        query = "select number, category, about from annotations where picture = ? order by rowid"
        for number, category, about in self.index.execute(query, (image_number,)):
            row, key = json.loads(about), self._keys.get(category)
            if key is None or key in BACKGROUND_NAMES:
                drops["annotation of no known name"] += 1
            elif self.names is not None and key not in self.names:
                drops[f"name without phrases: {key}"] += 1
            elif not row.get("segmentation") and not self.boxes:
                drops["annotation without a mask"] += 1
            else:
                x, y, width, height = map(float, row["bbox"])
                yield Instance(
                    id=number,
                    key=key,
                    segmentation=row.get("segmentation") or None,
                    box=(x, y, width, height),
                    area=float(row.get("area", width * height)),
                    crowd=bool(row.get("iscrowd", 0)),
                )


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
