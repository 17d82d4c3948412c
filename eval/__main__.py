"""Benchmarks over the free-running assistant and its parts, each with a version.

    python -m eval reasonseg --root ReasonSeg --split val --protocol both --out runs/eval/reasonseg
    python -m eval records --root records.jsonl --out runs/eval/records
    python -m eval reasonseg --root ReasonSeg --split val --predictions lisa-7b --out runs/eval/lisa-7b
    python -m eval compare runs/eval/lisa-7b runs/eval/reasonseg
    accelerate launch --multi_gpu --num_processes 2 -m eval records --root records.jsonl --out runs/eval/records

Each writes result.json, samples.jsonl and report.html; the same command again resumes.
"""

import argparse
import importlib
import sys
from pathlib import Path

from assistant.cli import add_model_arguments
from assistant.errors import BadInput, exit_code

BENCHMARKS = {  # name: (module, what it is)
    "records": (
        "eval.benchmarks.records",
        "questions from a records file, answered freely: gIoU, cIoU, N_acc, T_acc, the proposals' oracle",
    ),
    "reasonseg": ("eval.benchmarks.reasonseg", "ReasonSeg, under LISA's protocol, Seg-Zero's, or both"),
    "llmseg40k": ("eval.benchmarks.llmseg40k", "LLM-Seg40K's json"),
    "refcoco": ("eval.benchmarks.refer", "RefCOCO"),
    "refcoco+": ("eval.benchmarks.refer", "RefCOCO+"),
    "refcocog": ("eval.benchmarks.refer", "RefCOCOg"),
    "grefcoco": ("eval.benchmarks.refer", "gRefCOCO: several targets, or none"),
    "boxes": (
        "eval.benchmarks.boxes",
        "expressions with boxes and false premises: acc@.5 of the answer's box, N_acc, T_acc",
    ),
    "semantic": (
        "eval.benchmarks.semantic",
        "class lists answered one by one: mIoU on ADE20K, COCO-Stuff, Cityscapes or label PNGs",
    ),
    "oneshot": (
        "eval.benchmarks.oneshot",
        "segmentation from attention: all layers, ranked layers, tuned on one photo per category: mIoU",
    ),
    "interactive": (
        "eval.benchmarks.interactive",
        "SAM's task on a COCO-format folder: a box, a click, click by click",
    ),
    "proposals": (
        "eval.benchmarks.proposals",
        "everything mode on a COCO-format folder: what the best choice of proposals could score",
    ),
    "fewshot": (
        "eval.benchmarks.fewshot",
        "PASCAL-5i, COCO-20i and COCO-format folders: segment like a reference, with and without a name",
    ),
}
TOOLS = {
    "compare": ("eval.compare", "two runs of one benchmark: the paired difference with its interval"),
    "speed": ("eval.speed", "our everything mode against its peers, and the cost of a question"),
    "tuning": (
        "eval.tuning",
        "a step of tuning a multimodal LLM, and trl's on the same batch: tokens a second, memory, ratio",
    ),
}


def open_assistant(args: argparse.Namespace):
    """The assistant that the options name."""
    from assistant import cli

    options = cli.model_options(args)
    assistant = cli.open_assistant(options)
    args.preset = options.describe()  # as results and run.json name it
    return assistant


def open_segmenter(args: argparse.Namespace):
    """(segmenter, {part: sha256}): the preset's, or another; `--sam FILE.safetensors` is a pocket SAM's trained weights.
    The language model is not loaded: nothing that a segmenter does depends on it."""
    from assistant.cli import model_options
    from assistant.presets import load_segmenter

    options = model_options(args)
    segmenter, checksum = load_segmenter(options.sam_or_preset, options.device)
    args.preset = options.describe()
    return segmenter, {"sam": checksum}


def open_proposals(args: argparse.Namespace):
    """(function from an image to its Proposals, {part: sha256}): the preset's own everything mode, or, with any
    `--setting` or a `--sam` file, `assistant.sam.proposals.everything` with those settings."""
    from assistant.cli import model_options
    from assistant.presets import load_everything_mode

    options = model_options(args)
    propose, weights = load_everything_mode(options, everything_settings(args.setting))
    args.preset = options.describe()
    return propose, weights


def everything_settings(words: list[str]) -> dict:
    """["pred_iou_thresh=.7", "fast=true"] -> keyword arguments of `everything`; BadInput for what it does not take."""
    if not words:
        return {}
    import inspect
    import json

    from assistant.sam.proposals import everything

    known = {k for k, p in inspect.signature(everything).parameters.items() if p.kind is p.KEYWORD_ONLY} - {
        "image"
    }
    settings = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            settings[name] = json.loads(value if not value.startswith(".") else "0" + value)
        except ValueError:
            raise BadInput(f"--setting {word}: write NAME=VALUE with a number, true or false") from None
        if name not in known:
            raise BadInput(
                f"--setting {word}: everything mode has no such setting; it has {', '.join(sorted(known))}"
            )
    return settings


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    words = sys.argv[1:] if words is None else words
    for name, (module, about) in (BENCHMARKS | TOOLS).items():
        one = benchmarks.add_parser(name, help=about, description=about)
        if name in BENCHMARKS:
            add_common(one)
        if name in words[:1]:  # only the benchmark that is asked for is imported
            importlib.import_module(module).add_arguments(one)
    return parser.parse_args(words)


def add_common(one: argparse.ArgumentParser) -> None:
    one.add_argument("--root", type=Path, required=True, help="the data: a folder (records: or the file)")
    one.add_argument(
        "--out", type=Path, required=True, help="folder for result.json, samples.jsonl, report.html"
    )
    one.add_argument(
        "--limit",
        type=_positive,
        help="use the first N questions (semantic, interactive, proposals: pictures) only",
    )
    add_model_arguments(one)
    one.add_argument("--seed", type=int, default=0, help="of sampling and of the bootstrap interval")
    one.add_argument("--strict", action="store_true", help="stop at the first input that cannot be used")


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    module = (BENCHMARKS | TOOLS)[args.benchmark][0]
    args.open_assistant, args.open_segmenter, args.open_proposals = (
        open_assistant,
        open_segmenter,
        open_proposals,
    )
    return exit_code(lambda: importlib.import_module(module).main(args))


if __name__ == "__main__":
    sys.exit(main())
