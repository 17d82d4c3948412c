"""Train the pocket reasoner and selector from records: region encoder, LoRA, token rows, selector.

    python -m finetune records --data runs/questions-train/records.jsonl --named ../shared/data/coco/train/instances.json \
        --out runs/reasoner --steps 3000

The same command again resumes. Losses: cross-entropy of the answer, LLM-Seg's alignment and IoP, presence,
and the names of outlined regions (so that a region becomes a word near its own name). LoRA sits in the
upper half of the LLM: the lower half then needs no gradient, and two cores do twice the steps.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from assistant.files import replace_whole
from assistant.grammar import ABS, SEG, Turn
from assistant.pocket.reasoner import EMBEDDING, PocketReasoner, RegionEncoder, load_tokenizer, shape_features
from assistant.pocket.vision import GEOMETRY
from assistant.record import Record, read_records
from assistant.selector import Selector, selection_losses
from assistant.weights import sha256_of, smollm2_folder
from finetune.regions import Regions, all_regions, named_regions, overlaps

WEIGHTS = {"text": 1.0, "align": 1.0, "iop": 2.0, "presence": 1.0, "name": 0.5, "thing": 0.5}
FIRST_TUNED = 14  # LoRA from this layer of 30 upwards


@dataclass
class Example:
    question: str
    answer: str
    features: Tensor  # (N, R)
    iou: np.ndarray  # (M, N)
    iop: np.ndarray  # (M, N)
    present: list[bool]  # M
    names: list[int]  # per region, -1 = not outlined
    thing: np.ndarray  # (N,) best IoU with anything outlined


def compact(record: Record) -> str:
    """The answer in the pocket form of the grammar: `umbrella [SEG], bench [ABS].`"""
    return ", ".join(f"{t.phrase} {SEG if t.rle else ABS}" for t in record.targets) + "."


class RecordData:
    """Records with the regions of their pictures; `example(k)` is fixed by (seed, k)."""

    def __init__(self, records: list[tuple[Record, Path]], regions: dict[Path, Regions], vocabulary: list[str], seed: int):
        self.records, self.regions, self.seed = records, regions, seed
        self.index = {n: i for i, n in enumerate(vocabulary)}
        self.images = list(regions)
        self.cache: dict[int, tuple] = {}
        self.things = {}
        for image, r in regions.items():
            outlined = r.rles[: len(r.names)]
            table = [overlaps(r.rles, o)[0] for o in outlined]
            self.things[image] = np.max(table, 0) if table else np.zeros(len(r.rles), np.float32)
        kinds = [r.source.get("kind", "") for r, _ in records]
        self.weights = np.array([1 / kinds.count(k) ** 0.5 for k in kinds])
        self.weights /= self.weights.sum()

    def targets(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k not in self.cache:
            record, image = self.records[k]
            rles = self.regions[image].rles
            pairs = [overlaps(rles, t.rle) if t.rle else (np.zeros(len(rles), np.float32),) * 2 for t in record.targets]
            self.cache[k] = tuple(np.stack(x) for x in zip(*pairs))
        return self.cache[k]

    def example(self, k: int) -> Example:
        rng = np.random.default_rng((self.seed, k))
        while True:
            which = int(rng.choice(len(self.records), p=self.weights))
            record, image = self.records[which]
            if record.targets:
                break
        own = self.regions[image]
        iou, iop = self.targets(which)
        outlined = len(own.names)
        # Outlined regions stand in for proposals half the time: masks are never so clean in a photo that is new.
        if rng.random() < 0.5 or len(own.rles) == outlined:
            keep = np.arange(len(own.rles))
        else:
            keep = np.arange(outlined, len(own.rles))
        keep = keep[rng.random(len(keep)) < rng.uniform(0.7, 1)] if len(keep) > 4 else keep
        features, iou, iop = own.features[keep], iou[:, keep], iop[:, keep]
        names = [self.index[own.names[i]] if i < outlined else -1 for i in keep]
        thing = self.things[image][keep]
        if record.source.get("kind") != "position" and rng.random() < 0.4:
            features, iou, iop, names, thing = self.beside(record, features, iou, iop, names, thing, rng)
        return Example(record.question, compact(record), features, iou, iop, [t.rle is not None for t in record.targets],
                       names, thing)

    def beside(self, record, features, iou, iop, names, thing, rng):
        """A second photo without any of the things asked about, laid beside the first: new company for old things."""
        asked = set(record.source.get("categories", []))
        other = self.regions[self.images[rng.integers(len(self.images))]]
        if not asked or asked & set(other.names):
            return features, iou, iop, names, thing
        count = min(len(other.rles), int(rng.integers(4, 30)))
        pick = rng.permutation(len(other.rles))[:count]
        extra = other.features[pick]
        left = rng.random() < 0.5
        features, extra = half(features, left), half(extra, not left)
        pad = np.zeros((len(iou), count), np.float32)
        return (torch.cat([features, extra]), np.concatenate([iou, pad], 1), np.concatenate([iop, pad], 1),
                names + [self.index[other.names[i]] if i < len(other.names) else -1 for i in pick],
                np.concatenate([thing, np.zeros(count, np.float32) - 1]))


def half(features: Tensor, left: bool) -> Tensor:
    """Squeeze a photo's regions into one half of a wider one: only x and the areas change."""
    features = features.clone()
    shape = features[:, -GEOMETRY:]
    shape[:, 0] = shape[:, 0] / 2 + (0 if left else 0.5)
    shape[:, 2] /= 2
    shape[:, 4] -= math.log(2) / 4
    shape[:, 6] /= math.sqrt(2)
    return features


