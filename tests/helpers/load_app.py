"""The real page under load and under attack; prints figures and writes them as JSON.

    python -m tests.helpers.load_app --out load.json                      # 20 clients for two minutes, 300 files, 300 questions
    python -m tests.helpers.load_app --clients 5 --seconds 20 --fuzz 20
    python -m tests.helpers.load_app --clients 0 --out fuzz.json          # a fuzz that was stopped goes on after its last case

Starts `app.py` on the pocket preset as its own process. Clients ask about 16 photos at their own pace, from none to ten
seconds of thought; every answer must equal the one that was given when nobody else asked. Exit code 1 where one does
not, where anything is refused without one polite line, or where the process ends.
"""

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
from pathlib import Path

from assistant.files import replace_whole

APP = Path(__file__).parents[2] / "app.py"
QUESTIONS = [
    "where is the cat?",
    "what could I drink from?",
    "is there a person, and is there a zebra?",
    "what is in the picture?",
]


def photos(folder) -> list[Path]:
    """16 different photos made of scikit-image's."""
    import numpy as np
    import skimage.data
    from PIL import Image

    out = []
    for name in ("chelsea", "coffee", "astronaut", "rocket"):
        image = getattr(skimage.data, name)()
        for k, view in enumerate(
            (image, image[:, ::-1], image[: image.shape[0] * 3 // 4], image[:, image.shape[1] // 4 :])
        ):
            out.append(Path(folder) / f"{name}{k}.png")
            Image.fromarray(np.ascontiguousarray(view)).save(out[-1])
    return out


class Page:
    """app.py as a process of its own. kept: how many opened pictures it holds on to, None for its own number."""

    def __init__(self, folder, kept=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log = open(Path(folder) / "page.log", "w+")
        start = f"import sys, app; app.MAX_CACHED_IMAGES = {kept} or app.MAX_CACHED_IMAGES; sys.exit(app.main(sys.argv[1:]))"
        command = [sys.executable, "-c", start, "--port", str(port)]
        self.process = subprocess.Popen(command, cwd=APP.parent, stdout=self.log, stderr=self.log)
        self.address = f"http://127.0.0.1:{port}/"

    def client(self, patience=300):
        from gradio_client import Client

        end = time.monotonic() + patience
        while True:
            try:
                return Client(self.address, verbose=False)
            except Exception:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(
                        f"the page did not start: {Path(self.log.name).read_text()[-2000:]}"
                    ) from None
                time.sleep(1)

    def memory(self) -> float:
        """Resident MB."""
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def alive(self) -> bool:
        return self.process.poll() is None


def ask(client, file, question):
    from gradio_client import handle_file

    return client.predict(handle_file(str(file)), question, api_name="/ask")


def load(page, files, clients, seconds) -> dict:
    first = page.client()
    cases = [(f, q) for f in files for q in QUESTIONS]
    expected = {case: ask(first, *case) for case in cases}
    waits, wrong, errors, memory = [], [], [], []
    end = time.monotonic() + seconds

    def visitor(number):
        rng, client = random.Random(number), page.client()
        pace = [0, 1, 3, 10][number % 4]
        while time.monotonic() < end:
            case, start = rng.choice(cases), time.monotonic()
            try:
                said = ask(client, *case)
                waits.append(time.monotonic() - start)
                if said != expected[case]:
                    wrong.append(case[1])
            except Exception as error:
                errors.append(str(error)[:200])
            time.sleep(rng.random() * 2 * pace)

    threads = [threading.Thread(target=visitor, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(page.memory())
        time.sleep(1)
    half = len(memory) // 2
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": len(waits),
        "mixed_up": len(wrong),
        "errors": errors,
        "wait_median_s": round(statistics.median(waits), 2),
        "wait_p95_s": round(sorted(waits)[int(len(waits) * 0.95)], 2),
        "memory_mb": {
            "start": round(memory[0]),
            "first_half_max": round(max(memory[: half or 1])),
            "second_half_max": round(max(memory[half:])),
        },
    }


def fuzz(page, folder, count, figures, save) -> None:
    """Goes on where `figures` end; fills them and calls `save` after every case, so a run cut short is not lost."""
    from tests.helpers.hostile import hostile_files, hostile_questions

    client, good = page.client(), photos(folder)[0]
    for name in ("files", "questions", "answered", "refused", "seconds"):
        figures.setdefault(name, 0)
    bad = figures.setdefault("bad", [])
    cases = {
        "questions": [
            (good, q, repr(q[:60])) for q in hostile_questions(count)
        ],  # of one photo, which is opened once
        "files": [(f, "where is the cup?", f.name) for f in hostile_files(Path(folder) / "hostile", count)],
    }
    for kind, file, question, name in [
        (k, *case) for k, rows in cases.items() for case in rows[figures[k] :]
    ]:
        start = time.monotonic()
        try:
            said = ask(client, file, question)
            figures["answered"] += 1
            if not isinstance(said.get("text"), str):
                bad.append(f"{name}: no answer")
        except Exception as error:
            figures["refused"] += 1
            polite = (
                type(error).__name__ == "AppError"
                and "\n" not in str(error).strip()
                and len(str(error)) <= 700
            )
            if not polite or "went wrong" in str(error):
                bad.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        figures[kind] += 1
        figures["seconds"] = round(figures["seconds"] + time.monotonic() - start, 1)
        if not page.alive():
            bad.append(f"{name}: the process ended")
            break
        figures["memory_mb"] = round(page.memory())
        save()
    save()


def main() -> int:
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
    figures = json.loads(args.out.read_text()) if args.out and args.out.exists() and not args.clients else {}

    def save():
        if args.out:
            with replace_whole(args.out) as temporary:
                temporary.write_text(json.dumps(figures, indent=1))

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the page ends with this
    with tempfile.TemporaryDirectory() as folder:
        page = Page(folder, None if args.clients else 200)  # many of the hostile files hold the same pixels
        try:
            if args.clients:
                figures["load"] = load(page, photos(folder), args.clients, args.seconds)
                print(json.dumps(figures["load"]), flush=True)
            if args.fuzz:
                fuzz(page, folder, args.fuzz, figures.setdefault("fuzz", {}), save)
            alive = page.alive()
        finally:
            print(json.dumps(figures.get("fuzz", {})), flush=True)
            page.process.terminate()
            page.process.wait(30)
    save()
    failed = (
        not alive
        or figures.get("fuzz", {}).get("bad")
        or any(figures.get("load", {}).get(k) for k in ("mixed_up", "errors"))
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
