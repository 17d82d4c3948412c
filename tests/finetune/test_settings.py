"""Settings of `python -m finetune`: how they are read, and that faulty ones are one line before the work."""

from pathlib import Path

import pytest

from assistant.errors import BadInput
from assistant.record import read_records, write_records
from finetune import __main__ as command
from finetune.mllm import data
from finetune.settings import loss_weights, parse_source
from tests.helpers import rectangles
from tests.helpers.tiny_models import tiny_qwen3_vl
from tests.helpers.tuning_runs import command_line, propose_rectangles


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return rectangles.write_dataset(tmp_path_factory.mktemp("dataset"), 6)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return tiny_qwen3_vl(tmp_path_factory.mktemp("qwen"))


def test_faulty_records_are_all_named_before_anything_is_loaded(records, tmp_path, capsys):
    rows = read_records(records)[:6]
    rows[1].image = "gone.png"
    rows[2].targets[0].rle = {"size": [9, 9], "counts": "Q3"}
    rows[3].targets = rows[3].targets * 2
    rows[4].answer = "red [SEG] and red [SEG]."
    faulty, out = records.with_name("bad.jsonl"), tmp_path / "out"
    write_records(faulty, rows)
    words = ["--mllm", "nothing/here", "--sam", "none", "--data", str(faulty), "--out", str(out)]
    code = command.main(words)
    errors = capsys.readouterr().err
    assert code == 2 and not out.exists()
    for line in (2, 3, 4, 5):
        assert f"bad.jsonl:{line}: " in errors
    assert "bad.jsonl:1:" not in errors and "bad.jsonl:6:" not in errors
    assert command.main(["--data", str(records), "--out", str(out), "--check"]) == 0
    assert not out.exists()


@pytest.mark.parametrize("count, more, is_said", [(1, [], True), (10, [], False), (1, ["--val"], False)])
def test_few_images_are_said_to_be_few(tmp_path, monkeypatch, capsys, count, more, is_said):
    monkeypatch.setattr("finetune.pocket.tune.tune", print)
    (tmp_path / "dataset").mkdir()
    records = rectangles.write_dataset(tmp_path / "dataset", count)
    words = ["--data", str(records), "--out", str(tmp_path / "out")]
    more = [*more, str(records)] if more else []
    assert command.main([*words, *more]) == 0
    assert ("give 10 or more" in capsys.readouterr().out) == is_said


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--rank", "0"], "--rank must be at least 1"),
        (["--lr", "-1"], "--lr must be above 0"),
        (["--dropout", "1"], "--dropout"),
        (["--selector-lr", "nan"], "--selector-lr must be above 0"),
        (["--val", "gone.jsonl"], "no records file at gone.jsonl"),
        (["--data", "gone.jsonl"], "no records file at gone.jsonl"),
        (["--adapter", "gone"], "no heads.safetensors in gone"),
        (["--preset", "pocket", "--adapter", "CUT"], "fetch it again"),
        (["--out", "FILE"], "choose another folder"),
        (["--cache", "FILE"], "choose another folder"),
        (["--batch", "5"], "must be a multiple of --micro 2"),
        (["merge", "--adapter", "gone", "--out", "m"], "no heads.safetensors in gone"),
        (["publish", "--sam", "gone"], "there is no gone"),
        (["publish"], "--reasoner"),
        (["records", "--data", "gone", "--sam", "gone", "--out", "o"], "there is no gone"),
        (
            ["rehearsal", "--data", "gone", "--sam", "gone", "--regions", "o", "--photos", "0"],
            "--photos must be at least 1",
        ),
        (["sam", "--data", "gone", "--out", "o"], "no training images under gone"),
    ],
)
def test_a_wrong_option_is_one_line_before_the_work_begins(
    wrong, message, records, qwen, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    Path("CUT").mkdir()
    Path("CUT/heads.safetensors").write_bytes(b"cut")
    propose_rectangles(monkeypatch)
    monkeypatch.setattr(data, "fill_cache", lambda *args: pytest.fail("images are opened"))
    if wrong[0].startswith("--"):
        wrong = [*command_line(qwen, records, "out"), *wrong]
    if "pocket" in wrong:  # which has its own LLM and SAM
        wrong = [word for word in wrong[2:] if word not in ("--sam", "none")]
    assert command.main(wrong) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("error: ") == 1


def test_a_file_may_have_a_rate():
    assert parse_source("a.jsonl=0.3") == (Path("a.jsonl"), 0.3)
    assert parse_source("a.jsonl") == (Path("a.jsonl"), 1.0)
    with pytest.raises(BadInput):
        parse_source("a.jsonl=0")


def test_weights_of_losses_are_read_and_checked():
    assert loss_weights(["align=2"]) == {"text": 1, "align": 2, "iop": 1, "presence": 1, "marker": 1}
    for wrong in ("aling=2", "align=x", "align"):
        with pytest.raises(BadInput, match="LOSS=WEIGHT"):
            loss_weights([wrong])
