"""Train the pocket reasoner and selector from records, in three phases that pass on to each other:

1. the region encoder learns the names of outlined regions and what is a thing (cheap: no LLM);
2. LoRA and the token rows learn to answer, shown sixteen of those regions as words;
3. the selector learns to pick, from the states of the tuned LLM, which are computed once.

    python -m finetune records --data runs/questions-train/records.jsonl --named DATA/coco/train/instances.json \\
        --sam runs/sam512/sam.safetensors --out runs/reasoner

The same command again resumes. Losses: cross-entropy of the answer (2); LLM-Seg's alignment and IoP, and
presence (3). LoRA sits in the upper half of the LLM: the lower half then needs no gradient.

Phases 2 and 3 see each picture through an encoder that was not trained on it (one of four, each trained on
the other three quarters): on its own pictures an encoder is far surer than on a new one, and a selector that
learned from it would believe it too much. Every tenth picture is kept out of phases 2 and 3; on those the
confidence is calibrated, and the figures at the end are counted.
"""

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from assistant.files import replace_whole
from assistant.grammar import ABS, SEG
from assistant.pocket.reasoner import FIRST, OPENING, SHAPE, PocketReasoner, RegionEncoder, Seen, load_tokenizer
from assistant.record import Record, image_path, read_records
from assistant.selector import Selector, choose, selection_losses
from assistant.weights import sha256_of, smollm2_folder
from finetune.log import Log
from finetune.regions import Regions, all_regions, named_regions, overlaps

WEIGHTS = {"align": 1.0, "iop": 2.0, "presence": 1.0}
FIRST_TUNED = 14  # LoRA from this layer of 30 upwards
FOLDS = 4
KEPT_ASIDE = 10  # every so-manieth picture
NOISE = 0.5, 1.0  # of the selector's states and words, in units of their size: 300 photos are soon known by heart
TOGETHER = 5  # questions about one picture that share its words in a training sequence


@dataclass
class Asked:
    question: str
    answer: str
    phrases: list[str]  # M
    present: list[bool]  # M
    iou: np.ndarray  # (M, N) with the regions of its picture
    iop: np.ndarray  # (M, N)


@dataclass
class Example:
    """A picture and questions about it. chat: they follow each other, and are not asked each for itself."""

    seen: Seen
    asked: list[Asked]
    chat: bool
    rles: list[dict] = field(default_factory=list)  # of the regions, and of the targets:
    truths: list[list[dict | None]] = field(default_factory=list)

    @property
    def phrases(self) -> list[str]:
        return [p for a in self.asked for p in a.phrases]

    @property
    def present(self) -> list[bool]:
        return [p for a in self.asked for p in a.present]


def compact(record: Record) -> str:
    """The answer in the pocket form of the grammar: `umbrella [SEG], bench [ABS].`"""
    return ", ".join(f"{t.phrase} {SEG if t.rle else ABS}" for t in record.targets) + "."


