"""Semantic segmentation by conversation (LaSagnA): a class list goes in, every class comes back present or absent.

    python -m eval semantic --root ../shared/data/camvid/dev --out runs/eval/semantic

ADE20K, COCO-Stuff, Cityscapes, or any folder of label PNGs with a names file (`eval.label_maps`). A list
longer than `--per-question` is split into several questions. The masks of the classes that are said to be
there become one label map; where they overlap, the surer answer lies on top. mIoU is over classes, from
pixel counts of the whole set: unlabelled pixels do not count, pixels that no answer covers are errors.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from assistant.dialogue.class_list import ask_classes
from assistant.errors import BadInput
from assistant.images import open_image
from eval.label_maps import LabelMaps, find_layout
from eval.metrics import class_counts, class_ious, n_acc, presence_curve, t_acc
from eval.oracle import Atoms, oracle
from eval.photos import open_sized
from eval.report import Curve, Picture, write_report
from eval.result import Result, Run, print_table, write_result

VERSION = 1
SHOWN = 4  # pictures a group in the report


def read_prediction(folder: Path, stem: str, classes: int) -> np.ndarray:
    """A label map of class numbers from 0, as another model wrote it; any other number is no answer."""
    file = folder / f"{stem}.png"
    if not file.exists():
        raise BadInput(f"no prediction {file}")
    return LabelMaps("predictions", [], {k: k for k in range(classes)}, []).read(file).astype(np.int16)


def class_oracle(rles: list[dict], truth: np.ndarray, there: list[int]) -> dict[str, list[int]]:
    """Per class that is there: (intersection, union) of the best choice of proposals for it, labelled pixels only."""
    if not there:
        return {}
    atoms = Atoms.of(rles, [truth == k for k in there] + [truth < 0])
    counted = Atoms(atoms.proposals, atoms.targets[:-1], atoms.size * ~atoms.targets[-1])
    best = [oracle(counted, n) for n in range(len(there))]
    return {str(k): [o.intersection, o.union] for k, o in zip(there, best)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="val", help="part of the data set (default: val)")
    parser.add_argument("--per-question", type=int, default=6, help="classes asked for at once (default: 6)")
    parser.add_argument(
        "--predictions", type=Path, help="score the label maps of this folder, NAME.png, instead of a model"
    )


def main(args: argparse.Namespace) -> None:
    """Answer every picture's class list and write result.json, samples.jsonl and report.html."""
    import torch
    from tqdm import tqdm

    if args.per_question < 1:
        raise BadInput("--per-question must be at least 1")
    data = find_layout(args.root, args.split)
    pairs = list(enumerate(data.pairs))[: args.limit]
    if args.predictions:
        if not args.predictions.is_dir():
            raise BadInput(f"no folder --predictions {args.predictions}")
        assistant, preset, weights = None, f"predictions in {args.predictions.name}", {}
    else:
        assistant = args.open_assistant(args)
        preset, weights = args.preset, dict(assistant.weights)
    run = Run(
        args.out,
        {
            "benchmark": "semantic",
            "version": VERSION,
            "root": str(args.root.resolve()),
            "split": args.split,
            "preset": preset,
            "weights": weights,
            "seed": args.seed,
            "per_question": args.per_question,
        },
    )
    for number, (picture, file) in tqdm(run.mine(pairs), desc="pictures", disable=None):
        if file.name in run.done:
            continue
        line = {"image": str(picture)}
        try:
            truth = data.read(file)
            if assistant is None:
                label = read_prediction(args.predictions, file.stem, len(data.names))
                there = np.unique(label[label >= 0])
                said = {data.names[k]: [True, 1.0] for k in there}
            else:
                began = time.perf_counter()
                scene = assistant.open(open_sized(picture, *truth.shape))
                line["open_seconds"] = time.perf_counter() - began
                torch.manual_seed(args.seed + number)
                found = ask_classes(scene, data.names, args.per_question)
                label, said = found.pop("label"), found["said"]
                there = [int(k) for k in np.unique(truth) if k >= 0]
                line |= found | {"oracle": class_oracle(scene.proposals.rles, truth, there)}
            counts = class_counts(label, truth, len(data.names))
        except BadInput as error:
            if args.strict:
                raise BadInput(f"{file.name}: {error}") from None
            run.add(file.name, line | {"error": str(error)})
            continue
        used = np.flatnonzero(counts.any(0))
        run.add(
            file.name,
            line
            | {
                "counts": {str(k): counts[:, k].tolist() for k in used},
                "said": said,
                "uncovered": int((label[truth >= 0] < 0).sum()),
                "labelled": int((truth >= 0).sum()),
            },
        )
        np_save_label(args.out, file.stem, label)
    lines = run.gather(file.name for _, (_, file) in pairs)
    if lines is not None:
        finish(args, data, lines, preset, weights)


def np_save_label(out: Path, stem: str, label: np.ndarray) -> None:
    """The answered label map as a PNG, 65535 where nothing was answered: what `--predictions` reads."""
    from PIL import Image

    from assistant.files import replace_whole

    with replace_whole(out / "label_maps" / f"{stem}.png") as path:
        Image.fromarray(label.astype(np.uint16)).save(path, "PNG")


def table(lines: list[dict], classes: int, field: str = "counts") -> np.ndarray:
    """(3, classes) summed counts, or (2, classes) of the oracle."""
    total = np.zeros((3 if field == "counts" else 2, classes), np.int64)
    for line in lines:
        for k, values in line.get(field, {}).items():
            total[:, int(k)] += values
    return total


