"""Train "segment like this" (VLP-SAM, and VRP-SAM for references without a name) from outlined pictures.

    python -m finetune reference --data DATA/coco/train --out runs/reference
    python -m finetune reference --data DATA/coco/train --fold 2 --out runs/reference-2     # 4 folds, for eval fewshot
    python -m finetune reference --data DATA/coco/train --clip openai/clip-vit-base-patch16 --sam sam_vit_b_01ec64.pth \\
        --no-coarse --out runs/reference-clip

DATA: COCO-format folders (instances.json, images/). Two encoders learn from the same episodes, one told the name, one
not: a category, a query that holds it, one to three references in other pictures. Loss: BCE and Dice, in equal parts.
What is frozen is computed once and kept on disk under --looks, where several runs share it: what SAM and the features
see of each picture (and of --views other views of it: cut, mirrored, in other light), and how alike query and
references of each episode are. The same command again resumes.
"""

import argparse
import contextlib
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from assistant.errors import BadInput
from assistant.few_shot.features import ClipFeatures, PocketFeatures
from assistant.few_shot.matcher import Matcher
from assistant.few_shot.prompt_encoder import PromptEncoder, prompted
from assistant.few_shot.similarity import NAMELESS, Given, Look, Reference, cover, gather
from assistant.files import replace_whole
from assistant.pocket.opening import fast_math
from finetune.log import Log, rate
from finetune.pocket.outlined import named_regions, other_view

ARMS = {"plain": False, "text": True}  # the encoders, and whether they are told the name
FOLDS = 4
ASIDE = 10  # every so-manieth picture is not trained on
SMALLEST = 400  # px of the picture that a mask must cover to be asked for


@dataclass(frozen=True)
class FeatureCache:
    """One view of a picture on disk. names: the categories that can be asked for, in the order of the file's masks."""

    file: Path
    photo: int
    names: tuple[str, ...]


def keep(
    matcher: Matcher, key: str, image_file: Path, named: list[tuple[str, dict]], views: int, folder: Path
) -> list[Path]:
    """The files of a picture and `views` other views of it, computed if they are not there. `key`: of SAM and
    features."""
    from pycocotools import mask as coco_mask

    from assistant.images import open_image

    stem = hashlib.sha256(f"{key} {image_file.resolve()}".encode()).hexdigest()[:24]
    files = [folder / f"{stem}-{k}.safetensors" for k in range(1 + views)]
    if all(f.exists() for f in files):
        return files
    image = open_image(image_file)
    masks: dict[str, np.ndarray] = {}
    for name, rle in named:
        masks[name] = masks.get(name, False) | coco_mask.decode(rle).astype(bool)
    rng = np.random.default_rng(int(stem[:8], 16))
    for k, file in enumerate(files):
        picture, left = (
            (image, list(masks.items())) if k == 0 else other_view(image, list(masks.items()), rng)
        )
        if file.exists():
            continue
        look = matcher.open(np.ascontiguousarray(picture))
        side = matcher.segmenter.low_res_side
        left = [(name, mask) for name, mask in left if mask.sum() >= SMALLEST]
        drawn = [cover(matcher.segmenter, mask.shape, mask, (side, side)) for _, mask in left]
        stored = torch.stack(drawn).mul(255).round().byte() if drawn else torch.zeros(0, side, side).byte()
        state = {
            "patches": look.patches.half(),
            "joint": look.joint.half(),
            "inside": look.inside,
            "features": look.embedding.features.half(),
            "masks": stored,
        }
        with replace_whole(file) as path:
            save_file(
                {k: v.contiguous() for k, v in state.items()},
                path,
                {"names": json.dumps([n for n, _ in left]), "size": json.dumps(list(picture.shape[:2]))},
            )
    return files


def kept_names(file: Path) -> tuple[str, ...]:
    with safe_open(file, "pt") as opened:
        return tuple(json.loads(opened.metadata()["names"]))


def read(kept: FeatureCache, matcher: Matcher, name: str) -> tuple[Look, Tensor]:
    """A kept view and its mask of a category, (l, l) share in [0, 1]."""
    with safe_open(kept.file, "pt") as opened:
        get = lambda k: opened.get_tensor(k).float()
        mask = opened.get_slice("masks")[kept.names.index(name)].float() / 255
        size = json.loads(opened.metadata()["size"])
        embedding = matcher.segmenter.restore(get("features"), size)
        return Look(get("patches"), get("joint"), get("inside"), embedding), mask


