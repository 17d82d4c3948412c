"""A step of tuning a multimodal LLM beside trl's SFTTrainer: tokens a second, memory, and their ratio.

    python -m eval tuning --mllm Qwen/Qwen3-VL-4B-Instruct --four-bit --gradient-checkpointing --peak 990
    python -m eval tuning --mllm FOLDER --batch 2 --steps 4          # a CPU, a small model

It needs trl (pip install trl). Both get the same LoRA on the same LLM, and the very same tokens of a batch,
which is collated once: forward, backward, clipping and AdamW are timed, reading images is not. Ours also
trains the selector and the rows of the new tokens. Each runs in a process of its own, in turn. Of each
program the fastest run counts, and of its steps all but the first.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel

    from assistant.mllm.local_model import MultimodalLLM
    from assistant.mllm.trained import StandardisedSelector
    from finetune.mllm.batches import Batch
    from finetune.region_cache import ImageRegions

VERSION = 1
PROGRAMS = ("ours", "trl")
PROPOSALS_PER_IMAGE = 60
FEATURES_PER_PROPOSAL = 256  # SAM's width
HARD_NEGATIVES = 8  # the default of `python -m finetune`
LEARNING_RATE = 1e-4
DROPOUT = 0.05  # of LoRA, the default of `python -m finetune`
QUESTIONS = [
    ("who is looking at us?", "The astronaut [SEG]."),
    ("what flies, and is there a bear?", "The shuttle [SEG], no bear [ABS]."),
    ("which flag is it?", "It is the flag with the stripes [SEG]."),
]


@dataclass(frozen=True)
class TuningSettings:
    """What is timed. Each attribute is the command-line option of its name."""

    mllm: str
    batch: int
    steps: int
    rank: int
    four_bit: bool
    gradient_checkpointing: bool
    dtype: str | None
    device: str | None
    seed: int
    out: Path

    def words(self) -> list[str]:
        """The command line that gives these settings."""
        words = []
        for name, value in asdict(self).items():
            option = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words += [option] if value else []
            elif value is not None:
                words += [option, str(value)]
        return words


@dataclass(frozen=True)
class Workload:
    """What a program trains on.

    Attributes:
        llm: The multimodal LLM.
        selector: Selects proposals; ours only.
        lora: The LLM with LoRA.
        batch: A batch of `finetune.mllm.batches.collate`.
        device: Where it is computed.
    """

    llm: MultimodalLLM
    selector: StandardisedSelector
    lora: PeftModel
    batch: Batch
    device: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the comparison to the command line."""
    add = parser.add_argument
    add("--mllm", required=True, help="a multimodal LLM: a folder, or a hub id")
    add(
        "--batch",
        type=int,
        default=4,
        help="conversations per step, of three questions about an image (default: 4)",
    )
    add("--steps", type=int, default=5, help="timed steps, after one that is not timed (default: 5)")
    add("--rounds", type=int, default=2, help="runs of each program, in turn (default: 2)")
    add("--rank", type=int, default=16, help="rank of LoRA (default: 16)")
    add("--four-bit", action="store_true", help="keep the LLM in 4 bits (nf4)")
    add("--gradient-checkpointing", action="store_true", help="use less memory and more time")
    add(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="precision of the LLM (default: bfloat16 on a GPU that has it, else float32)",
    )
    add("--device", help="where to compute (default: a GPU if there is one)")
    add(
        "--peak", type=float, metavar="TFLOPS", help="what the device can do, to print the share that is used"
    )
    add("--only", choices=PROGRAMS, help="run one of the two, once")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/eval/tuning"), help="folder of result.json")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the comparison that the command line asks for; returns what result.json holds."""
    from assistant.errors import BadInput

    if min(args.batch, args.steps, args.rank, args.rounds) < 1:
        raise BadInput("--batch, --steps, --rounds and --rank must be at least 1")
    settings = TuningSettings(**{f.name: getattr(args, f.name) for f in fields(TuningSettings)})
    if args.only:
        print(json.dumps(run(settings, args.only)))
        return {}
    return compare(settings, args.rounds, args.peak)


