"""One-shot tuning of where a model looks: one labelled photo per category ("The Power of One", arXiv 2503.10779).

    python -m assistant rank-layers --images DATA/coco/train/images --names DATA/coco/train/instances.json --out ranking.json
    python -m finetune attention --data DATA/coco/train --ranking ranking.json --out runs/attention
    python -m eval oneshot --root DATA/coco/dev --ranking ranking.json --tuned runs/attention --out runs/eval/oneshot

Trained are the attention of the layers that the ranking uses and, with `--word-passes`, the embeddings of the words of the
prompts; everything else is frozen, dropout is off. The loss is the negative log of each labelled pixel's share of the
attention alone: with the match in it, which already knows what a labelled photo shows, little is left to be learned.
Background weighs a tenth, else all is soon background. `--runs` runs draw other photos and another order, each with weights of
its own: run-0.safetensors and so on. The same command again goes on where it was stopped.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.attention.maps import class_maps, shares, with_background
from assistant.attention.prompt_attention import Ranking
from assistant.errors import BadInput
from assistant.files import replace_whole
from finetune.log import Log, rate

SMALLEST = 0.01  # of the picture that the labelled thing covers at least, where the category has such a photo
BACKGROUND = 0.1  # weight of background pixels
SAVED = 40  # steps between checkpoints
GRID = 128  # cells of the longer side that the loss is counted on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from assistant.cli import add_model_arguments

    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="labelled photos that one per category is drawn from (COCO-format, COCO, VOC)",
    )
    parser.add_argument("--split", default="train", help="part of the data set, in VOC's and COCO's layouts")
    parser.add_argument("--ranking", type=Path, help="what rank-layers wrote (default: the preset's own)")
    add_model_arguments(parser)
    parser.add_argument("--views", type=Path, help="folder of opened pictures (pocket; default: OUT/views)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--passes", type=int, default=5, help="over the labelled photos, training the attention alone"
    )
    parser.add_argument(
        "--word-passes",
        type=int,
        default=0,
        help="and then the words' embeddings as well (default: 0, which leaves them alone)",
    )
    parser.add_argument("--batch", type=int, default=2, help="photos a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next runs count up")


def draw_supports(categories: list[str], photos: list[tuple], rng) -> list[tuple[int, int]]:
    """(category, index of its photo) for every category that `photos`, [(path, (H, W) int map)], show: photos of few
    other categories first, with a thing that is no smaller than SMALLEST; among the best, chance decides."""
    there = [np.bincount(label[label > 0], minlength=len(categories) + 1) / label.size for _, label in photos]
    drawn = []
    for c in range(1, len(categories) + 1):
        fit = [i for i, share in enumerate(there) if share[c] > 0]
        if not fit:
            continue
        rank = {i: (there[i][c] < SMALLEST, min(2, int((there[i] > 0).sum()) - 1), rng.random()) for i in fit}
        drawn.append((c, min(fit, key=rank.get)))
    return drawn


def support_map(label: np.ndarray, category: int) -> Tensor:
    """(H, W) class numbers as the one label that is given: the category, background, and -1 for other labelled
    things."""
    return torch.from_numpy(np.where((label == category) | (label <= 0), label, -1))


def loss_of(probe, view, label: Tensor, prompts: list[str], owner: Tensor, use: list, classes: int) -> Tensor:
    """label: (H, W) long, -1 = not counted. Mean over the thing's pixels of -log of the true class's share, plus
    BACKGROUND times the mean over the background's."""
    look = probe.attention(view, prompts, sorted({layer for layer, _ in use}))
    maps = class_maps(shares(look, use, match=False), owner, classes)
    h, w = label.shape
    size = tuple(max(1, round(side * GRID / max(h, w))) for side in (h, w))
    small = F.interpolate(label[None, None].float(), size, mode="nearest")[0, 0].long()
    true, row = small.clamp(min=0).unique(return_inverse=True)  # only these classes' maps are drawn
    *drawn, covered = look.place.spread(torch.cat([maps[true], maps.sum(0, keepdim=True).detach()]), size)
    counted = (small >= 0) & (covered > 0.5)  # what no region covers says nothing
    if not counted.any():
        return maps.sum() * 0
    each = -torch.stack(drawn).gather(0, row[None])[0][counted].clamp(min=1e-6).log()
    thing = small[counted] > 0
    # Things are small beside their background: counted pixel by pixel, "all is background" would be learned first.
    mean = lambda where: (each * where).sum() / where.sum().clamp(min=1)
    return mean(thing) + BACKGROUND * mean(~thing)


