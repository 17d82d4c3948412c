"""What a step has done, kept by its content: one SQLite file, so that a second run does only what is new.

    kept = Kept(Path("questions/kept.sqlite"))
    name = fingerprint("outline", photo_bytes, box)
    if (found := kept.get(name)) is None: kept.put(name, found := work())

Every value is committed when it is put: a run that was killed loses what it was at, and nothing before. Values are
JSON, compressed: masks as RLE shrink to a third.
"""

import hashlib
import json
import sqlite3
import zlib
from pathlib import Path

from assistant.errors import BadInput


def fingerprint(*parts) -> str:
    """Names a value by what it was made of: JSON values, or bytes."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def code_of(*modules) -> str:
    """Names the code of modules: what they made is made again when they change."""
    return fingerprint(*(Path(module.__file__).read_bytes() for module in modules))[:16]


class Kept:
    """file None: in memory, for a worker whose results are kept elsewhere. Not for several processes at once."""

    def __init__(self, file: Path | None):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.store = sqlite3.connect(file or ":memory:", isolation_level=None, check_same_thread=False)
            self.store.execute("pragma journal_mode=wal")
            self.store.execute(
                "pragma synchronous=normal"
            )  # safe when the program is killed, which is what happens here
            self.store.execute(
                "create table if not exists kept (name text primary key, value blob) without rowid"
            )
        except sqlite3.DatabaseError as error:
            raise BadInput(
                f"{file} is no store of finished work ({error}); delete it to begin anew"
            ) from None

    def get(self, name: str):
        """The value, or None."""
        row = self.store.execute("select value from kept where name = ?", (name,)).fetchone()
        return None if row is None else json.loads(zlib.decompress(row[0]))

    def put(self, name: str, value) -> None:
        content = zlib.compress(json.dumps(value, ensure_ascii=False).encode(), 3)
        try:
            self.store.execute("insert or replace into kept values (?, ?)", (name, content))
        except sqlite3.OperationalError as error:  # in practice a full disk
            raise BadInput(
                f"cannot keep what is done ({error}); make room on the disk, and the same command goes on"
            ) from None

    def close(self) -> None:
        self.store.close()
