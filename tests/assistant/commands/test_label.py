"""`label` says what it has labelled, what it has not, and what the words were that nobody knew."""

from pathlib import Path

import pytest

from assistant.__main__ import main
from assistant.commands.label import print_summary
from assistant.label import engines
from assistant.label.labeller import Labeller
from assistant.label.output import LabelSummary
from tests.helpers.fake_assistant import FakeAssistant
from tests.helpers.labelled_sets import CLASSES, write_photos


def test_label(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines, "load_labeller", lambda settings: Labeller(settings, FakeAssistant()))
    photos = write_photos(tmp_path / "photos", ["a.png", "b.png"])
    (photos / "broken.jpg").write_bytes(b"")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    out = tmp_path / "out"
    assert main(["label", str(photos), "--classes", str(tmp_path / "names.txt"), "--out", str(out)]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        f"2 photos labelled in {out}: red ball 2 in 2, green box 2 in 2, blue sky 2 in 2",
        "in no photo: bench",
        f"1 photo has no labels: {out / 'failed.txt'}",
        f"to be checked: {out / 'sheet.html'}",
    ]
    assert output.err.startswith("no labels for broken.jpg: ") and output.err.count("\n") == 1


def test_unknown_words_and_many_failures(capsys):
    failures = {f"{number}.jpg": "is an empty file" for number in range(12)}
    counts = {"cup": 3, "gizmo": 0}
    print_summary(LabelSummary(Path("out"), 2, counts, counts, ["gizmo"], failures))
    output = capsys.readouterr()
    assert "words that the model does not know: gizmo\n" in output.out and "in no photo" not in output.out
    assert "12 photos have no labels" in output.out
    assert output.err.count("no labels for") == 10


@pytest.mark.parametrize(
    "words, message",
    [
        (["none", "--classes", "cup"], "no folder of photos at none"),
        (["photos", "--classes", "cup"], "no photo in photos"),
        (["photos", "--classes", "none.txt"], "none.txt"),
        (["photos", "--classes", ", ,"], "the list of classes is empty"),
        (["photos", "--classes", "cup", "--workers", "0"], "--workers must be at least 1"),
        (["photos", "--classes", "cup", "--preset", "none"], "there is no preset 'none'"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    if "none" == words[-1]:
        write_photos(tmp_path / "photos", ["a.png"])
    assert main(["label", *words, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