def compare(settings: TuningSettings, rounds: int, peak: float | None = None) -> dict[str, Any]:
    """Time both programs in turn, print their figures and write result.json.

    Args:
        settings: What is timed.
        rounds: Number of runs of each program.
        peak: TFLOP/s of the device, to print the share that is used.

    Returns:
        What result.json holds.

    Raises:
        BadInput: A program fails.
    """
    from assistant.files import replace_whole

    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PROGRAMS}
    for name in PROGRAMS * rounds:
        runs[name].append(_run_in_process(settings, name))
    best = {name: max(rows, key=lambda row: row["tokens_per_second"]) for name, rows in runs.items()}
    ratios = [
        round(ours["tokens_per_second"] / trl["tokens_per_second"], 3)
        for ours, trl in zip(runs["ours"], runs["trl"], strict=True)
    ]
    result = {
        "benchmark": "tuning",
        "version": VERSION,
        "n": settings.steps,
        "mllm": str(settings.mllm),
        "four_bit": settings.four_bit,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "batch": settings.batch,
        "rank": settings.rank,
        **best,
        "ratio": round(best["ours"]["tokens_per_second"] / best["trl"]["tokens_per_second"], 3),
        "ratios": ratios,
    }
    for name, row in best.items():
        share = f", {row['tflops'] / peak:.1%} of the peak" if peak else ""
        print(
            f"{name}: {row['tokens_per_second']:.1f} tokens/s, {row['step_seconds']:.3f} s a step of "
            f"{row['tokens']} tokens, {row['tflops']:.3f} TFLOP/s{share}, "
            f"{row['memory_gb']:.2f} GB at most"
        )
    print(f"ratio {result['ratio']} (in turn: {ratios})")
    with replace_whole(settings.out / "result.json") as path:
        path.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _run_in_process(settings: TuningSettings, program: str) -> dict[str, Any]:
    """The figures of a program that runs in a process of its own. Raises BadInput where it fails."""
    from assistant.errors import BadInput

    done = subprocess.run(
        [sys.executable, "-m", "eval", "tuning", *settings.words(), "--only", program],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise BadInput(f"{program}: {last.removeprefix('error: ')}")
    return json.loads(done.stdout.splitlines()[-1])


def run(settings: TuningSettings, program: str) -> dict[str, Any]:
    """The figures of one of `PROGRAMS`."""
    import torch

    workload, parameters = prepare(settings)
    time_steps: Callable[[TuningSettings, Workload], list[float]] = (
        time_ours if program == "ours" else time_trl
    )
    seconds = time_steps(settings, workload)
    tokens = int(workload.batch["input attention_mask"].sum())
    step = sum(seconds[1:]) / len(seconds[1:])
    on_gpu = workload.device.startswith("cuda")
    return {
        "tokens": tokens,
        "step_seconds": round(step, 4),
        "tokens_per_second": round(tokens / step, 2),
        # Forward and back through weights that stay as they are: 2 operations each (Kaplan et al. 2020).
        "tflops": round(4 * parameters * tokens / step / 1e12, 4),
        "memory_gb": round(peak_memory_gb(workload.device), 3),
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {torch.get_num_threads()} threads",
    }


def prepare(settings: TuningSettings) -> tuple[Workload, int]:
    """What is trained on, and the number of parameters of the language model."""
    import torch

    from assistant.mllm.local_model import MultimodalLLM
    from assistant.weights import resolve_model
    from finetune.mllm.lora import LoraSettings, enable_activation_checkpointing, start_model
    from finetune.region_cache import ImageRegions
    from finetune.tune import training_dtype

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, settings.dtype) if settings.dtype else training_dtype(device == "cpu")
    torch.manual_seed(settings.seed)
    llm = MultimodalLLM.load(
        resolve_model(settings.mllm), device=device, dtype=dtype, four_bit=settings.four_bit
    )
    parameters = sum(
        p.numel() * (2 if p.dtype == torch.uint8 else 1)  # a byte holds two weights of 4 bits
        for name, p in llm.model.named_parameters()
        if "visual" not in name and "vision" not in name
    )
    generator = torch.Generator().manual_seed(settings.seed)
    features = torch.randn(PROPOSALS_PER_IMAGE, FEATURES_PER_PROPOSAL, generator=generator)
    square = {"size": [512, 512], "counts": "PP2P8"}
    regions = ImageRegions(features, [square] * PROPOSALS_PER_IMAGE)
    batch = collate_conversations(llm, regions, settings.batch)
    lora_settings = LoraSettings(settings.rank, alpha=2 * settings.rank, dropout=DROPOUT)
    selector, lora = start_model(llm, lora_settings, [regions], settings.seed)
    if settings.gradient_checkpointing:
        enable_activation_checkpointing(llm.model)
    return Workload(llm, selector, lora, batch, device), parameters