class RecordData:
    """Records with what is seen in their pictures; `example(k)` is fixed by (seed, k).

    seen: by picture, through an encoder that does not know it. aside: draw from the pictures kept aside, or the rest.
    """

    def __init__(self, records: list[tuple[Record, Path]], regions: dict[Path, Regions], seen: dict[Path, Seen], seed: int,
                 aside: bool = False):
        images = list(regions)
        self.fold = {image: i % FOLDS for i, image in enumerate(images)}
        mine = {image for i, image in enumerate(images) if (i % KEPT_ASIDE == KEPT_ASIDE - 1) == aside}
        self.records = [(r, i) for r, i in records if i in mine and r.targets]
        self.regions, self.seen, self.seed = regions, seen, seed
        self.images = {f: [i for i in images if i in mine and self.fold[i] == f] for f in range(FOLDS)}
        self.of: dict[Path, list[int]] = {}
        for k, (_, image) in enumerate(self.records):
            self.of.setdefault(image, []).append(k)
        self.cache: dict[int, tuple] = {}
        kinds = [r.source.get("kind", "") for r, _ in self.records]
        counts = Counter(kinds)
        self.weights = np.array([1 / counts[k] ** 0.5 for k in kinds])
        self.weights /= self.weights.sum()

    def targets(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """IoU and IoP of a record's targets with all regions of its picture, (M, N) each."""
        if k not in self.cache:
            record, image = self.records[k]
            rles = self.regions[image].rles
            pairs = [overlaps(rles, t.rle) if t.rle else (np.zeros(len(rles), np.float32),) * 2 for t in record.targets]
            self.cache[k] = tuple(np.stack(x) for x in zip(*pairs))
        return self.cache[k]

    def example(self, k: int, again: int = 0, plain: bool = False) -> Example:
        """`again`: the same questions in other surroundings (which regions, which photo beside it). plain: the picture
        as it is met in use, all proposals and nothing else."""
        rng = np.random.default_rng((self.seed, k))
        first = int(rng.choice(len(self.records), p=self.weights))
        image = self.records[first][1]
        others = [j for j in self.of[image] if j != first]
        weights = self.weights[others] / self.weights[others].sum() if others else None
        count = min(TOGETHER - 1, len(others))
        which = [first, *(int(j) for j in rng.choice(others, count, replace=False, p=weights))] if count else [first]
        rng.shuffle(which)
        chat = bool(rng.random() < 0.4)
        if again:
            rng = np.random.default_rng((self.seed, k, again))
        own, seen = self.regions[image], self.seen[image]
        outlined = len(own.names)
        keep = np.arange(len(own.rles))
        if plain or (rng.random() < 0.6 and len(own.rles) > outlined):
            keep = keep[outlined:]
        if not plain and len(keep) > 4:
            keep = keep[rng.random(len(keep)) < rng.uniform(0.7, 1)]
        asked = []
        for j in which:
            record = self.records[j][0]
            iou, iop = (x[:, keep] for x in self.targets(j))
            asked.append(Asked(record.question, compact(record), [t.phrase for t in record.targets],
                               [t.rle is not None for t in record.targets], iou, iop))
        example = Example(Seen(seen.words[keep], seen.shape[keep]), asked, chat)
        records = [self.records[j][0] for j in which]
        if plain:
            example.rles = [own.rles[i] for i in keep]
            example.truths = [[t.rle for t in r.targets] for r in records]
        elif rng.random() < 0.3 and all(r.source.get("kind") != "position" for r in records):
            self.beside(example, records, image, rng)
        return example

    def beside(self, example: Example, records: list[Record], image: Path, rng) -> None:
        """A second photo without any of the things asked about, laid beside the first: new company for old things."""
        asked = {c for r in records for c in r.source.get("categories", [])}
        pool = self.images[self.fold[image]]
        other = pool[rng.integers(len(pool))]
        if not asked or asked & set(self.regions[other].names):
            return
        extra = self.seen[other]
        count = min(len(extra.words), int(rng.integers(4, 30)))
        pick = rng.permutation(len(extra.words))[:count]
        left = rng.random() < 0.5
        example.seen = Seen(torch.cat([example.seen.words, extra.words[pick]]),
                            torch.cat([half(example.seen.shape, left), half(extra.shape[pick], not left)]))
        for one in example.asked:
            pad = np.zeros((len(one.iou), count), np.float32)
            one.iou, one.iop = np.concatenate([one.iou, pad], 1), np.concatenate([one.iop, pad], 1)


def half(shape: Tensor, left: bool) -> Tensor:
    """Squeeze a photo's regions (N, SHAPE) into one half of a wider one: only x and the areas change."""
    shape = shape.clone()
    shape[:, 0] = shape[:, 0] / 2 + (0 if left else 0.5)
    shape[:, 2] /= 2
    shape[:, 4] -= math.log(2) / 4
    shape[:, 6] /= math.sqrt(2)
    return shape


def sequence(reasoner: PocketReasoner, example: Example) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An example as one sequence: the picture's words once, then every question with its answer.

    Returns input embeddings (L, W), labels (L,) with -100 where nothing is learned, positions (L,), and which token
    sees which (L, L) bool: a chat is read from left to right, questions for themselves do not see each other.
    """
    opening = reasoner.tokens(OPENING + FIRST)
    parts = [reasoner.embed(opening), reasoner.words(example.seen)]
    start = len(opening) + len(parts[1])
    labels, owner, positions = [-100] * start, [-1] * start, list(range(start))
    for k, one in enumerate(example.asked):
        turn = k if example.chat else 0
        asked = reasoner.tokens(("\n" if turn == 0 else "\n" + OPENING) + reasoner.question(one.question))
        answer = reasoner.tokens(one.answer) + [reasoner.end]
        parts.append(reasoner.embed(asked + answer))
        at = positions[-1] + 1 if example.chat else start
        labels += [-100] * len(asked) + answer
        positions += range(at, at + len(asked) + len(answer))
        owner += [k] * (len(asked) + len(answer))
    owner = torch.tensor(owner)
    sees = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    if not example.chat:
        sees &= (owner[None] == -1) | (owner[None] == owner[:, None])
    return torch.cat([p.to(reasoner.llm.dtype) for p in parts]), torch.tensor(labels), torch.tensor(positions), sees


def read_batch(reasoner: PocketReasoner, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The LLM over a batch of pictures with their questions and answers.

    Returns the answers' logits (T, vocabulary) and tokens (T,), the states that predict each marker (K, 576), and
    for each example its markers' margins, log p([SEG]) - log p([ABS]).
    """
    with torch.no_grad():
        made = [sequence(reasoner, e) for e in examples]
    longest = max(len(labels) for _, labels, _, _ in made)
    pad = lambda x, value: F.pad(x, (0, longest - len(x)), value=value)
    x = torch.stack([F.pad(i, (0, 0, 0, longest - len(i))) for i, *_ in made])
    y = torch.stack([pad(labels, -100) for _, labels, _, _ in made])[:, 1:]
    positions = torch.stack([pad(p, 0) for _, _, p, _ in made])
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(made), 1, 1)
    for row, (*_, sees) in zip(mask, made):
        row[: len(sees), : len(sees)] = sees
    base = reasoner.llm.get_base_model() if hasattr(reasoner.llm, "get_base_model") else reasoner.llm
    hidden = base.model(inputs_embeds=x, attention_mask=mask[:, None], position_ids=positions).last_hidden_state[:, :-1]
    said = y != -100
    logits = base.lm_head(hidden[said]).float()
    marker = (y == reasoner.seg) | (y == reasoner.abs)
    at = logits[marker[said]]
    margins = (at[:, reasoner.seg] - at[:, reasoner.abs]).detach()
    return logits, y[said], hidden[marker].float(), list(margins.split(marker.sum(1).tolist()))


