"""Train the pocket reasoner and selector from records, in three phases that pass on to each other:

1. the region encoder learns the names of outlined regions and what is a thing (cheap: no LLM);
2. LoRA and the token rows learn to answer, shown sixteen of those regions as words;
3. the selector learns to pick, from the states of the tuned LLM, which are computed once.

    python -m finetune records --data runs/questions-train/records.jsonl --named DATA/coco/train/instances.json \\
        --sam runs/sam512/sam.safetensors --out runs/reasoner

The same command again resumes. Losses: cross-entropy of the answer (2); LLM-Seg's alignment and IoP, and
presence (3). LoRA sits in the upper half of the LLM: the lower half then needs no gradient. Two cores give
three training steps of the LLM in ten seconds, and of the selector sixty: hence the phases.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from assistant.files import replace_whole
from assistant.grammar import ABS, SEG, Turn
from assistant.pocket.reasoner import EMBEDDING, PocketReasoner, RegionEncoder, load_tokenizer, shape_features
from assistant.pocket.vision import GEOMETRY
from assistant.record import Record, read_records
from assistant.selector import Selector, selection_losses
from assistant.weights import sha256_of, smollm2_folder
from finetune.regions import Regions, all_regions, named_regions, overlaps

WEIGHTS = {"align": 1.0, "iop": 2.0, "presence": 1.0}
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

    def example(self, k: int, again: int = 0) -> Example:
        """`again`: the same question in other surroundings (which regions, which photo beside it)."""
        rng = np.random.default_rng((self.seed, k))
        while True:
            which = int(rng.choice(len(self.records), p=self.weights))
            record, image = self.records[which]
            if record.targets:
                break
        if again:
            rng = np.random.default_rng((self.seed, k, again))
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


def read_batch(reasoner: PocketReasoner, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The LLM over a batch of questions with their answers.

    Returns the answer's logits (T, vocabulary) and tokens (T,), the states that predict each marker (K, 576), and
    for each example its markers' margins, log p([SEG]) - log p([ABS]).
    """
    inputs, labels = [], []
    for e in examples:
        with torch.no_grad():
            prompt = reasoner.prompt([Turn(e.question)], reasoner.words(reasoner.encoder(e.features)))
            answer = reasoner.tokens(e.answer) + [reasoner.end]
            inputs.append(torch.cat([prompt, reasoner.embed(answer).to(prompt.dtype)]))
        labels.append(torch.tensor([-100] * len(prompt) + answer))
    longest = max(map(len, labels))
    x = torch.stack([F.pad(i, (0, 0, 0, longest - len(i))) for i in inputs])
    y = torch.stack([F.pad(l, (0, longest - len(l)), value=-100) for l in labels])[:, 1:]
    mask = torch.stack([F.pad(torch.ones(len(l)), (0, longest - len(l))) for l in labels])
    base = reasoner.llm.get_base_model() if hasattr(reasoner.llm, "get_base_model") else reasoner.llm
    hidden = base.model(inputs_embeds=x, attention_mask=mask).last_hidden_state[:, :-1]
    said = y != -100
    logits = base.lm_head(hidden[said]).float()
    marker = (y == reasoner.seg) | (y == reasoner.abs)
    at = logits[marker[said]]
    margins = (at[:, reasoner.seg] - at[:, reasoner.abs]).detach()
    return logits, y[said], hidden[marker].float(), list(margins.split(marker.sum(1).tolist()))


