"""The result cache: what the steps have done, so that a second run does only what is new.

    cache = ResultCache(Path("questions/kept.sqlite"))
    name = fingerprint("outline", image_bytes, box)
    if (result := cache.get(name)) is None:
        cache.put(name, result := work())

Every value is committed when it is put: a run that is killed loses only what was under way. Values are JSON,
compressed; masks as RLE shrink to a third. Nothing is ever deleted: what the names no longer lead to may be
asked for again, by an older version or with earlier options.
"""

import hashlib
import json
import sqlite3
import zlib
from pathlib import Path
from typing import Any, Protocol

from assistant.errors import ROOM_ADVICE, BadInput

COMPRESSION_LEVEL = 3  # of zlib: fast, and close to the smallest size for these short texts


def fingerprint(*parts: Any) -> str:
    """Name a value by what it was made of.

    Args:
        parts: JSON values, or bytes.

    Returns:
        A SHA-256 as 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


class Cache(Protocol):
    """Where the steps find and store what they have done."""

    def get(self, name: str) -> Any:
        """Return the JSON value of that name, or None."""

    def put(self, name: str, value: Any) -> None:
        """Store a JSON value under a name, in place of an earlier one."""


class ResultCache:
    """The cache of a run; for one process at a time.

    Args:
        file: The SQLite file, made when it is missing.

    Raises:
        BadInput: The file is not a result cache.
    """

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        try:
            self._store = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            self._store.execute("pragma journal_mode=wal")
            # Safe when the process is killed, which happens here; a power failure may cost the last values.
            self._store.execute("pragma synchronous=normal")
            self._store.execute(
                "create table if not exists kept (name text primary key, value blob) without rowid"
            )
        except sqlite3.OperationalError as error:
            raise BadInput(f"cannot open {file} ({error}): {ROOM_ADVICE}") from None
        except sqlite3.DatabaseError as error:
            raise BadInput(
                f"{file} is not a result cache ({error}): move it away or choose another folder"
            ) from None

    def get(self, name: str) -> Any:
        """Return the JSON value of that name, or None. Raises BadInput where the file is damaged."""
        try:
            return _read(self._store, name)
        except (sqlite3.DatabaseError, zlib.error, ValueError) as error:
            raise BadInput(
                f"{self._file} is damaged ({error}): move it away or choose another folder"
            ) from None

    def put(self, name: str, value: Any) -> None:
        """Store a JSON value under a name, in place of an earlier one.

        Raises:
            BadInput: It cannot be written, for example because the disk is full.
        """
        content = zlib.compress(json.dumps(value, ensure_ascii=False).encode(), COMPRESSION_LEVEL)
        try:
            self._store.execute("insert or replace into kept values (?, ?)", (name, content))
        except sqlite3.OperationalError as error:
            raise BadInput(f"cannot store a result in {self._file} ({error}): {ROOM_ADVICE}") from None

    def copy_to(self, file: Path) -> None:
        """Write a copy, for `WorkerCache`; an earlier one is replaced.

        Raises:
            BadInput: It cannot be written, for example because the disk is full.
        """
        file.unlink(missing_ok=True)
        try:
            self._store.execute("vacuum into ?", (str(file),))
        except sqlite3.OperationalError as error:
            raise BadInput(f"cannot copy the results to {file} ({error}): {ROOM_ADVICE}") from None

    def close(self) -> None:
        """Close the file."""
        self._store.close()


class WorkerCache:
    """The cache of a worker in another process, whose results are stored by the driver.

    Args:
        copy: What `ResultCache.copy_to` wrote. None: nothing has been done before.
    """

    def __init__(self, copy: Path | None = None):
        self._earlier: sqlite3.Connection | None = None
        if copy is not None:
            # immutable: no locks, which shared disks do not have.
            address = f"{copy.resolve().as_uri()}?immutable=1"
            self._earlier = sqlite3.connect(address, uri=True, check_same_thread=False)
        self._new: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """Return the JSON value of that name, or None."""
        value = self._new.get(name)
        if value is None and self._earlier is not None:
            value = _read(self._earlier, name)
        return value

    def put(self, name: str, value: Any) -> None:
        """Hold a JSON value until `take_new` takes it."""
        self._new[name] = value

    def take_new(self) -> dict[str, Any]:
        """Return {name: value} of what was put since the last call, and let go of it."""
        new, self._new = self._new, {}
        return new


def _read(store: sqlite3.Connection, name: str) -> Any:
    """The value of that name in the file of a cache, or None."""
    row = store.execute("select value from kept where name = ?", (name,)).fetchone()
    return None if row is None else json.loads(zlib.decompress(row[0]))