def batch_loss(reasoner: PocketReasoner, selector: Selector, names: Tensor, examples: list[Example]) -> tuple[Tensor, dict]:
    """All losses of a batch. names: (C, 576) mean input embedding of each name of the vocabulary."""
    encoder, llm = reasoner.encoder, reasoner.llm
    count = max(len(e.features) for e in examples)
    sizes = [len(e.features) for e in examples]
    regions = encoder(torch.cat([e.features for e in examples])).float()
    per_example = regions.split(sizes)
    ends, inputs, labels = [], [], []
    for e, r in zip(examples, per_example):
        with torch.no_grad():
            was, encoder.training = encoder.training, False
            prompt = reasoner.prompt([Turn(e.question)], reasoner.words(r))
            encoder.training = was
            answer = reasoner.tokens(e.answer) + [reasoner.end]
            inputs.append(torch.cat([prompt, reasoner.embed(answer).to(prompt.dtype)]))
        labels.append(torch.tensor([-100] * len(prompt) + answer))
        ends.append(len(prompt))
    longest = max(map(len, labels))
    x = torch.stack([F.pad(i, (0, 0, 0, longest - len(i))) for i in inputs])
    y = torch.stack([F.pad(l, (0, longest - len(l)), value=-100) for l in labels])
    mask = torch.stack([F.pad(torch.ones(len(l)), (0, longest - len(l))) for l in labels])
    base = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    hidden = base.model(inputs_embeds=x, attention_mask=mask).last_hidden_state[:, :-1]
    y = y[:, 1:]
    said = y != -100
    logits = base.lm_head(hidden[said]).float()
    losses = {"text": F.cross_entropy(logits, y[said])}

    marker = (y == reasoner.seg) | (y == reasoner.abs)
    states = hidden[marker].float()
    at = marker[said]
    margin = (logits[at][:, reasoner.seg] - logits[at][:, reasoner.abs]).detach()
    owner = marker.nonzero()[:, 0]
    pad = lambda t, n: F.pad(t, (0, 0, 0, n - len(t)))
    field = torch.stack([pad(r, count) for r in per_example])[owner]
    shapes = torch.stack([pad(shape_features(e.features), count) for e in examples])[owner]
    ignored = torch.stack([torch.arange(count) >= s for s in sizes])[owner]
    wide = lambda a: F.pad(torch.from_numpy(a), (0, count - a.shape[1]))
    iou, iop = (torch.cat([wide(getattr(e, k)) for e in examples]) for k in ("iou", "iop"))
    present = torch.tensor([p for e in examples for p in e.present])
    scores = selector(states, field, shapes, margin, ignored)
    losses |= selection_losses(scores, iou, iop, present, ignored)

    label = torch.tensor([n for e in examples for n in e.names])
    if (label >= 0).any():
        losses["name"] = F.cross_entropy(encoder.name_logits(regions[label >= 0], names), label[label >= 0])
    thing = torch.from_numpy(np.concatenate([e.thing for e in examples]))
    known = thing >= 0
    losses["thing"] = F.binary_cross_entropy_with_logits(encoder.thing(regions[known])[:, 0], (thing[known] > 0.5).float())
    with torch.no_grad():
        chosen = scores.iop.sigmoid() > 0.5
        best = scores.similarity.argmax(1)
        figures = {k: v.item() for k, v in losses.items()}
        figures["top_iou"] = iou.gather(1, best[:, None])[present].mean().item()
        figures["presence_right"] = ((scores.presence > 0) == present).float().mean().item()
        figures["marker_right"] = ((margin > 0) == present).float().mean().item()
        figures["inside_right"] = ((chosen == (iop > 0.5)) & ~ignored).float().sum().item() / (~ignored).sum().item()
    return sum(WEIGHTS[k] * v for k, v in losses.items()), figures


