"""The command `doctor`: whether a preset works on this machine, what it takes, and what is wrong."""

from __future__ import annotations

import argparse
import json

from assistant.cli import add_model_arguments, model_options
from assistant.errors import BadInput


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor", help="check a preset on this machine: device, precision, speed, memory, a known answer"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON, to paste into an issue"
    )
    add_model_arguments(parser)
    parser.set_defaults(run=doctor)


def doctor(args: argparse.Namespace) -> None:
    """Examine the models and print what was found. Raises BadInput where something is wrong."""
    from assistant.commands.examination import examine

    report = examine(model_options(args))
    print(json.dumps(report.to_json(), indent=1) if args.json else report.text())
    if report.problems:
        raise BadInput(f"{len(report.problems)} problem{'s' * (len(report.problems) > 1)}, see above")
