"""A step of tuning a multimodal LLM beside its peer, trl's SFTTrainer (pip install trl): tokens a second, memory, the ratio.

    python -m eval tuning --mllm Qwen/Qwen3-VL-4B-Instruct --four-bit --gradient-checkpointing --peak 990
    python -m eval tuning --mllm FOLDER --batch 2 --steps 4          # a CPU, a small model

Both get the same LoRA on the same LLM, and the very same tokens of a batch, which is collated once: forward, backward,
clipping and AdamW are timed, reading pictures is not. Ours also trains the selector and the rows of the new tokens. Each runs
in a process of its own, in turn; of a program the fastest run counts, and of its steps all but the first.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

VERSION = 1
PROGRAMS = ("ours", "trl")
REGIONS, WIDTH = 60, 256  # proposals of a picture and features of each
QUESTIONS = [
    ("who is looking at us?", "The astronaut [SEG]."),
    ("what flies, and is there a bear?", "The shuttle [SEG], no bear [ABS]."),
    ("which flag is it?", "It is the flag with the stripes [SEG]."),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--mllm", required=True, help="a multimodal LLM: a folder, or a hub id")
    add(
        "--batch",
        type=int,
        default=4,
        help="conversations a step, of three questions about a picture (default: 4)",
    )
    add("--steps", type=int, default=5, help="timed, after one that is not (default: 5)")
    add("--rounds", type=int, default=2, help="runs of each program, in turn (default: 2)")
    add("--rank", type=int, default=16)
    add("--four-bit", action="store_true")
    add("--gradient-checkpointing", action="store_true")
    add(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the LLM (default: float32 on a CPU, else bfloat16)",
    )
    add("--device", help="default: a GPU if there is one")
    add("--peak", type=float, metavar="TFLOPS", help="what the device can do, for its share")
    add("--only", choices=PROGRAMS, help="one of the two, once")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/eval/tuning"), help="folder of result.json")


def main(args: argparse.Namespace) -> dict:
    from assistant.errors import BadInput
    from assistant.files import replace_whole

    if min(args.batch, args.steps, args.rank, args.rounds) < 1:
        raise BadInput("--batch, --steps, --rounds and --rank must be at least 1")
    if args.only:
        print(json.dumps(run(args)))
        return {}
    runs = {name: [] for name in PROGRAMS}
    for name in PROGRAMS * args.rounds:
        done = subprocess.run(
            [sys.executable, "-m", "eval", *words_of(args), "--only", name], capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise BadInput(f"{name}: {last.removeprefix('error: ')}")
        runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = {name: max(found, key=lambda r: r["tokens_per_second"]) for name, found in runs.items()}
    result = {
        "benchmark": "tuning",
        "version": VERSION,
        "n": args.steps,
        "mllm": str(args.mllm),
        "four_bit": args.four_bit,
        "gradient_checkpointing": args.gradient_checkpointing,
        "batch": args.batch,
        "rank": args.rank,
        **rows,
        "ratio": round(rows["ours"]["tokens_per_second"] / rows["trl"]["tokens_per_second"], 3),
        "ratios": [round(a["tokens_per_second"] / b["tokens_per_second"], 3) for a, b in zip(*runs.values())],
    }
    for name, row in rows.items():
        share = f", {row['tflops'] / args.peak:.1%} of the peak" if args.peak else ""
        print(
            f"{name}: {row['tokens_per_second']:.1f} tokens/s, {row['step_seconds']:.3f} s a step of {row['tokens']} tokens, "
            f"{row['tflops']:.3f} TFLOP/s{share}, {row['memory_gb']:.2f} GB at most"
        )
    print(f"ratio {result['ratio']} (in turn: {result['ratios']})")
    with replace_whole(args.out / "result.json") as path:
        path.write_text(json.dumps(result, indent=2) + "\n")
    return result


def words_of(args: argparse.Namespace) -> list[str]:
    words = ["tuning"]
    for name in ("mllm", "batch", "steps", "rank", "dtype", "device", "seed", "out"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    return words + [
        f"--{n.replace('_', '-')}" for n in ("four_bit", "gradient_checkpointing") if getattr(args, n)
    ]


def run(args: argparse.Namespace) -> dict:
    """One program's figures."""
    import torch

    from assistant.mllm.local_model import MultimodalLLM
    from assistant.weights import resolve_model
    from finetune.mllm.train import started
    from finetune.region_cache import ImageRegions

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype) if args.dtype else torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(args.seed)
    llm = MultimodalLLM.load(resolve_model(args.mllm), device=device, dtype=dtype, four_bit=args.four_bit)
    parameters = sum(
        p.numel() * (2 if p.dtype == torch.uint8 else 1)
        for n, p in llm.model.named_parameters()
        if "visual" not in n and "vision" not in n
    )
    rng = torch.Generator().manual_seed(args.seed)
    square = {"size": [512, 512], "counts": "PP2P8"}
    regions = ImageRegions(torch.randn(REGIONS, WIDTH, generator=rng), [square] * REGIONS)
    batch = batch_of(llm, regions, args.batch)
    args.adapter, args.targets, args.alpha, args.dropout, args.tune_vision = (
        None,
        None,
        2 * args.rank,
        0.05,
        False,
    )
    selector, lora = started(args, llm, [regions])
    if args.gradient_checkpointing:
        llm.model.gradient_checkpointing_enable({"use_reentrant": False})
    seconds = (ours if args.only == "ours" else trl)(args, llm, selector, lora, batch, device)
    tokens = batch["input attention_mask"].sum().item()
    step = sum(seconds[1:]) / len(seconds[1:])
    return {
        "tokens": tokens,
        "step_seconds": round(step, 4),
        "tokens_per_second": round(tokens / step, 2),
        # forward and back through weights that stay as they are: 2 operations each (Kaplan et al. 2020)
        "tflops": round(4 * parameters * tokens / step / 1e12, 4),
        "memory_gb": round(memory(device), 3),
        "device": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"cpu, {torch.get_num_threads()} threads",
    }


