"""Few-shot segmentation (PASCAL-5i, COCO-20i, COCO-format): a query, references with masks, and maybe the name.

    python -m eval fewshot --benchmark coco-format --root DATA/coco/dev --references DATA/coco/train --fold 0 1 2 3 \\
        --shots 1 --weights "runs/reference-{fold}" --out runs/eval/fewshot-1
    python -m eval fewshot --benchmark pascal5i --root VOC2012 --fold 0 --shots 5 --weights runs/pascal-0 --out ...

Three ways on the same episodes: prototype matching, which is not trained; "plain", the encoder that is not told the
name (VRP-SAM); "text", the one that is (VLP-SAM). The weights must not have learned the fold's categories: that is what
`finetune reference --fold` leaves out. An episode is a category of the fold, a query that holds it and references in
other pictures, drawn by --seed alone; weights are chosen before, on pictures that finetune keeps aside.

mIoU: of each category the summed intersections over the summed unions of its episodes, then the mean over categories;
FB-IoU: the mean of foreground and background, each summed over all episodes (Rakelly et al. 2018). Counted in the
query's own pixels, ignored ones (VOC's 255, COCO's crowds) left out. Intervals: bootstrap over query pictures.
"""

import argparse
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from eval import models
from eval.annotated_images import read_annotated_images
from eval.metrics import counts
from eval.report import Sample, write_report
from eval.result import Result, bad_inputs, print_table, write_result
from eval.run import Run
from eval.settings import EvalSettings, eval_settings

VERSION = 1
FOLDS = 4
ARMS = ("prototype", "plain", "text")
PAIRS = (("prototype", "plain"), ("prototype", "text"), ("plain", "text"))  # differences, second less first
SMALLEST = 1024  # px that a category must cover in a picture to be asked for or shown
KEPT = 440  # looks held in memory, 4 MB each
SHOWN = 6  # pictures a group in the report
VOC = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,dining table,dog,horse,motorbike,person,potted plant,"
    "sheep,sofa,train,tv monitor"
).split(",")
COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,"
    "suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
).split(",")


def fold_of(layout: str, category: int) -> int:
    """The fold that a category (0-based) is tested in: PASCAL-5i in fives (Shaban et al. 2017), COCO-20i every fourth
    (Nguyen and Todorovic 2019)."""
    return category // 5 if layout == "pascal5i" else category % FOLDS


@dataclass
class Pictures:
    """names: of all categories; paths: of the pictures; holding: {category: pictures that hold enough of it};
    read(picture, category) -> mask (H, W) bool, what does not count (H, W) bool or None."""

    names: list[str]
    paths: list[Path]
    holding: dict[int, list[int]]
    read: Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]


def coco_folder(root: Path) -> Pictures:
    """A folder with instances.json and images/; categories in the order of their ids. Crowds do not count."""
    photos = read_annotated_images(root)
    listed = json.loads((root / "instances.json").read_text())["categories"]
    names = [c["name"] for c in sorted(listed, key=lambda c: c["id"])]

    def read(picture: int, category: int):
        masks = [np.zeros((photos[picture].height, photos[picture].width), bool) for _ in range(2)]
        for outline in photos[picture].instances:
            if outline.category == names[category]:
                masks[outline.crowd] |= outline.mask()
        return masks[0], masks[1] & ~masks[0] if masks[1].any() else None

    holding: dict[int, list[int]] = {}
    for k, photo in enumerate(photos):
        for name in {o.category for o in photo.instances}:
            if read(k, names.index(name))[0].sum() >= SMALLEST:
                holding.setdefault(names.index(name), []).append(k)
    return Pictures(names, [p.path for p in photos], holding, read)


