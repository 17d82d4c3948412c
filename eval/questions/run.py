"""Questions whose truth is masks: asked of the free-running model, scored on what it says. Shared by every such benchmark.

    questions = [Question("a12", record, Path("a.jpg"), ["length: short"]), ...]
    run_questions(args, "reasonseg", VERSION, questions, bad)

The model speaks, and what it says is scored: the union of the masks that it calls present against the union of the targets
that are there. A question of which nothing is there scores 1 where the model says so, 0 where it outlines anything. Every
question starts a new conversation; where it follows others (`Record.history`), those are asked first, and the model reads
its own answers to them.

Beside the score stands its bound: the best choice among the same proposals (`eval.oracle`).
Another model's answers are scored alike from a folder of masks: `--predictions` (`eval.predictions`).
"""

import argparse
import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.record import Record, from_rle, record_masks, to_rle
from eval.metrics import (
    PROTOCOLS,
    Pair,
    bootstrap_interval,
    c_iou,
    counts,
    g_iou,
    iou,
    ious,
    n_acc,
    normal_counts,
    presence_curve,
    t_acc,
)
from eval.oracle import Atoms, oracle
from eval.photos import open_sized
from eval.predictions import Predictions
from eval.report import Curve, write_report
from eval.result import Result, Run, print_table, write_result

FIRST = {"10": 10, "50": 50, "60": 60, "all": None}  # proposals that the oracle may choose from


@dataclass(frozen=True)
class Question:
    """One question of a benchmark. key: unique, and the name of its file in `--predictions`; groups: "name: value"."""

    key: int | str
    record: Record
    image: Path
    groups: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """How the result lists it when it cannot be used."""
        return (
            f"row {self.key + 1}, {self.record.image}"
            if isinstance(self.key, int)
            else f"{self.key}, {self.record.image}"
        )


def words_group(question: str) -> str:
    """The group of a question by its length."""
    words = len(question.split())
    return f"words: {'1 to 3' if words < 4 else '4 to 7' if words < 8 else '8 to 15' if words < 16 else '16 and more'}"


@dataclass(frozen=True)
class Truth:
    """Masks (H, W) bool: the targets that are there, and what does not count (None: everything counts)."""

    targets: list[np.ndarray]
    ignore: np.ndarray | None
    size: tuple[int, int]

    @classmethod
    def of(cls, record: Record) -> "Truth":
        """An empty mask counts as absent (LLM-Seg40K)."""
        ignore = record.source.get("ignore")
        ignore = from_rle(ignore) if ignore else None
        size = (record.height, record.width)
        if ignore is not None and ignore.shape != size:
            raise BadInput(
                f"the mask to ignore is {ignore.shape[1]}x{ignore.shape[0]}, not {size[1]}x{size[0]}"
            )
        return cls([m for m in record_masks(record) if m is not None and m.any()], ignore, size)

    @property
    def union(self) -> np.ndarray:
        return np.any(self.targets, axis=0) if self.targets else np.zeros(self.size, bool)


def score_answer(answer, truth: Truth) -> dict:
    """One answer against what is there; both may be empty.

    `pair` and `normal` count pixels under the "lisa" protocol; `under` holds them for the others where they differ.
    `found` of the targets are covered by one present mask of the answer at IoU >= .5; `right` of the
    answer's present masks cover such a target.
    """
    present = [t for t in answer.targets if t.present]
    masks = [t.mask for t in present]
    said = np.any(masks, axis=0) if masks else np.zeros(truth.size, dtype=bool)
    union = truth.union
    table = np.array([[iou(*counts(m, t)) for t in truth.targets] for m in masks]).reshape(
        len(masks), len(truth.targets)
    )

    def pairs(protocol: str) -> dict[str, Pair]:
        return {
            "pair": counts(said, union, truth.ignore, protocol),
            "normal": normal_counts(said, union, truth.ignore, protocol),
        }

    return pairs("lisa") | {
        "under": {} if truth.ignore is None else {p: pairs(p) for p in PROTOCOLS if p != "lisa"},
        "said": bool(present),
        "confidence": max((float(t.confidence) for t in answer.targets), default=0.0),
        "area": int(union.sum()),
        "share": float(union.mean()),
        "found": int((table >= 0.5).any(0).sum()),
        "right": int((table >= 0.5).any(1).sum()),
        "answer": answer.text,
        "answered": [
            {
                "phrase": t.phrase,
                "present": bool(t.present),
                "confidence": float(t.confidence),
                "proposals": list(map(int, t.proposals)),
                "rle": to_rle(t.mask) if t.present else None,
            }
            for t in answer.targets
        ],
    }


