"""Reads one JSON file in COCO's layout as rows, whatever its size.

for table, row in read_coco_file(Path("instances.json"), "coco"): ...

LVIS and EgoObjects give an image's name only as the end of its address, and write names like
"cup_(drinking)"; PACO writes the parts of objects as "mug:handle".
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from assistant.errors import BadInput
from datagen.sources.rows import Row, skipped, text

TABLES = ("categories", "images", "annotations")
MAX_REASON_LENGTH = 80  # characters of ijson's message that an error repeats
CHUNK_BYTES = 65_536
# Strings are matched so that such a word within one stays as it is.
STRINGS_AND_NUMBERS_THAT_ARE_NONE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?Infinity|NaN', re.DOTALL)
LONGEST_WORD = len(b"-Infinity")


def read_coco_file(file: Path, format: str) -> Iterator[Row]:
    """Read the rows of a file in COCO's layout.

    Args:
        file: The file.
        format: "coco", "lvis" or "egoobjects".

    Yields:
        (table, row); what is no row at all as `rows.skipped`.

    Raises:
        BadInput: It is not JSON, or has no images or categories.
    """
    for table in TABLES:
        is_empty = True
        for row in _items(file, table):
            is_empty = False
            if not isinstance(row, dict):
                yield skipped(f"{table}: a row that is no object", row)
            elif format == "coco":
                yield table, row
            else:
                yield table, row | _plain_names(table, row)
        if is_empty and table != "annotations":
            raise BadInput(
                f"{file} is not COCO's json with images, annotations and categories: it has no {table}"
            )


def _plain_names(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """The name of an LVIS or EgoObjects row as COCO would write it."""
    if table == "images" and not row.get("file_name"):
        address = text(row.get("coco_url")) or text(row.get("url")) or ""
        return {"file_name": address.rsplit("/", 1)[-1]}
    name = text(row.get("name"))
    return {"name": name.split("_(")[0].replace("_", " ")} if table == "categories" and name else {}


def _items(file: Path, table: str) -> Iterator[Any]:
    """The items of a table of the file. Raises BadInput where the file is not JSON in UTF-8."""
    import ijson

    with file.open("rb") as opened:
        try:
            yield from ijson.items(_StrictJson(opened), f"{table}.item", use_float=True)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
            raise BadInput(f"{file} is not JSON in UTF-8 ({reason})") from None


class _StrictJson:
    """A file of JSON for ijson: without its byte order mark, and null for NaN and Infinity.

    Python writes these words for numbers that are none, and JSON does not know them.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self._rest = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        """Read about as many bytes; b"" at the end. size 0: none, by which ijson asks what is read."""
        if size == 0:
            return b""
        while True:
            chunk = self.file.read(CHUNK_BYTES)
            content = self._rest + chunk
            end = self._end_of_whole_words(content) if chunk else len(content)
            self._rest = content[end:]
            if end or not chunk:
                return STRINGS_AND_NUMBERS_THAT_ARE_NONE.sub(_null_for_no_number, content[:end])

    @staticmethod
    def _end_of_whole_words(content: bytes) -> int:
        """How far the content goes without cutting a string or a word."""
        end = 0
        for match in STRINGS_AND_NUMBERS_THAT_ARE_NONE.finditer(content):
            end = match.end()
        quote = content.find(b'"', end)
        return quote if quote >= 0 else max(end, len(content) - LONGEST_WORD)


def _null_for_no_number(match: re.Match[bytes]) -> bytes:
    """A string as it is, and null for NaN and Infinity."""
    return match[0] if match[0].startswith(b'"') else b"null"