def label_pngs(names: list[str], pairs: list[tuple[Path, Path]]) -> Pictures:
    """(picture, PNG of category numbers from 1, 255 does not count)."""
    from PIL import Image
    from tqdm import tqdm

    def numbers(k: int) -> np.ndarray:
        try:
            with Image.open(pairs[k][1]) as opened:
                stored = np.asarray(opened)
        except OSError as error:
            raise BadInput(f"{pairs[k][1]} is not a label map: {error}") from None
        if stored.ndim != 2:
            raise BadInput(f"{pairs[k][1]} is not a label map: it has {stored.ndim} dimensions")
        return stored

    holding: dict[int, list[int]] = {}
    for k in tqdm(range(len(pairs)), desc="label maps", disable=None):
        found, pixels = np.unique(numbers(k), return_counts=True)
        for value, n in zip(found.tolist(), pixels.tolist()):
            if 1 <= value <= len(names) and n >= SMALLEST:
                holding.setdefault(value - 1, []).append(k)
    read = lambda k, category: ((stored := numbers(k)) == category + 1, stored == 255)
    return Pictures(names, [p for p, _ in pairs], holding, read)


def pascal(root: Path) -> Pictures:
    """VOC2012's folder, or one above it: JPEGImages, SegmentationClassAug or SegmentationClass, and the pictures of
    ImageSets/Segmentation/val.txt, where that is, else all."""
    root = root / "VOC2012" if (root / "VOC2012").is_dir() else root
    labels = next(
        (root / n for n in ("SegmentationClassAug", "SegmentationClass") if (root / n).is_dir()), None
    )
    if labels is None or not (root / "JPEGImages").is_dir():
        raise BadInput(
            f"{root} is not VOC2012: it must hold JPEGImages and SegmentationClassAug (or SegmentationClass)"
        )
    listed = root / "ImageSets/Segmentation/val.txt"
    stems = listed.read_text().split() if listed.is_file() else sorted(f.stem for f in labels.glob("*.png"))
    return label_pngs(list(VOC), [(root / f"JPEGImages/{s}.jpg", labels / f"{s}.png") for s in stems])


def coco20i(root: Path) -> Pictures:
    """COCO2014's folder, or one above it: val2014/NAME.jpg and annotations/val2014/NAME.png (category numbers from
    1)."""
    root = root / "COCO2014" if (root / "COCO2014").is_dir() else root
    files = sorted((root / "annotations/val2014").glob("*.png"))
    if not files:
        raise BadInput(
            f"{root} is not COCO-20i: it must hold val2014 and annotations/val2014 with label PNGs"
        )
    return label_pngs(list(COCO), [(root / f"val2014/{f.stem}.jpg", f) for f in files])


LAYOUTS = {"pascal5i": pascal, "coco20i": coco20i, "coco-format": coco_folder}


@dataclass(frozen=True)
class Episode:
    key: str
    fold: int
    category: int
    query: int
    references: tuple[int, ...]


def draw_episodes(
    layout: str, queries: Pictures, sources: Pictures, fold: int, shots: int, count: int, seed: int
) -> list[Episode]:
    """`count` episodes of a fold: a category, each as likely; a query; references from other pictures, all there are
    where they are fewer than `shots`. BadInput where the fold has nothing to draw."""
    rng = np.random.default_rng((seed, fold))  # the same queries and first reference, whatever the shots
    others = lambda c, q: [
        r for r in sources.holding.get(c, ()) if sources.paths[r].name != queries.paths[q].name
    ]
    categories = [
        c
        for c in sorted(queries.holding)
        if fold_of(layout, c) == fold and any(others(c, q) for q in queries.holding[c])
    ]
    if not categories:
        raise BadInput(f"fold {fold} has no category with a query and a reference in another picture")
    episodes = []
    while len(episodes) < count:
        c = categories[rng.integers(len(categories))]
        query = queries.holding[c][rng.integers(len(queries.holding[c]))]
        found = rng.permutation(others(c, query))[:shots]
        if len(found):
            episodes.append(
                Episode(f"{fold}-{len(episodes)}", fold, int(c), int(query), tuple(map(int, found)))
            )
    return episodes


class Looks:
    """Opened pictures, the latest `KEPT` of them."""

    def __init__(self, matcher):
        self.matcher, self.kept, self.seconds = matcher, OrderedDict(), []

    def __call__(self, path: Path):
        from assistant.images import open_image

        if path not in self.kept:
            while len(self.kept) >= KEPT:
                self.kept.popitem(last=False)
            image, began = open_image(path), time.perf_counter()
            look = self.matcher.open(image)
            self.seconds.append(time.perf_counter() - began)
            look.embedding.maps = ()  # the finest of them are large, and were read already
            look.patches, look.joint = look.patches.half(), look.joint.half()
            self.kept[path] = look
        self.kept.move_to_end(path)
        return self.kept[path]