def score_oracle(rles: list[dict], truth: Truth) -> dict:
    """The best choice among the proposals at each K of FIRST, under each protocol; nothing where nothing is to be found."""
    if truth.ignore is None:
        return best_of(Atoms.of(rles, [truth.union]), rles) if truth.targets else {"oracle": {}, "chosen": []}
    atoms = Atoms.of(rles, [truth.union, truth.union | truth.ignore, truth.ignore])
    counted = Atoms(atoms.proposals, atoms.targets[:1], atoms.size * ~atoms.targets[2])
    seg_zero = Atoms(atoms.proposals, atoms.targets[1:2], atoms.size)
    found = best_of(counted, rles) if truth.targets else {"oracle": {}, "chosen": []}
    return found | {"oracle_under": {"seg-zero": best_of(seg_zero, rles)["oracle"]}}


def best_of(atoms: Atoms, rles: list[dict]) -> dict:
    best = {name: oracle(atoms, 0, k) for name, k in FIRST.items()}
    chosen = best["all"].chosen
    return {
        "oracle": {name: o.iou for name, o in best.items()},
        "chosen": chosen,
        "best": [rles[k] for k in chosen],
    }


def open_scene(assistant, path: Path, record: Record):
    """(scene, seconds); BadInput where the picture is missing, unreadable or of another size than the record says."""
    began = time.perf_counter()
    scene = assistant.open(open_sized(path, record.height, record.width))
    len(scene.proposals)  # a scene may put its work off until it is asked
    return scene, time.perf_counter() - began


def ask_picture(assistant, questions: list[tuple[int, Question]], run: Run, seed: int, strict: bool) -> None:
    """Ask all the (number, question) of one picture, which is opened once; adds a line each to `run`."""
    import torch

    first = questions[0][1]
    scene, seconds, trouble = None, None, None
    try:
        if not isinstance(assistant, Predictions):
            scene, seconds = open_scene(assistant, first.image, first.record)
    except BadInput as error:
        if strict:
            raise
        trouble = str(error)
    for number, question in questions:
        record = question.record
        about = {
            "image": record.image,
            "question": record.question,
            "groups": question.groups,
            "name": question.name,
        }
        try:
            if trouble:
                raise BadInput(trouble)
            if (record.height, record.width) != (first.record.height, first.record.width):
                raise BadInput("two records give the same picture different sizes")
            if strict and record.source.get("trouble"):
                raise BadInput(record.source["trouble"])
            truth = Truth.of(record)
            if scene is None:
                line = {}
                answer = assistant.answer(question.key, truth.size)
            else:
                scene.reset()
                torch.manual_seed(seed + number)
                for turn in record.history:
                    scene.ask(turn.question)
                began = time.perf_counter()
                answer = scene.ask(record.question)
                line = {"seconds": time.perf_counter() - began, "tokens": getattr(answer, "tokens", None)}
        except BadInput as error:
            if strict:
                raise BadInput(f"{question.name}: {error}") from None
            run.add(question.key, about | {"error": str(error)})
            continue
        line |= score_answer(answer, truth)
        line |= {
            "targets": len(truth.targets),
            "absent": len(record.targets) - len(truth.targets),
            "trouble": record.source.get("trouble", ""),
            "oracle": {},
            "chosen": [],
            "used": [],
        }
        if scene is not None:
            rles = scene.proposals.rles
            line["used"] = [[rles[k] for k in t["proposals"]] for t in line["answered"]]
            line |= score_oracle(rles, truth)
        if seconds is not None:
            line["open_seconds"], seconds = seconds, None
        run.add(question.key, about | line)


def add_arguments(parser: argparse.ArgumentParser, default_split: str | None = None) -> None:
    parser.add_argument(
        "--split", default=default_split, help=f"part of the data set (default: {default_split or 'all'})"
    )
    parser.add_argument(
        "--protocol",
        default="lisa",
        choices=[*PROTOCOLS, "both"],
        help="how ignored and empty masks count (eval/metrics.py); both: side by side (default: lisa)",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        help="score the masks of this folder, KEY.png or predictions.json, instead of a model",
    )


