"""Referring expressions with a box each, some of which are about nothing in the picture (RefCOCOs and the like).

    python -m eval boxes --root ../shared/data/refcocos/dev --out runs/eval/boxes

--root holds `expressions.json`: [{"image", "width", "height", "expression", "box": [x0, y0, x1, y1] px |
null, "empty": bool, "hops": int, "type": [...]}], and `images/`. The expression is the question. What is
scored is the tight box of the answer's masks: right at IoU >= .5. Beside it, the best box that a single
proposal has, for the first K proposals.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.images import open_image
from eval.metrics import bootstrap_interval, box_iou, box_of, n_acc, presence_curve, t_acc
from eval.photos import open_sized
from eval.predictions import Predictions
from eval.report import Curve, Picture, write_report
from eval.result import Result, Run, print_table, write_result

VERSION = 1
RIGHT = 0.5  # IoU of the boxes
FIRST = {"10": 10, "50": 50, "all": None}
SHOWN = 8  # samples a group in the report


def read_expressions(root: Path) -> list[dict]:
    file = root / "expressions.json"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{file} cannot be read ({error}); --root must hold expressions.json and images/"
        ) from None
    if not isinstance(rows, list):
        raise BadInput(f"{file} must be a list of expressions")
    return rows


def check_row(row: dict) -> None:
    """BadInput where an expression cannot be used."""
    try:
        size, box = (row["height"], row["width"]), row["box"]
        if not row["expression"].strip() or min(size) < 1:
            raise ValueError("the expression or the size is empty")
        if (box is None) != bool(row.get("empty", box is None)):
            raise ValueError("box and empty disagree")
        if box is not None:
            x0, y0, x1, y1 = box
            if not (-1 <= x0 < x1 <= size[1] + 1 and -1 <= y0 < y1 <= size[0] + 1):
                raise ValueError(f"the box {box} is not xyxy inside a picture of {size[1]}x{size[0]}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"not an expression with image, width, height, expression, box: {error}") from None


def proposal_boxes(scene, box: list[float] | None) -> dict[str, float]:
    """The best IoU of a single proposal's box, among the first K."""
    if box is None:
        return {}
    found = [box_iou(b, box) for b in scene.proposals.boxes]
    return {name: max(found[:k], default=0.0) for name, k in FIRST.items()}


def score(answer, row: dict) -> dict:
    said = answer.present
    box = box_of(np.any([t.mask for t in said], axis=0)) if said else None
    there = row["box"] is not None
    return {
        "said": bool(said),
        "there": there,
        "answered": box,
        "answer": answer.text,
        "iou": box_iou(box, row["box"]) if box and there else 0.0,
        "confidence": max((float(t.confidence) for t in answer.targets), default=0.0),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--predictions",
        type=Path,
        help="score the masks of this folder, N.png by row from 0, instead of a model",
    )


def main(args: argparse.Namespace) -> None:
    """Ask every expression and write result.json, samples.jsonl and report.html."""
    import torch
    from tqdm import tqdm

    rows = list(enumerate(read_expressions(args.root)))[: args.limit]
    assistant = Predictions(args.predictions) if args.predictions else args.open_assistant(args)
    preset = f"predictions in {args.predictions.name}" if args.predictions else args.preset
    run = Run(
        args.out,
        {
            "benchmark": "boxes",
            "version": VERSION,
            "root": str(args.root.resolve()),
            "preset": preset,
            "weights": dict(assistant.weights),
            "seed": args.seed,
        },
    )
    pictures: dict[str, list] = {}
    for k, row in rows:
        pictures.setdefault(row.get("image") if isinstance(row, dict) else None, []).append((k, row))
    for image, of_one in tqdm(run.mine(list(pictures.items())), desc="pictures", disable=None):
        scene = None
        for k, row in of_one:
            if k in run.done:
                continue
            about = {}
            try:
                check_row(row)
                about = {
                    "image": image,
                    "question": row["expression"],
                    "box": row["box"],
                    "groups": [
                        f"hops: {row.get('hops', '-')}",
                        *(f"type: {t}" for t in row.get("type") or ["-"]),
                    ],
                }
                size, began = (row["height"], row["width"]), time.perf_counter()
                if isinstance(assistant, Predictions):
                    answer = assistant.answer(k, size)
                else:
                    if scene is None:
                        scene = assistant.open(open_sized(args.root / "images" / image, *size))
                        about["open_seconds"], began = time.perf_counter() - began, time.perf_counter()
                    scene.reset()
                    torch.manual_seed(args.seed + k)
                    answer = scene.ask(row["expression"])
                    about |= {
                        "seconds": time.perf_counter() - began,
                        "tokens": answer.tokens,
                        "oracle": proposal_boxes(scene, row["box"]),
                    }
            except BadInput as error:
                if args.strict:
                    raise BadInput(f"row {k + 1}, {image}: {error}") from None
                run.add(k, about | {"name": f"row {k + 1}, {image}", "error": str(error)})
                continue
            run.add(k, about | score(answer, row))
    lines = run.gather(k for k, _ in rows)
    if lines is not None:
        finish(args, lines, preset, dict(assistant.weights))


