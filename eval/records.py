"""The project's own benchmark: questions from a records file, answered by the free-running assistant.

    python -m eval records --root questions.jsonl --out runs/eval/records --preset pocket

The model speaks, and what it says is scored: the union of the masks that it calls present against the
union of the targets that are there. A question of which nothing is there scores 1 where the model says
so, 0 where it outlines anything. Every question starts a new conversation.

Beside the score stands its bound: the best choice among the same proposals (`eval.oracle`).
"""

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.record import read_records, record_masks
from eval.metrics import (
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
from eval.report import Curve, write_report
from eval.result import Result, Run, print_table, write_result

VERSION = 1
FIRST = {"10": 10, "50": 50, "60": 60, "all": None}  # proposals that the oracle may choose from


def find_records(root: Path, split: str | None = None) -> Path:
    """The records file: `root` itself, or in a folder SPLIT.jsonl, records.jsonl or the only *.jsonl."""
    if root.is_file():
        return root
    names = [f"{split}.jsonl"] if split else ["records.jsonl"]
    found = [root / n for n in names if (root / n).is_file()] or ([] if split else sorted(root.glob("*.jsonl")))
    if len(found) != 1:
        raise BadInput(f"--root {root} must be a records file, or a folder with {names[0]}")
    return found[0]


def score_answer(answer, targets: list[np.ndarray], size: tuple[int, int]) -> dict:
    """One answer against the (H, W) bool masks of the targets that are there; both may be empty.

    `found` of the targets are covered by one present mask of the answer at IoU >= .5; `right` of the
    answer's present masks cover such a target.
    """
    from pycocotools import mask as coco_mask

    present = [t for t in answer.targets if t.present]
    masks = [t.mask for t in present]
    prediction = np.any(masks, axis=0) if masks else np.zeros(size, dtype=bool)
    truth = np.any(targets, axis=0) if targets else np.zeros(size, dtype=bool)
    table = np.array([[iou(*counts(m, t)) for t in targets] for m in masks]).reshape(len(masks), len(targets))

    def encode(mask: np.ndarray) -> dict:
        found = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        return {"size": list(size), "counts": found["counts"].decode()}

    return {
        "pair": counts(prediction, truth), "normal": normal_counts(prediction, truth),
        "said": bool(present), "confidence": max((float(t.confidence) for t in answer.targets), default=0.0),
        "area": int(truth.sum()), "share": float(truth.mean()),
        "found": int((table >= 0.5).any(0).sum()), "right": int((table >= 0.5).any(1).sum()),
        "answer": answer.text,
        "answered": [{"phrase": t.phrase, "present": bool(t.present), "confidence": float(t.confidence),
                      "proposals": list(map(int, t.proposals)), "rle": encode(t.mask) if t.present else None}
                     for t in answer.targets]}


def open_scene(assistant, path: Path, record):
    """(scene, seconds); BadInput where the picture is missing, unreadable or of another size than the record says."""
    began = time.perf_counter()
    scene = assistant.open(open_sized(path, record.height, record.width))
    len(scene.proposals)  # a scene may put its work off until it is asked
    return scene, time.perf_counter() - began


def true_masks(record) -> list[np.ndarray]:
    """(H, W) bool masks of the record's targets that are there; an empty mask counts as absent (LLM-Seg40K)."""
    return [mask for mask in record_masks(record) if mask is not None and mask.any()]


def ask_photo(assistant, folder: Path, rows: dict, run: Run, seed: int, strict: bool) -> None:
    """Ask all unanswered `rows` {index: record} of one picture, which is opened once; adds a line each to `run`."""
    import torch

    first = next(iter(rows.values()))
    scene, seconds, trouble = None, None, None
    try:
        scene, seconds = open_scene(assistant, folder / first.image, first)
    except BadInput as error:
        if strict:
            raise
        trouble = str(error)
    for index, record in rows.items():
        about = {"image": record.image, "question": record.question, "kind": str(record.source.get("kind", "-"))}
        try:
            if trouble:
                raise BadInput(trouble)
            if (record.height, record.width) != (first.height, first.width):
                raise BadInput("two records give the same picture different sizes")
            targets = true_masks(record)
            scene.reset()
            torch.manual_seed(seed + index)
            began = time.perf_counter()
            answer = scene.ask(record.question)
            line = {"seconds": time.perf_counter() - began, "tokens": getattr(answer, "tokens", None)}
        except BadInput as error:
            if strict:
                raise BadInput(f"row {index + 1}, {record.image}: {error}") from None
            run.add(index, about | {"error": str(error)})
            continue
        line |= score_answer(answer, targets, (record.height, record.width))
        line |= {"targets": len(targets), "absent": len(record.targets) - len(targets), "oracle": {}, "chosen": []}
        rles = scene.proposals.rles
        line["used"] = [[rles[k] for k in t["proposals"]] for t in line["answered"]]
        if targets:
            atoms = Atoms.of(rles, [np.any(targets, axis=0)])
            best = {name: oracle(atoms, 0, k) for name, k in FIRST.items()}
            line |= {"oracle": {name: o.iou for name, o in best.items()}, "chosen": best["all"].chosen}
            line["best"] = [rles[k] for k in best["all"].chosen]
        if seconds is not None:
            line["open_seconds"], seconds = seconds, None
        run.add(index, about | line)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", help="use SPLIT.jsonl of the folder --root")


def main(args: argparse.Namespace) -> None:
    """Ask every record's question and write result.json, samples.jsonl and report.html."""
    from tqdm import tqdm

    from eval.pictures import sample_pictures

    file = find_records(args.root, args.split)
    records = read_records(file)[: args.limit]
    if not records:
        raise BadInput(f"{file} holds no record")
    assistant = args.open_assistant(args)
    weights = dict(assistant.weights)
    run = Run(args.out, {"benchmark": "records", "version": VERSION, "preset": args.preset, "weights": weights,
                         "records": hashlib.sha256(file.read_bytes()).hexdigest(), "seed": args.seed})
    photos: dict[str, dict] = {}
    for index, record in enumerate(records):
        photos.setdefault(record.image, {})[index] = record
    with tqdm(total=len(records), desc="questions") as bar:
        for rows in photos.values():
            waiting = {k: r for k, r in rows.items() if k not in run.done}
            if waiting:
                ask_photo(assistant, file.parent, waiting, run, args.seed, args.strict)
            bar.update(len(rows))
    lines = [run.done[k] for k in range(len(records))]
    result = summary(lines, args.seed)
    result.preset, result.weights = args.preset, weights
    write_result(args.out, result)
    curve = Curve("Presence: what a question's best confidence decides", "threshold", "share", {
        name: [(p["threshold"], p[name]) for p in result.curve] for name in ("N_acc", "T_acc")})
    write_report(args.out, result, [curve], sample_pictures(lines, records, file.parent))
    names = ("gIoU", "cIoU", "ncIoU", "N_acc", "T_acc", "oracle_gIoU", "seconds_per_image", "seconds_per_query")
    print_table(f"records, version {VERSION}, {result.n} questions, {len(result.bad)} bad",
                {k: getattr(result, k) for k in names} | result.figures)


def scores(lines: list[dict]) -> dict:
    """The figures of a group of answered lines."""
    there = [line for line in lines if line["targets"]]
    said, truth = [line["said"] for line in lines], [bool(line["targets"]) for line in lines]
    oracles = [line["oracle"].get("all", 1.0) for line in lines]
    return {"n": len(lines), "gIoU": g_iou([line["pair"] for line in lines]),
            "gIoU_present": g_iou([line["pair"] for line in there]), "N_acc": n_acc(said, truth),
            "T_acc": t_acc(said, truth), "oracle_gIoU": float(np.mean(oracles)) if lines else None}


def summary(lines: list[dict], seed: int = 0) -> Result:
    """The result of a whole run from its lines; N_acc and T_acc count questions, not single targets."""
    good = [line for line in lines if "error" not in line]
    there = [line for line in good if line["targets"]]
    absent = [line for line in good if not line["targets"]]
    pairs = [line["pair"] for line in good]
    figures = scores(good)

    def mean(values) -> float | None:
        values = [v for v in values if v is not None]
        return float(np.mean(values)) if values else None

    def interval(values) -> list[float] | None:
        return bootstrap_interval(values, seed)

    groups: dict[str, list[dict]] = {}
    for line in good:
        size = "nothing" if not line["targets"] else "small" if line["share"] < 0.01 else \
            "medium" if line["share"] < 0.1 else "large"
        count = str(line["targets"]) if line["targets"] < 3 else "3 or more"
        for name in (f"kind: {line['kind']}", f"targets: {count}", f"size: {size}"):
            groups.setdefault(name, []).append(line)
    seconds = {name: [line[key] for line in good if key in line] for name, key in
               (("image", "open_seconds"), ("query", "seconds"))}
    present_said = sum(t["present"] for line in good for t in line["answered"])
    targets = sum(line["targets"] for line in good)
    return Result(
        benchmark="records", version=VERSION, protocol="lisa", n=len(good), gIoU=figures["gIoU"], cIoU=c_iou(pairs),
        ncIoU=c_iou([line["normal"] for line in good]), N_acc=figures["N_acc"], T_acc=figures["T_acc"],
        oracle_gIoU=figures["oracle_gIoU"],
        ci95={"gIoU": interval(ious(pairs)), "gIoU_present": interval(ious([line["pair"] for line in there])),
              "N_acc": interval([not line["said"] for line in absent]),
              "T_acc": interval([line["said"] for line in there])},
        by={name: scores(groups[name]) for name in sorted(groups)},
        seconds_per_query=float(np.median(seconds["query"])) if seconds["query"] else None,
        seconds_per_image=float(np.median(seconds["image"])) if seconds["image"] else None,
        tokens_per_query=mean(line["tokens"] for line in good),
        figures={"n_present": len(there), "n_absent": len(absent), "gIoU_present": figures["gIoU_present"],
                 "cIoU_present": c_iou([line["pair"] for line in there])}
        | {f"oracle_gIoU_present@{k}": mean(line["oracle"][k] for line in there) for k in FIRST}
        | {"targets_found_50": sum(line["found"] for line in good) / targets if targets else None,
           "masks_right_50": sum(line["right"] for line in good) / present_said if present_said else None},
        curve=presence_curve([line["confidence"] for line in good], [bool(line["targets"]) for line in good]),
        bad=[{"name": f"row {line['key'] + 1}, {line['image']}", "error": line["error"]}
             for line in lines if "error" in line])
