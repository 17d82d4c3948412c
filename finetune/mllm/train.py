"""Training of any multimodal LLM with its selector: the loop behind `python -m finetune` for every preset but pocket.

One process or several under `accelerate launch`: the conversations of a step are cut into parts of `--micro`, each with
random numbers of its own, and every loss is divided by what the whole step holds. So the curve does not depend on how
many processes share the parts, and a run that was stopped goes on exactly: data order and dropout follow from the step's
number, and the weights and the optimiser's state are kept.
"""

import contextlib
import copy
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader, Dataset

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.images import open_image
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.selector import reachable
from assistant.mllm.trained import StandardisedSelector, TrainedImageOpener, answer, read_heads
from assistant.scene import THRESHOLD
from finetune.log import Log, rate
from finetune.mllm import deepspeed as zero
from finetune.mllm.adapter import load_trained, restore, save_adapter, save_state, write_card
from finetune.mllm.mixture import Mixture
from finetune.mllm.student import Student, add_lora, collate, example
from finetune.mllm.validation import SHOWN, Validation
from finetune.progress import Progress, pointed_at
from finetune.region_cache import RegionCache, prepare, proposals_of
from finetune.tune import LOSS_NAMES

ANSWER = 96  # tokens of an answer in the report


class Parts(Dataset):
    """Part n of this process, collated. reader: a reasoner without its model, so that workers may be forked."""

    def __init__(self, mixture: Mixture, numbers: list[tuple[int, int]], batch: int, micro: int, read):
        self.mixture, self.numbers, self.batch, self.micro, self.read = mixture, numbers, batch, micro, read

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, n: int) -> dict:
        step, part = self.numbers[n]
        lessons = self.mixture.batch(step, self.batch)[part * self.micro : (part + 1) * self.micro]
        return self.read([self.mixture.lesson(k) for k in lessons])


def reader(llm: MultimodalLLM, regions_of):
    """A function from conversations to one batch, that touches no weights."""
    light = copy.copy(llm)
    table = torch.nn.Embedding(1, 1, dtype=next(llm.model.get_input_embeddings().parameters()).dtype)
    light.model = SimpleNamespace(get_input_embeddings=lambda: table)
    pad = llm.tokenizer.pad_token_id
    pad = llm.ends[0] if pad is None else pad
    opened = lru_cache(maxsize=8)(open_image)
    return lambda lessons: collate([example(light, asked, regions_of, opened) for asked in lessons], pad)


