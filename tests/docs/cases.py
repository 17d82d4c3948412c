"""The table of documented commands, `cases/*.toml`: how each is run here, and what it must leave behind.

    CASES       # every command in a `sh` fence of README.md, CONTRIBUTING.md and docs/*.md
    SNIPPETS    # every `python` fence

The data are those of `world.py`, so that documented paths stand as they are; what is changed is mostly steps
and sizes. What cannot run as it is documented says why in `DOUBLES`. `test_documents.py` checks that no
command lacks an entry, and no entry a command.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from tests.docs import checks
from tests.docs.checks import Check

# Everything that does not run as it is documented, and what runs in its place.
DOUBLES = {
    "hub": "No model hub is reached: its cache holds tiny random models of the same classes under these ids.",
    "folder": "The folder or file of that name holds a tiny random model in the layout of the published one.",
    "four bits": "bitsandbytes is an extra: the LLM stays in 32 bits. Where it is installed, "
    "tests/finetune/mllm trains in 4 bits.",
    "known answer": "A model with random weights does not know the answer: the pocket preset is examined in "
    "its place, others in tests/assistant/commands/test_doctor.py.",
    "server": "A server on loopback answers by rule in its place: tests/helpers/chat_server.py.",
    "page": "The page is served until it is stopped: it is opened on a free port, used once, and stopped.",
    "processes": "Two processes on a CPU stand for one on each GPU.",
    "spread": "accelerate spreads weights over GPUs only: tests/helpers/spread_on_cpus.py lets it take two "
    "CPU processes for GPUs, and starts the same command.",
    "make": "`make -n` shows what make would do: a test cannot install its own environment, or run itself.",
}


@dataclass(frozen=True)
class Case:
    """One documented command.

    Attributes:
        name: What other cases call it.
        document: The path of the document from the repository's root.
        command: As it is documented, on one line, without its comment.
        leaves: Checks of what it leaves behind.
        needs: Names of the cases that run before it.
        edits: Parts of the command, and what replaces each here.
        extra: Options added at the end.
        doubles: Keys of `DOUBLES`: why it does not run as it is documented.
        quick: Run by `make test` too.
        in_clone: Run in a copy of the packages, into which it writes or whose files it names.
        renamed: Folders that an earlier command has written under the same name, moved away before.
        is_page: It serves the page.
        package: One that it needs beyond the test extra; without it, the command must say how to install it.
    """

    name: str
    document: str
    command: str
    leaves: tuple[Check, ...]
    needs: tuple[str, ...] = ()
    edits: dict[str, str] = field(default_factory=dict)
    extra: str = ""
    doubles: tuple[str, ...] = ()
    quick: bool = False
    in_clone: bool = False
    renamed: tuple[str, ...] = ()
    is_page: bool = False
    package: str = ""

    @property
    def fails(self) -> bool:
        """Whether it can only say that a package is missing."""
        return bool(self.package) and find_spec(self.package) is None

    def checks(self) -> tuple[Check, ...]:
        return (checks.complains(f"pip install {self.package}"),) if self.fails else self.leaves

    def command_to_run(self, server: Callable[[], str]) -> str:
        """The command with its edits. server: starts the chat server and gives its address."""
        command = self.command
        for part, replacement in self.edits.items():
            assert part in command, f"{self.name}: {part!r} is not in the command"
            command = command.replace(part, replacement)
        command = f"{command} {self.extra}".strip()
        return command.replace("SERVER", server()) if "SERVER" in command else command


@dataclass(frozen=True)
class Snippet:
    """One documented piece of Python.

    Attributes:
        name, document, quick: As of a `Case`.
        first_line: Of the snippet.
        before: Python that the reader has run before.
        after: What must hold at its end.
        page: The command that serves the page which it talks to.
    """

    name: str
    document: str
    first_line: str
    before: str = ""
    after: str = ""
    page: str = ""
    quick: bool = False


def read_cases(file: Path) -> tuple[list[Case], list[Snippet]]:
    """The entries of one document's file."""
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    cases = []
    for row in table.get("commands", ()):
        leaves = [check_named(*words) for words in row.pop("leaves")]
        row = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        command = " ".join(row.pop("command").split())
        cases.append(Case(document=table["document"], command=command, leaves=tuple(leaves), **row))
    snippets = [Snippet(document=table["document"], **row) for row in table.get("snippets", ())]
    return cases, snippets


def check_named(name: str, *arguments: str | int) -> Check:
    """A check of `checks.py`, with its arguments."""
    return getattr(checks, name)(*arguments)


CASES: list[Case] = []
SNIPPETS: list[Snippet] = []
for _file in sorted((Path(__file__).parent / "cases").glob("*.toml")):
    _cases, _snippets = read_cases(_file)
    CASES += _cases
    SNIPPETS += _snippets