def play(matcher, looks: Looks, queries: Pictures, sources: Pictures, episode: Episode) -> dict:
    """One episode, every arm -> its line."""
    from assistant.few_shot.matcher import check_mask
    from assistant.few_shot.similarity import Reference, cover
    from assistant.sam.mask_ops import encode_rle

    name = queries.names[episode.category]
    query = looks(queries.paths[episode.query])
    truth, ignore = queries.read(episode.query, episode.category)
    if truth.shape != query.embedding.size:
        raise BadInput(f"{queries.paths[episode.query].name} and its mask differ in size")
    references = []
    for r in episode.references:
        look, mask = looks(sources.paths[r]), sources.read(r, episode.category)[0]
        mask = check_mask(mask, look.embedding.size)
        references.append(
            Reference(look, cover(matcher.segmenter, mask.shape, mask, look.patches.shape[-2:]))
        )
    line = {
        "open_seconds": looks.seconds[-1],
        "fold": episode.fold,
        "category": name,
        "query": queries.paths[episode.query].name,
        "references": [sources.paths[r].name for r in episode.references],
        "arms": {},
    }
    began = time.perf_counter()
    given = matcher.given(query, references, name)
    look = time.perf_counter() - began
    for arm in ARMS:
        began = time.perf_counter()
        if arm == "prototype":
            mask, score = matcher.match(query, given)
        else:
            mask, score = matcher.answer(query, given if arm == "text" else given.nameless())
        line["arms"][arm] = {
            "pair": counts(mask, truth, ignore),
            "background": counts(~mask, ~truth, ignore),
            "score": score,
            "seconds": look + time.perf_counter() - began,
            "rle": encode_rle(mask),
        }
    return line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--benchmark",
        dest="layout",
        choices=LAYOUTS,
        required=True,
        help="the layout of --root and its folds",
    )
    parser.add_argument(
        "--references",
        type=Path,
        help="take references from this folder of the same layout (default: --root)",
    )
    parser.add_argument("--fold", type=int, nargs="+", choices=range(FOLDS), default=list(range(FOLDS)))
    parser.add_argument("--shots", type=int, default=1, help="references an episode")
    parser.add_argument("--episodes", type=int, default=1000, help="a fold")
    parser.add_argument(
        "--weights",
        help="what finetune reference wrote; {fold} stands for the fold. Default: the "
        "preset's own, which learned every category of COCO",
    )


@dataclass(frozen=True)
class FewShotOptions:
    """What the benchmark asks beside `EvalSettings`.

    Attributes:
        layout: A name of `LAYOUTS`.
        references: Folder of the same layout that references are drawn from; None for `EvalSettings.root`.
        folds: The folds to score.
        shots: References per episode.
        episodes: Episodes per fold.
        weights: What `finetune reference` wrote, "{fold}" standing for the fold; None for the preset's own.
    """

    layout: str
    references: Path | None
    folds: tuple[int, ...]
    shots: int
    episodes: int
    weights: str | None


def main(args: argparse.Namespace) -> None:
    """Read the options and run the benchmark."""
    options = FewShotOptions(
        layout=args.layout,
        references=args.references,
        folds=tuple(sorted(set(args.fold))),
        shots=args.shots,
        episodes=args.episodes,
        weights=args.weights,
    )
    run(eval_settings(args), options)


