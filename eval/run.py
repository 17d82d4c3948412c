"""The samples of one run: written as they are scored, resumed after a kill, shared by several processes.

    run = Run(settings.out, {"benchmark": "records", "version": 1, ...}, settings.strict)
    lines = run.each(images, key=image_name, work=score_image)      # skips what samples.jsonl already has
    if lines is not None:                                           # None in all processes but the first
        write_result(settings.out, result_of(lines))

Launched as several processes (`accelerate launch -m eval ...` and torchrun set RANK and WORLD_SIZE), each
takes its share of the items and writes a file of its own; the first one gathers them. No item is counted
twice, and a run may be resumed with another number of processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from assistant.errors import DISK_FULL, BadInput
from assistant.files import replace_whole

GATHER_POLL_SECONDS = 0.5  # how often the first process looks for the lines of the others

Item = TypeVar("Item")


class Run:
    """The samples of one run in a folder.

    Attributes:
        out: The folder.
        strict: Whether an item that cannot be used ends the run.
        done: {key: line} of every finished item, of all processes, as far as it was read.
        rank: The number of this process, from 0.
        processes: How many processes share the run.
    """

    def __init__(self, out: str | Path, settings: dict[str, Any], strict: bool = False):
        """Open a run, or resume it.

        Args:
            out: The folder; it is created where it is missing.
            settings: What the samples depend on, as JSON values; stored in run.json.
            strict: Whether an item that cannot be used ends the run, instead of being recorded with its
                error.

        Raises:
            BadInput: The folder holds a run with other settings, or it cannot be written.
        """
        self.out = Path(out)
        self.strict = strict
        self.rank = int(os.environ.get("RANK", 0))
        self.processes = int(os.environ.get("WORLD_SIZE", 1))
        self._file = self.out / ("samples.jsonl" if self.processes == 1 else f"samples.{self.rank}.jsonl")
        settings = json.loads(json.dumps(settings))
        try:
            stored = self._store(settings)
            self._drop_torn_line()
            self.done = self._read()
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise  # says that what is finished is kept
            raise BadInput(f"--out {out} cannot be used: {error}") from None
        if stored != settings:
            changed = sorted(k for k in stored.keys() | settings.keys() if stored.get(k) != settings.get(k))
            raise BadInput(
                f"--out {out} holds a run with another {', '.join(changed)}: choose another folder"
            )

    def each(
        self,
        items: Sequence[Item],
        key: Callable[[Item], Hashable],
        work: Callable[[Item], dict[str, Any]],
        *,
        noun: str = "images",
        describe: Callable[[Item], dict[str, Any]] | None = None,
        group: Callable[[Item], Hashable] | None = None,
        is_finished: Callable[[dict[str, Any]], bool] | None = None,
    ) -> list[dict[str, Any]] | None:
        """Score every item that samples.jsonl does not have yet, and gather the lines of all.

        The line of an item is on disk, whole, before the next item begins. An item whose `work` raises
        BadInput gets the line {"key": ..., **describe(item), "error": message}; in a strict run the error
        ends the run.

        Args:
            items: All items of the run, in an order that does not change when it is resumed.
            key: The key of an item: unique, an int or a str, the same when the run is resumed.
            work: Scores an item and returns its line, as JSON values. Called for this process's share only.
            noun: What the items are, for the progress bar.
            describe: What the line of an item that cannot be used tells beside the error. Its "name" is what
                a strict run calls the item; without one it is called by its key.
            group: Items of an equal group are scored one after the other by the same process, so that `work`
                can reuse what it opened; None where the items are independent.
            is_finished: Whether the line of an earlier run needs nothing more; None where every line is
                final. `work` finds the earlier line in `done`.

        Returns:
            The lines in the items' order, once every process has finished; None in all processes but the
            first.

        Raises:
            BadInput: An item cannot be used and the run is strict.
        """
        from tqdm import tqdm

        groups: dict[Hashable, list[Item]] = {}
        for number, item in enumerate(items):
            groups.setdefault(number if group is None else group(item), []).append(item)
        mine = [item for members in self.mine(list(groups.values())) for item in members]
        # None: hidden where the output is no terminal.
        hidden = None if self.processes == 1 else self.rank > 0
        for item in tqdm(mine, desc=noun, disable=hidden):
            line = self.done.get(key(item))
            if line is not None and (is_finished is None or is_finished(line)):
                continue
            self.add(key(item), self._line(item, key, work, describe))
        return self.gather(key(item) for item in items)

    def _line(
        self,
        item: Item,
        key: Callable[[Item], Hashable],
        work: Callable[[Item], dict[str, Any]],
        describe: Callable[[Item], dict[str, Any]] | None,
    ) -> dict[str, Any]:
        """The line of one item: what `work` returns, or the error."""
        try:
            return work(item)
        except BadInput as error:
            about = describe(item) if describe else {}
            if self.strict:
                raise BadInput(f"{about.get('name', key(item))}: {error}") from None
            return about | {"error": str(error)}

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of the items."""
        return items[self.rank :: self.processes]

    def add(self, key: Hashable, line: dict[str, Any]) -> None:
        """Append one finished item; it survives a kill from here on."""
        line = {"key": key, **line}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[key] = line

    def gather(self, keys: Iterable[Hashable]) -> list[dict[str, Any]] | None:
        """All lines in the keys' order, once every process has finished; None in all processes but the first.

        A launcher ends the waiting process if another one fails.
        """
        if self.rank:
            return None
        keys = list(keys)
        while self.processes > 1 and not self.done.keys() >= set(keys):
            time.sleep(GATHER_POLL_SECONDS)
            self.done = self._read()
        if self._parts():
            with replace_whole(self.out / "samples.jsonl") as path:
                path.write_text("".join(json.dumps(line) + "\n" for line in self.done.values()))
            for part in self._parts():
                part.unlink()
        return [self.done[key] for key in keys]

    def _store(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings in run.json, which becomes `settings` in a new folder."""
        file = self.out / "run.json"
        self.out.mkdir(parents=True, exist_ok=True)
        if file.exists():
            return json.loads(file.read_text())
        with replace_whole(file) as path:
            path.write_text(json.dumps(settings, indent=1))
        return settings

    def _drop_torn_line(self) -> None:
        """Cut the last line of this process's file where it was killed while writing it."""
        if not self._file.exists():
            return
        content = self._file.read_bytes()
        whole_lines = content[: content.rfind(b"\n") + 1]
        if len(whole_lines) < len(content):
            with replace_whole(self._file) as path:
                path.write_bytes(whole_lines)

    def _parts(self) -> list[Path]:
        """The files of single processes."""
        return sorted(self.out.glob("samples.[0-9]*.jsonl"))

    def _read(self) -> dict[Hashable, dict[str, Any]]:
        """The whole lines of all processes, by key."""
        done: dict[Hashable, dict[str, Any]] = {}
        for file in [self.out / "samples.jsonl", *self._parts()]:
            if file.exists():
                content = file.read_bytes()
                lines = map(json.loads, content[: content.rfind(b"\n") + 1].decode().splitlines())
                done |= {line["key"]: line for line in lines}
        return done
