"""Tune a preset, or any multimodal LLM with any SAM, on records of your own.

    python -m finetune --preset pocket --data train.jsonl coco.jsonl=0.3 --val val.jsonl --out runs/tuned
    python -m finetune --mllm Qwen/Qwen3-VL-4B-Instruct --sam sam_vit_b.pth --data train.jsonl --out tuned
    accelerate launch --num_processes 4 -m finetune --preset base --data train.jsonl --out runs/tuned
    python -m assistant ask photo.jpg "which part is dented?" --preset pocket --adapter runs/tuned

The same command again continues a run that was stopped. --out is the folder that --adapter takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.settings import LOSS_NAMES, TuneSettings, loss_weights

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

# Where the pocket preset and all others differ; the help texts name these values.
POCKET_DEFAULTS: dict[str, Any] = {"max_steps": 200, "batch": 4, "lr": 4e-4, "rehearsal": 0.5}
GENERAL_DEFAULTS: dict[str, Any] = {"max_steps": 1000, "batch": 16, "lr": 2e-4, "rehearsal": 0.0}

MIN_IMAGES = 10  # of --data: every tenth image is held out (`finetune.pocket.examples.HELD_OUT_EVERY`)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of tuning to the command line."""
    _add_model_arguments(parser)
    _add_data_arguments(parser)
    _add_training_arguments(parser)
    _add_lora_arguments(parser)
    _add_machine_arguments(parser)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", default="pocket", help="what is tuned (default: pocket)")
    add("--mllm", help="another multimodal LLM than the preset's: a folder, or a hub id")
    add("--sam", help="another SAM than the preset's: an official .pth file, a folder, or a hub id")
    add(
        "--concepts",
        help="train on what this finds by the names in the records, instead of everything mode's masks: "
        "SAM 3 or a zero-shot detector, a folder, or a hub id",
    )
    add("--dino", help="a DINOv2 whose features are added to SAM's: a folder, or a hub id")
    add("--adapter", type=Path, help="start from what an earlier tuning wrote")


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE[=RATE]",
        help="records; RATE: how often they are drawn, relative to the other files (default: 1)",
    )
    add(
        "--rehearsal",
        type=float,
        metavar="RATE",
        help="how often the pocket preset rehearses its first training, relative to a --data file "
        "(default: 0.5; 0: never)",
    )
    add(
        "--val",
        type=Path,
        metavar="FILE",
        help="records that select the best checkpoint (without them the last one is used)",
    )
    add(
        "--out",
        type=Path,
        required=True,
        help="folder for the adapter, the report, and the state from which the same command continues",
    )
    add("--check", action="store_true", help="only check the records")


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--max-steps", type=int, help="number of steps (default: pocket 200, others 1000)")
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
        help="conversations per step, over all processes (default: pocket 4 images, others 16)",
    )
    add(
        "--micro",
        type=int,
        default=1,
        help="conversations that a device computes at a time; decides how much memory is used (default: 1)",
    )
    add(
        "--turns",
        type=int,
        default=3,
        help="questions about one image in a conversation, at most (default: 3)",
    )
    add("--pictures", type=int, default=1, help="images in a conversation, at most (default: 1)")
    add(
        "--pixels",
        type=int,
        metavar="N",
        help="pixels of an image that the LLM is shown, at most; the adapter keeps to it (default: what "
        "suits the LLM, about a million)",
    )
    add(
        "--lr",
        type=float,
        help="learning rate of LoRA and the token rows (default: pocket 4e-4, others 2e-4)",
    )
    add("--selector-lr", type=float, default=5e-4, help="learning rate of the selector (default: 5e-4)")
    add("--warm-up", type=int, default=20, help="steps of warm-up (default: 20)")
    add(
        "--weights",
        nargs="+",
        default=[],
        metavar="LOSS=WEIGHT",
        help=f"weights of the losses {', '.join(LOSS_NAMES)} (default: 1 each)",
    )
    add(
        "--hard-negatives",
        type=int,
        default=8,
        help="wrong proposals with the highest scores, which count more in the loss (default: 8)",
    )


