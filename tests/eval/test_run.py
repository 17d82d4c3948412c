"""Runs resume, are shared by several processes, and record what cannot be used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from assistant.errors import BadInput
from eval.run import Run
from tests.helpers.benchmark_data import reasonseg_polygon, write_reasonseg_item
from tests.helpers.benchmark_runs import run_benchmark


def test_runs_keep_their_settings(tmp_path):
    Run(tmp_path, {"a": 1}).add("k", {"v": 1})
    assert Run(tmp_path, {"a": 1}).done["k"]["v"] == 1
    with pytest.raises(BadInput, match="another a"):
        Run(tmp_path, {"a": 2})
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be used"):
        Run(tmp_path / "file", {})


def square(number):
    if number == 3:
        raise BadInput("no three")
    return {"square": number**2}


def as_is(item):
    return item


def test_each_skips_what_is_done_and_records_what_cannot_be_used(tmp_path):
    run = Run(tmp_path, {})
    run.add(1, {"square": "from before"})
    lines = run.each([1, 2, 3], as_is, square, describe=lambda number: {"name": f"number {number}"})
    assert lines == [
        {"key": 1, "square": "from before"},
        {"key": 2, "square": 4},
        {"key": 3, "name": "number 3", "error": "no three"},
    ]
    assert Run(tmp_path, {}).each([3, 2], as_is, square) == [lines[2], lines[1]]
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 3


def test_a_strict_run_ends_at_the_first_item_that_cannot_be_used(tmp_path):
    run = Run(tmp_path, {}, strict=True)
    with pytest.raises(BadInput, match="^3: no three$"):
        run.each([2, 3, 4], as_is, square)
    assert run.done.keys() == {2}
    with pytest.raises(BadInput, match="^number 3: no three$"):
        run.each([3], as_is, square, describe=lambda number: {"name": f"number {number}"})


def test_lines_of_an_earlier_run_may_be_unfinished(tmp_path):
    run = Run(tmp_path, {})
    run.each([1, 2], as_is, lambda number: {"parts": [number]})

    def add_part(number):
        return {"parts": [*run.done[number]["parts"], 9]}

    lines = run.each([1, 2], as_is, add_part, is_finished=lambda line: line["key"] == 1)
    assert [line["parts"] for line in lines] == [[1], [2, 9]]
    assert Run(tmp_path, {}).done[2]["parts"] == [2, 9]


def test_items_of_a_group_follow_each_other_in_one_process(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    orders = []
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        order = []

        def work(item, order=order):
            order.append(item)
            return {}

        lines = Run(tmp_path, {}).each(
            ["a1", "b1", "a2", "c1", "b2"], as_is, work, group=lambda item: item[0]
        )
        assert (lines is None) == (rank == 1)
        orders.append(order)
    assert orders == [["b1", "b2"], ["a1", "a2", "c1"]]
    assert [line["key"] for line in lines] == ["a1", "b1", "a2", "c1", "b2"]


def test_a_run_goes_on_with_another_number_of_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, keys in ((0, "a"), (1, "bc")):
        monkeypatch.setenv("RANK", str(rank))
        part = Run(tmp_path, {})
        assert list(part.mine(list("abcde"))) == list("abcde"[rank::2])
        for key in keys:
            part.add(key, {"rank": rank})
    with (tmp_path / "samples.1.jsonl").open("a") as file:
        file.write('{"key": "d", "ra')  # killed here
    assert part.gather("abc") is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = Run(tmp_path, {})
    assert alone.done.keys() == set("abc")
    alone.add("d", {"rank": 0})
    assert [line["key"] for line in alone.gather("abcd")] == list("abcd")
    assert sorted(path.name for path in tmp_path.glob("samples*")) == ["samples.jsonl"]
    assert Run(tmp_path, {}).done.keys() == set("abcd")


LAUNCHED = """
import os
import sys
from pathlib import Path
from eval import __main__ as command, models
from tests.helpers.colour_finder import FakeAssistant
models.open_assistant = lambda settings: FakeAssistant()
Path(__file__).with_name(f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}").touch()
sys.exit(command.main(sys.argv[1:]))
"""


def test_two_launched_processes_count_every_sample_once(monkeypatch, tmp_path):
    folder = tmp_path / "ReasonSeg/val"
    for k in range(5):  # an odd number: a sampler that pads its shares would count one twice
        write_reasonseg_item(folder, f"p{k}", "red", [reasonseg_polygon(4, 4, 24 + k, 24)], k % 2 == 0)
    words = ["reasonseg", "--root", str(tmp_path / "ReasonSeg")]
    _, alone = run_benchmark(monkeypatch, tmp_path / "one", *words)
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    root = Path(__file__).parents[2]
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    subprocess.run(
        [sys.executable, "-m", *launch, str(script), *words, "--out", str(tmp_path / "two")],
        check=True,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root,
        timeout=240,
        capture_output=True,
    )
    assert len(list(tmp_path.glob("process * of 2"))) == 2
    both = json.loads((tmp_path / "two/result.json").read_text())
    for name in ("n", "gIoU", "cIoU", "ncIoU", "N_acc", "T_acc", "oracle_gIoU", "ci95", "by", "curve"):
        assert both[name] == alone[name], name
    keys = [json.loads(line)["key"] for line in (tmp_path / "two/samples.jsonl").read_text().splitlines()]
    assert sorted(keys) == [f"p{k}" for k in range(5)]
    assert not list((tmp_path / "two").glob("samples.[0-9]*"))