def select_batch(reasoner: PocketReasoner, selector: Selector, examples: list[Example], states: Tensor, margins: Tensor):
    """The selector's losses and scores; states (K, 576) and margins (K,) of the examples' targets, in their order."""
    sizes = [len(e.seen.words) for e in examples]
    count = max(sizes)
    owner = torch.tensor([i for i, e in enumerate(examples) for _ in e.present])
    pad = lambda t: F.pad(t, (0, 0, 0, count - len(t)))
    words = torch.stack([pad(e.seen.words) for e in examples])[owner]
    shapes = torch.stack([pad(e.seen.shape) for e in examples])[owner]
    ignored = torch.stack([torch.arange(count) >= s for s in sizes])[owner]
    with torch.no_grad():
        phrases = [torch.stack([reasoner.name(p) for p in e.phrases]) for e in examples]
        named = [reasoner.encoder.match(e.seen.words, p) for e, p in zip(examples, phrases)]
        named = torch.cat([F.pad(n, (0, 0, 0, count - n.shape[1])) for n in named])
    wide = lambda a: F.pad(torch.from_numpy(a), (0, count - a.shape[1]))
    iou, iop = (torch.cat([wide(getattr(a, k)) for e in examples for a in e.asked]) for k in ("iou", "iop"))
    present = torch.tensor([p for e in examples for p in e.present])
    scores = selector(states, words, shapes, named, margins, ignored, Seen(words, shapes).thing)
    losses = selection_losses(scores, iou, iop, present, ignored)
    with torch.no_grad():
        figures = {k: v.item() for k, v in losses.items()}
        best = torch.tensor([choose(scores, m)[0] for m in range(len(iou))])
        figures["top_iou"] = iou.gather(1, best[:, None])[present].mean().item()
        figures["presence_right"] = ((scores.presence > 0) == present).float().mean().item()
        inside = (scores.iop.sigmoid() > 0.5) & ~ignored & present[:, None]
        true = (iop > 0.5) & present[:, None]
        figures["inside_f1"] = (2 * (inside & true).sum() / (inside.sum() + true.sum()).clamp(min=1)).item()
    return sum(WEIGHTS[k] * v for k, v in losses.items()), figures, scores


