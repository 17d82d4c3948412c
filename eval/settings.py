"""The settings that every benchmark has, and their command-line options.

    add_common_arguments(parser)
    settings = eval_settings(parser.parse_args())

What only one benchmark has is a dataclass in its own module, which its `main` reads from the command line.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from assistant.cli import add_model_arguments, model_options
from assistant.presets import ModelOptions


@dataclass(frozen=True)
class EvalSettings:
    """What is scored, on which models, and where the result goes.

    Attributes:
        root: The data: a folder, or for some benchmarks a file.
        out: Folder for result.json, samples.jsonl and report.html.
        limit: Score the first `limit` questions or images only; None for all.
        seed: Seed of sampling and of the bootstrap interval.
        strict: Whether the first input that cannot be used ends the run, instead of being listed in the
            result.
        models: The models that answer.
    """

    root: Path
    out: Path
    limit: int | None = None
    seed: int = 0
    strict: bool = False
    models: ModelOptions = field(default_factory=ModelOptions)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark has; `eval_settings` reads them."""
    parser.add_argument("--root", type=Path, required=True, help="the data: a folder (records: or the file)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for result.json, samples.jsonl, report.html"
    )
    parser.add_argument(
        "--limit",
        type=_positive,
        help="use the first N questions (semantic, interactive, proposals: images) only",
    )
    add_model_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of the bootstrap interval")
    parser.add_argument("--strict", action="store_true", help="stop at the first input that cannot be used")


def eval_settings(args: argparse.Namespace) -> EvalSettings:
    """The settings that `add_common_arguments` added, as they were given."""
    return EvalSettings(
        root=args.root,
        out=args.out,
        limit=args.limit,
        seed=args.seed,
        strict=args.strict,
        models=model_options(args),
    )


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)
