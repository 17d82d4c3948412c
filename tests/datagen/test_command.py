"""python -m datagen from end to end: what it writes, how it goes on, and what it says of bad input."""

import json
import random
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from assistant.errors import BadInput
from assistant.export.converters import from_llmseg40k, to_llmseg40k
from assistant.record import check_records, read_records
from datagen.__main__ import main
from datagen.engines.worker import Worker
from tests.helpers.composed_images import write_cups_and_cat
from tests.helpers.datagen_images import MANY_NAMES, command, generated_files, write_instances

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def cups_and_cat(tmp_path):
    write_cups_and_cat(tmp_path)
    return tmp_path


def many_command(folder, out, *more):
    return command(folder, out, "--per-image", 20, *more)


def finished_count(folder):
    """Number of images whose questions are cached."""
    try:
        store = sqlite3.connect(f"file:{folder}/kept.sqlite?mode=ro", uri=True)
        return store.execute("select count(*) from kept").fetchone()[0]
    except sqlite3.Error:
        return 0


def test_records_load_back(cups_and_cat, capsys):
    assert main(command(cups_and_cat, "one", "--per-image", 12)) == 0
    assert main(command(cups_and_cat, "two", "--per-image", 12)) == 0
    printed = capsys.readouterr().out
    path = cups_and_cat / "one/records.jsonl"
    assert path.read_bytes() == (cups_and_cat / "two/records.jsonl").read_bytes()
    assert check_records(path) == []  # the relative paths lead to the images too
    records = read_records(path)
    figures = json.loads((cups_and_cat / "one/statistics.json").read_text())
    assert figures["questions"] == len(records) == 24 and "24 questions about 2 photos" in printed
    assert sum(figures["by_kind"].values()) == 24
    assert any(reason.startswith("position:") for reason in figures["drops"])
    back = list(from_llmseg40k(cups_and_cat / "one/llmseg40k.json"))
    standalone = [record.question for record in records if not record.history]
    assert sorted(record.question for record in back) == sorted(standalone)


def test_killed_at_random_moments_it_loses_and_doubles_no_row(many_images):
    assert main(many_command(many_images, "whole", "--val", 0.3)) == 0
    out = many_images / "out"
    rng = random.Random(time.time_ns())
    killed = 0
    for _ in range(4):
        limit = finished_count(out) + rng.randint(0, 16)
        process = subprocess.Popen(
            [sys.executable, "-m", "datagen", *many_command(many_images, "out", "--val", 0.3)],
            cwd=PROJECT,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and finished_count(out) < limit:
            time.sleep(rng.random() / 500)
        process.kill()
        killed += process.wait() == -9
    assert killed >= 2
    assert main(many_command(many_images, "out", "--val", 0.3)) == 0
    assert generated_files(out) == generated_files(many_images / "whole")
    assert not list(out.glob(".*"))  # nor is anything left of the killed ones


@pytest.mark.parametrize("room", [3_000, 60_000, 200_000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(many_images, room):
    """A limit on the size of files stands for a disk on which there is no more room."""
    resource = pytest.importorskip("resource", reason="limits are Unix's")
    full = subprocess.run(
        [sys.executable, "-m", "datagen", *many_command(many_images, "out")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert full.returncode == 2
    assert "make room" in full.stderr.splitlines()[-1] and "Traceback" not in full.stderr
    assert main(many_command(many_images, "whole")) == 0
    assert main(many_command(many_images, "out")) == 0
    assert generated_files(many_images / "out") == generated_files(many_images / "whole")


def test_a_second_run_does_only_what_is_new(many_images, monkeypatch):
    made = []
    make = Worker.make

    async def counted(worker, image):
        made.append(image.file.name)
        return await make(worker, image)

    monkeypatch.setattr(Worker, "make", counted)
    out = many_images / "out"
    assert main(many_command(many_images, "out")) == 0 and len(made) == 48
    before = generated_files(out)
    made.clear()
    assert main(many_command(many_images, "out")) == 0 and not made and generated_files(out) == before
    data = json.loads((many_images / "instances.json").read_text())
    rows = [
        row | ({"segmentation": [[0, 0, 9, 0, 9, 9]]} if row["id"] == 300 else {})
        for row in data["annotations"]
    ]
    write_instances(many_images, data["images"], rows, {name: n for n, name in enumerate(MANY_NAMES)})
    assert main(many_command(many_images, "out")) == 0
    assert made == ["003.jpg"] and generated_files(out) != before


def test_llmseg40k_loads_back_and_is_written_again_without_loss(many_images):
    assert main(many_command(many_images, "out")) == 0
    written = json.loads((many_images / "out/llmseg40k.json").read_text())
    back = list(from_llmseg40k(many_images / "out/llmseg40k.json"))
    assert to_llmseg40k(back) == written
    records = read_records(many_images / "out/records.jsonl")
    standalone = [record.question for record in records if not record.history]
    assert [record.question for record in back] == standalone


def test_nothing_is_written_where_a_run_fails(many_images, monkeypatch):
    def failing(*args):
        raise BadInput("no")

    assert main(many_command(many_images, "out")) == 0
    before = generated_files(many_images / "out")
    monkeypatch.setattr("datagen.output.to_llmseg40k", failing)
    assert main(many_command(many_images, "out", "--seed", 1)) == 2
    assert generated_files(many_images / "out") == before


def test_statistics_are_numbers_and_plots(many_images):
    assert main(many_command(many_images, "out")) == 0
    figures = json.loads((many_images / "out/statistics.json").read_text())
    records = read_records(many_images / "out/records.jsonl")
    assert figures["questions"] == len(records)
    assert sum(figures["by_kind"].values()) == sum(figures["questions_by_words"].values()) == len(records)
    absent = sum(target.rle is None for record in records for target in record.targets)
    assert figures["targets_absent"] == absent
    page = (many_images / "out/statistics.html").read_text()
    assert page.count("<svg") == 6 and "implicit" in page
    assert not re.search(r'(src|href)=(?!"data:)', page)
    shown = re.findall(r'<article class="card" data-tags="\[&#34;(\w+)', page)
    assert len(shown) > 3 and set(shown) <= set(figures["by_kind"]) and page.count("<img") == len(shown)


def test_bad_input_is_one_line(cups_and_cat, capsys):
    good = {
        "--images": cups_and_cat / "images",
        "--annotations": cups_and_cat / "instances.json",
        "--out": cups_and_cat,
    }
    (cups_and_cat / "list.json").write_text("[]")
    (cups_and_cat / "empty").mkdir()
    for change, message in [
        ({"--images": cups_and_cat / "no"}, "no folder"),
        ({"--annotations": cups_and_cat / "no.json"}, "cannot read"),
        ({"--annotations": cups_and_cat / "list.json"}, "not COCO's json"),
        ({"--images": cups_and_cat / "empty"}, "none of the 2 photos"),
        ({"--out": cups_and_cat / "list.json"}, "cannot write to"),
        ({"--out": cups_and_cat / "list.json/out"}, "cannot write to"),
        ({"--bank": "nowhere"}, "no phrase bank"),
        ({"--per-image": "0"}, "at least 1"),
    ]:
        assert main([str(word) for pair in (good | change).items() for word in pair]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and message in error
    assert not (cups_and_cat / "records.jsonl").exists()


def test_help_is_instant():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "datagen", "--help"],
        capture_output=True,
        text=True,
        cwd=PROJECT,
    )
    assert done.returncode == 0 and "--per-image" in done.stdout and time.monotonic() - began < 10
    assert not any(name in done.stderr for name in ("torch", "numpy", "pycocotools"))