def draw_episodes(
    views: list[FeatureCache], seed: int, count: int, most: int = 3
) -> list[tuple[str, FeatureCache, list[FeatureCache]]]:
    """(name, query, references): a category as often as the root of its pictures' number, a query that holds it, and in
    other pictures one reference, or in every fourth episode two to `most`."""
    rng = np.random.default_rng(seed)
    holding: dict[str, list[FeatureCache]] = {}
    for view in views:
        for name in view.names:
            holding.setdefault(name, []).append(view)
    photos = {n: len({v.photo for v in of}) for n, of in holding.items()}
    names = sorted(n for n in photos if photos[n] > 1)
    if not names:
        raise BadInput("no category is outlined in two pictures: there is nothing to learn a reference from")
    share = np.sqrt([photos[n] for n in names])
    episodes = []
    for name in rng.choice(names, count, p=share / share.sum()):
        query = holding[name][rng.integers(len(holding[name]))]
        others = [v for v in holding[name] if v.photo != query.photo]
        shots = int(rng.integers(2, most + 1)) if rng.random() < 0.25 else 1
        episodes.append(
            (str(name), query, [others[k] for k in rng.choice(len(others), shots, len(others) < shots)])
        )
    return episodes


@dataclass(frozen=True)
class Gathered:
    """An episode whose frozen part is on disk: what the encoders are given, the target and the query's place."""

    file: Path
    name: str
    query: FeatureCache
    shots: int


