"""Photos with masks and names, from what `datagen.sources.formats` reads.

for photo in Photos(open_index("coco", annotations, images, None), images, bank).read(drops):   # drops: Counter of reasons
    photo.keys(); photo.rle(photo.of("cup"))
"""

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from assistant.errors import BadInput
from assistant.record import coco_rle
from datagen.composer.phrasebank import Entry
from datagen.sources.formats import NOTHING
from datagen.sources.index import open_index


@dataclass(frozen=True)
class Instance:
    id: int  # the annotation's
    key: str  # of the phrase bank's entry
    segmentation: list | dict | None  # COCO polygons or RLE, px; None until the box is outlined
    box: tuple[float, float, float, float]  # x, y, width, height, px
    area: float  # px
    crowd: bool  # stands for several, not separated

    @property
    def centre(self) -> tuple[float, float]:
        return self.box[0] + self.box[2] / 2, self.box[1] + self.box[3] / 2


@dataclass(frozen=True)
class Photo:
    id: int
    file: Path
    width: int
    height: int
    instances: tuple[Instance, ...]
    categories: dict[str, int]  # entry's key -> the data set's category id, of all its categories
    absent: frozenset[str] = (
        frozenset()
    )  # looked for and not there (LVIS); where none is named, what has no instance
    partial: frozenset[str] = frozenset()  # there, but not every one of them is outlined (LVIS)
    parts: frozenset[str] = frozenset()  # names of parts of things, of all categories
    synonyms: dict[str, list[str]] = field(
        default_factory=dict, compare=False
    )  # other names, of all categories

    def keys(self) -> list[str]:
        """The categories present, sorted."""
        return sorted({instance.key for instance in self.instances})

    def of(self, key: str) -> list[Instance]:
        """The instances of a category, by annotation id."""
        return sorted((each for each in self.instances if each.key == key), key=lambda each: each.id)

    def rle(self, instances: Sequence[Instance]) -> dict:
        """The union of the instances' masks: {"size": [h, w], "counts": str}."""
        from pycocotools import mask as coco

        union = coco.merge([coco_rle(each.segmentation, self.height, self.width) for each in instances])
        return {"size": [self.height, self.width], "counts": union["counts"].decode()}

    def area_share(self, rle: dict) -> float:
        """The mask's share of the picture's area, 0 to 1."""
        from pycocotools import mask as coco

        return float(coco.area(rle)) / (self.width * self.height)


class Photos:
    """The photos of a data set, one at a time, by file name: none is in memory before its turn.

    What cannot be used (no file, no mask, a name not in the bank) is counted in `drops` as it is met. bank: None takes
    every name. boxes: keep what has a box and no mask. empty: keep photos of which nothing is known. only: the picks of
    `datagen.sources.pick`. parts: all names are of parts. BadInput: the annotations cannot be used.
    """

    def __init__(
        self,
        index: sqlite3.Connection,
        images: Path,
        bank: dict[str, Entry] | None,
        boxes: bool = False,
        empty: bool = False,
        parts: bool = False,
    ):
        self.index, self.images, self.bank, self.boxes, self.empty = index, images, bank, boxes, empty
        self.only: set | None = None
        self.names, self.parts, self.synonyms = {}, set(), {}
        for number, name, about in index.execute("select * from categories"):
            about = json.loads(about)
            whole, _, part = name.partition(":")
            key = " ".join(f"{whole} {part}".replace("_", " ").split()).lower()
            self.names[number] = key
            if parts or part or str(about.get("supercategory", "")).upper() == "PART":
                self.parts.add(key)
            if isinstance(about.get("synonyms"), list):
                self.synonyms[key] = [
                    str(word).split("_(")[0].replace("_", " ").lower() for word in about["synonyms"]
                ]
        self.categories = {name: number for number, name in self.names.items()}
        twice = index.execute("select name from images group by name having count(*) > 1").fetchone()
        if twice:
            raise BadInput(f"two pictures are called {twice[0]}")

    def __len__(self) -> int:
        """How many there are, the unusable ones included."""
        if self.only is not None:
            return len(self.only)
        return self.index.execute("select count(*) from images").fetchone()[0]

    def __iter__(self) -> Iterator[Photo]:
        return self.read(Counter())

    def read(self, drops: Counter) -> Iterator[Photo]:
        drops += Counter(
            {
                "annotation of an unknown image": self.index.execute(
                    "select count(*) from annotations where picture not in (select number from images)"
                ).fetchone()[0]
            }
        )
        usable = False
        for number, name, width, height, about in self.index.execute("select * from images order by name"):
            if self.only is not None and number not in self.only:
                continue
            photo = self._photo(number, self.images / name, width, height, json.loads(about), drops)
            if not photo.file.is_file():
                drops["photo without a file"] += 1
            elif not photo.instances and not self.empty:
                drops["photo without usable annotations"] += 1
            else:
                usable = True
                yield photo
        if not usable:
            why = ", ".join(f"{count} x {reason}" for reason, count in drops.most_common(8))
            raise BadInput(
                f"none of the {len(self)} photos in {self.images} can be used ({why}): do the photos, the "
                "annotations and the phrase bank belong together?"
            )

    def one(self, number) -> Photo:
        """A photo by its number in the data set."""
        row = self.index.execute("select * from images where number = ?", (number,)).fetchone()
        _, name, width, height, about = row
        return self._photo(number, self.images / name, width, height, json.loads(about), Counter())

    def _photo(self, number, file: Path, width: int, height: int, about: dict, drops: Counter) -> Photo:
        instances = []
        for identity, category, row in self.index.execute(
            "select number, category, about from annotations where picture = ? order by rowid", (number,)
        ):
            row, key = json.loads(row), self.names.get(category)
            if key is None or key in NOTHING:
                drops["annotation of no known name"] += 1
            elif self.bank is not None and key not in self.bank:
                drops[f"name without phrases: {key}"] += 1
            elif not row.get("segmentation") and not self.boxes:
                drops["annotation without a mask"] += 1
            else:
                box = tuple(map(float, row["bbox"]))
                area = float(row.get("area", box[2] * box[3]))
                instances.append(
                    Instance(
                        identity, key, row.get("segmentation") or None, box, area, bool(row.get("iscrowd", 0))
                    )
                )
        named = lambda field: frozenset(self.names[n] for n in about.get(field, ()) if n in self.names)
        return Photo(
            number,
            file,
            width,
            height,
            tuple(instances),
            self.categories,
            named("neg_category_ids"),
            named("not_exhaustive_category_ids"),
            frozenset(self.parts),
            self.synonyms,
        )


def read_coco(
    annotations: str | Path,
    images: str | Path,
    bank: dict[str, Entry] | None,
    drops: Counter,
    kind: str = "coco",
) -> list[Photo]:
    """All usable photos of a small data set at once; kind: see `datagen.sources.formats`. BadInput as `Photos`."""
    return list(
        Photos(open_index(kind, Path(annotations), Path(images), None), Path(images), bank).read(drops)
    )


def seed_for(photo: Photo, *parts: object) -> int:
    """A seed of the photo's own, so that its questions do not depend on which other photos there are."""
    return zlib.crc32("/".join(map(str, (photo.file.name, *parts))).encode())