def train(args, llm: MultimodalLLM, load_opener, key: str, accelerator) -> None:
    """load_eyes: gives what opens pictures (`open`, `segmenter`), called only if a picture's regions are not kept yet;
    key: of the weights and settings behind them."""
    world, rank = accelerator.num_processes, accelerator.process_index
    if args.batch % (args.micro * world):
        raise BadInput(
            f"--batch {args.batch} must be a multiple of --micro {args.micro} times {world} processes"
        )
    if args.adapter:
        read_heads(args.adapter)  # BadInput before the pictures are opened, which may take hours
    mixture = Mixture(
        args.sources, args.max_steps * args.batch, args.turns, args.pictures, args.seed, not args.no_grouping
    )
    validation = Validation.of(args.val, args.val_limit, args.micro) if args.val else None
    kept = RegionCache(args.cache or args.out / "regions", args.cache_gb)
    images = sorted({*mixture.images, *(validation.images if validation else ())})
    prepare(lambda: TrainedImageOpener(load_opener(), args.load_dino()), key, images[rank::world], kept)
    accelerator.wait_for_everyone()
    regions_of = lru_cache(maxsize=512)(lambda image: proposals_of(None, key, image, kept))
    read = reader(llm, regions_of)

    selector, lora = started(args, llm, [regions_of(i) for i in images[:: max(1, len(images) // 200)]])
    if args.gradient_checkpointing:
        llm.model.gradient_checkpointing_enable({"use_reentrant": False})
    student = Student(lora, selector.to(accelerator.device), llm.seg, llm.abs, args.hard_negatives)
    trained = student.trained()
    groups = [
        {"params": [p for n, p in trained.items() if n.startswith("selector.") == mine], "lr": lr, "peak": lr}
        for mine, lr in ((False, args.lr), (True, args.selector_lr))
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.95))
    if zero.asked_for():
        load_trained(args.out / "state.pt", student)
        zero.spread(accelerator, student)
    student, optimizer = accelerator.prepare(student, optimizer)
    plain = accelerator.unwrap_model(student)
    llm.model = plain.llm

    @torch.no_grad()
    def ask(question: str, image: Path) -> tuple[str, list[dict]]:
        plain.eval()
        regions = regions_of(image)
        turns = [Turn(question, images=[opened(image)])]
        with plain.precision():
            reply, found = answer(
                llm, plain.selector, turns, regions.features, THRESHOLD, max_new_tokens=ANSWER
            )
        return reply.text, pointed_at(reply.text, found, regions.rles)

    opened = lru_cache(maxsize=SHOWN)(open_image)
    progress = Progress(args.out, validation.shown if validation else [], ask)
    start, best = restore(args.out / "state.pt", student, optimizer, accelerator)
    if start:
        accelerator.print(f"resuming at step {start}", flush=True)
    elif validation:  # what the weights can do before
        progress.add(
            0, validation.score(plain, read, regions_of, accelerator)[0], accelerator.is_main_process
        )
    weights = torch.tensor([args.weights[k] for k in LOSS_NAMES], device=accelerator.device)
    numbers = [
        (s, j) for s in range(start, args.max_steps) for j in range(rank, args.batch // args.micro, world)
    ]
    loader = iter(
        DataLoader(
            Parts(mixture, numbers, args.batch, args.micro, read), batch_size=None, num_workers=args.workers
        )
    )
    log = Log(args.out / "log.jsonl", start) if accelerator.is_main_process else None
    student.train()
    for step in range(start, args.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step, args.max_steps, args.warm_up)
        figures = one_step(args, step, student, optimizer, loader, weights, accelerator)
        if log:
            log.add(step, figures, every=args.log_every)
        accelerator.log(figures, step=step + 1)
        if (step + 1) % args.save_every == 0 or step + 1 == args.max_steps:
            score, calibration = None, None
            if validation:
                found, calibration = validation.score(plain, read, regions_of, accelerator)
                score = found["score"]
                progress.add(step + 1, found, accelerator.is_main_process)
                accelerator.log({f"val {k}": v for k, v in found.items()}, step=step + 1)
            if score is None or best is None or score >= best:
                best = score
                about = {"mllm": args.mllm, "dino": args.dino, "regions": key, "step": step + 1, "val": score}
                save_adapter(args.out, plain, about, calibration, student, accelerator)
            save_state(args.out / "state.pt", student, optimizer, step + 1, best, accelerator)
            student.train()
    if accelerator.is_main_process:
        write_card(args.out, args.mllm, args.settings, progress.rows())
        progress.report(
            f"Tuning {args.mllm}",
            {k: v for k, v in args.settings.items()},
            {"log.jsonl": [*LOSS_NAMES, "loss", "word_right", "marker_right"]},
        )
    accelerator.end_training()


def started(args, llm: MultimodalLLM, some: list):
    """The selector and the LLM with LoRA, new or from `--adapter`. Its regions are standardised by `some` of them."""
    torch.manual_seed(args.seed)
    width, regions = llm.model.get_output_embeddings().weight.shape[-1], some[0].features.shape[1]
    if args.adapter:
        selector, about = read_heads(args.adapter)
        if (selector.config["state_dim"], selector.config["region_dim"]) != (width, regions):
            raise BadInput(
                f"--adapter {args.adapter} was trained on {about['mllm']} and other features; give the same --mllm, "
                "--sam and --dino"
            )
    else:
        selector = StandardisedSelector(width, regions)
        features = torch.cat([r.features for r in some])
        if len(features) > 1:
            selector.mean.copy_(features.mean(0))
            selector.scale.copy_(features.std(0) + 1e-3)
    if getattr(llm.model, "is_quantized", False):
        from peft import prepare_model_for_kbit_training

        prepare_model_for_kbit_training(llm.model, use_gradient_checkpointing=False)
    llm.model.requires_grad_(False)
    lora = args.adapter / "lora" if args.adapter else None
    return selector, add_lora(llm, args.rank, args.alpha, args.dropout, args.targets, args.tune_vision, lora)


def one_step(args, step: int, student, optimizer, loader, weights, accelerator) -> dict[str, float]:
    """One step of the optimiser over this process's parts; the figures are of the whole step."""
    world, rank = accelerator.num_processes, accelerator.process_index
    mine = [
        {k: v.to(accelerator.device) for k, v in next(loader).items()}
        for _ in range(args.batch // args.micro // world)
    ]
    held = [
        [
            int((b["labels"][:, 1:] != -100).sum()),
            int(reachable(b["present"], b["iou"]).sum()),
            *[len(b["present"])] * 3,
        ]
        for b in mine
    ]
    totals = torch.tensor(held, dtype=torch.float32, device=weights.device).sum(0)
    totals = accelerator.reduce(totals, "sum").clamp(min=1)
    sums = torch.zeros_like(weights)
    right = torch.zeros(2, device=weights.device)
    for i, batch in enumerate(mine):
        torch.manual_seed(
            hash((args.seed, step, rank + i * world)) % 2**63
        )  # dropout, wherever the part is computed
        last = i + 1 == len(mine)
        with synchronised(accelerator, student, last):
            part, _, extra = student(batch)
            accelerator.backward((part * weights / totals).sum() * world)  # processes' gradients are averaged
        sums += part.detach()
        right += torch.stack(
            [extra.get(k, sums.new_zeros(())).float() for k in ("word_right", "marker_right")]
        )
    norm = accelerator.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses = accelerator.reduce(sums, "sum") / totals
    right = accelerator.reduce(right, "sum")
    return (
        {"loss": float((losses * weights).sum())}
        | dict(zip(LOSS_NAMES, losses.tolist()))
        | {
            "word_right": float(right[0] / totals[0]),
            "marker_right": float(right[1] / totals[2]),
            "gradient": float(norm),
        }
    )


def synchronised(accelerator, student, last: bool):
    """Gradients cross processes once a step, with the last part."""
    if zero.asked_for():
        accelerator.sync_gradients = last  # DeepSpeed steps in the backward pass of the last part
        return contextlib.nullcontext()
    return contextlib.nullcontext() if last else accelerator.no_sync(student)