def name_embeddings(llm, tokenizer, names: list[str]) -> Tensor:
    """(C, 576) float: the mean of the LLM's input embeddings over each name's tokens, less the common mean."""
    table = llm.get_input_embeddings().weight
    rows = [table[torch.tensor(tokenizer(f" {n}", add_special_tokens=False).input_ids)].mean(0) for n in names]
    rows = torch.stack(rows).detach().float()
    return rows - table[:20000].float().mean(0)


def build(vocabulary: list[str], features: Tensor, rank: int) -> tuple[PocketReasoner, Selector, Tensor]:
    """Untrained parts over SmolLM2: LoRA in its upper layers, [SEG] and [ABS] rows trainable."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = smollm2_folder()
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = load_tokenizer(folder)
    llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = tokenizer.convert_tokens_to_ids([SEG, ABS])
    with torch.no_grad():
        table = llm.get_input_embeddings().weight
        for row, word in zip(rows, (" here", " missing")):
            table[row] = table[tokenizer(word, add_special_tokens=False).input_ids[0]]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, task_type="CAUSAL_LM",
                        target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
                        layers_to_transform=list(range(FIRST_TUNED, llm.config.num_hidden_layers)),
                        trainable_token_indices=rows)
    names = name_embeddings(llm, tokenizer, vocabulary)
    llm = get_peft_model(llm, config)
    encoder = RegionEncoder(llm.config.hidden_size)
    encoder.mean.copy_(features.mean(0))
    encoder.scale.copy_(features.std(0) + 1e-3)
    return PocketReasoner(llm, tokenizer, encoder), Selector(llm.config.hidden_size, EMBEDDING, GEOMETRY), names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="records files")
    parser.add_argument("--named", type=Path, help="COCO instances.json of the same pictures: outlined regions and their names")
    parser.add_argument("--sam", type=Path, required=True, help="pocket SAM weights that make the proposals")
    parser.add_argument("--regions", type=Path, help="folder of cached regions (default: OUT/regions)")
    parser.add_argument("--regions-key", help="key of cached regions (default: checksum of --sam)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    from assistant.pocket.model import load_eyes

    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    records = [(r, (f.parent / r.image).resolve()) for f in args.data for r in read_records(f)]
    key = args.regions_key or sha256_of(args.sam)
    named = named_regions(args.named) if args.named else {}
    images = sorted({image for _, image in records})
    regions = all_regions(load_eyes(args.sam), key, images, named, args.regions or args.out / "regions")
    vocabulary = sorted({n for r in regions.values() for n in r.names})
    reasoner, selector, names = build(vocabulary, torch.cat([r.features for r in regions.values()]), args.rank)
    data = RecordData(records, regions, vocabulary, args.seed)
    parts = {"llm": reasoner.llm, "encoder": reasoner.encoder, "selector": selector}
    trained = {f"{part}.{n}": p for part, m in parts.items() for n, p in m.named_parameters() if p.requires_grad}
    for n, p in trained.items():
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(trained.values(), lr=args.lr, weight_decay=0.02, betas=(0.9, 0.98))
    start, state_file = 0, args.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for n, p in trained.items():
            p.data.copy_(state["model"][n])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        print(f"resuming at step {start}", flush=True)
    for m in parts.values():
        m.train()

    def save(step: int) -> None:
        with replace_whole(state_file) as path:
            torch.save({"model": {n: p.data for n, p in trained.items()}, "optimizer": optimizer.state_dict(), "step": step}, path)
        reasoner.llm.save_pretrained(args.out / "lora")
        heads = {f"encoder.{k}": v for k, v in reasoner.encoder.state_dict().items()}
        heads |= {f"selector.{k}": v for k, v in selector.state_dict().items()}
        with replace_whole(args.out / "heads.safetensors") as path:
            save_file({k: v.half().contiguous() for k, v in heads.items()}, path, {"selector": json.dumps(selector.config)})

    began = saved = time.time()
    sums: dict[str, list[float]] = {}
    for step in range(start, args.steps):
        torch.manual_seed(args.seed * 1_000_003 + step)  # dropout too is fixed by the step
        examples = [data.example(step * args.batch + i) for i in range(args.batch)]
        rate = min(1, (step + 1) / 60) * (0.03 + 0.97 * (1 + math.cos(math.pi * step / args.steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, figures = batch_loss(reasoner, selector, names, examples)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        for k, v in figures.items():
            if math.isfinite(v):
                sums.setdefault(k, []).append(v)
        if (step + 1) % 20 == 0:
            line = json.dumps({"step": step + 1, "seconds": round(time.time() - began), **{k: round(sum(v) / len(v), 4) for k, v in sums.items()}})
            print(line, flush=True)
            with (args.out / "log.jsonl").open("a") as f:
                f.write(line + "\n")
            sums = {}
        if time.time() - saved > 60 * args.save_every or step + 1 == args.steps:
            save(step + 1)
            saved = time.time()