def _add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rank", type=int, default=16, help="rank of LoRA (default: 16)")
    add("--alpha", type=float, default=32, help="alpha of LoRA (default: 32)")
    add("--dropout", type=float, default=0.05, help="dropout of LoRA (default: 0.05)")
    add(
        "--targets",
        nargs="+",
        metavar="NAME",
        help="linear layers that get LoRA, such as q_proj v_proj (default: all of the LLM's)",
    )
    add(
        "--tune-vision",
        action="store_true",
        help="put LoRA in the vision tower too, which is frozen otherwise",
    )
    add("--four-bit", action="store_true", help="QLoRA: keep the LLM in 4 bits (nf4)")
    add(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="precision of the LLM (default: bfloat16 on a GPU that has it, else float32)",
    )
    add("--gradient-checkpointing", action="store_true", help="use less memory and more time")


def _add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--no-grouping", action="store_true", help="do not batch conversations of similar length together")
    add(
        "--cache",
        type=Path,
        help="folder of the images' regions, which several runs may share (default: OUT/regions)",
    )
    add("--cache-gb", type=float, default=20, help="size of that folder at most (default: 20)")
    add("--workers", type=int, default=0, help="processes that prepare batches in advance (default: 0)")
    add("--val-limit", type=int, default=200, help="validation records at most (default: 200)")
    add("--log-every", type=int, default=10, help="steps between lines of figures (default: 10)")
    add(
        "--log-with",
        choices=["tensorboard", "trackio"],
        help="also log to this program (pip install tensorboard, or trackio)",
    )
    add("--device", help="where to compute (default: a GPU if there is one)")
    add("--seed", type=int, default=0)


def read_settings(args: argparse.Namespace) -> TuneSettings:
    """The settings that the command line gives.

    Raises:
        BadInput: A value that cannot be used, or an unknown preset.
    """
    from assistant.presets import ModelOptions

    options = vars(args).copy()
    options.pop("check")
    embedded = ModelOptions(preset=args.preset, mllm=args.mllm).is_embedded
    for name, value in (POCKET_DEFAULTS if embedded else GENERAL_DEFAULTS).items():
        if options[name] is None:
            options[name] = value
    options["data"] = tuple(args.data)
    options["targets"] = tuple(args.targets) if args.targets else None
    options["weights"] = loss_weights(args.weights)
    settings = TuneSettings(**options)
    settings.check()
    return settings


def main(args: argparse.Namespace) -> None:
    """Check the records, then tune the model that the options name."""
    from assistant.errors import BadInput, is_out_of_memory
    from assistant.files import lock_folder
    from finetune.check import check_files, count_images, count_shared_images

    settings = read_settings(args)
    check_files([*settings.record_files, *([settings.val] if settings.val else [])])
    if args.check:
        print("all records are valid")
        return
    if settings.val and (shared := count_shared_images(settings.record_files, settings.val)):
        print(f"{shared} images of --val are in --data too: scores on them say little", flush=True)
    if (count := count_images(settings.record_files)) < MIN_IMAGES and not settings.val:
        print(
            f"--data has {count} image{'s' * (count > 1)}, of which none is held out: the figures below say "
            f"little about other images; give {MIN_IMAGES} or more, or --val",
            flush=True,
        )
    embedded = settings.models.is_embedded
    if settings.concepts and embedded:
        raise BadInput(
            "the pocket preset is trained on its own proposals; leave out --concepts, or give --mllm"
        )
    if settings.rehearsal and not embedded:
        raise BadInput(
            "only the pocket preset rehearses its first training: give --data "
            "your.jsonl older.jsonl=0.5 instead"
        )
    try:
        with lock_folder(settings.out):
            if embedded:
                from finetune.pocket.tune import tune

                tune(settings)
            else:
                tune_general(settings)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BadInput(memory_advice(settings)) from error


def memory_advice(settings: TuneSettings) -> str:
    """What to change, in one line, where memory does not suffice."""
    if settings.micro > 1:
        lower = f"--micro (now {settings.micro})"
    else:
        lower = "--turns" if settings.turns > 1 else "--rank"
    savers = []
    if not settings.models.is_embedded:
        lower += " or --pixels"
        savers += [] if settings.gradient_checkpointing else ["--gradient-checkpointing"]
        savers += [] if settings.four_bit else ["--four-bit"]
    advice = f", or add {' and '.join(savers)}" if savers else ""
    return f"out of memory: lower {lower}{advice}; the same command continues from the last checkpoint"


