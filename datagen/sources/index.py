"""Annotations of any size in one SQLite file, picture by picture: COCO's json lists them in no order of pictures.

    index = open_index("coco", Path("instances.json"), Path("images"), Path("questions/photos.sqlite"))
    for number, name, width, height, about in index.execute("select * from images order by name"): ...

It is made once, and again when the annotations change.
"""

import json
import sqlite3
from pathlib import Path

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.images import pictures_in
from datagen.result_cache import code_of, fingerprint
from datagen.sources.formats import rows_of

TABLES = """create table about (made_of text);
create table categories (number, name text, about text);
create table images (number, name text, width integer, height integer, about text);
create table annotations (picture, number, category, about text);"""
NEEDED = ("segmentation", "bbox", "area", "iscrowd")


def open_index(kind: str, annotations: Path | None, images: Path, file: Path | None) -> sqlite3.Connection:
    """file None: in memory. BadInput where the annotations cannot be used."""
    if not images.is_dir():
        raise BadInput(f"no folder {images}; --images names the folder with the photos")
    if file is None:
        index = sqlite3.connect(":memory:", isolation_level=None)
        return fill(index, kind, annotations, images, "")
    made_of = state(kind, annotations, images)
    if not _is_current(file, made_of):
        with replace_whole(file) as temporary:
            fill(sqlite3.connect(temporary, isolation_level=None), kind, annotations, images, made_of).close()
    return sqlite3.connect(
        file, isolation_level=None, check_same_thread=False
    )  # a Ray worker may hand it to another


def state(kind: str, annotations: Path | None, images: Path) -> str:
    """Names what the index is made of: files by their size and time, since reading them is what the index saves."""
    from datagen.sources import formats

    place = annotations if kind != "none" else images
    try:
        files = (
            [place] if place.is_file() else pictures_in(place) if kind == "none" else sorted(place.iterdir())
        )
        times = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    except OSError as error:
        raise BadInput(
            f"cannot read {place} ({error.strerror}); --annotations names the annotations"
        ) from None
    return fingerprint(kind, str(place.resolve()), str(images.resolve()), times, code_of(formats))


def _is_current(file: Path, made_of: str) -> bool:
    if not file.is_file():
        return False
    index = sqlite3.connect(file)
    try:
        return index.execute("select made_of from about").fetchone() == (made_of,)
    except sqlite3.DatabaseError:
        return False
    finally:
        index.close()


def fill(
    index: sqlite3.Connection, kind: str, annotations: Path | None, images: Path, made_of: str
) -> sqlite3.Connection:
    from tqdm import tqdm

    try:
        index.executescript("pragma journal_mode=off; pragma synchronous=off;" + TABLES)
        index.execute("begin")
        for table, row in tqdm(
            rows_of(kind, annotations, images), unit="row", desc="index", disable=None, mininterval=1
        ):
            if table == "categories":
                index.execute(
                    "insert into categories values (?, ?, ?)", (row["id"], str(row["name"]), json.dumps(row))
                )
            elif table == "images":
                about = {
                    key: row[key]
                    for key in ("neg_category_ids", "not_exhaustive_category_ids")
                    if row.get(key)
                }
                index.execute(
                    "insert into images values (?, ?, ?, ?, ?)",
                    (
                        row["id"],
                        str(row["file_name"]),
                        int(row["width"]),
                        int(row["height"]),
                        json.dumps(about),
                    ),
                )
            else:
                _, _, _, _ = map(float, row["bbox"])
                about = {key: row[key] for key in NEEDED if key in row}
                index.execute(
                    "insert into annotations values (?, ?, ?, ?)",
                    (row["image_id"], row["id"], row["category_id"], json.dumps(about)),
                )
        index.execute("insert into about values (?)", (made_of,))
        index.execute("commit")
        index.executescript(
            "create index by_picture on annotations (picture); create index by_name on images (name)"
        )
    except sqlite3.OperationalError as error:  # in practice a full disk
        raise BadInput(
            f"cannot write the index of the annotations ({error}); make room on the disk"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, sqlite3.Error) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{annotations} is not COCO's json with images, annotations and categories "
            f"({type(error).__name__} {error})"
        ) from None
    return index
