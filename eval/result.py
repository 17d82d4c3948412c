"""`result.json`: what a benchmark has measured.

result = Result(benchmark="records", version=1, n=len(lines), gIoU=0.5)
write_result("runs/eval/records", result)
print_table("records, version 1", {"gIoU": result.gIoU})
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assistant.files import replace_whole
from eval.metrics import PresencePoint


@dataclass
class Result:
    """The content of `result.json`. What does not apply is None (null).

    Attributes:
        benchmark: Name of the benchmark.
        version: Its version, which changes when its scores can no longer be compared with earlier ones.
        n: Number of samples that were scored.
        protocol: How the samples were scored, where a benchmark knows several ways.
        gIoU: Mean IoU over samples, in [0, 1].
        cIoU: Summed intersections over summed unions, in [0, 1].
        ncIoU: The same after every mask was resized to one square, in [0, 1].
        N_acc: Share of the absent that was answered absent, in [0, 1].
        T_acc: Share of the present that was answered present, in [0, 1].
        oracle_gIoU: The gIoU of the best choice of proposals, in [0, 1].
        ci95: 95 % intervals [low, high] of scores, by name.
        by: Scores of groups of samples, by group.
        seconds_per_query: Seconds per question on an opened image.
        seconds_per_image: Seconds to open an image.
        tokens_per_query: Tokens that the language model generated per question.
        read_tokens_per_query: Tokens that it read per question, those of images included.
        image_tokens_per_query: Tokens of images that it read per question.
        calls_per_query: Times that it was asked per question.
        passes_per_query: Phrases that a concept segmenter looked for per question.
        preset: The models that answered, see `assistant.presets.ModelOptions.describe`.
        weights: {part: sha256}.
        commit: Git commit of the source.
        figures: Scores that only this benchmark has.
        curve: N_acc and T_acc over the presence threshold, see `eval.metrics.presence_curve`.
        bad: The inputs that could not be used: {"name", "error"}.
        peak_memory_mb: Largest resident memory of this process, in MB (10^6 bytes).
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
    by: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds_per_query: float | None = None
    seconds_per_image: float | None = None
    tokens_per_query: float | None = None
    read_tokens_per_query: float | None = None
    image_tokens_per_query: float | None = None
    calls_per_query: float | None = None
    passes_per_query: float | None = None
    preset: str | None = None
    weights: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    curve: list[PresencePoint] = field(default_factory=list)
    bad: list[dict[str, str]] = field(default_factory=list)
    peak_memory_mb: float | None = None


def bad_inputs(lines: list[dict[str, Any]], name: str = "key") -> list[dict[str, str]]:
    """The lines with an error as `Result.bad` lists them; `name`: the field by which a line is called."""
    return [{"name": line[name], "error": line["error"]} for line in lines if "error" in line]


def write_result(out: str | Path, result: Result) -> None:
    """Write `result.json` whole into the folder `out`, with the commit and this process's peak memory."""
    result.commit = result.commit or commit()
    result.peak_memory_mb = peak_memory_mb()
    with replace_whole(Path(out) / "result.json") as path:
        path.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")


def commit() -> str | None:
    """The source's git commit, with "+changes" where files differ from it; None outside a repository."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + "+changes" if _git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def print_table(title: str, rows: Mapping[str, float | int | str | None]) -> None:
    """Print a benchmark's scores, one a line, under a title."""
    print(title)
    for name, value in rows.items():
        shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        print(f"  {name:<34} {shown}")