def tune_general(settings: TuneSettings) -> None:
    """Tune any multimodal LLM with any SAM: load the models and train them.

    Raises:
        BadInput: A model or a package that cannot be had, or settings that do not go together.
    """
    from importlib.util import find_spec

    import torch

    from assistant.errors import BadInput
    from assistant.loading import concepts as concept_loading
    from assistant.loading import sams
    from assistant.mllm.local_model import MultimodalLLM
    from assistant.mllm.trained import Dino, PartOrigin, PhraseImageOpener, TrainedImageOpener, stored_pixels
    from assistant.presets import parts_to_train
    from assistant.sam.concepts import MAX_INSTANCES, MIN_SCORE
    from assistant.weights import resolve_model
    from finetune.mllm import deepspeed
    from finetune.mllm.adapter import AdapterOrigin, write_settings
    from finetune.mllm.train import train

    if deepspeed.is_enabled() and not find_spec("deepspeed"):
        raise BadInput(
            "DeepSpeed is missing: pip install deepspeed, or shard the weights with "
            "finetune/configs/fsdp2.yaml"
        )
    mllm, sam, dino, concepts = parts_to_train(settings.models, settings.dino)
    on_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    dtype = getattr(torch, settings.dtype) if settings.dtype else training_dtype(on_cpu)
    accelerator = _start_accelerator(settings, on_cpu)
    if accelerator.is_main_process:
        write_settings(settings.out, settings.recorded())
    accelerator.wait_for_everyone()
    if deepspeed.is_enabled():
        deepspeed.configure(accelerator, dtype, settings.four_bit)
    # Weights that will be sharded are loaded whole first, but never onto a GPU, which they might not fit.
    sharded = (deepspeed.is_enabled() or accelerator.is_fsdp2) and not settings.four_bit
    device = "cpu" if sharded else str(accelerator.device)
    pixels = settings.pixels
    if pixels is None and settings.adapter is not None:
        pixels = stored_pixels(settings.adapter)
    llm = MultimodalLLM.load(
        resolve_model(mllm), device=device, dtype=dtype, four_bit=settings.four_bit, pixels=pixels
    )

    def load_opener() -> TrainedImageOpener | PhraseImageOpener:
        opener, _ = sams.load_image_opener(sam, str(accelerator.device))
        trained = TrainedImageOpener(opener, Dino(dino, str(accelerator.device)) if dino else None)
        if concepts is None:
            return trained
        return PhraseImageOpener(trained, concept_loading.load_concept_segmenter(concepts, opener)[0])

    sam_origin = PartOrigin(sam, sams.sam_checksum(sam))
    regions = f"{sams.opener_key(sam)} dino {dino}"
    found_by = None
    if concepts is not None:
        found_by = PartOrigin(concepts, concept_loading.concepts_checksum(concepts))
        regions = f"{regions} concepts {found_by.checksum} {MIN_SCORE} {MAX_INSTANCES}"
    origin = AdapterOrigin(mllm, sam_origin, dino, regions, found_by)
    train(settings, llm, origin, load_opener, accelerator)


def training_dtype(on_cpu: bool) -> torch.dtype:
    """bfloat16 where a GPU has it, else float32: the gradients of float16 would need to be scaled."""
    import torch

    from assistant.mllm.loading import default_dtype

    dtype = default_dtype("cpu" if on_cpu else "cuda")
    return torch.float32 if dtype == torch.float16 else dtype


def _start_accelerator(settings: TuneSettings, on_cpu: bool) -> Accelerator:
    """accelerate's handle on the processes and devices of this run, logging where --log-with says."""
    from accelerate import Accelerator

    from assistant.errors import BadInput

    try:
        accelerator = Accelerator(
            cpu=on_cpu, mixed_precision="no", log_with=settings.log_with, project_dir=settings.out
        )
        accelerator.init_trackers(settings.out.name)
    except (ImportError, ValueError) as error:
        raise BadInput(
            f"--log-with {settings.log_with}: {str(error).splitlines()[0]}; pip install {settings.log_with}"
        ) from None
    return accelerator