def tune(
    probe,
    supports: list[tuple],
    names: list[str],
    passes: int,
    word_passes: int,
    batch: int,
    lr: float,
    seed: int,
    state_file: Path | None = None,
    log: Log | None = None,
) -> dict[str, Tensor]:
    """Train on `supports`, [(view, (H, W) label)], -> what `looker.restore` takes. First the attention alone, which in
    the pocket preset reads what is kept of the first pass; then the words as well. state_file: resumed from, if
    there."""
    prompts, owner = with_background(names)
    use = probe.ranking.use
    probe.restore({})
    state = (
        torch.load(state_file, weights_only=True)
        if state_file and state_file.exists()
        else {"phase": 0, "step": 0}
    )
    trained = probe.tunable_attention(sorted({layer for layer, _ in use}))
    for phase, rounds in enumerate((passes, word_passes)):
        if phase:
            trained |= probe.tunable_words(prompts)
        if phase < state["phase"] or not rounds:
            continue
        optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.05)
        if state["phase"] == phase and "model" in state:
            for name, parameter in trained.items():
                parameter.data.copy_(state["model"][name])
            if state["step"]:
                optimizer.load_state_dict(state["optimizer"])
        dice = [torch.Generator().manual_seed(10000 * seed + 1000 * phase + p) for p in range(rounds)]
        order = [torch.randperm(len(supports), generator=each) for each in dice]
        steps = torch.cat(order).split(batch)
        for step in range(state["step"], len(steps)):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate(step, len(steps), 5) / (1 + phase)
            optimizer.zero_grad(set_to_none=True)
            losses = []
            for i in steps[step].tolist():
                loss = loss_of(probe, *supports[i], prompts, owner, use, len(names) + 1)
                (loss / len(steps[step])).backward()
                losses.append(loss.item())
            optimizer.step()
            if log:
                log.add(step, {"loss": float(np.mean(losses))}, every=100)
            if state_file and (step % SAVED == SAVED - 1 or step + 1 == len(steps)):
                with replace_whole(state_file) as path:
                    torch.save(
                        {
                            "model": {n: p.data for n, p in trained.items()},
                            "optimizer": optimizer.state_dict(),
                            "step": step + 1,
                            "phase": phase,
                        },
                        path,
                    )
        state = {"phase": phase + 1, "step": 0}
    return {name: p.detach().clone() for name, p in trained.items()}


def main(args: argparse.Namespace) -> None:
    """Draw the photos, tune, write run-K.safetensors; its metadata says which photo stood for which category."""
    import json

    from safetensors.torch import save_file

    from assistant.attention.labelled_images import read_labelled
    from assistant.cli import model_options
    from assistant.presets import load_attention_probe

    names, found = read_labelled(args.data, args.split)
    if args.runs < 1 or args.passes < 0 or args.word_passes < 0 or args.batch < 1:
        raise BadInput("--runs and --batch must be at least 1, --passes and --word-passes not negative")
    probe, _ = load_attention_probe(model_options(args))
    if args.ranking:
        probe.ranking = Ranking.load(args.ranking)
    if probe.ranking is None:
        raise BadInput("give --ranking, what python -m assistant rank-layers wrote for this model")
    photos = [(photo.path, photo.read()) for photo in found]
    settings = {
        "data": str(args.data.resolve()),
        "use": probe.ranking.use,
        "passes": args.passes,
        "word_passes": args.word_passes,
        "batch": args.batch,
        "lr": args.lr,
        "model": args.mllm or args.preset,
    }
    settings = json.loads(json.dumps(settings))
    file = args.out / "attention.json"
    before = json.loads(file.read_text())["settings"] if file.exists() else settings
    if before != settings:
        raise BadInput(f"--out {args.out} holds runs with other settings: choose another folder or delete it")
    views: dict[int, object] = {}
    for run in range(args.seed, args.seed + args.runs):
        pairs = draw_supports(names, photos, np.random.default_rng(run))
        done, state = args.out / f"run-{run}.safetensors", args.out / f"run-{run}.pt"
        if done.exists():
            continue
        for _, i in pairs:
            if i not in views:
                views[i] = probe.open(photos[i][0], args.views or args.out / "views")
        supports = [(views[i], support_map(photos[i][1], c)) for c, i in pairs]
        args.out.mkdir(parents=True, exist_ok=True)
        with replace_whole(file) as path:
            path.write_text(json.dumps({"settings": settings}, indent=1) + "\n")
        tuned = tune(
            probe,
            supports,
            names,
            args.passes,
            args.word_passes,
            args.batch,
            args.lr,
            run,
            state,
            Log(args.out / f"loss-{run}.jsonl"),
        )
        shown = {names[c - 1]: photos[i][0].name for c, i in pairs}
        about = {"use": json.dumps(probe.ranking.use), "photos": json.dumps(shown)}
        with replace_whole(done) as path:
            save_file({name: value.contiguous() for name, value in tuned.items()}, path, about)
        state.unlink(missing_ok=True)
    print(f"{args.runs} runs over {len(pairs)} photos each: {args.out}")