def run(settings: EvalSettings, options: FewShotOptions) -> None:
    """Play every episode and write result.json, samples.jsonl and report.html."""
    from assistant.few_shot.matcher import Matcher, pocket_matcher
    from assistant.weights import pocket_file, sha256_of

    if options.shots < 1 or options.episodes < 1:
        raise BadInput("--shots and --episodes must be at least 1")
    queries = LAYOUTS[options.layout](settings.root)
    sources = LAYOUTS[options.layout](options.references) if options.references else queries
    if sources.names != queries.names:
        raise BadInput(f"{options.references} and {settings.root} have other categories")
    segmenter, weights = models.open_segmenter(settings)
    folds, files = list(options.folds), {}
    for fold in folds:
        file = (
            Path(options.weights.replace("{fold}", str(fold)))
            if options.weights
            else pocket_file("reference.safetensors")
        )
        files[fold] = file / "reference.safetensors" if file.is_dir() else file
    matchers = {
        f: Matcher.load(files[f], segmenter) if options.weights else pocket_matcher(segmenter) for f in folds
    }
    weights |= {
        f"reference of fold {f}" if len(folds) > 1 else "reference": sha256_of(files[f]) for f in folds
    }
    drawn = [
        draw_episodes(options.layout, queries, sources, f, options.shots, options.episodes, settings.seed)
        for f in folds
    ]
    episodes = [e for of_fold in drawn for e in of_fold][: settings.limit]
    samples = Run(
        settings.out,
        {
            "benchmark": "fewshot",
            "version": VERSION,
            "layout": options.layout,
            "root": str(settings.root.resolve()),
            "references": str((options.references or settings.root).resolve()),
            "fold": folds,
            "shots": options.shots,
            "episodes": options.episodes,
            "seed": settings.seed,
            "weights": weights,
            "preset": settings.models.describe(),
        },
        settings.strict,
    )
    looks = Looks(matchers[folds[0]])  # the frozen features are the same in all folds
    lines = samples.each(
        episodes,
        lambda episode: episode.key,
        lambda episode: play(matchers[episode.fold], looks, queries, sources, episode),
        noun="episodes",
        describe=lambda episode: {"name": str(queries.paths[episode.query])},
    )
    if lines is not None:
        finish(settings, options, lines, episodes, queries, sources, weights)


class Table:
    """Summed counts of the lines of one fold by query picture, to be drawn again."""

    def __init__(self, lines: list[dict], arm: str):
        pictures, categories = sorted({x["query"] for x in lines}), sorted({x["category"] for x in lines})
        self.classes = np.zeros((len(pictures), len(categories), 2))
        self.both = np.zeros((len(pictures), 2, 2))
        for x in lines:
            row = pictures.index(x["query"])
            self.classes[row, categories.index(x["category"])] += x["arms"][arm]["pair"]
            self.both[row] += x["arms"][arm]["pair"], x["arms"][arm]["background"]

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """weights (R, pictures): how often each picture counts -> (R, 2): mIoU, FB-IoU."""

        def mean(table):
            sums = np.tensordot(weights, table, 1)
            return np.nanmean(
                np.where(sums[..., 1] > 0, sums[..., 0] / np.maximum(sums[..., 1], 1), np.nan), 1
            )

        return np.stack([mean(self.classes), mean(self.both)], 1)


def scores(lines: list[dict], seed: int, resamples: int = 2000) -> tuple[dict, dict]:
    """({arm: (folds, 2)}, {arm: (resamples, folds, 2)}): mIoU and FB-IoU as they are and as the bootstrap draws
    them."""
    rng = np.random.default_rng(seed)
    once, drawn = {arm: [] for arm in ARMS}, {arm: [] for arm in ARMS}
    for fold in sorted({x["fold"] for x in lines}):
        mine = [x for x in lines if x["fold"] == fold]
        pictures = len({x["query"] for x in mine})
        weights = rng.multinomial(
            pictures, np.full(pictures, 1 / pictures), resamples
        )  # the same for every arm
        for arm in ARMS:
            table = Table(mine, arm)
            once[arm].append(table.scores(np.ones((1, pictures)))[0])
            drawn[arm].append(table.scores(weights))
    return {a: np.stack(v) for a, v in once.items()}, {a: np.stack(v, 1) for a, v in drawn.items()}


def interval(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.quantile(values, [0.025, 0.975])]


