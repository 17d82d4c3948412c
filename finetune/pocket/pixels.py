"""Phase 2 of `finetune semantic`: the pixel head learns which cells a target has, from questions about the pictures that the
records stage kept aside, given the right names."""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.images import open_image
from assistant.mllm.selector import select_proposals
from assistant.pocket.opening import fast_math
from assistant.pocket.pipeline import heads_of
from assistant.pocket.proposals import CELL
from assistant.pocket.sam import IMAGE_SIZE
from assistant.pocket.semantic import PixelHead, Semantic, evidence
from assistant.sam.mask_ops import decode_rle, encode_rle
from assistant.weights import read_weights
from finetune.log import rate
from finetune.pocket.encoder import learn_to_see
from finetune.pocket.examples import RecordData
from finetune.pocket.language import build, states_of
from finetune.pocket.records import read_sources
from finetune.pocket.selection import select_batch
from finetune.region_cache import iou_of_union

GRID = IMAGE_SIZE // CELL  # cells of a proposal's low-resolution logits
FOLDS = 5
CELLS = 2000  # of a target in a step


@dataclass
class Lesson:
    """A target that is in a picture kept aside."""

    image: Path
    evidence: Tensor  # (S, S, FEATURES) half
    inside: Tensor  # (S, S) bool: the picture fills it
    truth: Tensor  # (S, S) bool
    masks: Tensor  # (N, S, S) bool
    rles: list[dict]  # N
    rle: dict
    before: float  # IoU of what the selector chooses by itself


def on_grid(rles: list[dict]) -> Tensor:
    """RLEs of one picture -> (N, GRID, GRID) bool: what lies in the middle of each cell of the padded square."""
    h, w = rles[0]["size"]
    scale = max(h, w) / IMAGE_SIZE
    ys, xs = ((np.arange(CELL / 2, round(side / scale), CELL) * scale).astype(int) for side in (h, w))
    out = np.zeros((len(rles), GRID, GRID), bool)
    for mask, rle in zip(out, rles):
        mask[: len(ys), : len(xs)] = decode_rle(rle)[np.ix_(ys, xs)]
    return torch.from_numpy(out)


@torch.no_grad()
def lessons_of(args, opener, semantic: Semantic) -> list[Lesson]:
    folder = args.reasoner
    if not (folder / "encoder.safetensors").exists() or not (folder / "lora").is_dir():
        raise BadInput(
            f"{folder} is not what `finetune records` wrote: it has no encoder.safetensors or no lora"
        )
    records, regions = read_sources(args, args.regions or folder / "regions")
    llm = build(0, folder / "lora")
    llm.model.eval()
    seen = learn_to_see(Namespace(out=folder), llm, records, regions)
    _, selector, _ = heads_of(*read_weights(folder / "heads.safetensors"))
    selector.eval()
    rows = semantic.rows(llm.forms)
    aside = RecordData(records, regions, seen, args.seed, aside=True)
    numbers = range(2 * 10**7, 2 * 10**7 + args.questions)
    kept = states_of(llm, aside, numbers, args.out / "states.safetensors", plain=True)
    ends, names, lessons = kept["counts"].cumsum(0).tolist(), {}, []
    for k, end in enumerate(ends):
        example = aside.example(numbers[k], plain=True)
        if not example.rles:
            continue
        part = slice(end - int(kept["counts"][k]), end)
        scores = select_batch(llm, selector, [example], kept["states"][part], kept["margins"][part])[2]
        masks, image = on_grid(example.rles), example.image
        if image not in names:
            with fast_math():
                names[image] = semantic.names(opener.segmenter.encode(open_image(image)))
        h, w = example.rles[0]["size"]
        inside = on_grid([encode_rle(np.ones((h, w), bool))])[0]
        for m, (phrase, truth) in enumerate(zip(example.phrases, (t for ts in example.truths for t in ts))):
            row = rows.get(llm.row(phrase))
            if truth and row is not None:
                told = evidence(scores, m, masks, names[image], row, semantic.head.beside(row))
                before = iou_of_union([example.rles[i] for i in select_proposals(scores, m)], truth)
                lessons.append(
                    Lesson(
                        image, told.half(), inside, on_grid([truth])[0], masks, example.rles, truth, before
                    )
                )
    return lessons


def fit(args, lessons: list[Lesson]) -> PixelHead:
    torch.manual_seed(args.seed)
    pixels, rng = PixelHead(), np.random.default_rng(args.seed)
    some = torch.cat([lesson.evidence[lesson.inside][::50].float() for lesson in lessons])
    pixels.mean.copy_(some.mean(0))
    pixels.scale.copy_(some.std(0) + 1e-3)
    cells_of = {id(one): one.inside.nonzero() for one in lessons}
    optimizer = torch.optim.AdamW(pixels.parameters(), lr=3e-3, weight_decay=0.05)
    for step in range(args.pixel_steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rate(step, args.pixel_steps, 20)
        loss = 0
        for k in rng.integers(len(lessons), size=16):
            lesson, cells = lessons[k], cells_of[id(lessons[k])]
            cells = cells[torch.from_numpy(rng.integers(len(cells), size=CELLS))].unbind(1)
            logit, y = pixels(lesson.evidence[cells].float()), lesson.truth[cells].float()
            p = logit.sigmoid()
            loss = (
                loss
                + 1
                - (p * y).sum() / ((p + y - p * y).sum() + 1e-3)
                + 0.3 * F.binary_cross_entropy_with_logits(logit, y)
            )
        optimizer.zero_grad()
        (loss / 16).backward()
        optimizer.step()
    return pixels.eval()


def train_pixels(args, opener, head, categories: list[str]) -> None:
    """Writes OUT/semantic.safetensors, and to OUT/aside.json what masks gain in pictures that neither head has learned."""
    semantic = Semantic(head, PixelHead(), categories)
    lessons = lessons_of(args, opener, semantic)
    images = sorted({one.image for one in lessons})
    folds = min(FOLDS, len(images))
    fold = [images.index(one.image) % folds for one in lessons]
    after = np.zeros(len(lessons))
    for k in range(folds):
        # Of one picture: itself.
        semantic.pixels = fit(args, [one for one, f in zip(lessons, fold) if f != k] or lessons)
        for i, one in enumerate(lessons):
            if fold[i] == k:
                chosen = semantic.union(one.evidence.float(), one.masks, one.inside)
                after[i] = iou_of_union([one.rles[n] for n in chosen], one.rle)
    before = np.array([one.before for one in lessons])
    gain = after - before
    line = json.dumps(
        {
            "targets": len(lessons),
            "pictures": len(images),
            "selector alone": round(before.mean(), 4),
            "with the map": round(after.mean(), 4),
            "gain": round(gain.mean(), 4),
            "standard error": round(gain.std() / len(gain) ** 0.5, 4),
        }
    )
    print(f"IoU of targets kept aside: {line}", flush=True)
    with replace_whole(args.out / "aside.json") as path:
        path.write_text(line + "\n")
    semantic.pixels = fit(args, lessons)
    semantic.save(args.out / "semantic.safetensors")
