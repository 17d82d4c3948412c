"""The console script `maskpick`: every command of the project under one name.

maskpick chat              # python app.py
maskpick ask photo.jpg "what keeps the rain off?"           # python -m assistant ask ...
maskpick eval records --root records.jsonl --out runs/eval  # python -m eval records ...
"""

from __future__ import annotations

import importlib
import runpy
import signal
import sys
from collections.abc import Sequence

from assistant.errors import BAD_INPUT_CODE, exit_code
from assistant.interruption import end_at_once

# Commands that are modules of their own; `python -m assistant` has all others.
MODULES = {"chat": "app", "datagen": "datagen", "finetune": "finetune", "eval": "eval"}
GROUPS = {  # heading: {command: what it does}, what most people want first
    "For most people": {
        "chat": "open the chat in the browser: ask, click, correct, save",
        "ask": "find what a question means in a photo, in several, or in a folder",
        "label": "label a folder with a list of classes: COCO, YOLO and PNG files",
    },
    "More about photos": {
        "everything": "all the masks of a photo",
        "like": "what is like an example in another photo",
        "attend": "a heat map of where the model attends for a phrase",
        "names": "what a preset knows by name",
        "rank-layers": "which layers of a model attend best",
    },
    "To tune it and to measure it": {
        "datagen": "questions with masks from photos with masks",
        "finetune": "tune a preset, or any multimodal LLM, on them",
        "eval": "benchmarks, compared with published figures",
    },
    "When something is wrong": {
        "doctor": "check a preset on this machine: device, speed, memory, an answer",
    },
}
EXAMPLES = """\
  maskpick chat
  maskpick ask photo.jpg "what keeps the rain off, and is there a bear?"
  maskpick label photos --classes "cup, spoon" --out labelled
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command that a command line names.

    Args:
        words: The command line without the program's name; None for that of this process.

    Returns:
        The exit code of the command.
    """
    signal.signal(signal.SIGINT, end_at_once)  # Ctrl-C may come while a command is imported
    command, *others = [*(sys.argv[1:] if words is None else words)] or ["--help"]
    known = [name for group in GROUPS.values() for name in group]
    if command in ("-h", "--help", "help"):
        return exit_code(lambda: print(help_text()))
    if command == "--version":
        return exit_code(print_version)
    if command not in known:
        print(f"error: there is no command {command!r}; choose one of: {', '.join(known)}", file=sys.stderr)
        return BAD_INPUT_CODE
    if command in MODULES:
        return run_module(MODULES[command], others)
    # By name, as the other modules: this is the front of them all, and none of them knows of it.
    return importlib.import_module("assistant.__main__").main([command, *others], prog="maskpick")


def help_text() -> str:
    """What --help prints."""
    lines = ["usage: maskpick COMMAND ...", "", EXAMPLES.rstrip()]
    for heading, commands in GROUPS.items():
        lines += ["", f"{heading}:", *(f"  {name:<12} {text}" for name, text in commands.items())]
    return "\n".join([*lines, "", "`maskpick COMMAND --help` has the options of a command."])


def print_version() -> None:
    """Print the version of the package."""
    from importlib.metadata import version

    print(f"maskpick {version('maskpick')}")


def run_module(name: str, words: Sequence[str]) -> int:
    """Run a module of the project as `python -m` does; returns its exit code."""
    sys.argv = [name, *words]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else BAD_INPUT_CODE if end.code else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