def batch_of(llm, regions, count: int) -> dict:
    """The same conversation `count` times, collated."""
    from skimage import data

    from assistant.grammar import parse
    from assistant.record import Record, RecordTarget
    from finetune.mllm.mixture import Asked
    from finetune.mllm.student import collate, example

    asked, square = [], regions.rles[0]
    for question, answer in QUESTIONS:
        targets = [RecordTarget(m.phrase, square if m.present else None) for m in parse(answer)]
        asked.append(Asked(Record("astronaut", 512, 512, question, answer, targets), Path("astronaut")))
    one = example(llm, asked, lambda _: regions, lambda _: data.astronaut())
    return collate([one] * count, 0)  # all of one length: nothing is padded


def ours(args, llm, selector, lora, batch: dict, device: str) -> list[float]:
    """Seconds of each step of `finetune.mllm.train.one_step`."""
    import torch
    from accelerate import Accelerator

    from eval.speed import timed
    from finetune.mllm.student import Student
    from finetune.mllm.train import one_step
    from finetune.tune import LOSS_NAMES

    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    student = Student(lora, selector.to(device), llm.seg, llm.abs, 8)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], 1e-4)
    student, optimizer = accelerator.prepare(student, optimizer)
    args.micro = args.batch
    student.train()
    weights, seconds = torch.ones(len(LOSS_NAMES), device=device), []
    for step in range(args.steps + 1):
        seconds.append(
            timed(lambda: one_step(args, step, student, optimizer, iter([batch]), weights, accelerator))[1]
        )
    return seconds


def trl(args, llm, selector, lora, batch: dict, device: str) -> list[float]:
    """Seconds of each step of trl's SFTTrainer on the tokens and labels of the same batch."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback

    from assistant.errors import BadInput
    from eval.speed import wait

    try:
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise BadInput(f"trl cannot be imported ({error}): pip install trl") from None
    inputs = {k.removeprefix("input "): v for k, v in batch.items() if k.startswith("input ")} | {
        "labels": batch["labels"]
    }
    seconds, started_at = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            wait()
            started_at.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            wait()
            seconds.append(time.perf_counter() - started_at[-1])

    known = lora.peft_config["default"]
    plain = LoraConfig(
        r=known.r,
        lora_alpha=known.lora_alpha,
        lora_dropout=known.lora_dropout,
        target_modules=known.target_modules,
    )
    settings = SFTConfig(
        output_dir=str(args.out / "trl"),
        per_device_train_batch_size=args.batch,
        max_steps=args.steps + 1,
        learning_rate=1e-4,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        remove_unused_columns=False,
        use_cpu=device == "cpu",
        gradient_checkpointing=args.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=llm.model.dtype == torch.bfloat16,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = Dataset.from_dict({"text": ["the batch is collated already"] * args.batch * (args.steps + 1)})
    # Its loss takes an output layer without trained rows, so it has that much less to do.
    SFTTrainer(
        model=get_peft_model(lora.unload(), plain),
        args=settings,
        train_dataset=rows,
        processing_class=llm.processor,
        data_collator=lambda _: dict(inputs),
        callbacks=[Clock()],
    ).train()
    return seconds


def memory(device: str) -> float:
    """GB at most so far: of the GPU, or of this process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    from eval.result import peak_memory_mb

    return peak_memory_mb() / 1e3
