"""The command `label`: a folder of photos and a list of classes become a labelled set."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.cli import add_model_arguments, model_options

if TYPE_CHECKING:
    from assistant.label.output import LabelSummary

ENGINES = ("plain", "ray")  # as in assistant.label.settings, which is not loaded for --help
MAX_FAILURES_PRINTED = 10


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "label",
        help="label a folder of photos with a list of classes: COCO, YOLO and PNG files",
        description="Label a folder of photos with a list of classes. Writes instances.json (COCO), "
        "data.yaml with labels/ (YOLO), label_maps/ (PNG) and sheet.html, to be checked by eye. The same "
        "command goes on where it was stopped.",
    )
    parser.add_argument("photos", type=Path, help="folder with the photos")
    parser.add_argument(
        "--classes",
        required=True,
        metavar="NAMES",
        help='a text file, one name a line, or the names themselves: "cup, spoon"',
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--workers", type=int, default=1, help="number of processes, each with models of its own (default: 1)"
    )
    parser.add_argument(
        "--engine",
        default="plain",
        choices=ENGINES,
        help="ray: workers of a Ray cluster, on this machine or at RAY_ADDRESS (default: plain)",
    )
    add_model_arguments(parser)
    parser.set_defaults(run=label)


def label(args: argparse.Namespace) -> None:
    """Label the photos of a folder."""
    from assistant.label.run import label_photos
    from assistant.label.settings import LabelSettings, read_classes

    settings = LabelSettings(
        args.photos, read_classes(args.classes), args.out, model_options(args), args.workers, args.engine
    )
    print_summary(label_photos(settings))


def print_summary(summary: LabelSummary) -> None:
    """Print what was labelled, and on stderr what was not."""
    import warnings

    from assistant.errors import Note
    from assistant.label.output import FAILED_FILE, SHEET_FILE

    for note in summary.notes:
        warnings.warn(note, Note, stacklevel=2)
    for name, error in list(summary.failures.items())[:MAX_FAILURES_PRINTED]:
        print(f"no labels for {name}: {error}", file=sys.stderr)
    counts = ", ".join(
        f"{name} {count} in {summary.in_photos[name]}" for name, count in summary.instances.items() if count
    )
    print(f"{summary.photos} photos labelled in {summary.out}: {counts or 'none of the classes was found'}")
    missing = [name for name, count in summary.instances.items() if not count and name not in summary.unknown]
    if missing:
        print(f"in no photo: {', '.join(missing)}")
    if summary.unknown:
        print(f"words that the model does not know: {', '.join(summary.unknown)}")
    if summary.failures:
        count = len(summary.failures)
        print(f"{count} photo{'s have' if count > 1 else ' has'} no labels: {summary.out / FAILED_FILE}")
    print(f"to be checked: {summary.out / SHEET_FILE}")