def run_questions(
    args: argparse.Namespace,
    benchmark: str,
    version: int,
    questions: list[Question],
    bad: list[tuple[str, str]] = (),
) -> None:
    """Ask every question and write result.json, samples.jsonl and report.html. `bad`: (name, reason) of items that could
    not even be read; with --strict the first of them ends the run."""
    from tqdm import tqdm

    from eval.pictures import sample_pictures

    if bad and args.strict:
        raise BadInput(f"{bad[0][0]}: {bad[0][1]}")
    # Of all questions: more of the same with a larger --limit goes on in the same folder.
    asked = json.dumps(
        [
            (
                q.key,
                q.record.question,
                [t.rle for t in q.record.targets],
                *(t.question for t in q.record.history),
            )
            for q in questions
        ]
    )
    questions = questions[: args.limit]
    if not questions:
        raise BadInput(f"nothing to ask in {args.root}" + (f": {bad[0][1]}" if bad else ""))
    if len({q.key for q in questions}) < len(questions):
        raise BadInput(f"two questions in {args.root} have the same name")
    assistant = Predictions(args.predictions) if args.predictions else args.open_assistant(args)
    preset = f"predictions in {args.predictions.name}" if args.predictions else args.preset
    run = Run(
        args.out,
        {
            "benchmark": benchmark,
            "version": version,
            "preset": preset,
            "weights": dict(assistant.weights),
            "questions": hashlib.sha256(asked.encode()).hexdigest(),
            "seed": args.seed,
        },
    )
    pictures: dict[Path, list] = {}
    for number, question in enumerate(questions):
        pictures.setdefault(question.image, []).append((number, question))
    mine = run.mine(list(pictures.values()))
    with tqdm(
        total=sum(map(len, mine)), desc="questions", disable=None if run.processes == 1 else run.rank > 0
    ) as bar:
        for of_one in mine:
            waiting = [pair for pair in of_one if pair[1].key not in run.done]
            if waiting:
                ask_picture(assistant, waiting, run, args.seed, args.strict)
            bar.update(len(of_one))
    lines = run.gather(q.key for q in questions)
    if lines is None:
        return
    result = summary(lines, args.protocol, args.seed)
    result.benchmark, result.version, result.preset, result.weights = (
        benchmark,
        version,
        preset,
        dict(assistant.weights),
    )
    result.bad = [{"name": name, "error": reason} for name, reason in bad] + result.bad
    if args.predictions:
        result.curve = []  # masks on disk have no confidence
    write_result(args.out, result)
    curve = Curve(
        "Presence: what a question's best confidence decides",
        "threshold",
        "share",
        {name: [(p["threshold"], p[name]) for p in result.curve] for name in ("N_acc", "T_acc")},
    )
    write_report(args.out, result, [curve] if result.curve else [], sample_pictures(lines, questions))
    names = (
        "protocol",
        "gIoU",
        "cIoU",
        "ncIoU",
        "N_acc",
        "T_acc",
        "oracle_gIoU",
        "seconds_per_image",
        "seconds_per_query",
    )
    print_table(
        f"{benchmark}, version {version}, {result.n} questions, {len(result.bad)} bad",
        {k: getattr(result, k) for k in names}
        | {k: v for k, v in result.figures.items() if not isinstance(v, dict)},
    )
    for protocol, figures in result.figures.get("protocols", {}).items():
        print_table(f"protocol {protocol}", figures)
    for group, figures in result.by.items():
        if group.startswith("length"):
            print_table(group, {k: figures[k] for k in ("n", "gIoU", "cIoU", "oracle_gIoU")})


def under(line: dict, protocol: str) -> dict:
    """A line's counts under a protocol."""
    other = line["under"].get(protocol, {})
    return (
        line
        | other
        | ({"oracle": line["oracle_under"][protocol]} if other and line.get("oracle_under") else {})
    )


def scores(lines: list[dict], protocol: str) -> dict:
    """The figures of a group of answered lines."""
    lines = [under(line, protocol) for line in lines]
    there = [line for line in lines if line["targets"]]
    said, truth = [line["said"] for line in lines], [bool(line["targets"]) for line in lines]
    bounds = [line["oracle"].get("all", iou(0, 0, protocol)) for line in lines] if has_oracle(lines) else []
    return {
        "n": len(lines),
        "gIoU": g_iou([line["pair"] for line in lines], protocol),
        "cIoU": c_iou([line["pair"] for line in lines], protocol),
        "gIoU_present": g_iou([line["pair"] for line in there], protocol),
        "N_acc": n_acc(said, truth),
        "T_acc": t_acc(said, truth),
        "oracle_gIoU": float(np.mean(bounds)) if bounds else None,
    }