def collate_conversations(llm: MultimodalLLM, regions: ImageRegions, count: int) -> Batch:
    """The same conversation of `QUESTIONS` `count` times, as a batch."""
    from skimage import data

    from assistant.grammar import parse
    from assistant.record import Record, RecordTarget
    from finetune.image_record import ImageRecord
    from finetune.mllm.batches import collate, encode_conversation

    square = regions.rles[0]
    records = []
    for question, answer in QUESTIONS:
        targets = [RecordTarget(m.phrase, square if m.present else None) for m in parse(answer)]
        record = Record("astronaut", 512, 512, question, answer, targets)
        records.append(ImageRecord(record, Path("astronaut")))
    conversation = encode_conversation(llm, records, lambda _: regions, lambda _: data.astronaut())
    return collate([conversation] * count, 0)  # all of one length, so that nothing is padded


def time_ours(settings: TuningSettings, workload: Workload) -> list[float]:
    """Seconds of each step of `finetune.mllm.step.training_step`."""
    import torch
    from accelerate import Accelerator

    from eval.speed import timed
    from finetune.mllm.model import LLMWithSelector
    from finetune.mllm.step import training_step
    from finetune.settings import LOSS_NAMES

    accelerator = Accelerator(cpu=workload.device == "cpu", mixed_precision="no")
    llm = workload.llm
    model = LLMWithSelector(
        workload.lora, workload.selector.to(workload.device), llm.seg, llm.abs, HARD_NEGATIVES
    )
    optimizer = torch.optim.AdamW(model.trained_parameters().values(), LEARNING_RATE)
    wrapped_model, wrapped_optimizer = accelerator.prepare(model, optimizer)
    wrapped_model.train()
    weights = torch.ones(len(LOSS_NAMES), device=workload.device)

    def take_step(step: int) -> None:
        parts = [workload.batch]
        training_step(step, settings.seed, parts, wrapped_model, wrapped_optimizer, weights, accelerator)

    return [timed(functools.partial(take_step, step))[1] for step in range(settings.steps + 1)]


def time_trl(settings: TuningSettings, workload: Workload) -> list[float]:
    """Seconds of each step of trl's SFTTrainer on the tokens and labels of the same batch."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback

    from assistant.errors import BadInput
    from eval.speed import wait
    from finetune.mllm.batches import INPUT_PREFIX

    try:
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise BadInput(f"trl cannot be imported ({error}): pip install trl") from None
    batch = workload.batch
    inputs = {k.removeprefix(INPUT_PREFIX): v for k, v in batch.items() if k.startswith(INPUT_PREFIX)}
    inputs["labels"] = batch["labels"]
    seconds: list[float] = []
    starts: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            wait()
            starts.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            seconds.append(time.perf_counter() - starts[-1])

    ours: Any = workload.lora.peft_config["default"]
    same_lora = LoraConfig(
        r=ours.r,
        lora_alpha=ours.lora_alpha,
        lora_dropout=ours.lora_dropout,
        target_modules=ours.target_modules,
    )
    config = SFTConfig(
        output_dir=str(settings.out / "trl"),
        per_device_train_batch_size=settings.batch,
        max_steps=settings.steps + 1,
        learning_rate=LEARNING_RATE,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        remove_unused_columns=False,
        use_cpu=workload.device == "cpu",
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=workload.llm.model.dtype == torch.bfloat16,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = Dataset.from_dict(
        {"text": ["the batch is collated already"] * settings.batch * (settings.steps + 1)}
    )
    # Its loss takes an output layer without trained rows, so it has that much less to do.
    SFTTrainer(
        model=get_peft_model(workload.lora.unload(), same_lora),
        args=config,
        train_dataset=rows,
        processing_class=workload.llm.processor,
        data_collator=lambda _: dict(inputs),
        callbacks=[Clock()],
    ).train()
    return seconds


def peak_memory_gb(device: str) -> float:
    """The most memory that was in use so far, of the GPU or of this process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    from eval.result import peak_memory_mb

    return peak_memory_mb() / 1e3
