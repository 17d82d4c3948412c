"""Segmentation from attention: with all layers, with the ranked ones, and tuned on one photo per category.

    python -m eval oneshot --root DATA/coco/dev --tuned runs/attention --out runs/eval/oneshot

The protocol of "The Power of One" (arXiv 2503.10779): every pixel gets one of the data set's classes or the background,
mIoU is over the classes and the background, from pixel counts of the whole set; pixels without a label do not count.
`finetune attention` draws its photos from elsewhere, and `rank-layers` ranks on others: nothing here was seen before.

Arms: all layers; the layers that the ranking uses; the best heads (`--heads`); each tuned run (`--tuned`), whose mean
and spread are given (runs can be added to a result later: give the command again); refinements by ConvCRF and by votes
of SAM's proposals; and each of the first four "without match": attention alone, not weighted by how well a prompt fits
the picture. Reads VOC's layout, COCO's, or a COCO-format folder. Differences are paired, with 95 % bootstrap intervals
over photos.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from assistant.attention.labelled_images import read_labelled
from assistant.attention.maps import class_maps, shares, with_background
from assistant.attention.prompt_attention import Ranking
from assistant.errors import BadInput
from assistant.sam.mask_ops import decode_rle
from eval.label_maps import read_label_map, save_label_map
from eval.metrics import class_counts, class_ious, packed_counts, summed_counts
from eval.report import Sample, write_report
from eval.result import Result, bad_inputs, print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings, eval_settings

VERSION = 3  # 3: tuned maps are read as the others are, and without the match too
GRID = 160  # cells of the longer side that maps are drawn on before they are enlarged to the picture
KEPT = 12  # classes that refinement looks at: the strongest of a picture
SHOWN = 4
ALONE = ", without match"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="val", help="part of the data set, in VOC's and COCO's layouts")
    parser.add_argument("--ranking", type=Path, help="what rank-layers wrote (default: the preset's own)")
    parser.add_argument(
        "--heads", type=int, default=16, help="how many heads the arm of heads averages (default: 16)"
    )
    parser.add_argument("--tuned", type=Path, help="folder that finetune attention wrote")
    parser.add_argument(
        "--no-refinement", action="store_true", help="leave ConvCRF and the proposals' votes out"
    )
    parser.add_argument("--keep", type=Path, help="folder of opened pictures (pocket; default: OUT/views)")


def enlarged(maps: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Maps (C, h, w) -> (H, W) int16, the class that is largest after bilinear enlargement; class by class, as 80 whole
    maps of a photo would take 100 MB. Classes that are nowhere above the weakest winner cannot win."""
    floor = float(maps.amax(0).min())
    best, label = torch.full(size, -1.0), torch.zeros(size, dtype=torch.int16)
    for k, one in enumerate(maps):
        if k and float(one.max()) < floor:
            continue
        large = F.interpolate(one[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        label[large > best] = k
        best = torch.maximum(best, large)
    return label.numpy()


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    return tuple(max(1, round(side * min(1, GRID / max(size)))) for side in size)


def drawn(
    look, use: list, owner: torch.Tensor, classes: int, size: tuple[int, int], match: bool = True
) -> torch.Tensor:
    """Class maps (classes, h, w) on the grid; what no place covers is background."""
    maps = look.place.spread(class_maps(shares(look, use, match), owner, classes), grid_of(size))
    maps[0] += 1e-3
    return maps


def refined(maps: torch.Tensor, image: np.ndarray, masks: torch.Tensor | None, how: str) -> torch.Tensor:
    """Maps (C, h, w) after ConvCRF or votes, of the strongest classes; the others are 0."""
    from PIL import Image

    from assistant.attention.refinement import ConvCRF, vote

    top = torch.cat([torch.tensor([0]), 1 + maps[1:].amax((1, 2)).argsort(descending=True)[:KEPT]])
    some = maps[top] / maps[top].sum(0, keepdim=True)
    if how == "crf":
        h, w = maps.shape[1:]
        some = ConvCRF()(some, np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)))
    else:
        some = vote(some, masks)
    out = torch.zeros_like(maps)
    out[top] = some
    return out