def labelled(regions: Regions, index: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Of each region: the name of what it outlines at IoU above one half (-1: nothing), and that IoU."""
    outlined = regions.rles[: len(regions.names)]
    if not outlined:
        return np.full(len(regions.rles), -1), np.zeros(len(regions.rles), np.float32)
    table = np.stack([overlaps(regions.rles, o)[0] for o in outlined])
    which, best = table.argmax(0), table.max(0)
    label = np.array([index[regions.names[i]] for i in which])
    label[: len(outlined)] = [index[n] for n in regions.names]
    return np.where(best > 0.5, label, -1), best


def train_encoder(encoder: RegionEncoder, features: Tensor, label: Tensor, thing: Tensor, steps: int, lr: float) -> None:
    """Phase 1, on regions (N, REGION): `label` (N,) rows of the encoder's names, -1 = no name; `thing` (N,) in [0, 1]."""
    known = (label >= 0).nonzero()[:, 0]
    weight = label[known].bincount(minlength=len(encoder.names)).float().clamp(min=1).rsqrt()[label[known]]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=lr, weight_decay=0.05)
    encoder.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 50) * lr
        some, every = known[torch.multinomial(weight, 192, True)], torch.randint(len(features), (192,))
        seen = encoder(features[torch.cat([some, every])])
        name = F.cross_entropy(encoder.name_logits(seen.words[:192], encoder.names), label[some], label_smoothing=0.05)
        is_thing = F.binary_cross_entropy_with_logits(seen.thing[192:], thing[every])
        optimizer.zero_grad()
        (name + 0.5 * is_thing).backward()
        optimizer.step()
    encoder.eval().requires_grad_(False)


def vocabulary(records: list[Record], named: list[str]) -> tuple[list[str], list[str], dict[str, int]]:
    """What the encoder is taught to name: categories, how each is called in an answer, and {phrase: its row}.

    A category goes by the phrase that answers use when it is absent (that is never a plural), else by any.
    """
    categories = sorted(set(named))
    row = {c: i for i, c in enumerate(categories)}
    said: dict[str, Counter] = {c: Counter() for c in categories}
    forms = {c.lower(): i for c, i in row.items()}
    for record in records:
        for category, target in zip(record.source.get("categories", []), record.targets):
            if category in row and record.source.get("kind") != "position":
                said[category][target.phrase] += 1 if target.rle else 1000
                forms[target.phrase.lower()] = row[category]
    return categories, [said[c].most_common(1)[0][0] if said[c] else c for c in categories], forms


def build(rank: int) -> PocketReasoner:
    """SmolLM2 untuned: LoRA in its upper layers, [SEG] and [ABS] rows trainable."""
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
    return PocketReasoner(get_peft_model(llm, config), tokenizer, RegionEncoder(llm.config.hidden_size))