def finish(
    settings: EvalSettings, options: FewShotOptions, lines, episodes, queries, sources, weights
) -> None:
    good = [x for x in lines if "error" not in x]
    if not good:
        raise BadInput(f"no episode can be played: {lines[0]['error']}")
    folds = sorted({x["fold"] for x in good})
    once, drawn = scores(good, settings.seed)
    figures, ci95, by = {}, {}, {}
    for arm in ARMS:
        for k, name in enumerate(("mIoU", "FB-IoU")):
            figures[f"{arm} {name}"] = float(once[arm][:, k].mean())
            ci95[f"{arm} {name}"] = interval(drawn[arm][:, :, k].mean(1))
        for n, fold in enumerate(folds):
            by.setdefault(f"fold {fold}", {"n": sum(x["fold"] == fold for x in good)})
            by[f"fold {fold}"] |= {
                f"{arm} mIoU": float(once[arm][n, 0]),
                f"{arm} FB-IoU": float(once[arm][n, 1]),
            }
    for a, b in PAIRS:
        figures[f"{b} - {a} mIoU"] = figures[f"{b} mIoU"] - figures[f"{a} mIoU"]
        ci95[f"{b} - {a} mIoU"] = interval((drawn[b] - drawn[a])[:, :, 0].mean(1))
    for name in sorted({x["category"] for x in good}):
        mine = [x for x in good if x["category"] == name]
        by[f"category: {name}"] = {"n": len(mine)}
        for arm in ARMS:
            inter, union = np.sum([x["arms"][arm]["pair"] for x in mine], 0)
            by[f"category: {name}"][f"{arm} mIoU"] = float(inter / max(1, union))
    figures |= {
        "layout": options.layout,
        "shots": options.shots,
        "queries": len({x["query"] for x in good}),
        "episodes with fewer references": sum(len(x["references"]) < options.shots for x in good),
    }
    result = Result(
        benchmark="fewshot",
        version=VERSION,
        protocol=f"{options.layout}, {options.shots}-shot",
        n=len(good),
        preset=settings.models.describe(),
        weights=weights,
        figures=figures,
        ci95=ci95,
        by=by,
        seconds_per_image=float(np.median([x["open_seconds"] for x in good])),
        seconds_per_query=float(np.median([x["arms"]["text"]["seconds"] for x in good])),
        bad=bad_inputs(lines, "name"),
    )
    write_result(settings.out, result)
    write_report(settings.out, result, pictures=pictures_of(lines, episodes, queries, sources))
    figures |= {
        "seconds to open a reference": result.seconds_per_image,
        "seconds to find what is like it": result.seconds_per_query,
    }
    print_table(
        f"fewshot, version {VERSION}, {options.layout}, {options.shots}-shot, folds {folds}, {len(good)} episodes, "
        f"{len(result.bad)} bad",
        {
            k: f"{v:.4f}  [{ci95[k][0]:+.4f}, {ci95[k][1]:+.4f}]" if k in ci95 else v
            for k, v in figures.items()
        },
    )
    for fold in folds:
        print_table(f"fold {fold}", by[f"fold {fold}"])


def pictures_of(lines, episodes, queries, sources):
    """Episodes where the name helped, where it hurt, and some others: reference, truth, every arm."""
    from assistant.images import open_image
    from assistant.sam.mask_ops import decode_rle

    good = [(e, x) for e, x in zip(episodes, lines) if "error" not in x]
    ratio = lambda x, arm: x["arms"][arm]["pair"][0] / max(1, x["arms"][arm]["pair"][1])
    gain = lambda pair: ratio(pair[1], "text") - ratio(pair[1], "plain")
    ranked = sorted(good, key=gain)
    shown = min(SHOWN, len(ranked) // 3 or 1)
    step = max(1, len(good) // (2 * shown))
    for group, some in (
        ("As drawn", good[::step][: 2 * shown]),
        ("The name helped most", ranked[::-1][:shown]),
        ("The name hurt most", ranked[:shown]),
    ):
        for e, x in some:
            image = open_image(queries.paths[e.query])
            panels = [
                ("reference", open_image(sources.paths[r]), [sources.read(r, e.category)[0]])
                for r in e.references[:2]
            ]
            panels += [("truth", image, [queries.read(e.query, e.category)[0]])]
            panels += [
                (f"{arm} {ratio(x, arm):.2f}", image, [decode_rle(x["arms"][arm]["rle"])]) for arm in ARMS
            ]
            yield Sample(group, f"{x['category']}   {x['query']}", [], panels)
