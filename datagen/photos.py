"""Photos with masks and names, from COCO's json or what `datagen.formats` turns into it.

    for photo in read_coco("instances.json", "images", bank, drops):   # drops: Counter of (why, how often)
        photo.keys(); photo.rle(photo.of("cup"))
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assistant.errors import BadInput
from assistant.record import coco_rle
from datagen.formats import as_coco
from datagen.phrasebank import Entry


@dataclass(frozen=True)
class Instance:
    id: int                               # the annotation's
    key: str                              # of the phrase bank's entry
    segmentation: list | dict             # COCO polygons or RLE, px
    box: tuple[float, float, float, float]  # x, y, width, height, px
    area: float                           # px
    crowd: bool                           # stands for several, not separated

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
    categories: dict[str, int]            # entry's key -> the data set's category id, of all its categories

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


def read_coco(annotations: str | Path, images: str | Path, bank: dict[str, Entry] | None, drops: Counter,
              kind: str = "coco") -> list[Photo]:
    """Photos sorted by file name. What cannot be used (no file, no mask, a name not in the bank) is counted in `drops`.
    bank: None takes every name; kind: see `datagen.formats`.

    Raises BadInput when the file is not COCO's, or when no photo of it can be used.
    """
    annotations, images = Path(annotations), Path(images)
    if not images.is_dir():
        raise BadInput(f"no folder {images}; --images names the folder with the photos")
    try:
        data = as_coco(kind, annotations, images)
        names = {row["id"]: " ".join(row["name"].replace("_", " ").split()).lower() for row in data["categories"]}
        rows = {row["id"]: [] for row in data["images"]}
        for row in data["annotations"]:
            key = names[row["category_id"]]
            if bank is not None and key not in bank:
                drops[f"name without phrases: {key}"] += 1
            elif not row.get("segmentation"):
                drops["annotation without a mask"] += 1
            elif row["image_id"] not in rows:
                drops["annotation of an unknown image"] += 1
            else:
                rows[row["image_id"]].append(Instance(
                    row["id"], key, row["segmentation"], tuple(row["bbox"]),
                    float(row.get("area", row["bbox"][2] * row["bbox"][3])), bool(row.get("iscrowd", 0))))
        categories = {name: number for number, name in names.items()}
        photos = [Photo(row["id"], images / row["file_name"], row["width"], row["height"], tuple(rows[row["id"]]),
                        categories)
                  for row in sorted(data["images"], key=lambda row: row["file_name"])]
    except BadInput:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise BadInput(f"{annotations} is not COCO's json with images, annotations and categories") from None
    kept = []
    for photo in photos:
        if not photo.file.is_file():
            drops["photo without a file"] += 1
        elif not photo.instances:
            drops["photo without usable annotations"] += 1
        else:
            kept.append(photo)
    if not kept:
        raise BadInput(f"none of the {len(photos)} photos of {annotations} can be used: {dict(drops)}")
    return kept


def seed_for(photo: Photo, *parts: object) -> int:
    """A seed of the photo's own, so that its questions do not depend on which other photos there are."""
    return zlib.crc32("/".join(map(str, (photo.file.name, *parts))).encode())
