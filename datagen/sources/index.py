"""Annotations of any size in one SQLite file, by image; COCO's json lists them in any order.

    index = open_index("coco", Path("instances.json"), Path("images"), Path("questions/photos.sqlite"))
    for number, name, width, height, about in index.execute("select * from images order by name"): ...

The file is made once, and again when the annotations change.
"""

import json
import sqlite3
from pathlib import Path
from typing import Any

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.images import images_in
from datagen.result_cache import fingerprint
from datagen.sources.formats import rows_of
from datagen.versions import ANNOTATION_READER_VERSION

TABLES = """create table about (made_of text);
create table categories (number, name text, about text);
create table images (number, name text, width integer, height integer, about text);
create table annotations (picture, number, category, about text);"""
# Of an annotation and of an image, the fields that later steps read; the others are left out.
ANNOTATION_FIELDS = ("segmentation", "bbox", "area", "iscrowd")
IMAGE_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


def open_index(format: str, annotations: Path | None, images: Path, file: Path | None) -> sqlite3.Connection:
    """Open the index of a data set, made anew where it is missing or out of date.

    Args:
        format: One of `datagen.settings.FORMATS`.
        annotations: Their file or folder; None for the format "none".
        images: Folder with the images.
        file: The SQLite file; None: in memory.

    Returns:
        A connection to the tables of `TABLES`.

    Raises:
        BadInput: The annotations cannot be used.
    """
    if not images.is_dir():
        raise BadInput(f"no folder {images}; --images names the folder with the photos")
    if file is None:
        index = sqlite3.connect(":memory:", isolation_level=None)
        _fill(index, format, annotations, images, "")
        return index
    state = _state(format, annotations, images)
    if not _is_current(file, state):
        with replace_whole(file) as temporary:
            index = sqlite3.connect(temporary, isolation_level=None)
            _fill(index, format, annotations, images, state)
            index.close()
    # A Ray worker may use the connection from another thread than the one that opened it.
    return sqlite3.connect(file, isolation_level=None, check_same_thread=False)


def _state(format: str, annotations: Path | None, images: Path) -> str:
    """Names what the index is made of: files by size and time, since reading them is what the index saves."""
    source = annotations or images
    try:
        if source.is_file():
            files = [source]
        else:
            files = images_in(source) if annotations is None else sorted(source.iterdir())
        times = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    except OSError as error:
        raise BadInput(
            f"cannot read {source} ({error.strerror}); --annotations names the annotations"
        ) from None
    return fingerprint(format, str(source.resolve()), str(images.resolve()), times, ANNOTATION_READER_VERSION)


def _is_current(file: Path, state: str) -> bool:
    """Whether the file is an index of just this state of the data set."""
    if not file.is_file():
        return False
    index = sqlite3.connect(file)
    try:
        return index.execute("select made_of from about").fetchone() == (state,)
    except sqlite3.DatabaseError:
        return False
    finally:
        index.close()


def _fill(index: sqlite3.Connection, format: str, annotations: Path | None, images: Path, state: str) -> None:
    """Make the tables and read all annotations into them."""
    from tqdm import tqdm

    rows = rows_of(format, annotations, images)
    try:
        index.executescript("pragma journal_mode=off; pragma synchronous=off;" + TABLES)
        index.execute("begin")
        for table, row in tqdm(rows, unit="row", desc="index", disable=None, mininterval=1):
            _insert(index, table, row)
        index.execute("insert into about values (?)", (state,))
        index.execute("commit")
        index.executescript(
            "create index by_picture on annotations (picture); create index by_name on images (name)"
        )
    except sqlite3.OperationalError as error:  # in practice a full disk
        raise BadInput(
            f"cannot write the index of the annotations ({error}); make room on the disk"
        ) from None
    except BadInput:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, sqlite3.Error) as error:
        raise BadInput(
            f"{annotations} is not COCO's json with images, annotations and categories "
            f"({type(error).__name__} {error})"
        ) from None


def _insert(index: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    """Insert one of COCO's rows; an error where it lacks something or holds something else."""
    if table == "categories":
        index.execute(
            "insert into categories values (?, ?, ?)", (row["id"], str(row["name"]), json.dumps(row))
        )
    elif table == "images":
        about = {key: row[key] for key in IMAGE_FIELDS if row.get(key)}
        size = (int(row["width"]), int(row["height"]))
        index.execute(
            "insert into images values (?, ?, ?, ?, ?)",
            (row["id"], str(row["file_name"]), *size, json.dumps(about)),
        )
    else:
        _, _, _, _ = map(float, row["bbox"])  # an error now rather than in the middle of the run
        about = {key: row[key] for key in ANNOTATION_FIELDS if key in row}
        index.execute(
            "insert into annotations values (?, ?, ?, ?)",
            (row["image_id"], row["id"], row["category_id"], json.dumps(about)),
        )
