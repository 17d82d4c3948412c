"""A drill: hundreds of odd inputs, and runs that are killed at random moments. Run by hand:

    python -m tests.helpers.drill --out runs/drill
    python -m tests.helpers.drill --out runs/drill --annotations 300 --images 300 --questions 300 --kills 50

Odd annotations, pictures and questions run in a process of their own, each within a time limit, so that a
hang or the death of the interpreter is one fault and not the end. A summary is printed and written to
drill.json. Endings that are right: questions or an answer, or a refusal in one line.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assistant.files import replace_whole
from tests.helpers import drill_cases, drill_kills
from tests.helpers.hostile import hostile_files
from tests.helpers.mutations import mutated_texts
from tests.helpers.odd_annotations import coco_table, labelme_table, write_photos

CASE_TIMEOUT = 180.0  # seconds, loading the preset included, on a busy machine

Case = tuple[Callable[..., str], tuple[Any, ...]]  # a function of drill_cases, and its arguments


@dataclass
class Inputs:
    """What the drill of one kind of input has seen.

    Attributes:
        name: Of the kind.
        endings: How many cases ended how.
        faults: Tracebacks, hangs and deaths of the interpreter, in one line each.
        peak_gb: The most memory (resident, GB) that the process held.
        seconds: Of all cases.
    """

    name: str
    endings: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    peak_gb: float = 0.0
    seconds: float = 0.0


def drill_inputs(name: str, cases: list[Case]) -> Inputs:
    """Run cases one after the other in one other process, which is replaced where it hangs or dies."""
    found = Inputs(name)
    start = time.monotonic()
    pool = _new_pool()
    for number, (function, arguments) in enumerate(cases):
        try:
            ending, peak = pool.submit(_run_case, function, arguments).result(CASE_TIMEOUT)
            found.endings[ending] += 1
            found.peak_gb = max(found.peak_gb, peak)
        except TimeoutError:
            found.faults.append(f"case {number}: hung")
            for process in multiprocessing.active_children():
                process.kill()
            pool = _new_pool()
        except BrokenProcessPool:
            found.faults.append(f"case {number}: the interpreter died")
            pool = _new_pool()
        except Exception as error:
            found.faults.append(f"case {number}: {type(error).__name__}: {error}".splitlines()[0][:300])
    pool.shutdown()
    found.seconds = round(time.monotonic() - start, 1)
    return found


def _new_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _run_case(function: Callable[..., str], arguments: tuple[Any, ...]) -> tuple[str, float]:
    ending = function(*arguments)
    return ending, round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def annotation_cases(count: int, seed: int, folder: Path) -> list[Case]:
    """Mutated COCO and LabelMe files, half each."""
    photos = folder / "photos"
    write_photos(photos)
    coco = mutated_texts(coco_table(), count - count // 2, seed)
    labelme = mutated_texts(labelme_table(), count // 2, seed + 1)
    texts = [(drill_cases.coco_case, text) for text in coco]
    texts += [(drill_cases.labelme_case, text) for text in labelme]
    return [(function, (text, photos, Path(tempfile.mkdtemp(dir=folder)))) for function, text in texts]


def image_cases(count: int, seed: int, folder: Path) -> list[Case]:
    """Hostile pictures."""
    files = hostile_files(folder / "pictures", count, seed)
    return [(drill_cases.image_case, (file, Path(tempfile.mkdtemp(dir=folder)))) for file in files]


def run(out: Path, annotations: int, images: int, questions: int, kills: int, seed: int) -> int:
    """Run all parts, print and write the summary; returns the number of faults, lost and doubled rows."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        asked = [(drill_cases.question_case, (text,)) for text in drill_cases.questions(questions, seed)]
        inputs = []
        for name, cases in (
            ("annotation files", annotation_cases(annotations, seed, folder)),
            ("pictures", image_cases(images, seed, folder)),
            ("questions", asked),
        ):
            inputs.append(drill_inputs(name, cases))
            print(_line(inputs[-1]), flush=True)
        runs = []
        rng = random.Random(seed)
        shares = {drill_kills.datagen_work: 0.4, drill_kills.finetune_work: 0.3, drill_kills.eval_work: 0.3}
        for make, share in shares.items() if kills else ():
            place = folder / make.__name__
            work = make(place / "inputs")
            runs.append(drill_kills.drill(work, round(share * kills), rng, place))
            print(_kills_line(runs[-1]), flush=True)
    table = {
        "seed": seed,
        "inputs": [vars(each) for each in inputs],
        "runs": [vars(each) for each in runs],
    }
    with replace_whole(out / "drill.json") as file:
        file.write_text(json.dumps(table, indent=1))
    wrong = [fault for each in (*inputs, *runs) for fault in each.faults]
    for fault in wrong:
        print(f"  {fault}")
    return len(wrong) + sum(each.lost + each.doubled for each in runs)


def _line(found: Inputs) -> str:
    endings = ", ".join(f"{count} {ending}" for ending, count in found.endings.most_common())
    count = sum(found.endings.values()) + len(found.faults)
    return (
        f"{count} {found.name}: {endings or 'none'}; {len(found.faults)} faults; "
        f"{found.seconds:.0f} s, at most {found.peak_gb} GB"
    )


def _kills_line(found: drill_kills.Kills) -> str:
    return (
        f"{found.kills} kills of {found.name} (a run takes {found.seconds:.0f} s), {found.resumed} resumed: "
        f"{found.lost} rows lost, {found.doubled} doubled, {len(found.faults)} faults"
    )


def main(words: list[str] | None = None) -> int:
    """The command; 0 where nothing went wrong, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.drill", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of drill.json")
    parser.add_argument("--annotations", type=int, default=300, help="mutated annotation files")
    parser.add_argument("--images", type=int, default=300, help="hostile pictures")
    parser.add_argument("--questions", type=int, default=300, help="hostile and ordinary questions")
    parser.add_argument("--kills", type=int, default=50, help="kill -9 of datagen, finetune and eval")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other inputs and moments")
    return 1 if run(**vars(parser.parse_args(words))) else 0


if __name__ == "__main__":
    sys.exit(main())
