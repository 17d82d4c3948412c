"""What a benchmark leaves in its folder: samples.jsonl while it runs, result.json at the end.

run = Run(out, {"benchmark": "records", "version": 1, "root": ...})   # the same settings again resume
for key in keys:
    if key not in run.done:
        run.add(key, {"key": key, ...})                                 # one line, on disk when this returns
write_result(out, Result(benchmark="records", version=1, n=len(run.done)))
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from assistant.errors import BadInput
from assistant.files import replace_whole


@dataclass
class Result:
    """`result.json`. What does not apply is None (null); scores in [0, 1], times in seconds.

    Beside the contract's fields: `figures` (the benchmark's own), `curve` (over the presence threshold),
    `bad` (inputs that could not be used: name and reason), `peak_memory_mb` of this process.
    """

    benchmark: str
    version: int
    n: int
    protocol: str | None = None
    gIoU: float | None = None
    cIoU: float | None = None
    ncIoU: float | None = None
    N_acc: float | None = None
    T_acc: float | None = None
    oracle_gIoU: float | None = None
    ci95: dict[str, list[float] | None] = field(default_factory=dict)
    by: dict[str, dict] = field(default_factory=dict)
    seconds_per_query: float | None = None
    seconds_per_image: float | None = None
    tokens_per_query: float | None = None
    preset: str | None = None
    weights: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    figures: dict = field(default_factory=dict)
    curve: list[dict] = field(default_factory=list)
    bad: list[dict] = field(default_factory=list)
    peak_memory_mb: float | None = None


class Run:
    """The samples of one run in a folder, resumable: `done` maps each finished key to its line.

    Several processes (`accelerate launch -m eval ...`, torchrun: they set RANK and WORLD_SIZE) share a folder: each
    works on `mine(items)` and writes lines of its own, the first one gathers them. Nothing is counted twice, and a
    run may be resumed with another number of processes.
    """

    def __init__(self, out: str | Path, settings: dict):
        """Raises BadInput where the folder holds a run with other settings, or cannot be written."""
        self.out = Path(out)
        self.rank, self.processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.own = self.out / ("samples.jsonl" if self.processes == 1 else f"samples.{self.rank}.jsonl")
        settings = json.loads(json.dumps(settings))
        file = self.out / "run.json"
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            before = json.loads(file.read_text()) if file.exists() else None
            if before is None:
                with replace_whole(file) as path:
                    path.write_text(json.dumps(settings, indent=1))
            if self.own.exists():
                whole = self.own.read_bytes()
                kept = whole[: whole.rfind(b"\n") + 1]
                if len(kept) < len(whole):  # the process was killed while it wrote its last line
                    with replace_whole(self.own) as path:
                        path.write_bytes(kept)
            self.done = self._read()
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"--out {out} cannot be used: {error}") from None
        if before not in (None, settings):
            changed = sorted(k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k))
            raise BadInput(
                f"--out {out} holds a run with another {', '.join(changed)}: "
                "choose another folder or delete it"
            )

    def _parts(self) -> list[Path]:
        return sorted(self.out.glob("samples.[0-9]*.jsonl"))

    def _read(self) -> dict:
        """The whole lines of all processes, by key."""
        done = {}
        for file in [self.out / "samples.jsonl", *self._parts()]:
            if file.exists():
                whole = file.read_bytes()
                lines = map(json.loads, whole[: whole.rfind(b"\n") + 1].decode().splitlines())
                done |= {line["key"]: line for line in lines}
        return done

    def mine(self, items: Sequence) -> Sequence:
        """This process's share of the items."""
        return items[self.rank :: self.processes]

    def add(self, key, line: dict) -> None:
        """Append one finished sample; it survives a kill from here on."""
        line = {"key": key, **line}
        with self.own.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[key] = line

    def gather(self, keys: Iterable) -> list[dict] | None:
        """All lines in the keys' order, once every process is through; None in all processes but the first."""
        if self.rank:
            return None
        keys = list(keys)
        while self.processes > 1 and not self.done.keys() >= set(
            keys
        ):  # a launcher ends this if another process fails
            time.sleep(0.5)
            self.done = self._read()
        if self._parts():
            with replace_whole(self.out / "samples.jsonl") as path:
                path.write_text("".join(json.dumps(line) + "\n" for line in self.done.values()))
            for part in self._parts():
                part.unlink()
        return [self.done[key] for key in keys]


def write_result(out: str | Path, result: Result) -> None:
    """Write `result.json` whole, with the commit and this process's peak memory."""
    result.commit, result.peak_memory_mb = result.commit or commit(), peak_memory_mb()
    with replace_whole(Path(out) / "result.json") as path:
        path.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")


def commit() -> str | None:
    """The source's git commit, with "+changes" where files differ from it; None outside a repository."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout

    try:
        head = git("rev-parse", "HEAD").strip()
        return head + "+changes" if git("status", "--porcelain", "--untracked-files=no").strip() else head
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def print_table(title: str, rows: dict[str, float | int | str | None]) -> None:
    """Print a benchmark's figures, one a line, under its name and version."""
    print(title)
    for name, value in rows.items():
        shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        print(f"  {name:<34} {shown}")