def gather_all(matcher: Matcher, key: str, drawn: list, folder: Path) -> list[Gathered]:
    """Compute what is not there yet, each episode once for all runs that draw it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, query, references in tqdm(drawn, desc="episodes", disable=None):
        sign = " ".join([key, name, query.file.name, *(r.file.name for r in references)])
        file = folder / f"{hashlib.sha256(sign.encode()).hexdigest()[:24]}.safetensors"
        if not file.exists():
            looks, target = load_episodes(matcher, [(name, query, references)])
            given = gather(looks, matcher.encoders["text"], matcher.features)
            state = {k: v.half().contiguous() for k, v in given._asdict().items()}
            with replace_whole(file) as path:
                save_file(state | {"target": (target * 255).round().byte()}, path)
        found.append(Gathered(file, name, query, len(references)))
    return found


def batch_of(episodes: list[Gathered], seed: int, step: int, count: int) -> list[Gathered]:
    """`count` of them with as many references each, fixed by (seed, step)."""
    rng = np.random.default_rng((seed, step))
    shots = episodes[rng.integers(len(episodes))].shots
    alike = [e for e in episodes if e.shots == shots]
    return [alike[k] for k in rng.choice(len(alike), count, len(alike) < count)]


def read_given(batch: list[Gathered]) -> tuple[Given, Tensor]:
    """-> what the encoder for names is given of a batch, targets (B, l, l)."""
    states = [load_file(e.file) for e in batch]
    join = lambda k: torch.cat([s[k] for s in states]).float()
    return Given(*(join(k) for k in Given._fields)), join("target") / 255


def mask_loss(logits: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """BCE + Dice (1 added to both sides) of (B, l, l), over what the picture covers."""
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid() * inside
    dice = 1 - (2 * (p * target).sum((1, 2)) + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)
    return ((bce * inside).sum((1, 2)) / inside.sum((1, 2)) + dice).mean()


def step_loss(
    matcher: Matcher, encoder: PromptEncoder, given: Given, queries: list[Look] | None, targets: Tensor
) -> tuple[Tensor, float]:
    """-> loss, mean IoU of the episodes; without queries, of the coarse drawing, which needs no SAM."""
    alone = queries is None
    full = lambda x: F.interpolate(
        x[:, None].float(), targets.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0]
    inside, loss = full(given.maps[:, NAMELESS - 1]), 0.0
    with fast_math() if matcher.features.kind == "pocket" else contextlib.nullcontext():
        logits = coarse = encoder.draw(given)
        if not alone:
            logits, _ = prompted(matcher.segmenter, queries, encoder(given), coarse)
    if coarse is not None:
        loss = (1.0 if alone else 0.5) * mask_loss(full(coarse), targets, inside)
    logits = full(logits)
    if not alone:
        loss = loss + mask_loss(logits, targets, inside)
    with torch.no_grad():
        said, true = (logits > 0) & (inside > 0.5), targets > 0.5
        iou = (said & true).sum((1, 2)) / (said | true).sum((1, 2)).clamp(min=1)
    return loss, float(iou.mean())


def both(matcher: Matcher, looks: list) -> dict[str, Given]:
    """What each encoder is given of the same episodes."""
    given = gather(looks, matcher.encoders["text"], matcher.features)
    return {"plain": given.nameless(), "text": given}


def load_episodes(matcher: Matcher, episodes) -> tuple[list, Tensor]:
    """Drawn episodes -> what `gather` takes, targets (B, l, l)."""
    looks, targets = [], []
    for name, query, references in episodes:
        look, target = read(query, matcher, name)
        several = []
        for view in references:
            other, mask = read(view, matcher, name)
            several.append(Reference(other, F.adaptive_avg_pool2d(mask[None], other.patches.shape[-2:])[0]))
        looks.append((look, several, name))
        targets.append(target)
    return looks, torch.stack(targets)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="COCO-format folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--fold",
        type=int,
        choices=range(FOLDS),
        help="leave out every fourth category, from this one on (COCO-20i's rule); default: learn all",
    )
    parser.add_argument("--looks", type=Path, help="folder of kept features (default: OUT/looks)")
    parser.add_argument("--views", type=int, default=0, help="other views of each picture")
    parser.add_argument("--sam", help="official .pth, transformers folder or hub id; default: the pocket SAM")
    parser.add_argument("--clip", help="transformers folder or hub id; default: the pocket preset's features")
    parser.add_argument(
        "--no-coarse", action="store_true", help="tokens alone, as the paper; the default adds a mask prompt"
    )
    parser.add_argument("--steps", type=int, default=280)
    parser.add_argument(
        "--alone",
        type=float,
        default=0.85,
        help="share of the steps, at first, that train the coarse "
        "drawing without SAM, at a fifth of the cost",
    )
    parser.add_argument(
        "--episodes",
        type=int,
        default=1000,
        help="drawn once, of all categories; a fold learns from "
        "those of its own; each is gone through several times",
    )
    parser.add_argument("--batch", type=int, default=8, help="episodes a step")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--save-every", type=float, default=2, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)


def open_frozen(args: argparse.Namespace) -> tuple[Matcher, str]:
    """The matcher without encoders, and a key that tells its frozen parts apart."""
    from assistant.presets import load_segmenter

    if args.clip is None and args.sam is not None:
        raise BadInput("the pocket preset's features need the pocket SAM: give --clip as well")
    segmenter, key = load_segmenter(args.sam or "pocket")
    features = ClipFeatures(args.clip, segmenter) if args.clip else PocketFeatures()
    segmenter.model.requires_grad_(False)
    return Matcher(segmenter, features, {}), f"{key} {json.dumps(features.about)}"


def categories(folders: list[Path], fold: int | None) -> set[str]:
    """The names that are learned: all, or all but every fourth from `fold` on, by the order of their ids."""
    names = set()
    for folder in folders:
        data = json.loads((folder / "instances.json").read_text())
        order = [c["name"] for c in sorted(data["categories"], key=lambda c: c["id"])]
        names |= {n for k, n in enumerate(order) if fold is None or k % FOLDS != fold}
    return names


def main(args: argparse.Namespace) -> None:
    for folder in args.data:
        if not (folder / "instances.json").is_file():
            raise BadInput(f"{folder} is no COCO-format folder: it has no instances.json")
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    matcher, key = open_frozen(args)
    names = categories(args.data, args.fold)
    looks = args.looks or args.out / "looks"
    looks.mkdir(parents=True, exist_ok=True)
    photos = [
        (folder / "images" / file, named)
        for folder in args.data
        for file, named in named_regions(folder / "instances.json").items()
        if named
    ]
    views, aside = [], []
    for k, (image, named) in enumerate(tqdm(photos, desc="looks", disable=None)):
        files = keep(matcher, key, image, named, args.views, looks)
        if k % ASIDE == 0:
            aside.append(FeatureCache(files[0], k, kept_names(files[0])))
        else:
            views += [FeatureCache(f, k, kept_names(f)) for f in files]
    encoders = matcher.encoders
    for arm, told in ARMS.items():
        torch.manual_seed(args.seed)
        widths = matcher.features.width, matcher.features.joint_width, matcher.segmenter.prompt_width
        encoders[arm] = PromptEncoder(*widths, text=told, coarse=not args.no_coarse)
    if matcher.features.kind == "pocket":
        mean, scale = statistics(views)
        for encoder in encoders.values():
            encoder.mean.copy_(mean)
            encoder.scale.copy_(scale)
    drawn = draw_episodes(views, args.seed, args.episodes)
    if args.fold is not None:
        drawn = [e for e in drawn if e[0] in names]
    train(args, matcher, gather_all(matcher, key, drawn, looks / "episodes"))
    print(json.dumps({"aside": check(matcher, aside, views, names, args.seed)}), flush=True)


def statistics(views: list[FeatureCache]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C,) of the patches' channels; the fine map's count half, being many and of little meaning."""
    some = torch.cat([load_file(v.file)["patches"].float().flatten(1)[:, ::7] for v in views[::2]], 1)
    scale = some.std(1) + 1e-3
    scale[:120] *= 2
    return some.mean(1), scale