def select_batch(encoder: RegionEncoder, selector: Selector, examples: list[Example], states: Tensor,
                 margins: Tensor) -> tuple[Tensor, dict]:
    """The selector's losses; states (K, 576) and margins (K,) of the examples' targets, in their order."""
    sizes = [len(e.features) for e in examples]
    count = max(sizes)
    with torch.no_grad():
        regions = encoder(torch.cat([e.features for e in examples])).float().split(sizes)
    owner = torch.tensor([i for i, e in enumerate(examples) for _ in e.present])
    pad = lambda t: F.pad(t, (0, 0, 0, count - len(t)))
    field = torch.stack([pad(r) for r in regions])[owner]
    shapes = torch.stack([pad(shape_features(e.features)) for e in examples])[owner]
    ignored = torch.stack([torch.arange(count) >= s for s in sizes])[owner]
    wide = lambda a: F.pad(torch.from_numpy(a), (0, count - a.shape[1]))
    iou, iop = (torch.cat([wide(getattr(e, k)) for e in examples]) for k in ("iou", "iop"))
    present = torch.tensor([p for e in examples for p in e.present])
    scores = selector(states, field, shapes, margins, ignored)
    losses = selection_losses(scores, iou, iop, present, ignored)
    with torch.no_grad():
        figures = {k: v.item() for k, v in losses.items()}
        best = (scores.similarity + scores.iop.sigmoid()).argmax(1)
        figures["top_iou"] = iou.gather(1, best[:, None])[present].mean().item()
        figures["presence_right"] = ((scores.presence > 0) == present).float().mean().item()
        inside = (scores.iop.sigmoid() > 0.5) & ~ignored & present[:, None]
        true = (iop > 0.5) & present[:, None]
        figures["inside_f1"] = (2 * (inside & true).sum() / (inside.sum() + true.sum()).clamp(min=1)).item()
    return sum(WEIGHTS[k] * v for k, v in losses.items()), figures


def train_encoder(encoder: RegionEncoder, names: Tensor, data: "RecordData", steps: int, lr: float) -> None:
    """Phase 1: names of outlined regions, thing or not of every region; batches of 256 regions."""
    features = torch.cat([r.features for r in data.regions.values()])
    label = torch.tensor([data.index[r.names[i]] if i < len(r.names) else -1
                          for r in data.regions.values() for i in range(len(r.rles))])
    thing = torch.from_numpy(np.concatenate([data.things[i] for i in data.regions]))
    outlined = (label >= 0).nonzero()[:, 0]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=lr, weight_decay=0.05)
    log = Log(None)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 50) * lr
        some = outlined[torch.randint(len(outlined), (192,))]
        every = torch.randint(len(features), (192,))
        name = F.cross_entropy(encoder.name_logits(encoder(features[some]), names), label[some], label_smoothing=0.05)
        is_thing = F.binary_cross_entropy_with_logits(encoder.thing(encoder(features[every]))[:, 0], (thing[every] > 0.5).float())
        optimizer.zero_grad()
        (name + 0.5 * is_thing).backward()
        optimizer.step()
        log.add(step, {"name": name.item(), "thing": is_thing.item()}, every=200)


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


class Log:
    """Means of figures, printed now and then, and kept as JSON lines in `file`."""

    def __init__(self, file: Path | None):
        self.file, self.began, self.sums = file, time.time(), {}

    def add(self, step: int, figures: dict, every: int) -> None:
        for k, v in figures.items():
            if math.isfinite(v):
                self.sums.setdefault(k, []).append(v)
        if (step + 1) % every == 0:
            means = {k: round(sum(v) / len(v), 4) for k, v in self.sums.items()}
            line = json.dumps({"step": step + 1, "seconds": round(time.time() - self.began), **means})
            print(line, flush=True)
            if self.file:
                with self.file.open("a") as f:
                    f.write(line + "\n")
            self.sums = {}


