"""Another model's masks from a folder, scored like our own answers."""

import json

import pytest

from assistant.sam.mask_ops import encode_rle
from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import rectangle


def run_reasonseg(monkeypatch, out, reasonseg, *options):
    return run_benchmark(monkeypatch, out, "reasonseg", "--root", reasonseg, *options)


def test_predictions_of_another_model(monkeypatch, reasonseg, other_model, tmp_path):
    _, result = run_reasonseg(
        monkeypatch, tmp_path / "a", reasonseg, "--predictions", other_model, "--protocol", "both"
    )
    assert result["gIoU"] == pytest.approx((1 + 1 + 1 + 0) / 4)
    assert result["oracle_gIoU"] is None and result["curve"] == []
    assert result["figures"]["protocols"]["seg-zero"]["gIoU"] == pytest.approx((200 / 400 + 1 + 0 + 0) / 4)
    assert result["preset"] == "predictions in theirs" and len(result["weights"]["predictions"]) == 64


def test_predictions_in_one_json(monkeypatch, reasonseg, tmp_path):
    table = {
        "a": encode_rle(rectangle(4, 4, 14, 24)),
        "b": [encode_rle(rectangle(30, 10, 40, 30)), encode_rle(rectangle(40, 10, 50, 30))],
        "c": None,
    }
    (tmp_path / "other").mkdir()
    (tmp_path / "other/predictions.json").write_text(json.dumps(table))
    _, result = run_reasonseg(monkeypatch, tmp_path / "o", reasonseg, "--predictions", tmp_path / "other")
    assert result["n"] == 3 and result["gIoU"] == 1
    assert "no prediction called d" in result["bad"][0]["error"]


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_predictions_that_cannot_be_read(monkeypatch, reasonseg, tmp_path, content, capsys):
    (tmp_path / "p").mkdir()
    if content:
        (tmp_path / "p/predictions.json").write_text(content)
    code, _ = run_reasonseg(monkeypatch, tmp_path / "out", reasonseg, "--predictions", tmp_path / "p")
    assert code == 2 and capsys.readouterr().err.startswith("error: ")
