"""Runs the documented commands as a reader would: one after the other, in one folder a document.

walkthrough = Walkthrough("docs/tuning.md", folder, hub)
walkthrough.run(case)             # after the cases that it needs; each runs once
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.files import cache_folder
from tests.docs.extraction import words_of
from tests.docs.world import ROOT, copy_packages, write_user_files
from tests.helpers.chat_server import ChatServer

if TYPE_CHECKING:
    from tests.docs.cases import Case, Snippet

PROGRAMS = {  # the first words of a command, and how it is started here
    (".venv/bin/python",): [sys.executable],
    ("python", "app.py"): [sys.executable, "-m", "app"],
    ("python",): [sys.executable],
    ("accelerate",): [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
    ("maskpick",): [sys.executable, "-m", "assistant.commands.shell"],
    ("make",): ["make", "-C", str(ROOT)],
}
COMMAND_SECONDS = 1200  # a command may take on busy cores
START_SECONDS = 300  # the page may take until it answers


@dataclass
class Outcome:
    """What a command left: its output, the folder in which it ran, and the address that it serves."""

    walkthrough: "Walkthrough"
    stdout: str = ""
    stderr: str = ""
    url: str = ""

    @property
    def folder(self) -> Path:
        return self.walkthrough.folder


@dataclass
class Walkthrough:
    """The commands of one document in one folder.

    Attributes:
        document: Its path from the repository's root.
        folder: Where they run; written at the first one.
        hub: The folder of `write_hub_cache`.
        cases: Those of the document by their names.
    """

    document: str
    folder: Path
    hub: Path
    cases: dict[str, "Case"]
    finished: dict[str, bool] = field(default_factory=dict)

    def run(self, case: "Case") -> None:
        """Run a case, after the cases that it needs, and check what it leaves; at most once."""
        if case.name in self.finished:
            assert self.finished[case.name], f"{case.name} has failed before"
            return
        self.finished[case.name] = False
        for name in case.needs:
            self.run(self.cases[name])
        self._prepare(case)
        with contextlib.ExitStack() as stack:
            command = case.command_to_run(lambda: stack.enter_context(contextlib.closing(ChatServer())).url)
            if case.is_page:
                outcome = Outcome(self, url=stack.enter_context(self.page(command)))
            else:
                outcome = self.execute(command, fails=case.fails)
            for check in case.checks():
                check(outcome)
        self.finished[case.name] = True

    def run_snippet(self, snippet: "Snippet", text: str) -> None:
        """Run a documented piece of Python as a program."""
        self._write_folder()
        with contextlib.ExitStack() as stack:
            if snippet.page:
                url = stack.enter_context(self.page(snippet.page))
                text = text.replace("http://127.0.0.1:7860", url)
            program = self.folder / f"{snippet.name}.py"
            program.write_text(snippet.before + text + snippet.after)
            self.execute(f"python {program.name}")

    def _write_folder(self) -> None:
        if not self.folder.exists():
            write_user_files(self.folder, car_parts=self.document == "docs/tuning.md")

    def _prepare(self, case: "Case") -> None:
        self._write_folder()
        if case.in_clone and not (self.folder / "finetune").exists():
            copy_packages(self.folder)
        for name in case.renamed:
            number = len(list(self.folder.glob(f"{name}.*")))
            (self.folder / name).rename(self.folder / f"{name}.{number}")

    def execute(self, command: str, fails: bool = False) -> Outcome:
        """Run a command to its end. No warning of any library may reach the reader's terminal."""
        done = subprocess.run(
            started_with(words_of(command)),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        assert (done.returncode != 0) == fails, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
        assert "Warning:" not in done.stderr, f"{command}\n{done.stderr[-4000:]}"
        return Outcome(self, done.stdout, done.stderr)

    @contextlib.contextmanager
    def page(self, command: str) -> Iterator[str]:
        """The address of the page that a command serves, until it is stopped as by `kill`."""
        port = free_port()
        log = self.folder / f"page-{port}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*started_with(words_of(command)), "--port", str(port)],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process, log)
            yield url
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) in (0, -signal.SIGTERM), log.read_text()[-4000:]
            printed = [line for line in log.read_text().splitlines() if not line.startswith("note: ")]
            assert len(printed) == 1 and url in printed[0], printed
        finally:
            process.kill()
            process.wait()

    def environment(self) -> dict[str, str]:
        """Offline, in a home of its own, with the weights that were fetched before."""
        home = self.folder.with_name(f"{self.folder.name}-home")
        home.mkdir(exist_ok=True)
        return os.environ | {
            "HOME": str(home),
            "MASKPICK_CACHE": str(cache_folder()),
            "HF_HOME": str(self.hub),
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "localhost,127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "OPENAI_API_KEY": "a-key-of-nobody",
            "PYTHONPATH": str(ROOT),  # the packages that are tested, also where others are installed
        }


def started_with(words: list[str]) -> list[str]:
    for first, program in PROGRAMS.items():
        if tuple(words[: len(first)]) == first:
            return [*program, *words[len(first) :]]
    raise AssertionError(f"how is {words[0]} started here?")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def read_url(url: str) -> bytes:
    """What the address answers, without any proxy."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as answer:
        return answer.read()


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    """Until the page answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-4000:]
        with contextlib.suppress(OSError):
            read_url(url)
            return
        time.sleep(0.5)
    raise AssertionError(f"no page in {START_SECONDS} s: {log.read_text()[-4000:]}")
