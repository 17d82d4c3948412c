"""datagen over many photos: killed at any moment, picked by difficulty, in order, flat in memory, every file whole."""

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assistant.errors import BadInput
from assistant.export.converters import from_llmseg40k, to_llmseg40k
from assistant.record import read_records
from datagen.__main__ import main
from datagen.engines import plain as engine
from datagen.result_cache import Kept
from datagen.sources.index import open_index
from datagen.sources.photos import Photos
from datagen.sources.pick import difficulty, pick

NAMES = ["cup", "cat", "dog", "bowl", "chair", "car", "person", "bench"]
PROJECT = Path(__file__).parents[3]


@pytest.fixture
def photos(tmp_path):
    """48 photos with one to eight categories, annotations in no order of photos."""
    (tmp_path / "images").mkdir()
    rows, things = [], []
    for k in range(48):
        Image.fromarray(np.full((60, 200, 3), k, np.uint8)).save(tmp_path / f"images/{k:03}.jpg")
        rows.append({"id": k, "file_name": f"{k:03}.jpg", "width": 200, "height": 60})
        for n in range(1 + k % 8):
            x = 24 * n
            things.append(
                {
                    "id": 100 * k + n,
                    "image_id": k,
                    "category_id": n,
                    "bbox": [x, 5, 20, 50],
                    "area": 1000,
                    "iscrowd": 0,
                    "segmentation": [[x, 5, x + 20, 5, x + 20, 55, x, 55]],
                }
            )
    random.Random(0).shuffle(things)
    write(tmp_path, rows, things)
    return tmp_path


def write(folder, rows, things):
    names = [{"id": n, "name": name} for n, name in enumerate(NAMES)]
    data = {"info": {"images": []}, "images": rows, "annotations": things, "categories": names}
    (folder / "instances.json").write_text(json.dumps(data))


def words(folder, out, *more):
    return [
        "--images",
        str(folder / "images"),
        "--annotations",
        str(folder / "instances.json"),
        "--per-image",
        "20",
        "--out",
        str(folder / out),
        *map(str, more),
    ]


def contents(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix in (".json", ".jsonl")}


def done(folder):
    """Photos whose questions are kept."""
    try:
        return (
            sqlite3.connect(f"file:{folder}/kept.sqlite?mode=ro", uri=True)
            .execute("select count(*) from kept")
            .fetchone()[0]
        )
    except sqlite3.Error:
        return 0