def answers(
    probe,
    view,
    image,
    masks,
    prompts: list[str],
    owner,
    names: list[str],
    ranking: Ranking,
    tuned: dict,
    options: OneShotOptions,
    free: bool = True,
) -> dict:
    """{arm: (H, W) label map} of one photo; free False: only what is tuned. Of the tuned runs number 0 is refined."""
    size, classes, found = image.shape[:2], len(names) + 1, {}
    look = probe.attention(view, prompts) if free else None
    every = [(layer, None) for layer in range(probe.layers)]
    heads = [(layer, head) for layer, head, _ in ranking.heads[: options.heads]]
    for name, use in (("all layers", every), ("ranked layers", ranking.use), ("ranked heads", heads)):
        if not use or not free:
            continue
        maps = drawn(look, use, owner, classes, size)
        found[name] = enlarged(maps, size)
        found[name + ALONE] = enlarged(drawn(look, use, owner, classes, size, False), size)
        if name == "ranked layers" and options.refinement:
            for how in ("crf", "vote"):
                found[f"{name}, {how}"] = enlarged(refined(maps, image, masks, how), size)
    layers = sorted({layer for layer, _ in ranking.use})
    for run, weights in tuned.items():
        probe.restore(weights)
        look = probe.attention(view, prompts, layers)
        maps = drawn(look, ranking.use, owner, classes, size)
        found[f"tuned {run}"] = enlarged(maps, size)
        found[f"tuned {run}{ALONE}"] = enlarged(drawn(look, ranking.use, owner, classes, size, False), size)
        if run == 0 and options.refinement:
            for how in ("crf", "vote"):
                found[f"tuned {run}, {how}"] = enlarged(refined(maps, image, masks, how), size)
    probe.restore({})
    return found


def read_tuned(folder: Path | None, ranking: Ranking) -> dict[int, dict]:
    """{run: tensors} of what finetune attention wrote; BadInput: nothing there, or tuned for other layers."""
    from assistant.weights import read_weights

    if folder is None:
        return {}
    found = {}
    for file in sorted(folder.glob("run-*.safetensors"), key=lambda f: int(f.stem[4:])):
        found[int(file.stem[4:])], about = read_weights(file)
        try:
            use = [tuple(u) for u in json.loads(about["use"])]
        except (KeyError, ValueError) as error:
            raise BadInput(f"cannot read {file}: {error}") from None
        if use != ranking.use:
            raise BadInput(
                f"{file} was tuned for {use}, the ranking uses {ranking.use}: give --ranking that one"
            )
    if not found:
        raise BadInput(f"no run-*.safetensors in --tuned {folder}; python -m finetune attention writes them")
    return found


@dataclass(frozen=True)
class OneShotOptions:
    """What the benchmark asks beside `EvalSettings`.

    Attributes:
        split: Part of the data set.
        ranking: File that `rank-layers` wrote; None for the model's own ranking.
        heads: How many heads the arm of heads averages.
        tuned: Folder that `finetune attention` wrote; None for the arms without tuning only.
        refinement: Whether to score ConvCRF and the proposals' votes.
        cache_folder: Folder of opened images; None for `EvalSettings.out`/views.
    """

    split: str
    ranking: Path | None
    heads: int
    tuned: Path | None
    refinement: bool
    cache_folder: Path | None


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    options = OneShotOptions(
        split=args.split,
        ranking=args.ranking,
        heads=args.heads,
        tuned=args.tuned,
        refinement=not args.no_refinement,
        cache_folder=args.keep,
    )
    run(eval_settings(args), options)