def rate(step: int, steps: int, warm: int) -> float:
    """Warm-up, then a cosine to 3 %."""
    return min(1, (step + 1) / warm) * (0.03 + 0.97 * (1 + math.cos(math.pi * step / steps)) / 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="records files")
    parser.add_argument("--named", type=Path, help="COCO instances.json of the same pictures: outlined regions and their names")
    parser.add_argument("--sam", type=Path, required=True, help="pocket SAM weights that make the proposals")
    parser.add_argument("--regions", type=Path, help="folder of cached regions (default: OUT/regions)")
    parser.add_argument("--regions-key", help="key of cached regions (default: checksum of --sam)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=600, help="of the LLM")
    parser.add_argument("--batch", type=int, default=12, help="questions a step of the LLM")
    parser.add_argument("--states", type=int, default=4000, help="examples whose states the selector learns from")
    parser.add_argument("--selector-steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=8e-4)
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

    encoder_file = args.out / "encoder.safetensors"
    if encoder_file.exists():
        reasoner.encoder.load_state_dict(load_file(encoder_file))
    else:
        train_encoder(reasoner.encoder.train(), names, data, args.encoder_steps, 1e-3)
        with replace_whole(encoder_file) as path:
            save_file(reasoner.encoder.state_dict(), path)
    reasoner.encoder.eval().requires_grad_(False)

    train_llm(args, reasoner, data)
    train_selector(args, reasoner, selector, data)


def train_llm(args, reasoner: PocketReasoner, data: "RecordData") -> None:
    """Phase 2."""
    llm, state_file = reasoner.llm, args.out / "llm.pt"
    trained = {n: p for n, p in llm.named_parameters() if p.requires_grad}
    for p in trained.values():
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(trained.values(), lr=args.lr, weight_decay=0.02, betas=(0.9, 0.98))
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for n, p in trained.items():
            p.data.copy_(state["model"][n])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        print(f"resuming the LLM at step {start}", flush=True)
    llm.train()
    log, saved = Log(args.out / "llm.jsonl"), time.time()
    for step in range(start, args.steps):
        examples = [data.example(step * args.batch + i) for i in range(args.batch)]
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate(step, args.steps, 40)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, tokens, _, margins = read_batch(reasoner, examples)
        loss = F.cross_entropy(logits, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        present = torch.tensor([p for e in examples for p in e.present])
        right = ((torch.cat(margins) > 0) == present).float().mean()
        words = (logits.argmax(1) == tokens).float().mean()
        log.add(step, {"text": loss.item(), "word_right": words.item(), "marker_right": right.item()}, every=20)
        if time.time() - saved > 60 * args.save_every or step + 1 == args.steps:
            with replace_whole(state_file) as path:
                torch.save({"model": {n: p.data for n, p in trained.items()}, "optimizer": optimizer.state_dict(),
                            "step": step + 1}, path)
            saved = time.time()
    llm.eval()
    llm.save_pretrained(args.out / "lora", save_embedding_layers=False)


def train_selector(args, reasoner: PocketReasoner, selector: Selector, data: "RecordData") -> None:
    """Phase 3: states of `--states` examples once, kept on disk, then many cheap steps over fresh surroundings."""
    states_file = args.out / f"states-{args.steps}-{args.states}.safetensors"
    first = 10**7  # examples that the LLM was not trained on in this form
    if states_file.exists():
        kept = load_file(states_file)
    else:
        states, margins, counts = [], [], []
        for k in tqdm(range(0, args.states, 24), desc="states", disable=None):
            examples = [data.example(first + k + i) for i in range(min(24, args.states - k))]
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                _, _, state, margin = read_batch(reasoner, examples)
            states.append(state)
            margins += margin
        counts = torch.tensor([len(m) for m in margins])
        kept = {"states": torch.cat(states), "margins": torch.cat(margins), "counts": counts}
        with replace_whole(states_file) as path:
            save_file(kept, path)
    ends = kept["counts"].cumsum(0).tolist()
    optimizer = torch.optim.AdamW(selector.parameters(), lr=1e-3, weight_decay=0.05)
    selector.train()
    log = Log(args.out / "selector.jsonl")
    rng = np.random.default_rng(args.seed)
    reasoner.encoder.train()  # its dropout varies the regions; its weights stay
    for step in range(args.selector_steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate(step, args.selector_steps, 100)
        which = rng.choice(len(ends), 48, replace=False)
        examples = [data.example(first + int(k), again=int(rng.integers(2**31))) for k in which]
        rows = torch.cat([torch.arange(ends[k] - int(kept["counts"][k]), ends[k]) for k in which])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, figures = select_batch(reasoner.encoder, selector, examples, kept["states"][rows], kept["margins"][rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(selector.parameters(), 1.0)
        optimizer.step()
        log.add(step, figures, every=100)
    heads = {f"encoder.{k}": v for k, v in reasoner.encoder.state_dict().items()}
    heads |= {f"selector.{k}": v for k, v in selector.state_dict().items()}
    with replace_whole(args.out / "heads.safetensors") as path:
        save_file({k: v.half().contiguous() for k, v in heads.items()}, path, {"selector": json.dumps(selector.config)})
