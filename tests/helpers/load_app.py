"""The real page under load and under attack; prints figures and writes them as JSON.

    python -m tests.helpers.load_app --out load.json               # 20 clients, 300 files, 300 questions
    python -m tests.helpers.load_app --clients 5 --seconds 20 --fuzz 20
    python -m tests.helpers.load_app --clients 0 --out fuzz.json   # goes on after an earlier run's last case

It starts `app.py` on the pocket preset as a process of its own. Clients ask about 16 photos, each at its own
pace, from none to ten seconds of thought; every answer must equal the one that was given when nobody else
asked. The exit code is 1 where one does not, where anything is refused without one polite line, or where the
process ends.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assistant.files import replace_whole

APP = Path(__file__).parents[2] / "app.py"
QUESTIONS = [
    "where is the cat?",
    "what could I drink from?",
    "is there a person, and is there a zebra?",
    "what is in the picture?",
]
PACES = [0, 1, 3, 10]  # seconds of thought between two questions, on average, of every fourth client
START_TIMEOUT = 300  # seconds in which the page must answer
MAX_REFUSAL_LENGTH = 700  # characters
# Opened images that the page holds while it is attacked: many of the hostile files have the same pixels.
CACHED_IMAGES_UNDER_ATTACK = 200

Figures = dict[str, Any]


def write_photos(folder: Path) -> list[Path]:
    """Write 16 different photos, made of four of scikit-image's, into a folder."""
    import numpy as np
    import skimage.data
    from PIL import Image

    files = []
    for name in ("chelsea", "coffee", "astronaut", "rocket"):
        image = getattr(skimage.data, name)()
        height, width = image.shape[:2]
        variants = (image, image[:, ::-1], image[: height * 3 // 4], image[:, width // 4 :])
        for k, variant in enumerate(variants):
            files.append(folder / f"{name}{k}.png")
            Image.fromarray(np.ascontiguousarray(variant)).save(files[-1])
    return files


class PageProcess:
    """`app.py` as a process of its own.

    Args:
        folder: Where its output is written.
        cached_images: Number of opened images that it holds; None for its default.
    """

    def __init__(self, folder: Path, cached_images: int | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log = open(folder / "page.log", "w+")
        start = "import sys, app; "
        if cached_images:
            start += f"app.MAX_CACHED_IMAGES = {cached_images}; "
        start += "sys.exit(app.main(sys.argv[1:]))"
        command = [sys.executable, "-c", start, "--port", str(port)]
        self.process = subprocess.Popen(command, cwd=APP.parent, stdout=self.log, stderr=self.log)
        self.address = f"http://127.0.0.1:{port}/"

    def client(self):
        """A program that visits the page, once it answers."""
        from gradio_client import Client

        end = time.monotonic() + START_TIMEOUT
        while True:
            try:
                return Client(self.address, verbose=False)
            except Exception:
                if not self.is_alive() or time.monotonic() > end:
                    output = Path(self.log.name).read_text()[-2000:]
                    raise SystemExit(f"the page did not start: {output}") from None
                time.sleep(1)

    def memory(self) -> float:
        """Resident memory in MB."""
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None


def ask(client, file: Path, question: str) -> dict:
    """What the page answers about a photo."""
    from gradio_client import handle_file

    return client.predict(handle_file(str(file)), question, api_name="/ask")


@dataclass
class LoadResults:
    """What all clients saw: seconds of each answer, questions that got another's answer, and errors."""

    waits: list[float] = field(default_factory=list)
    mixed_up: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def measure_load(page: PageProcess, files: list[Path], clients: int, seconds: float) -> Figures:
    """Let clients ask at the same time, and compare their answers with those of one alone."""
    cases = [(file, question) for file in files for question in QUESTIONS]
    alone = page.client()
    expected = {case: ask(alone, *case) for case in cases}
    results = LoadResults()
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(target=visit, args=(page, number, cases, expected, end, results))
        for number in range(clients)
    ]
    memory = []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(page.memory())
        time.sleep(1)
    half = len(memory) // 2
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": len(results.waits),
        "mixed_up": len(results.mixed_up),
        "errors": results.errors,
        "wait_median_s": round(statistics.median(results.waits), 2),
        "wait_p95_s": round(sorted(results.waits)[int(len(results.waits) * 0.95)], 2),
        "memory_mb": {
            "start": round(memory[0]),
            "first_half_max": round(max(memory[: half or 1])),
            "second_half_max": round(max(memory[half:])),
        },
    }


def visit(
    page: PageProcess,
    number: int,
    cases: list[tuple[Path, str]],
    expected: dict[tuple[Path, str], dict],
    end: float,
    results: LoadResults,
) -> None:
    """One client, which asks until `end` (of `time.monotonic`) at its own pace."""
    rng = random.Random(number)
    client = page.client()
    pace = PACES[number % len(PACES)]
    while time.monotonic() < end:
        case = rng.choice(cases)
        start = time.monotonic()
        try:
            reply = ask(client, *case)
            results.waits.append(time.monotonic() - start)
            if reply != expected[case]:
                results.mixed_up.append(case[1])
        except Exception as error:
            results.errors.append(str(error)[:200])
        time.sleep(rng.random() * 2 * pace)


@dataclass(frozen=True)
class HostileCase:
    """One thing to send; kind: "questions" or "files", in which the figures count it."""

    kind: str
    file: Path
    question: str
    name: str


def hostile_cases(folder: Path, count: int) -> list[HostileCase]:
    """`count` questions about one good photo, which is opened once, then as many files."""
    from tests.helpers.hostile import hostile_files, hostile_questions

    good = write_photos(folder)[0]
    questions = [HostileCase("questions", good, q, repr(q[:60])) for q in hostile_questions(count)]
    files = [
        HostileCase("files", file, "where is the cat?", file.name)
        for file in hostile_files(folder / "hostile", count)
    ]
    return questions + files


def fuzz(page: PageProcess, folder: Path, count: int, figures: Figures, save: Callable[[], None]) -> None:
    """Send hostile questions and files.

    Goes on where `figures` end, fills them, and calls `save` after every case, so that a run cut short is not
    lost.
    """
    client = page.client()
    for name in ("files", "questions", "answered", "refused", "seconds"):
        figures.setdefault(name, 0)
    figures.setdefault("bad", [])
    cases = hostile_cases(folder, count)
    done = {kind: figures[kind] for kind in ("questions", "files")}
    for kind in ("questions", "files"):
        for case in [case for case in cases if case.kind == kind][done[kind] :]:
            start = time.monotonic()
            send(client, case, figures)
            figures[kind] += 1
            figures["seconds"] = round(figures["seconds"] + time.monotonic() - start, 1)
            if not page.is_alive():
                figures["bad"].append(f"{case.name}: the process ended")
                save()
                return
            figures["memory_mb"] = round(page.memory())
            save()
    save()


def send(client, case: HostileCase, figures: Figures) -> None:
    """Send one case, and count how it ended."""
    try:
        reply = ask(client, case.file, case.question)
        figures["answered"] += 1
        if not isinstance(reply.get("text"), str):
            figures["bad"].append(f"{case.name}: no answer")
    except Exception as error:
        figures["refused"] += 1
        message = str(error)
        polite = (
            type(error).__name__ == "AppError"
            and "\n" not in message.strip()
            and len(message) <= MAX_REFUSAL_LENGTH
            and "went wrong" not in message
        )
        if not polite:
            figures["bad"].append(f"{case.name}: {type(error).__name__}: {message[:200]}")


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.helpers.load_app",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--fuzz", type=int, default=300)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the page ends with this
    return run(args.clients, args.seconds, args.fuzz, args.out)