def run(settings: EvalSettings, options: OneShotOptions) -> None:
    """Score every image and write result.json, samples.jsonl and report.html."""
    from assistant.images import open_image
    from assistant.presets import load_attention_probe, load_image_opener
    from assistant.weights import sha256_of

    names, photos = read_labelled(settings.root, options.split)
    photos = photos[: settings.limit]
    probe, probe_weights = load_attention_probe(settings.models)

    @functools.cache
    def load_opener():
        return load_image_opener(settings.models.sam_or_preset, settings.models.device)[0]

    ranking = Ranking.load(options.ranking) if options.ranking else probe.ranking
    if ranking is None:
        raise BadInput("give --ranking, what python -m assistant rank-layers wrote for this model")
    probe.ranking = ranking
    probe.restore({})  # training-free means the model's own attention
    tuned, weights = read_tuned(options.tuned, ranking), dict(probe_weights)
    sums = {str(r): sha256_of(options.tuned / f"run-{r}.safetensors") for r in tuned}
    prompts, owner = with_background(names)
    preset = settings.models.describe()
    samples = Run(
        settings.out,
        {
            "benchmark": "oneshot",
            "version": VERSION,
            "root": str(settings.root.resolve()),
            "split": options.split,
            "preset": preset,
            "weights": weights,
            "use": ranking.use,
            "heads": options.heads,
            "refinement": options.refinement,
            "seed": settings.seed,
        },
        settings.strict,
    )
    saved = {"ranked layers", *(f"tuned {r}" for r in tuned if r == min(tuned))}

    def missing(line: dict) -> dict[int, dict]:
        """The tuned runs that a line does not have yet: they may be added to a result."""
        known = line.get("tuned", {})
        return {r: w for r, w in tuned.items() if known.get(str(r)) != sums[str(r)]}

    def score(photo) -> dict:
        before = samples.done.get(photo.path.name, {})
        new = missing(before)
        truth, image = photo.read(), open_image(photo.path)
        if truth.shape != image.shape[:2]:
            raise BadInput(
                f"the picture is {image.shape[1]}x{image.shape[0]}, its labels {truth.shape[1]}x{truth.shape[0]}"
            )
        view = probe.open(photo.path, options.cache_folder or settings.out / "views")
        masks = masks_on(probe, view, load_opener, truth.shape) if options.refinement else None
        began = time.perf_counter()
        with torch.inference_mode():
            with probe.reusing():  # of this photo
                found = answers(
                    probe, view, image, masks, prompts, owner, names, ranking, new, options, not before
                )
        line = {
            "image": str(photo.path),
            "seconds": time.perf_counter() - began,
            "arms": dict(before.get("arms", {})),
            "tuned": before.get("tuned", {}) | {str(r): sums[str(r)] for r in new},
        }
        for arm, label in found.items():
            line["arms"][arm] = packed_counts(class_counts(label, truth, len(names) + 1))
            if arm in saved:
                save_label_map(settings.out / arm, photo.path.stem, label)
        return line

    lines = samples.each(
        photos,
        lambda photo: photo.path.name,
        score,
        describe=lambda photo: {"image": str(photo.path)},
        is_finished=lambda line: "error" in line or not missing(line),
    )
    if lines is not None:
        weights |= {f"tuned {r}": s for r, s in sums.items()}
        finish(settings, names, photos, lines, sorted(tuned), preset, weights)


def masks_on(probe, view, load_opener, size) -> torch.Tensor:
    """SAM's proposals on the grid, (N, h, w) bool: the view's own, or, for a model that has none, those of the preset's
    SAM."""
    rles = probe.region_rles(view)
    if rles is None:
        rles = load_opener().propose(view.image)[1].rles
    h, w = grid_of(size)
    rows, columns = np.arange(h) * size[0] // h, np.arange(w) * size[1] // w
    if not rles:
        return torch.zeros(0, h, w, dtype=torch.bool)
    return torch.from_numpy(np.stack([decode_rle(rle)[rows[:, None], columns] for rle in rles]))


def miou(counts: np.ndarray) -> float:
    """Mean IoU of (3, classes) summed counts over the classes that occur; background included."""
    return float(np.nanmean(class_ious(counts)))


