"""Command-line options that name the models, the same for every command.

parser = argparse.ArgumentParser()
add_model_arguments(parser)
assistant = open_assistant(model_options(parser.parse_args()))
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.loading.names import SELECTIONS
from assistant.presets import PRESETS, ModelOptions

if TYPE_CHECKING:
    from assistant.scene import Assistant


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which models a command uses; `model_options` reads them."""
    parser.add_argument(
        "--preset",
        default="pocket",
        help=f"one of {', '.join(PRESETS)} (default: pocket, which runs offline on a CPU)",
    )
    parser.add_argument(
        "--mllm",
        help="another multimodal LLM than the preset's: a hub id, a folder, or openai:MODEL on a server",
    )
    parser.add_argument(
        "--base-url",
        metavar="URL",
        help="where the server of an openai:MODEL is, such as http://127.0.0.1:8000/v1",
    )
    parser.add_argument(
        "--sam", help="another SAM than the preset's: a hub id, a folder, a .pth file, or pocket"
    )
    parser.add_argument(
        "--adapter", type=Path, metavar="DIR", help="folder that finetune wrote, to put on the models"
    )
    parser.add_argument(
        "--selection",
        choices=SELECTIONS,
        help="how masks are selected: by numbers drawn on the image (marks), by boxes, by numbers or boxes "
        "(hybrid), by names that a segmenter finds (concepts), or by what finetune trained (default: what "
        "suits the LLM)",
    )
    parser.add_argument(
        "--concepts",
        metavar="MODEL",
        help="finds the things that the LLM names: SAM 3 (with --sam of the same), a zero-shot detector such "
        "as IDEA-Research/grounding-dino-base (with any --sam), as a hub id or a folder, or pocket (with "
        "--sam pocket) for the names that it was taught",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="concepts: how the confidence of a target follows from what LLM and segmenter say, as "
        "`python -m finetune calibrate` wrote it",
    )
    parser.add_argument(
        "--verify",
        "--second-look",
        action="store_true",
        help="hybrid, marks and boxes: show each selected mask to the model again, to be kept or dropped",
    )
    parser.add_argument(
        "--four-bit", action="store_true", help="keep the LLM's weights in 4 bits (needs maskpick[bnb])"
    )
    parser.add_argument(
        "--pixels",
        type=int,
        metavar="N",
        help="pixels of a photo that the LLM is shown, at most: fewer take less memory, more show small "
        "things (default: what it was tuned with, or what suits it, about a million)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="tokens that the LLM may write for one answer; on a server its thoughts count too (default: "
        "1024, and 8192 more for an LLM that thinks first)",
    )
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:1 (default: the GPU if there is one; pocket: the CPU)"
    )


def model_options(args: argparse.Namespace) -> ModelOptions:
    """The options that `add_model_arguments` added, as they were given."""
    return ModelOptions(
        preset=args.preset,
        mllm=args.mllm,
        sam=args.sam,
        adapter=args.adapter,
        selection=args.selection,
        base_url=args.base_url,
        four_bit=args.four_bit,
        verify=args.verify,
        device=args.device,
        pixels=args.pixels,
        max_tokens=args.max_tokens,
        concepts=args.concepts,
        calibration=args.calibration,
    )


def open_assistant(options: ModelOptions) -> Assistant:
    """The assistant that the options name. Raises BadInput where its models cannot be had."""
    from assistant.scene import Assistant  # torch is loaded when a model is

    return Assistant(*options.load())
