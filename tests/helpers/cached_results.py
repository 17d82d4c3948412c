"""What is in the cache of a generated folder.

delete_image_results(folder / "out")         # single answers stay
"""

import json
import sqlite3
import zlib
from pathlib import Path


def delete_image_results(folder: Path) -> None:
    """Delete what became of whole images; answers of models and masks by SAM stay."""
    store = sqlite3.connect(folder / "kept.sqlite")
    for name, value in store.execute("select name, value from kept").fetchall():
        if "rows" in json.loads(zlib.decompress(value)):
            store.execute("delete from kept where name = ?", (name,))
    store.commit()
    store.close()
