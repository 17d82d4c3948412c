"""Which of two runs is better, sample by sample: the paired difference with its interval.

    python -m eval compare runs/eval/lisa-7b runs/eval/ours

Both must be runs of one benchmark over the same questions. Differences are B minus A, with the 95 % bootstrap
interval over samples; every resample holds the same samples of both runs. An interval that holds 0 shows no
difference. What the questions took in each run stands beside it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import BadInput
from assistant.files import replace_whole
from eval.metrics import PROTOCOLS, bootstrap_interval, iou
from eval.query_costs import query_costs
from eval.questions.summary import groups_of, under_protocol

Line = dict[str, Any]
Table = dict[str, dict[str, Any]]

SCORES = ("gIoU", "gIoU_present", "N_acc", "T_acc")


@dataclass(frozen=True)
class FinishedRun:
    """A run in its folder.

    Attributes:
        result: Its result.json.
        lines: {key: line} of the samples that could be scored.
    """

    result: dict[str, Any]
    lines: dict[int | str, Line]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("a", type=Path, help="folder of a run")
    parser.add_argument("b", type=Path, help="folder of another run of the same benchmark")
    parser.add_argument("--protocol", default="lisa", choices=PROTOCOLS)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--out", type=Path, help="also write the table as JSON to this file")


def main(args: argparse.Namespace) -> None:
    """Compare two runs, print the table, and write it where --out says."""
    compared = compare(args.a, args.b, args.protocol, args.seed)
    _print(compared)
    if args.out:
        row = {name: value for name, value in compared.items() if name not in ("benchmark", "version")}
        with replace_whole(args.out) as path:
            path.write_text(json.dumps(row, indent=1) + "\n")


def read_run(folder: Path) -> FinishedRun:
    """Read a run. Raises BadInput where it is not finished, or is of a benchmark that asks no questions."""
    try:
        result = json.loads((folder / "result.json").read_text())
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} holds no finished run ({error})") from None
    good = {line["key"]: line for line in lines if "error" not in line}
    if good and "pair" not in next(iter(good.values())):
        raise BadInput(
            f"{folder} is a run of {result['benchmark']}, which has no masks of questions to compare"
        )
    return FinishedRun(result, good)


def compare(a: Path, b: Path, protocol: str = "lisa", seed: int = 0) -> dict[str, Any]:
    """Compare two runs of one benchmark.

    Args:
        a: Folder of a run.
        b: Folder of the other run.
        protocol: One of `eval.metrics.PROTOCOLS`.
        seed: Seed of the bootstrap.

    Returns:
        {"benchmark", "version", "a", "b", "n", "left_out", "protocol", "tables", "costs"}: how many questions
        are in both runs and in only one of them, {group: `difference`}, and {cost: {"a", "b"}} of all of them
        (`eval.query_costs`), None where one is unknown.

    Raises:
        BadInput: The runs cannot be read, or do not ask the same.
    """
    first, second = read_run(a), read_run(b)
    for name in ("benchmark", "version"):
        if first.result[name] != second.result[name]:
            raise BadInput(f"{a} and {b} have another {name}: {first.result[name]} and {second.result[name]}")
    keys = [key for key in first.lines if key in second.lines]
    for key in keys:
        line, other = first.lines[key], second.lines[key]
        if (line["question"], line["area"]) != (other["question"], other["area"]):
            raise BadInput(f"the runs do not ask the same: {key} is another question in {b}")
    if not keys:
        raise BadInput(f"{a} and {b} have no question in common")
    groups: dict[str, list[int | str]] = {}
    for key in keys:
        for group in groups_of(first.lines[key]):
            groups.setdefault(group, []).append(key)
    tables = {}
    for group, members in {"all": keys, **dict(sorted(groups.items()))}.items():
        pairs = [(first.lines[key], second.lines[key]) for key in members]
        tables[group] = difference(pairs, protocol, seed)
    return {
        "benchmark": first.result["benchmark"],
        "version": first.result["version"],
        "a": str(a),
        "b": str(b),
        "n": len(keys),
        "left_out": len(first.lines.keys() ^ second.lines.keys()),
        "protocol": protocol,
        "tables": tables,
        "costs": _costs([first.lines[key] for key in keys], [second.lines[key] for key in keys]),
    }


def _costs(a: list[Line], b: list[Line]) -> dict[str, dict[str, float | None]]:
    """What the questions took in both runs, of the costs that are known of either."""
    first, second = query_costs(a), query_costs(b)
    return {
        name: {"a": first[name], "b": second[name]}
        for name in first
        if first[name] is not None or second[name] is not None
    }


def difference(pairs: list[tuple[Line, Line]], protocol: str, seed: int) -> Table:
    """The paired differences (B minus A) of some questions.

    Args:
        pairs: The lines of a question in both runs.
        protocol: One of `eval.metrics.PROTOCOLS`.
        seed: Seed of the bootstrap.

    Returns:
        {score: {"n", "a", "b", "difference", "ci95", "better", "worse"}} of the `SCORES` that apply.
    """
    values = [(_scores(line, protocol), _scores(other, protocol)) for line, other in pairs]
    table = {}
    for name in SCORES:
        known = [(a[name], b[name]) for a, b in values if a[name] is not None]
        if known:
            a, b = np.array(known).T
            table[name] = {
                "n": len(a),
                "a": float(a.mean()),
                "b": float(b.mean()),
                "difference": float((b - a).mean()),
                "ci95": bootstrap_interval(b - a, seed),
                "better": int((b > a).sum()),
                "worse": int((b < a).sum()),
            }
    return table


def _scores(line: Line, protocol: str) -> dict[str, float | None]:
    """The `SCORES` of one question; None where one does not apply."""
    present = bool(line["targets"])
    intersection, union = under_protocol(line, protocol)["pair"]
    score = iou(intersection, union, protocol)
    return {
        "gIoU": score,
        "gIoU_present": score if present else None,
        "T_acc": float(line["said"]) if present else None,
        "N_acc": None if present else float(not line["said"]),
    }


def _print(compared: dict[str, Any]) -> None:
    """Print the tables, a line for each group and score."""
    print(
        f"{compared['benchmark']}, version {compared['version']}, protocol {compared['protocol']}: "
        f"{compared['n']} questions in both, {compared['left_out']} in one only (left out)"
    )
    print(f"A = {compared['a']}")
    print(f"B = {compared['b']}")
    for group, table in compared["tables"].items():
        for name, row in table.items():
            low, high = row["ci95"]
            print(
                f"  {group:<28} {name:<13} n {row['n']:<6} A {row['a']:.4f}  B {row['b']:.4f}  "
                f"B-A {row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]  "
                f"better {row['better']}, worse {row['worse']}"
            )
    for name, cost in compared["costs"].items():
        a, b = ("unknown" if cost[run] is None else f"{cost[run]:.2f}" for run in "ab")
        print(f"  {name.replace('_', ' '):<28} A {a}  B {b}")