def figures(lines: list[dict]) -> dict:
    there = [line for line in lines if line["there"]]
    said, truth = [line["said"] for line in lines], [line["there"] for line in lines]
    mean = lambda values: float(np.mean(values)) if len(values) else None
    found = {
        "n": len(lines),
        "acc@50": mean([line["iou"] >= RIGHT for line in there]),
        "mean_box_iou": mean([line["iou"] for line in there]),
        "right": mean([line["iou"] >= RIGHT if line["there"] else not line["said"] for line in lines]),
        "N_acc": n_acc(said, truth),
        "T_acc": t_acc(said, truth),
    }
    bounds = [line["oracle"] for line in there if "oracle" in line]
    return found | {
        f"oracle_acc@50, {k} proposals": mean([b[k] >= RIGHT for b in bounds]) for k in FIRST if bounds
    }


def finish(args: argparse.Namespace, lines: list[dict], preset: str, weights: dict) -> None:
    good = [line for line in lines if "error" not in line]
    if not good:
        raise BadInput(
            f"no expression of {args.root} can be used: {lines[0]['error'] if lines else 'there is none'}"
        )
    groups: dict[str, list[dict]] = {}
    for line in good:
        for name in [*line["groups"], "there" if line["there"] else "not there"]:
            groups.setdefault(name, []).append(line)
    whole = figures(good)
    times = {
        key: [line[key] for line in good if key in line] for key in ("seconds", "open_seconds", "tokens")
    }
    median = lambda values: float(np.median(values)) if values else None
    tokens = [t for t in times["tokens"] if t is not None]
    interval = lambda values: bootstrap_interval(values, args.seed)
    result = Result(
        benchmark="boxes",
        version=VERSION,
        n=len(good),
        N_acc=whole["N_acc"],
        T_acc=whole["T_acc"],
        preset=preset,
        weights=weights,
        figures={k: v for k, v in whole.items() if k not in ("n", "N_acc", "T_acc")},
        ci95={
            "acc@50": interval([line["iou"] >= RIGHT for line in good if line["there"]]),
            "N_acc": interval([not line["said"] for line in good if not line["there"]]),
            "T_acc": interval([line["said"] for line in good if line["there"]]),
        },
        by={name: figures(groups[name]) for name in sorted(groups)},
        seconds_per_query=median(times["seconds"]),
        seconds_per_image=median(times["open_seconds"]),
        tokens_per_query=float(np.mean(tokens)) if tokens else None,
        curve=[]
        if args.predictions
        else presence_curve([line["confidence"] for line in good], [line["there"] for line in good]),
        bad=[{"name": line["name"], "error": line["error"]} for line in lines if "error" in line],
    )
    write_result(args.out, result)
    curve = Curve(
        "Presence: what a question's best confidence decides",
        "threshold",
        "share",
        {name: [(p["threshold"], p[name]) for p in result.curve] for name in ("N_acc", "T_acc")},
    )
    write_report(args.out, result, [curve] if result.curve else [], pictures_of(good, args.root))
    print_table(
        f"boxes, version {VERSION}, {result.n} expressions, {len(result.bad)} bad",
        {"N_acc": result.N_acc, "T_acc": result.T_acc}
        | result.figures
        | {"seconds_per_image": result.seconds_per_image, "seconds_per_query": result.seconds_per_query},
    )


def pictures_of(lines: list[dict], root: Path):
    """Wrong, right, and both presence errors: the true box and the answered one, drawn as frames."""
    there = sorted((line for line in lines if line["there"]), key=lambda line: (line["iou"], line["key"]))
    groups = {
        "Wrong place": [line for line in there if line["said"] and line["iou"] < RIGHT],
        "Right": [line for line in there if line["iou"] >= RIGHT][::-1],
        "There, but called absent": [line for line in there if not line["said"]],
        "Absent, but outlined": [line for line in lines if not line["there"] and line["said"]],
    }
    for group, picked in groups.items():
        for line in picked[:SHOWN]:
            image = open_image(root / "images" / line["image"])
            panels = [
                (name, image, [frame(box, image.shape[:2])] if box else [])
                for name, box in (("truth", line["box"]), ("answer", line["answered"]))
            ]
            yield Picture(
                group,
                f"box IoU {line['iou']:.2f}   {', '.join(line['groups'])}   {line['image']}",
                [f"asked: {line['question']}", f"answered: {line['answer']}"],
                panels,
            )


def frame(box: list[float], size: tuple[int, int], thick: int = 4) -> np.ndarray:
    """(H, W) bool: the border of a box xyxy."""
    mask = np.zeros(size, bool)
    x0, y0, x1, y1 = (max(0, int(round(v))) for v in box)
    mask[y0:y1, x0:x1] = True
    mask[y0 + thick : max(y0 + thick, y1 - thick), x0 + thick : max(x0 + thick, x1 - thick)] = False
    return mask