def mean_iou(lines: list[dict], classes: int) -> float | None:
    values = class_ious(table(lines, classes))
    return float(np.nanmean(values)) if not np.isnan(values).all() else None


def interval_of(lines: list[dict], classes: int, seed: int, resamples: int = 1000) -> list[float]:
    """95 % percentile bootstrap of mIoU over pictures (Efron 1979)."""
    each = np.stack([table([line], classes) for line in lines])
    rng = np.random.default_rng(seed)
    draws = [
        np.nanmean(class_ious(each[rng.integers(len(each), size=len(each))].sum(0))) for _ in range(resamples)
    ]
    return [float(v) for v in np.quantile(draws, [0.025, 0.975])]


def finish(args: argparse.Namespace, data: LabelMaps, lines: list[dict], preset: str, weights: dict) -> None:
    good = [line for line in lines if "error" not in line]
    if not good:
        raise BadInput(f"no picture of {args.root} can be used: {lines[0]['key']}: {lines[0]['error']}")
    classes = len(data.names)
    total = table(good, classes)
    values = class_ious(total)
    said, there, sure = [], [], []
    for line in good:
        for k, name in enumerate(data.names):
            present, confidence = line["said"].get(name, [False, 0.0])
            said.append(present)
            sure.append(confidence)
            there.append(line["counts"].get(str(k), [0, 0, 0])[2] > 0)
    asked = sum(total[2]) or 1
    bound = table(good, classes, "oracle")
    bounds = bound[0][bound[1] > 0] / bound[1][bound[1] > 0]
    figures = {
        "mIoU": mean_iou(good, classes),
        "classes": int((~np.isnan(values)).sum()),
        "pixel_accuracy": float(total[0].sum() / asked),
        "mean_class_accuracy": float(np.mean(total[0][total[2] > 0] / total[2][total[2] > 0])),
        "uncovered": sum(line["uncovered"] for line in good) / asked,
        "oracle_mIoU": float(bounds.mean()) if len(bounds) else None,
        "classes_not_answered": None
        if args.predictions
        else float(np.mean([classes - len(line["said"]) for line in good])),
        "phrases_that_are_no_class": sum(len(line.get("strange", [])) for line in good),
    }
    flat = lambda key: [v for line in good for v in line.get(key, []) if v is not None]
    opened = [line["open_seconds"] for line in good if "open_seconds" in line]
    result = Result(
        benchmark="semantic",
        version=VERSION,
        n=len(good),
        N_acc=n_acc(said, there),
        T_acc=t_acc(said, there),
        preset=preset,
        weights=weights,
        figures=figures | {"layout": data.layout},
        ci95={"mIoU": interval_of(good, classes, args.seed)},
        by={
            name: {
                "IoU": None if np.isnan(values[k]) else float(values[k]),
                "oracle_IoU": float(bound[0, k] / bound[1, k]) if bound[1, k] else None,
                "pixels": int(total[2, k]),
                "right": int(total[0, k]),
                "predicted": int(total[1, k]),
            }
            for k, name in enumerate(data.names)
        },
        seconds_per_query=float(np.median(flat("seconds"))) if flat("seconds") else None,
        seconds_per_image=float(np.median(opened)) if opened else None,
        tokens_per_query=float(np.mean(flat("tokens"))) if flat("tokens") else None,
        curve=[] if args.predictions else presence_curve(sure, there),
        bad=[{"name": line["key"], "error": line["error"]} for line in lines if "error" in line],
    )
    write_result(args.out, result)
    curve = Curve(
        "Presence: what a class's confidence decides",
        "threshold",
        "share",
        {name: [(p["threshold"], p[name]) for p in result.curve] for name in ("N_acc", "T_acc")},
    )
    write_report(args.out, result, [curve] if result.curve else [], pictures_of(good, data, args.out))
    print_table(
        f"semantic, version {VERSION}, {data.layout}, {result.n} pictures, {len(result.bad)} bad",
        result.figures
        | {"N_acc": result.N_acc, "T_acc": result.T_acc, "seconds_per_query": result.seconds_per_query},
    )
    print_table("IoU by class", {name: row["IoU"] for name, row in result.by.items()})


def pictures_of(lines: list[dict], data: LabelMaps, out: Path):
    """The worst and the best pictures: truth and answer, each class in its own colour."""
    files = {file.name: (picture, file) for picture, file in data.pairs}
    ranked = sorted(lines, key=lambda line: (mean_iou([line], len(data.names)) or 0.0, line["key"]))
    shown = min(SHOWN, (len(ranked) + 1) // 2)
    for group, picked in (("Worst", ranked[:shown]), ("Best", ranked[::-1][:shown])):
        for line in picked:
            picture, file = files[line["key"]]
            image, truth = open_image(picture), data.read(file)
            label = read_prediction(out / "label_maps", file.stem, len(data.names))
            panels = []
            numbers = sorted({int(k) for k in line["counts"]})
            for name, found in (("truth", truth), ("answer", label)):
                there = [data.names[k] for k in numbers if (found == k).any()]
                panels.append(
                    (f"{name}: {', '.join(there) or 'nothing'}", image, [found == k for k in numbers])
                )
            missing = [name for name in data.names if name not in line["said"]]
            words = [f"not answered: {', '.join(missing)}"] if missing and "seconds" in line else []
            yield Picture(
                group, f"mIoU {mean_iou([line], len(data.names)) or 0:.2f}   {file.name}", words, panels
            )