def run(clients: int, seconds: float, fuzz_count: int, out: Path | None) -> int:
    """Measure the load (unless there are no clients), then fuzz; returns the exit code.

    Args:
        clients: Number of clients.
        seconds: How long they ask.
        fuzz_count: Number of hostile questions, and of hostile files.
        out: Where the figures are written; None for nowhere.
    """
    resumes = out is not None and out.exists() and not clients
    figures: Figures = json.loads(out.read_text()) if out and resumes else {}

    def save() -> None:
        if out:
            with replace_whole(out) as temporary:
                temporary.write_text(json.dumps(figures, indent=1))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = PageProcess(folder, None if clients else CACHED_IMAGES_UNDER_ATTACK)
        try:
            if clients:
                figures["load"] = measure_load(page, write_photos(folder), clients, seconds)
                print(json.dumps(figures["load"]), flush=True)
            if fuzz_count:
                fuzz(page, folder, fuzz_count, figures.setdefault("fuzz", {}), save)
            alive = page.is_alive()
        finally:
            print(json.dumps(figures.get("fuzz", {})), flush=True)
            page.process.terminate()
            page.process.wait(30)
    save()
    load = figures.get("load", {})
    failed = not alive or figures.get("fuzz", {}).get("bad") or load.get("mixed_up") or load.get("errors")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
