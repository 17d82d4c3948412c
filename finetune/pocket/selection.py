"""Phase 3 of `finetune records`: the selector learns to pick regions, from the states of the tuned LLM."""

import json

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from assistant.files import replace_whole
from assistant.mllm.selector import Selector, select_proposals, selection_losses
from assistant.pocket.llm import SHAPE, PocketLLM, Seen
from finetune.log import Log, rate
from finetune.mllm.validation import score_targets
from finetune.pocket.examples import Example, RecordData
from finetune.pocket.language import draw_back, states_of
from finetune.region_cache import iou_and_iop, iou_of_union

WEIGHTS = {"align": 1.0, "iop": 2.0, "presence": 1.0}
NOISE = 0.5, 1.0  # of the states and words, in units of their size: 300 photos are soon known by heart


def select_batch(
    llm: PocketLLM,
    selector: Selector,
    examples: list[Example],
    states: Tensor,
    margins: Tensor,
    weights: dict[str, float] = WEIGHTS,
    hard: int = 0,
):
    """The selector's losses and scores; states (K, 576) and margins (K,) of the examples' targets, in their order."""
    sizes = [len(e.seen.words) for e in examples]
    count = max(sizes)
    owner = torch.tensor([i for i, e in enumerate(examples) for _ in e.present])
    pad = lambda t: F.pad(t, (0, 0, 0, count - len(t)))
    words = torch.stack([pad(e.seen.words) for e in examples])[owner]
    shapes = torch.stack([pad(e.seen.shape) for e in examples])[owner]
    ignored = torch.stack([torch.arange(count) >= s for s in sizes])[owner]
    with torch.no_grad():
        phrases = [torch.stack([llm.name(p) for p in e.phrases]) for e in examples]
        named = [llm.encoder.match(e.seen.words, p) for e, p in zip(examples, phrases)]
        named = torch.cat([F.pad(n, (0, 0, 0, count - n.shape[1])) for n in named])
    wide = lambda a: F.pad(torch.from_numpy(a), (0, count - a.shape[1]))
    iou, iop = (torch.cat([wide(getattr(a, k)) for e in examples for a in e.asked]) for k in ("iou", "iop"))
    present = torch.tensor([p for e in examples for p in e.present])
    scores = selector(states, words, shapes, named, margins, ignored, Seen(words, shapes).thing)
    losses = selection_losses(scores, iou, iop, present, ignored, hard)
    with torch.no_grad():
        figures = {k: v.item() for k, v in losses.items()}
        best = torch.tensor([select_proposals(scores, m)[0] for m in range(len(iou))])
        figures["top_iou"] = iou.gather(1, best[:, None])[present].mean().item()
        figures["presence_right"] = ((scores.presence > 0) == present).float().mean().item()
        inside = (scores.iop.sigmoid() > 0.5) & ~ignored & present[:, None]
        true = (iop > 0.5) & present[:, None]
        figures["inside_f1"] = (2 * (inside & true).sum() / (inside.sum() + true.sum()).clamp(min=1)).item()
    return sum(weights[k] * v for k, v in losses.items()), figures, scores


