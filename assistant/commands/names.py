"""The command `names`: what a preset knows by name."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING

from assistant.cli import add_model_arguments, model_options

if TYPE_CHECKING:
    from assistant.pipeline import KnownName

LINE_WIDTH = 100  # characters
HARD_SPACE = "\xa0"  # where no line is broken


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("names", help="what a preset knows by name")
    parser.add_argument(
        "--json", action="store_true", help="print names, groups and the other words for them as JSON"
    )
    add_model_arguments(parser)
    parser.set_defaults(run=names)


def names(args: argparse.Namespace) -> None:
    """Print the names that the models know, group by group."""
    pipeline, _ = model_options(args).load()
    known = pipeline.known_names()
    if args.json:
        print(json.dumps([dataclasses.asdict(name) for name in known], indent=1, ensure_ascii=False))
    elif known:
        print(listing(known))
    else:
        print("There is no list of names: ask for anything that has one.")


def listing(known: list[KnownName]) -> str:
    """The names by their groups, each with the number of other words for it, in lines of LINE_WIDTH."""
    groups: dict[str, list[str]] = {}
    for name in sorted(known, key=lambda each: each.name):
        count = f" (+{len(name.words)})" * bool(name.words)
        groups.setdefault(name.group, []).append(f"{name.name}{count}".replace(" ", HARD_SPACE))
    words = sum(len(name.words) for name in known)
    lines = [f"{len(known)} names and {words:,} other words for them (+N):"]
    for group, members in sorted(groups.items()):
        lines += textwrap.wrap(f"{group}: {', '.join(members)}", LINE_WIDTH, subsequent_indent="  ")
    return "\n".join(lines).replace(HARD_SPACE, " ")
