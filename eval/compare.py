"""Which of two runs is better, sample by sample: the paired difference with its interval.

    python -m eval compare runs/eval/lisa-7b runs/eval/ours

Both must be runs of one benchmark over the same questions. Differences are B minus A, with the 95 %
bootstrap interval over samples; the same sample drawn is drawn in both. An interval that holds 0 shows
no difference.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.files import replace_whole
from eval.metrics import bootstrap_interval, iou
from eval.questions.summary import groups_of, under_protocol


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, help="folder of a run")
    parser.add_argument("b", type=Path, help="folder of another run of the same benchmark")
    parser.add_argument("--protocol", default="lisa", choices=["lisa", "seg-zero"])
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--out", type=Path, help="also write the table as JSON to this file")


def read_run(folder: Path) -> tuple[dict, dict]:
    """(result.json, {key: line} of the samples that could be scored)."""
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
    return result, good


def difference(a: list[dict], b: list[dict], protocol: str, seed: int) -> dict[str, dict]:
    """Paired differences (B minus A) of the lines of the same questions, by figure."""

    def values(line: dict) -> dict[str, float | None]:
        there = bool(line["targets"])
        score = iou(*under_protocol(line, protocol)["pair"], protocol)
        return {
            "gIoU": score,
            "gIoU_present": score if there else None,
            "T_acc": float(line["said"]) if there else None,
            "N_acc": None if there else float(not line["said"]),
        }

    first, second = [values(line) for line in a], [values(line) for line in b]
    table = {}
    for name in ("gIoU", "gIoU_present", "N_acc", "T_acc"):
        pairs = [(x[name], y[name]) for x, y in zip(first, second) if x[name] is not None]
        if pairs:
            x, y = np.array(pairs).T
            table[name] = {
                "n": len(x),
                "a": float(x.mean()),
                "b": float(y.mean()),
                "difference": float((y - x).mean()),
                "ci95": bootstrap_interval(y - x, seed),
                "better": int((y > x).sum()),
                "worse": int((y < x).sum()),
            }
    return table


def main(args: argparse.Namespace) -> None:
    (result_a, a), (result_b, b) = read_run(args.a), read_run(args.b)
    for name in ("benchmark", "version"):
        if result_a[name] != result_b[name]:
            raise BadInput(
                f"{args.a} and {args.b} have another {name}: {result_a[name]} and {result_b[name]}"
            )
    keys = [key for key in a if key in b]
    for key in keys:
        if (a[key]["question"], a[key]["area"]) != (b[key]["question"], b[key]["area"]):
            raise BadInput(f"the runs do not ask the same: {key} is another question in {args.b}")
    if not keys:
        raise BadInput(f"{args.a} and {args.b} have no question in common")
    left_out = len(a.keys() ^ b.keys())
    tables = {"all": difference([a[k] for k in keys], [b[k] for k in keys], args.protocol, args.seed)}
    for group in sorted({g for k in keys for g in groups_of(a[k])}):
        these = [k for k in keys if group in groups_of(a[k])]
        tables[group] = difference([a[k] for k in these], [b[k] for k in these], args.protocol, args.seed)
    print(
        f"{result_a['benchmark']}, version {result_a['version']}, protocol {args.protocol}: {len(keys)} questions in both, "
        f"{left_out} in one only (left out)\nA = {args.a}\nB = {args.b}"
    )
    for group, table in tables.items():
        for name, row in table.items():
            low, high = row["ci95"]
            print(
                f"  {group:<28} {name:<13} n {row['n']:<6} A {row['a']:.4f}  B {row['b']:.4f}  B-A {row['difference']:+.4f} "
                f"[{low:+.4f}, {high:+.4f}]  better {row['better']}, worse {row['worse']}"
            )
    if args.out:
        with replace_whole(args.out) as path:
            path.write_text(
                json.dumps(
                    {
                        "a": str(args.a),
                        "b": str(args.b),
                        "n": len(keys),
                        "left_out": left_out,
                        "protocol": args.protocol,
                        "tables": tables,
                    },
                    indent=1,
                )
                + "\n"
            )