def train_selector(
    args,
    llm: PocketLLM,
    data: RecordData,
    aside: RecordData,
    start: Selector | None = None,
    look=None,
) -> None:
    """Phase 3: states of `--states` examples once, kept on disk, then many cheap steps over fresh surroundings.

    start: a selector to go on from, at most `args.selector_lr`; every `args.check_every` steps it is then scored on
    `aside`, the best is kept, and look(step, selector, figures) is called.
    """
    first = 10**7  # examples that the LLM was not trained on in this form
    numbers = range(first, first + args.states)
    kept = states_of(llm, data, numbers, args.out / f"states-{args.steps}-{args.states}.safetensors")
    ends = kept["counts"].cumsum(0).tolist()
    torch.manual_seed(args.seed)
    selector = start or Selector(kept["states"].shape[1], kept["states"].shape[1], SHAPE, dropout=0.2)
    lr, weights = (args.selector_lr, args.weights) if start else (1e-3, WEIGHTS)
    optimizer = torch.optim.AdamW(selector.parameters(), lr=lr, weight_decay=0.0 if start else 0.05)
    trained = dict(selector.named_parameters())
    began = {n: p.detach().clone() for n, p in trained.items()}
    selector.train()
    log, rng = Log(args.out / "selector.jsonl", 0), np.random.default_rng(args.seed)
    noise = torch.Generator().manual_seed(args.seed)
    best: tuple[dict, Tensor, dict] | None = None  # figures, the fit of presence, weights
    for step in range(args.selector_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(step, args.selector_steps, min(100, args.selector_steps // 5 + 1))
        which = rng.choice(len(ends), min(10, len(ends)), replace=False)
        examples = [data.example(first + int(k), again=int(rng.integers(2**31))) for k in which]
        rows = torch.cat([torch.arange(ends[k] - int(kept["counts"][k]), ends[k]) for k in which])
        states = kept["states"][rows]
        states = states + NOISE[0] * states.std() * torch.randn(states.shape, generator=noise)
        for e in examples:
            blur = torch.randn(e.seen.words.shape, generator=noise) / e.seen.words.shape[1] ** 0.5
            e.seen = Seen(F.normalize(e.seen.words + NOISE[1] * blur, dim=-1), e.seen.shape)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, figures, _ = select_batch(
                llm, selector, examples, states, kept["margins"][rows], weights, getattr(args, "hard", 0)
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(selector.parameters(), 1.0)
        optimizer.step()
        draw_back(trained, began, args)
        log.add(step, figures, every=getattr(args, "log_every", 100))
        done = step + 1 == args.selector_steps
        if look and aside.records and (done or (step + 1) % args.check_every == 0):
            figures, fit = examine(args, llm, selector.eval(), aside)
            look(step + 1, selector, figures)
            if best is None or figures["score"] > best[0]["score"]:
                best = figures, fit, {k: v.clone() for k, v in selector.state_dict().items()}
            selector.train()
    if best:
        selector.load_state_dict(best[2])
    selector.eval()
    if aside.records:
        figures, fit = best[:2] if best else examine(args, llm, selector, aside)
        scale, shift = selector.calibration.tolist()
        selector.calibration.copy_(torch.stack([scale * fit[0], shift * fit[0] + fit[1]]))
        line = json.dumps({k: round(v, 4) for k, v in figures.items()})
        print(f"kept aside: {line}", flush=True)
        (args.out / "aside.json").write_text(line + "\n")
    heads = {f"encoder.{k}": v for k, v in llm.encoder.state_dict().items()}
    heads |= {f"selector.{k}": v for k, v in selector.state_dict().items()}
    about = {"selector": json.dumps(selector.config), "forms": json.dumps(llm.forms)}
    with replace_whole(args.out / "heads.safetensors") as path:
        save_file({k: v.half().contiguous() for k, v in heads.items()}, path, about)


@torch.no_grad()
def examine(
    args, llm: PocketLLM, selector: Selector, aside: RecordData, steps: int | None = None
) -> tuple[dict, Tensor]:
    """How well the questions of the pictures kept aside are answered, given the right names, with the confidence fitted
    to them; and that fit of presence (scale and shift). steps: that the LLM has taken, all of them by default."""
    numbers = range(2 * 10**7, 2 * 10**7 + getattr(args, "examined", 160))
    file = args.out / f"aside-{args.steps if steps is None else steps}.safetensors"
    kept = states_of(llm, aside, numbers, file, plain=True)
    ends = kept["counts"].cumsum(0).tolist()
    presence, present, overlap, best = [], [], [], []
    for k, end in enumerate(ends):
        example = aside.example(numbers[k], plain=True)
        rows = slice(end - int(kept["counts"][k]), end)
        scores = select_batch(llm, selector, [example], kept["states"][rows], kept["margins"][rows])[2]
        presence.append(scores.presence)
        present += example.present
        for m, truth in enumerate(t for ts in example.truths for t in ts):
            overlap.append(0.0)
            if truth and example.rles:
                overlap[-1] = iou_of_union([example.rles[i] for i in select_proposals(scores, m)], truth)
                best.append(max(iou_and_iop(example.rles, truth)[0]))
    figures, fit = score_targets(torch.cat(presence), torch.tensor(present), torch.tensor(overlap))
    return figures | {
        "best_single": float(np.mean(best)),
        "targets": len(present),
        "scale": fit[0].item(),
        "shift": fit[1].item(),
    }, fit
