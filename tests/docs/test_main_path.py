"""The main path end to end: questions from photos, tuning that is killed and goes on, an answer, scores."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.docs.checks import answer_folder, json_lines, records, report, result, tensors
from tests.docs.walkthrough import Outcome, Walkthrough, started_with
from tests.docs.world import ROOT, link_coco_photos
from tests.helpers.small_datasets import COCO, photos, write_coco

DATA = (
    ROOT.parent / "shared/data/coco/train"
)  # not part of the project: scikit-image's photos where it is missing
PHOTOS = 6
TUNE = (
    "python -m finetune --preset pocket --data questions/train.jsonl --val questions/val.jsonl "
    "--out runs/tuned --max-steps 4 --val-limit 4 --rehearsal 0.1 --log-every 1"
)
TUNING_SECONDS = 1200  # until the LLM is tuned, on busy cores

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("main path")]


@pytest.fixture
def trip(tmp_path) -> Walkthrough:
    """photos/ and instances.json, with names that the preset was taught."""
    trip = Walkthrough("", tmp_path / "trip", tmp_path / "hub", {})
    trip.folder.mkdir()
    if DATA.is_dir():
        link_coco_photos(DATA, trip.folder, PHOTOS)
    else:
        write_coco(trip.folder, photos(PHOTOS), COCO, images="photos")
    return trip


def kill_when(trip: Walkthrough, command: str, stage_is_over: Path) -> None:
    """Run a command until it has written a file, and kill it outright."""
    with (trip.folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            started_with(command.split()),
            cwd=trip.folder,
            env=trip.environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,  # its workers are killed with it
        )
    end = time.monotonic() + TUNING_SECONDS
    while not stage_is_over.exists() and time.monotonic() < end:
        assert process.poll() is None, (trip.folder / "killed.log").read_text()[-3000:]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def inodes_of(folder: Path) -> dict[Path, int]:
    """The files of a folder; one that is written again is another inode, one that is only used is not."""
    return {file: file.stat().st_ino for file in folder.iterdir() if file.is_file()}


def test_from_photos_to_a_tuned_preset_that_answers_and_is_compared(trip):
    datagen = "python -m datagen --images photos --annotations instances.json --per-image 8 --val 0.3"
    outcome = trip.execute(f"{datagen} --out questions")
    for file in ("train.jsonl", "val.jsonl"):
        records(f"questions/{file}", 4)(outcome)

    tuned = trip.folder / "runs/tuned"
    kill_when(trip, TUNE, tuned / "llm.pt")
    regions = inodes_of(tuned / "regions")
    assert regions and not (tuned / "heads.safetensors").exists()
    outcome = trip.execute(TUNE)
    assert "resuming the LLM at step 4" in outcome.stdout
    assert inodes_of(tuned / "regions") == regions  # no image was opened twice
    tensors("runs/tuned/heads.safetensors")(outcome)
    json_lines("runs/tuned/val.jsonl", "step", "score", "answers")(outcome)
    report("runs/tuned/report.html", "svg", "img")(outcome)

    check_answer(trip)
    check_scores(trip)


def check_answer(trip: Walkthrough) -> None:
    question = json.loads((trip.folder / "questions/val.jsonl").read_text().splitlines()[0])
    image = (trip.folder / "questions" / question["image"]).resolve()
    asked = f'python -m assistant ask {image} "{question["question"]}"'
    outcome = trip.execute(f"{asked} --adapter runs/tuned --out answer")
    answer_folder("answer")(outcome)


def check_scores(trip: Walkthrough) -> None:
    """Before and after, on the same questions, and the difference."""
    outcome: Outcome
    for name, options in (("before", ""), ("after", "--adapter runs/tuned")):
        outcome = trip.execute(
            f"python -m eval records --root questions/val.jsonl --limit 4 --out runs/eval/{name} {options}"
        )
        result(f"runs/eval/{name}", "records", 4)(outcome)
    weights = [
        json.loads((trip.folder / f"runs/eval/{name}/result.json").read_text())["weights"]
        for name in ("before", "after")
    ]
    assert weights[0] != weights[1]
    outcome = trip.execute("python -m eval compare runs/eval/before runs/eval/after --out difference.json")
    assert "gIoU" in outcome.stdout
    assert json.loads((trip.folder / "difference.json").read_text())