def has_oracle(lines: list[dict]) -> bool:
    """Whether these were answered by a model with proposals, and not read from a folder."""
    return any(line["oracle"] for line in lines) or any("seconds" in line for line in lines)


def groups_of(line: dict) -> list[str]:
    size = (
        "nothing"
        if not line["targets"]
        else "small"
        if line["share"] < 0.01
        else "medium"
        if line["share"] < 0.1
        else "large"
    )
    count = str(line["targets"]) if line["targets"] < 3 else "3 or more"
    return [*line["groups"], f"targets: {count}", f"size: {size}"]


def summary(lines: list[dict], protocol: str = "lisa", seed: int = 0) -> Result:
    """The result of a whole run from its lines; N_acc and T_acc count questions, not single targets. protocol "both":
    the fields are "lisa"'s, `figures["protocols"]` holds each."""
    main = "lisa" if protocol == "both" else protocol
    good = [line for line in lines if "error" not in line]
    there = [line for line in good if line["targets"]]
    absent = [line for line in good if not line["targets"]]
    pairs = [under(line, main)["pair"] for line in good]
    figures = scores(good, main)

    def mean(values) -> float | None:
        values = [v for v in values if v is not None]
        return float(np.mean(values)) if values else None

    def interval(values) -> list[float] | None:
        return bootstrap_interval(values, seed)

    def present(protocol: str) -> list[Pair]:
        return [under(line, protocol)["pair"] for line in there]

    groups: dict[str, list[dict]] = {}
    for line in good:
        for name in groups_of(line):
            groups.setdefault(name, []).append(line)
    seconds = {
        name: [line[key] for line in good if key in line]
        for name, key in (("image", "open_seconds"), ("query", "seconds"))
    }
    present_said = sum(t["present"] for line in good for t in line["answered"])
    targets = sum(line["targets"] for line in good)
    extra = {
        "n_present": len(there),
        "n_absent": len(absent),
        "gIoU_present": figures["gIoU_present"],
        "cIoU_present": c_iou(present(main), main),
    }
    extra |= {f"Pr@{t}": mean(ious(present(main), main) >= t) for t in (0.5, 0.7, 0.8, 0.9)}
    if has_oracle(good):
        extra |= {
            f"oracle_gIoU_present@{k}": mean(under(line, main)["oracle"][k] for line in there) for k in FIRST
        }
    extra |= {
        "targets_found_50": sum(line["found"] for line in good) / targets if targets else None,
        "masks_right_50": sum(line["right"] for line in good) / present_said if present_said else None,
    }
    if protocol == "both":
        extra["protocols"] = {
            p: {k: v for k, v in scores(good, p).items() if "IoU" in k}
            | {"gIoU_95": interval(ious([under(line, p)["pair"] for line in good], p))}
            for p in PROTOCOLS
        }
    return Result(
        benchmark="",
        version=0,
        protocol=protocol,
        n=len(good),
        gIoU=figures["gIoU"],
        cIoU=figures["cIoU"],
        ncIoU=c_iou([under(line, main)["normal"] for line in good], main),
        N_acc=figures["N_acc"],
        T_acc=figures["T_acc"],
        oracle_gIoU=figures["oracle_gIoU"],
        ci95={
            "gIoU": interval(ious(pairs, main)),
            "gIoU_present": interval(ious(present(main), main)),
            "N_acc": interval([not line["said"] for line in absent]),
            "T_acc": interval([line["said"] for line in there]),
        },
        by={name: scores(groups[name], main) for name in sorted(groups)},
        seconds_per_query=float(np.median(seconds["query"])) if seconds["query"] else None,
        seconds_per_image=float(np.median(seconds["image"])) if seconds["image"] else None,
        tokens_per_query=mean(line.get("tokens") for line in good),
        figures=extra,
        curve=presence_curve([line["confidence"] for line in good], [bool(line["targets"]) for line in good]),
        bad=[{"name": line["name"], "error": line["error"]} for line in lines if "error" in line]
        + [
            {"name": line["name"], "error": f"scored, but {line['trouble']}"}
            for line in good
            if line["trouble"]
        ],
    )
