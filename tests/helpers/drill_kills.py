"""Runs of datagen, finetune and eval that the drill kills at random moments, and what must be left of them.

    work = datagen_work(folder)
    fault = drill(work, kills=20, rng=random.Random(0))     # Kills(done=20, ...)

Every run is compared with one that nobody disturbed, row by row.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load_file

from tests.helpers import rectangles
from tests.helpers.datagen_images import write_many_images
from tests.helpers.small_datasets import photos, write_question_records
from tests.helpers.tiny_models import tiny_qwen3_vl
from tests.helpers.tuning_runs import command_line

ROOT = Path(__file__).parents[2]
TUNING_PROGRAM = ROOT / "tests/helpers/launched_tuning.py"
RUN_TIMEOUT = 900.0  # seconds: a run that takes longer hangs
TIMES = re.compile("seconds|memory|commit")  # in the keys of what differs by nature


@dataclass(frozen=True)
class Work:
    """A run that can be resumed.

    Attributes:
        name: Of the command.
        command: Its command line, without the output folder, which is added as the last word.
        rows: Reads what is left in an output folder: {what it is: its rows or values, as text}.
    """

    name: str
    command: list[str]
    rows: Callable[[Path], dict[str, list[str]]]


@dataclass
class Kills:
    """What the drill of one kind of run has seen.

    Attributes:
        name: Of the command.
        kills: Runs that were killed.
        resumed: Runs that were killed at least once and ended.
        lost: Rows that an undisturbed run has and a resumed one has not, or not the same.
        doubled: Rows that a resumed run has more often.
        faults: What else went wrong, in one line each.
        seconds: Of the undisturbed run.
    """

    name: str
    kills: int = 0
    resumed: int = 0
    lost: int = 0
    doubled: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def datagen_work(folder: Path) -> Work:
    """Questions about a thousand images."""
    folder.mkdir(parents=True)
    write_many_images(folder, 1000)
    inputs = ["--images", folder / "images", "--annotations", folder / "instances.json"]
    options = ["--sam", "none", "--per-image", "24", "--val", "0.2"]
    command = [sys.executable, "-m", "datagen", *map(str, [*inputs, *options]), "--out"]
    return Work("datagen", command, _text_rows("*.jsonl", "*.json"))


def finetune_work(folder: Path) -> Work:
    """Ten steps of tuning a tiny random model, with a checkpoint every two."""
    folder.mkdir(parents=True)
    train = rectangles.write_dataset(folder, 6)
    val = rectangles.write_dataset(folder, 3, 1, "val")
    options = ["--val", str(val), "--max-steps", "10", "--save-every", "2", "--log-every", "1"]
    words = command_line(tiny_qwen3_vl(folder / "mllm"), train, "", *options)
    place = words.index("--out")
    words = words[:place] + words[place + 2 :]
    return Work("finetune", [sys.executable, str(TUNING_PROGRAM), *words, "--out"], _tuning_rows)


def eval_work(folder: Path) -> Work:
    """The records benchmark of the pocket preset on five photos."""
    folder.mkdir(parents=True)
    write_question_records(folder / "records.jsonl", photos(5), "images")
    command = [sys.executable, "-m", "eval", "records", "--root", str(folder / "records.jsonl"), "--out"]
    return Work("eval", command, _text_rows("samples.jsonl", "result.json"))


def _text_rows(*patterns: str) -> Callable[[Path], dict[str, list[str]]]:
    """Reads the rows of the JSON lines files and the contents of the JSON files that match."""

    def read(out: Path) -> dict[str, list[str]]:
        rows = {}
        for pattern in patterns:
            for file in sorted(out.glob(pattern)):
                text = file.read_text(encoding="utf-8")
                values = text.splitlines() if file.suffix == ".jsonl" else [text]
                rows[file.name] = [
                    json.dumps(_timeless(json.loads(value)), sort_keys=True) for value in values
                ]
        return rows

    return read


def _tuning_rows(out: Path) -> dict[str, list[str]]:
    rows = _text_rows("log.jsonl", "val.jsonl")(out)
    for file in ("heads.safetensors", "lora/adapter_model.safetensors"):
        weights = load_file(out / file)
        rows[file] = [f"{name} {values.tobytes().hex()}" for name, values in sorted(weights.items())]
    return rows


def _timeless(value: object) -> object:
    """A JSON value without what is measured by a clock."""
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if not TIMES.search(key)}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def drill(work: Work, kills: int, rng: random.Random, folder: Path) -> Kills:
    """Kill a run at random moments until it was killed often enough, and compare what is left each time.

    Args:
        work: The run.
        kills: How often to kill it.
        rng: Decides the moments.
        folder: Where its output goes.
    """
    found = Kills(work.name)
    start = time.monotonic()
    fault = _run(work, folder / "undisturbed", None)
    found.seconds = round(time.monotonic() - start, 1)
    if fault:
        found.faults.append(f"undisturbed: {fault}")
        return found
    whole = work.rows(folder / "undisturbed")
    while found.kills < kills:
        out = folder / f"killed-{found.kills:02}"
        in_a_row = 0
        while found.kills < kills and in_a_row < 5:
            fault = _run(work, out, rng.uniform(0, found.seconds))
            if fault != "killed":
                break
            found.kills += 1
            in_a_row += 1
        else:
            fault = _run(work, out, None)
        if fault:
            found.faults.append(fault)
        else:
            _compare(found, whole, work.rows(out))
        found.resumed += 1 if in_a_row else 0
        shutil.rmtree(out)
    return found


def _compare(found: Kills, whole: dict[str, list[str]], rows: dict[str, list[str]]) -> None:
    for name in whole.keys() | rows.keys():
        expected, got = Counter(whole.get(name, [])), Counter(rows.get(name, []))
        found.lost += sum((expected - got).values())
        found.doubled += sum((got - expected).values())


def _run(work: Work, out: Path, kill_after: float | None) -> str:
    """Run to the end, or until it is killed; returns "", "killed" or what went wrong."""
    log = out.parent / f"{out.name}.log"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*work.command, str(out)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,  # its workers are killed with it
        )
        try:
            process.wait(kill_after if kill_after is not None else RUN_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "killed" if kill_after is not None else f"hung for {RUN_TIMEOUT:.0f} s"
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode or "Traceback" in text:
        return f"exit {process.returncode}: {text.strip().splitlines()[-1:]}"
    return ""
