"""The drill in small: `python -m tests.helpers.drill` runs it in full."""

import json

import pytest

from tests.helpers import drill

pytestmark = pytest.mark.slow


def test_nothing_is_lost_doubled_or_ends_in_a_traceback(tmp_path):
    counts = ["--annotations", "10", "--images", "16", "--questions", "20", "--kills", "6"]
    assert drill.main(["--out", str(tmp_path), *counts]) == 0
    table = json.loads((tmp_path / "drill.json").read_text())
    assert [sum(each["endings"].values()) for each in table["inputs"]] == [10, 16, 20]
    assert sum(each["kills"] for each in table["runs"]) == 6


def dies():
    import os

    os._exit(3)


def hangs():
    import time

    time.sleep(600)


def fails():
    raise ValueError("as said")


def test_deaths_hangs_and_tracebacks_are_counted(monkeypatch):
    monkeypatch.setattr(drill, "CASE_TIMEOUT", 30)
    found = drill.drill_inputs("cases", [(function, ()) for function in (dies, fails, hangs, fails)])
    assert [fault.partition(": ")[2] for fault in found.faults] == [
        "the interpreter died",
        "ValueError: as said",
        "hung",
        "ValueError: as said",
    ]