def rate(step: int, steps: int, warm: int) -> float:
    """Warm-up, then a cosine to 3 %."""
    return min(1, (step + 1) / warm) * (0.03 + 0.97 * (1 + math.cos(math.pi * step / steps)) / 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="records files")
    parser.add_argument("--named", type=Path, required=True, help="COCO instances.json of the same pictures: outlined regions and their names")
    parser.add_argument("--sam", type=Path, required=True, help="pocket SAM weights that make the proposals")
    parser.add_argument("--regions", type=Path, help="folder of cached regions (default: OUT/regions)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=900, help="of the LLM")
    parser.add_argument("--batch", type=int, default=4, help="pictures a step of the LLM, five questions each")
    parser.add_argument("--states", type=int, default=1500, help="pictures with questions whose states the selector learns from")
    parser.add_argument("--selector-steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    from assistant.pocket.model import load_eyes

    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    records = [(r, image_path(r, f).resolve()) for f in args.data for r in read_records(f)]
    named = named_regions(args.named)
    images = sorted({image for _, image in records})
    regions = all_regions(load_eyes(args.sam), sha256_of(args.sam), images, named, args.regions or args.out / "regions")
    reasoner = build(args.rank)
    seen = learn_to_see(args, reasoner, records, regions)
    train_llm(args, reasoner, RecordData(records, regions, seen, args.seed))
    train_selector(args, reasoner, RecordData(records, regions, seen, args.seed),
                   RecordData(records, regions, seen, args.seed, aside=True))


def learn_to_see(args, reasoner: PocketReasoner, records, regions: dict[Path, Regions]) -> dict[Path, Seen]:
    """Phase 1: gives `reasoner` its encoder and forms; returns each picture as an encoder sees it that was not trained on
    it. Prints how often those name an outlined region rightly."""
    categories, names, forms = vocabulary([r for r, _ in records], [n for r in regions.values() for n in r.names])
    taught = torch.stack([reasoner.name(n) for n in names])
    reasoner.forms = forms
    index = {c: i for i, c in enumerate(categories)}
    width = reasoner.llm.get_base_model().config.hidden_size
    features = torch.cat([r.features for r in regions.values()])
    pairs = [labelled(r, index) for r in regions.values()]
    label, thing = (torch.from_numpy(np.concatenate(x)) for x in zip(*pairs))
    fold = torch.cat([torch.full((len(r.features),), i % FOLDS) for i, r in enumerate(regions.values())])
    outlined = torch.cat([torch.arange(len(r.features)) < len(r.names) for r in regions.values()])
    file, encoders = args.out / "encoder.safetensors", [RegionEncoder(width, len(names)) for _ in range(FOLDS + 1)]
    kept = load_file(file) if file.exists() else {}
    for i, encoder in enumerate(encoders):
        if kept:
            encoder.load_state_dict({k.removeprefix(f"{i}."): v for k, v in kept.items() if k.startswith(f"{i}.")})
            encoder.eval().requires_grad_(False)
            continue
        encoder.mean.copy_(features.mean(0))
        encoder.scale.copy_(features.std(0) + 1e-3)
        encoder.names.copy_(taught)
        mine = fold != i
        train_encoder(encoder, features[mine], label[mine], thing[mine], args.encoder_steps, 1e-3)
    if not kept:
        with replace_whole(file) as path:
            save_file({f"{i}.{k}": v for i, e in enumerate(encoders) for k, v in e.state_dict().items()}, path)
    reasoner.encoder = encoders[FOLDS]
    seen, right = {}, []
    with torch.no_grad():
        for i, (image, r) in enumerate(regions.items()):
            seen[image] = encoders[i % FOLDS](r.features)
        for i, encoder in enumerate(encoders[:FOLDS]):
            these = (fold == i) & outlined & (label >= 0)
            if these.any():
                right.append((encoder.name_logits(encoder(features[these]).words, encoder.names).argmax(1) == label[these]).float())
    if right:
        print(f"names of outlined regions in pictures not trained on: {torch.cat(right).mean():.3f} right", flush=True)
    return seen


def train_llm(args, reasoner: PocketReasoner, data: RecordData) -> None:
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


def states_of(reasoner: PocketReasoner, data: RecordData, numbers: range, file: Path, plain: bool = False) -> dict[str, Tensor]:
    """States and margins of the examples' targets, and how many each example has; kept in `file`."""
    if file.exists():
        return load_file(file)
    states, margins, counts = [], [], []
    for k in tqdm(range(numbers.start, numbers.stop, 8), desc="states", disable=None):
        examples = [data.example(j, plain=plain) for j in range(k, min(k + 8, numbers.stop))]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            _, _, state, margin = read_batch(reasoner, examples)
        states.append(state)
        margins += margin
        counts += [len(m) for m in margin]
    kept = {"states": torch.cat(states), "margins": torch.cat(margins), "counts": torch.tensor(counts)}
    with replace_whole(file) as path:
        save_file(kept, path)
    return kept


def train_selector(args, reasoner: PocketReasoner, data: RecordData, aside: RecordData) -> None:
    """Phase 3: states of `--states` examples once, kept on disk, then many cheap steps over fresh surroundings."""
    first = 10**7  # examples that the LLM was not trained on in this form
    numbers = range(first, first + args.states)
    kept = states_of(reasoner, data, numbers, args.out / f"states-{args.steps}-{args.states}.safetensors")
    ends = kept["counts"].cumsum(0).tolist()
    torch.manual_seed(args.seed)
    selector = Selector(kept["states"].shape[1], kept["states"].shape[1], SHAPE, dropout=0.2)
    optimizer = torch.optim.AdamW(selector.parameters(), lr=1e-3, weight_decay=0.05)
    selector.train()
    log, rng = Log(args.out / "selector.jsonl"), np.random.default_rng(args.seed)
    noise = torch.Generator().manual_seed(args.seed)
    for step in range(args.selector_steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate(step, args.selector_steps, 100)
        which = rng.choice(len(ends), min(10, len(ends)), replace=False)
        examples = [data.example(first + int(k), again=int(rng.integers(2**31))) for k in which]
        rows = torch.cat([torch.arange(ends[k] - int(kept["counts"][k]), ends[k]) for k in which])
        states = kept["states"][rows]
        states = states + NOISE[0] * states.std() * torch.randn(states.shape, generator=noise)
        for e in examples:
            blur = torch.randn(e.seen.words.shape, generator=noise) / e.seen.words.shape[1] ** 0.5
            e.seen = Seen(F.normalize(e.seen.words + NOISE[1] * blur, dim=-1), e.seen.shape)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, figures, _ = select_batch(reasoner, selector, examples, states, kept["margins"][rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(selector.parameters(), 1.0)
        optimizer.step()
        log.add(step, figures, every=100)
    selector.eval()
    if aside.records:
        calibrate(args, reasoner, selector, aside)
    heads = {f"encoder.{k}": v for k, v in reasoner.encoder.state_dict().items()}
    heads |= {f"selector.{k}": v for k, v in selector.state_dict().items()}
    about = {"selector": json.dumps(selector.config), "forms": json.dumps(reasoner.forms)}
    with replace_whole(args.out / "heads.safetensors") as path:
        save_file({k: v.half().contiguous() for k, v in heads.items()}, path, about)


@torch.no_grad()
def calibrate(args, reasoner: PocketReasoner, selector: Selector, aside: RecordData, count: int = 160) -> None:
    """Fit the confidence (Platt 1999, both classes with equal weight, so that one half is the fair threshold) on the
    pictures kept aside, and print how well their questions are answered, given the right names."""
    numbers = range(2 * 10**7, 2 * 10**7 + count)
    kept = states_of(reasoner, aside, numbers, args.out / f"aside-{args.steps}.safetensors", plain=True)
    ends = kept["counts"].cumsum(0).tolist()
    presence, present, overlap, best = [], [], [], []
    for k, end in enumerate(ends):
        example = aside.example(numbers[k], plain=True)
        rows = slice(end - int(kept["counts"][k]), end)
        scores = select_batch(reasoner, selector, [example], kept["states"][rows], kept["margins"][rows])[2]
        presence.append(scores.presence)
        present += example.present
        truths = [t for ts in example.truths for t in ts]
        for m, truth in enumerate(truths):
            if truth and example.rles:
                union = coco_mask.merge([example.rles[i] for i in choose(scores, m)])
                overlap.append(float(coco_mask.iou([union], [truth], [False])[0, 0]))
                best.append(max(overlaps(example.rles, truth)[0]))
    presence, present = torch.cat(presence), torch.tensor(present)
    weight = torch.where(present, 0.5 / present.float().mean().clamp(min=1e-3), 0.5 / (1 - present.float().mean()).clamp(min=1e-3))
    with torch.enable_grad():
        fit = torch.tensor([1.0, 0.0], requires_grad=True)
        optimizer = torch.optim.LBFGS([fit], max_iter=50, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(presence * fit[0] + fit[1], present.float(), weight) + 1e-3 * fit.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    selector.calibration.copy_(fit.detach())
    sure = presence * fit[0].detach() + fit[1].detach() > 0
    figures = {"targets": len(present), "iou": float(np.mean(overlap)), "best_single": float(np.mean(best)),
               "T_acc": sure[present].float().mean().item(), "N_acc": (~sure[~present]).float().mean().item(),
               "scale": fit[0].item(), "shift": fit[1].item()}
    line = json.dumps({k: round(v, 4) for k, v in figures.items()})
    print(f"kept aside: {line}", flush=True)
    (args.out / "aside.json").write_text(line + "\n")
