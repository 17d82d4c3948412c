"""Benchmarks over the free-running assistant and its parts, each with a version.

    python -m eval reasonseg --root ReasonSeg --split val --protocol both --out runs/eval/reasonseg
    python -m eval records --root records.jsonl --out runs/eval/records
    python -m eval reasonseg --root ReasonSeg --split val --predictions lisa-7b --out runs/eval/lisa-7b
    python -m eval compare runs/eval/lisa-7b runs/eval/reasonseg
    accelerate launch --multi_gpu --num_processes 2 -m eval records --root records.jsonl --out runs/eval/all

Each writes result.json, samples.jsonl and report.html; the same command again resumes.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C may come while the modules below are imported
    import signal

    from assistant.interruption import end_at_once

    signal.signal(signal.SIGINT, end_at_once)

import argparse
import contextlib
import importlib
import sys
from pathlib import Path

from assistant.errors import exit_code
from assistant.files import lock_folder
from eval.settings import add_common_arguments

BENCHMARKS = {  # name: (module, what it is)
    "records": (
        "eval.benchmarks.records",
        "questions from a records file, answered freely: gIoU, cIoU, N_acc, T_acc, the proposals' oracle",
    ),
    "everyday": (
        "eval.benchmarks.everyday",
        "everyday questions in people's own words about a COCO-format folder: gIoU, N_acc, T_acc, denials",
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
        "segmentation from attention: all layers, ranked layers, tuned on one image per category: mIoU",
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


def parse(words: list[str]) -> argparse.Namespace:
    """Read a command line, without the name of the program; only the benchmark that is run is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, (module, about) in (BENCHMARKS | TOOLS).items():
        benchmark = benchmarks.add_parser(name, help=about, description=about)
        if name in BENCHMARKS:
            add_common_arguments(benchmark)
        if name in words[:1]:
            importlib.import_module(module).add_arguments(benchmark)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run a benchmark and return the exit code; `words`: the command line, None for this process's."""
    return exit_code(lambda: run(sys.argv[1:] if words is None else words))


def run(words: list[str]) -> None:
    """Run the benchmark that a command line names, in an output folder that no other run writes to."""
    args = parse(words)
    module, _ = (BENCHMARKS | TOOLS)[args.benchmark]
    with lock_folder(Path(args.out)) if args.benchmark in BENCHMARKS else contextlib.nullcontext():
        importlib.import_module(module).main(args)


if __name__ == "__main__":
    sys.exit(main())
