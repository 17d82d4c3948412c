"""ReasonSeg's layout, scored under both protocols and counted by hand."""

import pytest

from tests.helpers.benchmark_data import reasonseg_polygon, write_reasonseg_item
from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import BOXES


def test_reasonseg_under_both_protocols_by_hand(monkeypatch, reasonseg, tmp_path, capsys):
    code, result = run_benchmark(
        monkeypatch, tmp_path / "out", "reasonseg", "--root", reasonseg, "--protocol", "both"
    )
    assert code == 0 and result["n"] == 4
    assert result["protocol"] == "both" and result["benchmark"] == "reasonseg"
    # a: target 20x20 px of which 10x20 are ignored, answered whole: 1 either way, 400 px under seg-zero, 200
    # under lisa. b: 0 of 400. c: 1 and 0. d: the answer is 20x20 of a target cut to 30x20: 400 / 600.
    lisa, seg_zero = result["figures"]["protocols"]["lisa"], result["figures"]["protocols"]["seg-zero"]
    assert result["gIoU"] == lisa["gIoU"] == pytest.approx((1 + 0 + 1 + 400 / 600) / 4)
    assert result["cIoU"] == lisa["cIoU"] == pytest.approx((200 + 0 + 0 + 400) / (200 + 400 + 0 + 600))
    assert seg_zero["gIoU"] == pytest.approx((1 + 0 + 0 + 400 / 600) / 4)
    assert seg_zero["cIoU"] == pytest.approx((400 + 0 + 0 + 400) / (400 + 400 + 0 + 600))
    assert result["by"]["length: short"]["gIoU"] == pytest.approx((1 + 400 / 600) / 2)
    assert result["by"]["length: long"]["gIoU"] == pytest.approx(1 / 2)
    assert result["N_acc"] == 1 and result["T_acc"] == pytest.approx(2 / 3)
    # The proposals hold red in halves and blue whole.
    assert lisa["oracle_gIoU"] == pytest.approx((1 + 1 + 1 + 400 / 600) / 4)
    assert [bad["name"] for bad in result["bad"]] == ["d, d.jpg"]
    assert "leave the image" in result["bad"][0]["error"]
    printed = capsys.readouterr().out
    assert "protocol lisa" in printed and "protocol seg-zero" in printed and "length: long" in printed
    assert (tmp_path / "out/report.html").stat().st_size > 10_000


def test_one_protocol_alone_fills_the_fields(monkeypatch, reasonseg, tmp_path):
    _, result = run_benchmark(
        monkeypatch, tmp_path / "out", "reasonseg", "--root", reasonseg, "--protocol", "seg-zero"
    )
    assert result["protocol"] == "seg-zero" and result["gIoU"] == pytest.approx((1 + 400 / 600) / 4)
    assert result["cIoU"] == pytest.approx(800 / 1400) and result["ci95"]["gIoU"][0] <= result["gIoU"]


def test_items_that_cannot_be_used_are_listed_by_name(monkeypatch, reasonseg, tmp_path, capsys):
    folder = reasonseg / "val"
    (folder / "e.json").write_text("{")
    write_reasonseg_item(folder, "f", "red", [reasonseg_polygon(*BOXES["red"])], False)
    (folder / "f.jpg").unlink()
    words = ["reasonseg", "--root", reasonseg]
    _, result = run_benchmark(monkeypatch, tmp_path / "out", *words)
    assert result["n"] == 4 and {bad["name"] for bad in result["bad"]} == {"e.json", "f.json", "d, d.jpg"}
    assert run_benchmark(monkeypatch, tmp_path / "strict", *words, "--strict")[0] == 2
    assert run_benchmark(monkeypatch, tmp_path / "none", *words, "--split", "test")[0] == 2
    assert "no folder" in capsys.readouterr().err.splitlines()[-1]
