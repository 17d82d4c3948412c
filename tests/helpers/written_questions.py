"""Runs `python -m datagen --writer openai` on three images against a scripted server.

code, records = generate(folder, server, "--concurrency", 4)
"""

import json
from pathlib import Path
from typing import Any

from assistant.record import Record, read_records
from datagen.__main__ import main
from tests.helpers.datagen_images import command
from tests.helpers.datagen_server import ScriptedServer


def writer_command(folder: Path, server: ScriptedServer, *more: object, out: str = "out") -> list[str]:
    """The arguments of the command."""
    model = ("--writer", "openai", "--model", "stub", "--base-url", server.url)
    return command(folder, out, *model, "--per-image", 8, *more)


def generate(
    folder: Path, server: ScriptedServer, *more: object, out: str = "out"
) -> tuple[int, list[Record]]:
    """Run the command; returns its exit code and the records, [] where it failed."""
    code = main(writer_command(folder, server, *more, out=out))
    return code, read_records(folder / out / "records.jsonl") if code == 0 else []


def statistics_of(folder: Path, out: str = "out") -> dict[str, Any]:
    """What the command wrote into statistics.json."""
    return json.loads((folder / out / "statistics.json").read_text())