def finish(
    settings: EvalSettings, names: list[str], photos: list, lines: list[dict], runs: list[int], preset: str, weights: dict
) -> None:
    good = [line for line in lines if "error" not in line]
    if not good:
        raise BadInput(f"no photo of {settings.root} can be used: {lines[0]['key']}: {lines[0]['error']}")
    classes, arms = len(names) + 1, list(good[0]["arms"])
    each = {arm: np.stack([summed_counts([line["arms"][arm]], classes) for line in good]) for arm in arms}
    groups = {arm: [arm] for arm in arms if not arm.startswith("tuned")}
    if runs:  # the mean over runs stands for tuning
        groups |= {f"tuned{alone}": [f"tuned {r}{alone}" for r in runs] for alone in ("", ALONE)}
        groups |= {arm: [arm] for arm in arms if arm.split(",")[0] == "tuned 0" and not arm.endswith(ALONE)}
    value = lambda group, pick: float(np.mean([miou(each[arm][pick].sum(0)) for arm in groups[group]]))
    every, rng = np.arange(len(good)), np.random.default_rng(settings.seed)
    # The same photos in every arm: differences are paired.
    draws = [rng.integers(len(good), size=len(good)) for _ in range(500)]
    resampled = {group: np.array([value(group, pick) for pick in draws]) for group in groups}
    interval = lambda values: [float(v) for v in np.quantile(values, [0.025, 0.975])]
    scores = {group: value(group, every) for group in groups}
    against = {}
    for b, a in (
        ("ranked layers", "all layers"),
        ("ranked heads", "all layers"),
        ("tuned", "ranked layers"),
        ("tuned", "all layers"),
        ("ranked layers" + ALONE, "all layers" + ALONE),
        ("ranked heads" + ALONE, "all layers" + ALONE),
        ("tuned" + ALONE, "ranked layers" + ALONE),
        *((f"{g}, {how}", g) for g in ("ranked layers", "tuned 0") for how in ("crf", "vote")),
    ):
        if a in groups and b in groups:
            against[f"{b} - {a}"] = [scores[b] - scores[a], *interval(resampled[b] - resampled[a])]
    spread = [miou(each[f"tuned {r}"].sum(0)) for r in runs]
    best = "tuned" if runs else "ranked layers"
    figures = {
        "mIoU": scores[best],
        "classes": int((~np.isnan(class_ious(each["all layers"].sum(0)))).sum()),
        "arms": scores,
        "differences": {k: [round(v, 4) for v in row] for k, row in against.items()},
    }
    if runs:
        figures |= {"tuned_runs": [round(v, 4) for v in spread], "tuned_std": float(np.std(spread))}
    ious = lambda members: np.ma.masked_invalid([class_ious(each[arm].sum(0)) for arm in members])
    per_class = {
        group: ious(groups[group]).mean(0).filled(np.nan)
        for group in ("all layers", "ranked layers", "tuned")
        if group in groups
    }
    number = lambda v: None if np.isnan(v) else float(v)
    result = Result(
        benchmark="oneshot",
        version=VERSION,
        n=len(good),
        preset=preset,
        weights=weights,
        figures=figures,
        ci95={group: interval(resampled[group]) for group in groups},
        by={
            name: {group: number(values[k]) for group, values in per_class.items()}
            for k, name in enumerate(["background", *names])
        },
        seconds_per_image=float(np.median([line["seconds"] for line in good])),
        bad=bad_inputs(lines),
    )
    write_result(settings.out, result)
    write_report(
        settings.out, result, [], pictures_of(good, names, settings.out, {p.path.name: p for p in photos}, runs)
    )
    print_table(
        f"oneshot, version {VERSION}, {result.n} photos, {figures['classes']} classes with background: mIoU",
        {g: f"{s:.4f} [{result.ci95[g][0]:.4f}, {result.ci95[g][1]:.4f}]" for g, s in scores.items()},
    )
    if runs:
        print(f"  tuned, {len(runs)} runs: {np.mean(spread):.4f} +- {np.std(spread):.4f}")
    print_table(
        "paired differences with 95 % intervals",
        {k: f"{d:+.4f} [{lo:+.4f}, {hi:+.4f}]" for k, (d, lo, hi) in against.items()},
    )


def pictures_of(lines: list[dict], names: list[str], out: Path, photos: dict, runs: list[int]):
    """The worst and the best photos: truth, training-free and tuned, each class in its own colour."""
    from assistant.images import open_image

    arms = ["ranked layers", *([f"tuned {runs[0]}"] if runs else [])]
    score = {line["key"]: miou(summed_counts([line["arms"][arms[-1]]], len(names) + 1)) for line in lines}
    ranked = sorted(lines, key=lambda line: (score[line["key"]], line["key"]))
    shown = min(SHOWN, (len(ranked) + 1) // 2)
    for group, picked in (("Worst", ranked[:shown]), ("Best", ranked[::-1][:shown])):
        for line in picked:
            photo = photos[line["key"]]
            maps = {
                arm: read_label_map(out / arm / "label_maps", photo.path.stem, len(names) + 1)
                for arm in arms
            }
            maps = {"truth": photo.read()} | maps
            numbers = sorted({int(k) for m in maps.values() for k in np.unique(m) if k > 0})
            panels = []
            for name, label in maps.items():
                there = ", ".join(names[k - 1] for k in numbers if (label == k).any())
                panels.append(
                    (f"{name}: {there or 'nothing'}", open_image(photo.path), [label == k for k in numbers])
                )
            yield Sample(group, f"mIoU {score[line['key']]:.2f}   {line['key']}", [], panels)
