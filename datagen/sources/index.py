"""Annotations of any size in one SQLite file, by image; COCO's json lists them in any order.

    index = open_index("coco", Path("instances.json"), Path("images"), Path("questions/photos.sqlite"))
    for number, name, width, height, about in index.execute("select * from images order by name"): ...

The file is made once, and again when the annotations change.
"""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.images import images_in
from datagen.result_cache import fingerprint
from datagen.sources.formats import rows_of
from datagen.sources.rows import identity, side, text
from datagen.versions import ANNOTATION_READER_VERSION

TABLES = """create table about (made_of text);
create table categories (number, name text, about text);
create table images (number, name text, width integer, height integer, about text);
create table annotations (picture, number, category, about text);
create table skipped (reason text, item text);"""
# Images that share an id or a name: nothing says whose outlines are whose.
SHARED_IDS = "select number from images group by number having count(*) > 1"
SHARED_NAMES = "select name from images group by name having count(*) > 1"
# Of a category, an annotation and an image, the fields that later steps read; the others are left out.
ANNOTATION_FIELDS = ("segmentation", "bbox", "area", "iscrowd")
CATEGORY_FIELDS = ("supercategory", "synonyms")
IMAGE_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")
MAX_ITEM_LENGTH = 120  # characters of what a message calls a row


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
            INSERTS[table](index, row)
        _leave_out_shared(index)
        index.execute("insert into about values (?)", (state,))
        index.execute("commit")
        index.executescript(
            "create index by_picture on annotations (picture); create index by_name on images (name)"
        )
    except sqlite3.OperationalError as error:  # in practice a full disk
        raise BadInput(
            f"cannot write the index of the annotations ({error}); make room on the disk"
        ) from None


def _leave_out_shared(index: sqlite3.Connection) -> None:
    """Take out images that share an id or a name; of a row that is there twice, the second."""
    repeats = "rowid not in (select min(rowid) from images group by number, name)"
    for reason, where in (
        ("photo: listed twice (two images with one id and name), and read once", repeats),
        ("photo: two images with one id", f"number in ({SHARED_IDS})"),
        ("photo: two images with one name", f"name in ({SHARED_NAMES})"),
    ):
        index.execute(f"insert into skipped select ?, name from images where {where}", (reason,))
        index.execute(f"delete from images where {where}")


def _insert_category(index: sqlite3.Connection, row: dict[str, Any]) -> None:
    number, name = identity(row.get("id")), _name_of(row)
    if number is None or name is None:
        _insert_skipped(index, {"reason": "category: without an id or a name", "item": _item_of(row)})
        return
    about = {key: row[key] for key in CATEGORY_FIELDS if key in row}
    index.execute("insert into categories values (?, ?, ?)", (number, name, json.dumps(about)))


def _name_of(row: dict[str, Any]) -> str | None:
    """A category's name; also where it is a number."""
    name = row.get("name")
    return text(str(name)) if isinstance(name, str | int | float) else None


def _insert_image(index: sqlite3.Connection, row: dict[str, Any]) -> None:
    number, name = identity(row.get("id")), text(row.get("file_name"))
    if number is None or name is None:
        _insert_skipped(index, {"reason": "photo: without an id or a file name", "item": _item_of(row)})
        return
    # Where the row has no size, the image itself has one.
    size = (side(row.get("width")), side(row.get("height")))
    about = {key: row[key] for key in IMAGE_FIELDS if row.get(key)}
    index.execute("insert into images values (?, ?, ?, ?, ?)", (number, name, *size, json.dumps(about)))


def _insert_annotation(index: sqlite3.Connection, row: dict[str, Any]) -> None:
    image, number = identity(row.get("image_id")), identity(row.get("id"))
    category = identity(row.get("category_id"))
    if image is None:
        _insert_skipped(index, {"reason": "annotation: without an image", "item": _item_of(row)})
        index.execute("insert into annotations values (null, null, ?, '{}')", (category,))
        return
    about = {key: row[key] for key in ANNOTATION_FIELDS if key in row}
    if number is None:
        about = {"fault": "annotation: without an id"}
    try:
        content = json.dumps(about)
    except RecursionError:
        content = json.dumps({"fault": "annotation: the outline is nested too deeply"})
    index.execute("insert into annotations values (?, ?, ?, ?)", (image, number, category, content))


def _insert_without_outline(index: sqlite3.Connection, row: dict[str, Any]) -> None:
    values = (row["image_id"], None, row["category_id"], json.dumps({"fault": row["fault"]}))
    index.execute("insert into annotations values (?, ?, ?, ?)", values)


def _insert_skipped(index: sqlite3.Connection, row: dict[str, Any]) -> None:
    item = row["item"][:MAX_ITEM_LENGTH]
    index.execute("insert into skipped values (?, ?)", (row["reason"], item))


def _item_of(row: dict[str, Any]) -> str:
    """What a message calls a row that lacks a name or an id: what else it says."""
    return ascii({key: value for key, value in row.items() if not isinstance(value, list | dict)})


INSERTS: dict[str, Callable[[sqlite3.Connection, dict[str, Any]], None]] = {
    "categories": _insert_category,
    "images": _insert_image,
    "annotations": _insert_annotation,
    "without_outline": _insert_without_outline,
    "skipped": _insert_skipped,
}
