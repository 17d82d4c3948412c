"""Tune a preset, or any multimodal LLM with any SAM, on records of your own.

    python -m finetune --preset pocket --data train.jsonl coco.jsonl=0.3 --val val.jsonl --out runs/tuned
    python -m finetune --mllm Qwen/Qwen3-VL-4B-Instruct --sam sam_vit_b.pth --data train.jsonl --out runs/tuned
    accelerate launch --num_processes 4 -m finetune --preset base --data train.jsonl --out runs/tuned
    python -m assistant ask photo.jpg "which part is dented?" --preset pocket --adapter runs/tuned

The same command again goes on where it was stopped. --out is the folder that --adapter takes.
"""

import argparse
from pathlib import Path

LOSS_NAMES = ("text", "align", "iop", "presence", "marker")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", default="pocket", help="what is tuned (default: pocket)")
    add("--mllm", help="another multimodal LLM than the preset's: a folder, or a hub id")
    add("--sam", help="another SAM: an official .pth, a folder, or a hub id")
    add("--dino", help="DINOv2 whose features are added to SAM's: a folder, or a hub id")
    add("--adapter", type=Path, help="go on from what an earlier tuning wrote")
    add(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE[=RATE]",
        help="records; RATE: how often, relative to the others (1)",
    )
    add(
        "--rehearsal",
        type=float,
        metavar="RATE",
        help="how much the pocket preset rehearses of its first training, relative to a --data file (default: 0.5; 0: not)",
    )
    add(
        "--val",
        type=Path,
        metavar="FILE",
        help="records that choose the best checkpoint (without: the last is kept)",
    )
    add(
        "--out",
        type=Path,
        required=True,
        help="folder for the adapter, the report, and what a later start goes on from",
    )
    add("--check", action="store_true", help="only check the records")
    add("--max-steps", type=int, help="steps (default: pocket 200, others 1000)")
    add(
        "--save-every",
        type=int,
        default=100,
        metavar="N",
        help="steps between checkpoints, each with a validation (default: 100)",
    )
    add(
        "--batch",
        type=int,
        help="conversations a step, over all processes (default: pocket 4 pictures, others 16)",
    )
    add("--micro", type=int, default=1, help="conversations a device computes at a time: memory (default: 1)")
    add(
        "--turns",
        type=int,
        default=3,
        help="questions about one picture in a conversation, at most (default: 3)",
    )
    add("--pictures", type=int, default=1, help="pictures in a conversation, at most (default: 1)")
    add("--lr", type=float, help="of LoRA and the token rows (default: pocket 4e-4, others 2e-4)")
    add("--selector-lr", type=float, default=5e-4, help="of the selector (default: 5e-4)")
    add("--warm-up", type=int, default=20, help="steps (default: 20)")
    add(
        "--weights",
        nargs="+",
        default=[],
        metavar="LOSS=WEIGHT",
        help=f"of the losses {', '.join(LOSS_NAMES)} (default: 1 each)",
    )
    add(
        "--hard-negatives",
        type=int,
        default=8,
        help="wrong proposals that count more: those that it likes most (default: 8)",
    )
    add("--rank", type=int, default=16, help="of LoRA (default: 16)")
    add("--alpha", type=float, default=32, help="of LoRA (default: 32)")
    add("--dropout", type=float, default=0.05, help="of LoRA (default: .05)")
    add(
        "--targets",
        nargs="+",
        metavar="NAME",
        help="linear layers that get LoRA, such as q_proj v_proj (default: all of the LLM's)",
    )
    add("--tune-vision", action="store_true", help="LoRA in the vision tower too; it is frozen otherwise")
    add("--four-bit", action="store_true", help="QLoRA: the LLM in 4 bits (nf4)")
    add(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of the LLM (default: float32 on a CPU, else bfloat16)",
    )
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    add("--no-grouping", action="store_true", help="do not put conversations of like length together")
    add("--cache", type=Path, help="folder of the pictures' regions (default: OUT/regions); may be shared")
    add("--cache-gb", type=float, default=20, help="its size at most (default: 20)")
    add("--workers", type=int, default=0, help="processes that read ahead (default: 0)")
    add("--val-limit", type=int, default=200, help="validation records at most (default: 200)")
    add("--log-every", type=int, default=10, help="steps between lines of figures (default: 10)")
    add(
        "--log-with",
        choices=["tensorboard", "trackio"],
        help="also log there (pip install tensorboard, or trackio)",
    )
    add("--device", help="default: a GPU if there is one")
    add("--seed", type=int, default=0)


WITHOUT = (
    "check",
    "cache",
    "cache_gb",
    "workers",
    "log_every",
    "log_with",
    "device",
    "command",
    "save_every",
    "adapter_files",
)