def test_killed_at_random_moments_it_loses_and_doubles_no_row(photos):
    assert main(words(photos, "whole", "--val", 0.3)) == 0
    rng, killed = random.Random(time.time_ns()), 0
    for _ in range(4):
        most = done(photos / "out") + rng.randint(0, 16)
        process = subprocess.Popen(
            [sys.executable, "-m", "datagen", *words(photos, "out", "--val", 0.3)],
            cwd=PROJECT,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and done(photos / "out") < most:
            time.sleep(rng.random() / 500)
        process.kill()
        killed += process.wait() == -9
    assert killed >= 2
    assert main(words(photos, "out", "--val", 0.3)) == 0
    assert contents(photos / "out") == contents(photos / "whole")
    assert not list((photos / "out").glob(".*"))  # nor is anything left of the killed ones


@pytest.mark.parametrize("room", [3_000, 60_000, 200_000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(photos, room):
    """A limit on the size of files stands for a disk on which there is no more room."""
    resource = pytest.importorskip("resource", reason="limits are Unix's")
    full = subprocess.run(
        [sys.executable, "-m", "datagen", *words(photos, "out")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert (
        full.returncode == 2
        and "make room" in full.stderr.splitlines()[-1]
        and "Traceback" not in full.stderr
    )
    assert main(words(photos, "whole")) == 0 and main(words(photos, "out")) == 0
    assert contents(photos / "out") == contents(photos / "whole")


def test_a_second_run_does_only_what_is_new(photos, monkeypatch):
    asked = []
    compose = engine.Worker.make

    async def counted(worker, photo):
        asked.append(photo.file.name)
        return await compose(worker, photo)

    monkeypatch.setattr(engine.Worker, "make", counted)
    assert main(words(photos, "out")) == 0 and len(asked) == 48
    before = contents(photos / "out")
    asked.clear()
    assert main(words(photos, "out")) == 0 and not asked and contents(photos / "out") == before
    data = json.loads((photos / "instances.json").read_text())
    things = [
        row | ({"segmentation": [[0, 0, 9, 0, 9, 9]]} if row["id"] == 300 else {})
        for row in data["annotations"]
    ]
    write(photos, data["images"], things)
    assert main(words(photos, "out")) == 0 and asked == ["003.jpg"] and contents(photos / "out") != before


def test_llmseg40k_loads_back_and_is_written_again_without_loss(photos):
    assert main(words(photos, "out")) == 0
    written = json.loads((photos / "out/llmseg40k.json").read_text())
    back = list(from_llmseg40k(photos / "out/llmseg40k.json"))
    assert to_llmseg40k(back) == written
    alone = [r for r in read_records(photos / "out/records.jsonl") if not r.history]
    assert [r.question for r in back] == [r.question for r in alone]


def test_nothing_is_written_where_a_run_fails(photos, monkeypatch):
    def failing(*args):
        raise BadInput("no")

    assert main(words(photos, "out")) == 0
    before = contents(photos / "out")
    monkeypatch.setattr("datagen.output.to_llmseg40k", failing)
    assert main(words(photos, "out", "--seed", 1)) == 2
    assert contents(photos / "out") == before


def read(photos):
    return Photos(
        open_index("coco", photos / "instances.json", photos / "images", None), photos / "images", None
    )


def test_photos_are_picked_by_difficulty(photos):
    data, drops = read(photos), Counter()
    sorts = {photo.id: difficulty(photo) for photo in data}
    assert Counter(sorts.values()) == {"single": 6, "simple": 24, "complex": 18}
    chosen = pick(data, 10, 0.4, 0, drops)
    assert Counter(sorts[k] for k in chosen) == {"complex": 4, "simple": 6}
    assert drops == {
        "photo: not picked (fewer than two categories)": 6,
        "photo: not picked (simple)": 18,
        "photo: not picked (complex)": 14,
    }
    assert pick(data, 10, 0.4, 0, Counter()) == chosen != pick(data, 10, 0.4, 1, Counter())
    assert chosen <= pick(data, 20, 0.4, 0, Counter())
    data.only = chosen
    assert {photo.id for photo in data} == chosen and len(data) == 10
    drops = Counter()
    data.only = None
    assert (
        len(pick(data, 40, 0.5, 0, drops)) == 18 + 20
        and drops["photo: wanted, and there is no more (complex)"] == 2
    )


def test_picking_from_the_command_line(photos, capsys):
    assert main(words(photos, "out", "--pick", 10, "--complex", 0.3)) == 0
    figures = json.loads((photos / "out/statistics.json").read_text())
    assert figures["photos_by_difficulty"] == {"simple": 7, "complex": 3} and figures["photos"] == 10
    assert main(words(photos, "out", "--pick", 0)) == 2 and main(words(photos, "out", "--complex", 2)) == 2


def test_statistics_are_numbers_and_plots(photos):
    assert main(words(photos, "out")) == 0
    figures = json.loads((photos / "out/statistics.json").read_text())
    records = read_records(photos / "out/records.jsonl")
    assert (
        sum(figures["by_kind"].values())
        == sum(figures["questions_by_words"].values())
        == len(records)
        == figures["questions"]
    )
    assert figures["targets_absent"] == sum(t.rle is None for r in records for t in r.targets)
    page = (photos / "out/statistics.html").read_text()
    assert page.count("<svg") == 6 and "implicit" in page and "http" not in page


def test_results_come_in_order_and_few_are_begun_ahead():
    begun, finished = [], []

    async def work(item):
        begun.append(item)
        await asyncio.sleep(0.05 if item == 0 else 0.001)
        finished.append(item)
        return item * item

    async def run():
        found = []
        async for item, square in engine.in_order(range(200), work, 2):
            assert len(begun) - len(found) <= 2 * engine.AHEAD + 1
            found.append((item, square))
        return found

    assert asyncio.run(run()) == [(k, k * k) for k in range(200)] and finished[0] != 0


def test_the_first_error_ends_it():
    async def work(item):
        if item == 5:
            raise BadInput("no")

    async def run():
        return [item async for item, _ in engine.in_order(range(10**9), work, 2)]

    with pytest.raises(BadInput):
        asyncio.run(run())


def test_a_store_that_is_none_is_one_line(photos, capsys):
    (photos / "out").mkdir()
    (photos / "out/kept.sqlite").write_text(
        "no database, but text that is long enough to be looked at as one" * 20
    )
    assert main(words(photos, "out")) == 2
    assert "delete it to begin anew" in capsys.readouterr().err


def test_kept_values_come_back(tmp_path):
    kept = Kept(tmp_path / "a/kept.sqlite")
    kept.put("x", {"a": [1, None, "é"]})
    kept.close()
    again = Kept(tmp_path / "a/kept.sqlite")
    assert again.get("x") == {"a": [1, None, "é"]} and again.get("y") is None


@pytest.mark.parametrize(
    "change, said",
    [
        ({"images": []}, "has no images"),
        ({"categories": []}, "has no categories"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": 1, "height": 1}] * 2}, "two pictures"),
    ],
)
def test_annotations_without_what_is_needed(photos, change, said, capsys):
    data = json.loads((photos / "instances.json").read_text()) | change
    (photos / "instances.json").write_text(json.dumps(data))
    assert main(words(photos, "out")) == 2 and said in capsys.readouterr().err
    assert not (photos / "out/records.jsonl").exists()
