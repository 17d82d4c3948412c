"""Commands and snippets as README.md, CONTRIBUTING.md and docs/*.md show them.

    for command in commands_in(Path("README.md")):
        command.line, command.text      # 24, 'python -m assistant ask photo.jpg "what is it?" --out answer'

A command is a line of a fence that is marked `sh`; a backslash continues it, a comment ends it. A snippet is
the whole of a fence that is marked `python`. Inline commands are code spans that begin with `python`.
"""

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
COMMENT = re.compile(r"""^((?:[^'"#]|"[^"]*"|'[^']*')*?)\s+#.*$""")  # a "#" in quotes begins none
CODE_SPAN = re.compile(r"`(python [^`]+)`")
BRACES = re.compile(r"\{([^{}\s]*,[^{}\s]*)\}")


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language ("" for none), the number of its first line, and its text."""

    language: str
    line: int
    text: str


@dataclass(frozen=True)
class Command:
    """A documented command on one line, without its comment, and the number of the line where it begins."""

    line: int
    text: str


def documents(root: Path) -> list[Path]:
    """The documents whose commands are tested."""
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]


def fences(document: Path) -> list[Fence]:
    text = document.read_text(encoding="utf-8")
    return [
        Fence(match[1], text[: match.start()].count("\n") + 2, match[2]) for match in FENCE.finditer(text)
    ]


def commands_in(document: Path) -> list[Command]:
    """The commands of the `sh` fences, in their order."""
    return [command for fence in fences(document) if fence.language == "sh" for command in commands_of(fence)]


def commands_of(fence: Fence) -> Iterator[Command]:
    start, parts = fence.line, []
    for number, line in enumerate(fence.text.splitlines(), fence.line):
        line = COMMENT.sub(r"\1", line).strip()
        if not parts:
            start = number
        if line and not line.startswith("#"):
            parts.append(line.removesuffix("\\").strip())
        if parts and not line.endswith("\\"):
            yield Command(start, " ".join(parts))
            parts = []


def snippets_in(document: Path) -> list[Fence]:
    """The `python` fences, in their order."""
    return [fence for fence in fences(document) if fence.language == "python"]


def inline_commands_in(document: Path) -> list[str]:
    """Commands in code spans of the text, on one line each."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in CODE_SPAN.findall(text)]


def words_of(command: str) -> list[str]:
    """The words that a shell makes of a command: quotes removed, braces expanded outside of quotes."""
    words = []
    for quoted in shlex.split(command, posix=False):
        (word,) = shlex.split(quoted)
        words += [word] if quoted[0] in "'\"" else expand_braces(word)
    return words


def expand_braces(word: str) -> list[str]:
    """ "a/{b,c}.d" -> ["a/b.d", "a/c.d"]"""
    parts = BRACES.split(word)
    choices = [part.split(",") if k % 2 else [part] for k, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]