def main(args: argparse.Namespace) -> None:
    from assistant.errors import BadInput
    from assistant.files import make_folder
    from assistant.presets import ModelOptions
    from finetune.check import check_files, shared_pictures
    from finetune.mllm.mixture import parse_source

    args.sources = [parse_source(text) for text in args.data]
    files = [file for file, _ in args.sources]
    args.weights = loss_weights(args.weights)
    check_numbers(args)
    check_files([*files, *([args.val] if args.val else [])])
    if args.check:
        print("all records are as they should be")
        return
    if args.val and (both := shared_pictures(files, args.val)):
        print(f"{both} pictures of --val are in --data too: its figures say little", flush=True)
    pocket = ModelOptions(preset=args.preset, mllm=args.mllm).is_embedded
    if args.rehearsal and not pocket:
        raise BadInput(
            "only the pocket preset rehearses its first training: give --data your.jsonl older.jsonl=0.5 instead"
        )
    defaults = (
        {"max_steps": 200, "batch": 4, "lr": 4e-4, "rehearsal": 0.5}
        if pocket
        else {"max_steps": 1000, "batch": 16, "lr": 2e-4, "rehearsal": 0.0}
    )
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    make_folder(args.out)
    args.settings = {
        k: v for k, v in vars(args).items() if k not in WITHOUT and k not in ("sources", "settings", "out")
    }
    try:
        tune_pocket(args) if pocket else tune_general(args)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        micro = f"--micro (now {args.micro})" if args.micro > 1 else "--turns" if args.turns > 1 else "--rank"
        more = (
            []
            if pocket
            else [
                f"--{o.replace('_', '-')}"
                for o in ("gradient_checkpointing", "four_bit")
                if not getattr(args, o)
            ]
        )
        raise BadInput(
            f"out of memory: lower {micro}"
            + (f", or add {' and '.join(more)}" if more else "")
            + "; the same command goes on from the last checkpoint"
        ) from error


LEAST = {
    "max_steps": 1,
    "save_every": 1,
    "batch": 1,
    "micro": 1,
    "turns": 1,
    "pictures": 1,
    "rank": 1,
    "log_every": 1,
    "val_limit": 1,
    "warm_up": 0,
    "hard_negatives": 0,
    "workers": 0,
}


def check_numbers(args: argparse.Namespace) -> None:
    """BadInput for a number that nothing can be done with."""
    from assistant.errors import BadInput

    flag = lambda name: f"--{name.replace('_', '-')}"
    for name, least in LEAST.items():
        if (value := getattr(args, name)) is not None and value < least:
            raise BadInput(f"{flag(name)} must be at least {least}")
    for name in ("lr", "selector_lr", "alpha", "cache_gb"):
        if (value := getattr(args, name)) is not None and not 0 < value < float("inf"):
            raise BadInput(f"{flag(name)} must be above 0")
    if args.rehearsal is not None and not 0 <= args.rehearsal < float("inf"):
        raise BadInput("--rehearsal must be 0 or above")
    if not 0 <= args.dropout < 1:
        raise BadInput("--dropout is a share, from 0 to below 1")


def loss_weights(words: list[str]) -> dict[str, float]:
    """["align=2"] -> every loss's weight. BadInput: no such loss, or no number."""
    from assistant.errors import BadInput

    weights = dict.fromkeys(LOSS_NAMES, 1.0)
    for word in words:
        name, _, value = word.partition("=")
        try:
            weights[name]  # KeyError: there is no such loss
            weights[name] = float(value)
        except (KeyError, ValueError):
            raise BadInput(
                f"--weights {word}: write LOSS=WEIGHT with one of {', '.join(LOSS_NAMES)}"
            ) from None
    return weights


def out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def tune_pocket(args: argparse.Namespace) -> None:
    from finetune.pocket.tune import tune

    tune(args)


def tune_general(args: argparse.Namespace) -> None:
    from importlib.util import find_spec

    import torch
    from accelerate import Accelerator

    from assistant.errors import BadInput
    from assistant.mllm.local_model import MultimodalLLM
    from assistant.mllm.trained import Dino
    from assistant.presets import ModelOptions, load_image_opener, opener_key, parts_to_train
    from assistant.weights import resolve_model
    from finetune.mllm import deepspeed as zero
    from finetune.mllm.adapter import keep_settings
    from finetune.mllm.train import train

    if zero.asked_for() and not find_spec("deepspeed"):
        raise BadInput(
            "DeepSpeed is missing; pip install deepspeed, or spread the weights with finetune/configs/fsdp2.yaml"
        )
    mllm, sam, dino = parts_to_train(
        ModelOptions(preset=args.preset, mllm=args.mllm, sam=args.sam), args.dino
    )
    args.mllm, args.dino = mllm, dino
    cpu = args.device == "cpu" or not torch.cuda.is_available()
    dtype = getattr(torch, args.dtype) if args.dtype else torch.float32 if cpu else torch.bfloat16
    try:
        accelerator = Accelerator(cpu=cpu, mixed_precision="no", log_with=args.log_with, project_dir=args.out)
        accelerator.init_trackers(args.out.name)
    except (ImportError, ValueError) as error:
        raise BadInput(
            f"--log-with {args.log_with}: {str(error).splitlines()[0]}; pip install {args.log_with}"
        ) from None
    if accelerator.is_main_process:
        keep_settings(args.out, args.settings)
    accelerator.wait_for_everyone()
    if zero.asked_for():
        zero.configure(accelerator, dtype, args.four_bit)
    spread = (zero.asked_for() or accelerator.is_fsdp2) and not args.four_bit  # read whole, but not by a GPU
    device = "cpu" if spread else str(accelerator.device)
    llm = MultimodalLLM.load(resolve_model(mllm), device=device, dtype=dtype, four_bit=args.four_bit)
    args.load_dino = lambda: Dino(dino, accelerator.device) if dino else None
    device = str(accelerator.device)
    train(args, llm, lambda: load_image_opener(sam, device)[0], f"{opener_key(sam)} dino {dino}", accelerator)
