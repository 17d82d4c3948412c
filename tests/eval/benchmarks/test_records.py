"""The records benchmark end to end, on an assistant that finds coloured rectangles."""

import json

import numpy as np
import pytest

from assistant.sam.mask_ops import encode_rle
from eval.benchmarks import records
from tests.helpers.benchmark_data import record_row, write_record_rows
from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import FakeAssistant, H, W

ROWS = [
    record_row("the red one", ["red"]),
    record_row("red and blue", ["red", "blue"], kind="several"),
    record_row("the green one", ["green"], kind="absent"),
    record_row("surely green", ["green"], kind="absent"),
    record_row("blue, is it here?", ["blue"], image="images/b.png", kind="absent"),
    record_row("the yellow one", ["red"]),
]


def run_records(monkeypatch, folder, assistant, *options, out="out"):
    return run_benchmark(
        monkeypatch, folder / out, "records", "--root", folder, *options, assistant=assistant
    )


def test_records_scores_what_is_said(monkeypatch, folder):
    write_record_rows(folder, ROWS)
    assistant = FakeAssistant()
    code, result = run_records(monkeypatch, folder, assistant)
    assert code == 0 and result["n"] == 6 and assistant.opened == 2
    # red 1, red and blue 1, green absent 1, surely green 0, blue absent 1, yellow (nothing answered) 0
    assert result["gIoU"] == pytest.approx(4 / 6)
    assert result["cIoU"] == pytest.approx((400 + 800) / (400 + 800 + 25 + 400))
    assert result["figures"]["gIoU_present"] == pytest.approx(2 / 3)
    assert result["N_acc"] == pytest.approx(2 / 3) and result["T_acc"] == pytest.approx(2 / 3)
    assert result["oracle_gIoU"] == 1 and result["figures"]["oracle_gIoU_present@60"] == 1
    assert result["figures"]["targets_found_50"] == pytest.approx(3 / 4)
    assert result["figures"]["masks_right_50"] == pytest.approx(3 / 4)
    assert result["by"]["kind: several"] == {
        "n": 1,
        "gIoU": 1,
        "cIoU": 1,
        "gIoU_present": 1,
        "N_acc": None,
        "T_acc": 1,
        "oracle_gIoU": 1,
    }
    assert result["by"]["targets: 0"]["n"] == 3 and result["by"]["size: large"]["n"] == 3
    assert result["weights"] == assistant.weights and result["preset"] == "pocket"
    assert result["version"] == records.VERSION
    assert result["ci95"]["gIoU"][0] < 4 / 6 < result["ci95"]["gIoU"][1]
    for key in (
        "benchmark protocol ncIoU seconds_per_query seconds_per_image tokens_per_query calls_per_query commit"
    ).split():
        assert key in result
    at = {point["threshold"]: point for point in result["curve"]}
    assert at[0.5]["N_acc"] == result["N_acc"] and at[0.5]["T_acc"] == result["T_acc"] and at[0]["T_acc"] == 1


def test_earlier_turns_are_asked_first_and_only_the_last_is_scored(monkeypatch, folder):
    follows = record_row("and blue?", ["blue"], kind="followup")
    follows["source"]["history"] = [{"question": "where is the red one?", "answer": "red [SEG]."}]
    write_record_rows(folder, [ROWS[0], follows])
    assistant = FakeAssistant()
    result = run_records(monkeypatch, folder, assistant)[1]
    assert assistant.asked == ["the red one", "where is the red one?", "and blue?"]
    assert result["n"] == 2 and result["gIoU"] == 1


def test_records_scores_half_an_answer(monkeypatch, folder):
    write_record_rows(folder, ROWS[:2])
    _, result = run_records(monkeypatch, folder, FakeAssistant(half=True))
    assert result["gIoU"] == pytest.approx((200 / 400 + 600 / 800) / 2)
    assert result["oracle_gIoU"] == 1  # the proposals would have allowed all of it


def test_an_empty_mask_counts_as_absent(monkeypatch, folder):
    targets = [{"phrase": "green", "rle": encode_rle(np.zeros((H, W), bool))}]
    write_record_rows(folder, [record_row("the green one", [], targets=targets, answer="green [SEG]")])
    _, result = run_records(monkeypatch, folder, FakeAssistant())
    assert result["N_acc"] == 1 and result["T_acc"] is None and result["gIoU"] == 1


def test_records_resumes_after_a_kill(monkeypatch, folder):
    write_record_rows(folder, ROWS)
    _, whole = run_records(monkeypatch, folder, FakeAssistant(), out="whole")

    class Killed(FakeAssistant):
        def open(self, image):
            if self.opened:
                raise KeyboardInterrupt
            return super().open(image)

    first = Killed()
    code, result = run_records(monkeypatch, folder, first)
    assert code == 130 and result is None and len(first.asked) == 5
    samples = folder / "out/samples.jsonl"
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:4]) + lines[4][: len(lines[4]) // 2])  # torn while it was written
    second = FakeAssistant()
    code, result = run_records(monkeypatch, folder, second)
    assert code == 0 and len(second.asked) == 2
    for key in ("n", "gIoU", "cIoU", "ncIoU", "N_acc", "T_acc", "oracle_gIoU", "by", "curve", "ci95"):
        assert result[key] == whole[key]
    assert sorted(json.loads(line)["key"] for line in samples.read_text().splitlines()) == list(range(6))


def test_another_run_in_the_same_folder_is_refused(monkeypatch, folder, capsys):
    write_record_rows(folder, ROWS)
    assert run_records(monkeypatch, folder, FakeAssistant(), "--limit", "2")[1]["n"] == 2
    more = run_records(monkeypatch, folder, FakeAssistant(), "--limit", "3")[1]
    assert more["n"] == 3  # a larger limit goes on
    assert run_records(monkeypatch, folder, FakeAssistant(), "--seed", "1")[0] == 2
    assert "another seed" in capsys.readouterr().err


def test_bad_rows_are_listed_by_name(monkeypatch, folder, capsys):
    (folder / "images/c.jpg").write_text("no image")
    rows = [
        ROWS[0],
        record_row("the red one", ["red"], image="images/none.png"),
        record_row("the red one", ["red"], image="images/c.jpg"),
        record_row("broken", ["red"]),
        record_row("x", ["blue"], image="images/b.png", width=W + 1),
    ]
    write_record_rows(folder, rows)
    _, result = run_records(monkeypatch, folder, FakeAssistant())
    assert result["n"] == 1 and result["gIoU"] == 1
    assert [bad["name"] for bad in result["bad"]] == [
        "row 2, images/none.png",
        "row 3, images/c.jpg",
        "row 4, images/a.png",
        "row 5, images/b.png",
    ]
    assert all(bad["error"] for bad in result["bad"])
    code, _ = run_records(monkeypatch, folder, FakeAssistant(), "--strict", out="strict")
    # Questions about one image follow each other, so row 4 comes before row 2.
    assert code == 2 and "row 4, images/a.png: cannot" in capsys.readouterr().err.splitlines()[-1]


def test_a_wrong_size_does_not_spoil_the_other_questions_about_an_image(monkeypatch, folder):
    write_record_rows(folder, [record_row("x", [], width=W + 1), ROWS[0], record_row("y", [], height=H + 1)])
    assistant = FakeAssistant()
    _, result = run_records(monkeypatch, folder, assistant)
    assert result["n"] == 1 and result["gIoU"] == 1 and assistant.asked == ["the red one"]
    assert [bad["name"] for bad in result["bad"]] == ["row 1, images/a.png", "row 3, images/a.png"]