def train(args: argparse.Namespace, matcher: Matcher, episodes: list[Gathered]) -> None:
    """Both encoders on the same episodes; the weights' moving average is what is kept."""
    encoders = matcher.encoders
    optimizers = {
        arm: torch.optim.AdamW(groups(e, args.lr), weight_decay=0.01) for arm, e in encoders.items()
    }
    average = {arm: {k: v.detach().clone() for k, v in e.state_dict().items()} for arm, e in encoders.items()}
    file, start = args.out / "state.pt", 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        for arm, encoder in encoders.items():
            encoder.load_state_dict(state["encoders"][arm])
            optimizers[arm].load_state_dict(state["optimizers"][arm])
        average, start = state["average"], state["step"]
        print(f"resuming at step {start}", flush=True)
    log, saved = Log(args.out / "log.jsonl"), time.time()
    # The first step with SAM: what reads tokens begins to learn then.
    first = 0 if args.no_coarse else int(args.alone * args.steps)
    spans = (first, args.steps - first), (0, args.steps)  # (begin, length) of the two groups' learning rates
    for step in range(start, args.steps):
        alone, figures = step < first, {}
        batch = batch_of(episodes, args.seed, step, args.batch)
        full, targets = read_given(batch)
        given = {"plain": full.nameless(), "text": full}
        queries = None if alone else [read(e.query, matcher, e.name)[0] for e in batch]
        for arm, encoder in encoders.items():
            torch.manual_seed(args.seed * 1_000_003 + step)  # of the dropout
            for group, (begin, length) in zip(optimizers[arm].param_groups, spans):
                group["lr"] = group["full"] * rate(
                    max(0, step - begin), max(1, length), min(50, length // 10 + 1)
                )
            encoder.train()
            loss, iou = step_loss(matcher, encoder, given[arm], queries, targets)
            optimizers[arm].zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizers[arm].step()
            decay = min(0.99, (step + 1) / (step + 10))
            for k, v in encoder.state_dict().items():
                average[arm][k].lerp_(v, 1 - decay)
            figures |= {f"{arm}_loss": loss.item(), f"{arm}_iou": iou}
        log.add(step, figures, every=25)
        if time.time() - saved > 60 * args.save_every or step + 1 == args.steps:
            with replace_whole(file) as path:
                torch.save(
                    {
                        "encoders": {a: e.state_dict() for a, e in encoders.items()},
                        "average": average,
                        "optimizers": {a: o.state_dict() for a, o in optimizers.items()},
                        "step": step + 1,
                    },
                    path,
                )
            saved = time.time()
    for arm, encoder in encoders.items():
        encoder.load_state_dict(average[arm])
        encoder.eval()
    matcher.save(args.out / "reference.safetensors")


def groups(encoder: PromptEncoder, lr: float) -> list[dict]:
    """The small network that draws learns eight times as fast as the rest."""
    small = [p for n, p in encoder.named_parameters() if n.startswith("coarse.")]
    rest = [p for n, p in encoder.named_parameters() if not n.startswith("coarse.")]
    return [{"params": p, "lr": full, "full": full} for p, full in ((rest, lr), (small, 8 * lr)) if p]


@torch.no_grad()
def check(
    matcher: Matcher,
    aside: list[FeatureCache],
    views: list[FeatureCache],
    names: set[str],
    seed: int,
    count: int = 200,
) -> dict:
    """Mean IoU of each encoder on pictures kept aside, references from the others, one shot."""
    found: dict[str, list[float]] = {arm: [] for arm in matcher.encoders}
    queries = [(v, n) for v in aside for n in v.names if n in names]
    rng = np.random.default_rng(seed)
    for k in rng.permutation(len(queries))[:count]:
        query, name = queries[k]
        others = [v for v in views if name in v.names and v.file.stem.endswith("-0")]
        if others:
            drawn = [(name, query, [others[rng.integers(len(others))]])]
            looks, targets = load_episodes(matcher, drawn)
            given = both(matcher, looks)
            for arm, encoder in matcher.encoders.items():
                found[arm].append(step_loss(matcher, encoder, given[arm], [looks[0][0]], targets)[1])
    means = {arm: round(float(np.mean(v)), 4) if v else None for arm, v in found.items()}
    return means | {"n": len(next(iter(found.values())))}
