"""`ask` takes one photo, several, or a folder, and the question comes last."""

import json
from pathlib import Path

import pytest

from assistant.__main__ import main
from assistant.answer import Target
from assistant.commands import ask
from assistant.commands.ask import folders_for
from assistant.scene import Scene
from tests.helpers.fake_assistant import FakeAssistant
from tests.helpers.labelled_sets import write_photos


@pytest.fixture
def models(monkeypatch) -> FakeAssistant:
    """The stand-in that answers; loaded once."""
    assistant = FakeAssistant()
    monkeypatch.setattr(ask, "open_assistant", lambda options: assistant)
    return assistant


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_photos(tmp_path / "photos", ["a.png", "b.png", "sub/a.png"])


def test_one_photo_is_answered_in_full(photos, models, tmp_path, capsys):
    assert (
        main(["ask", str(photos / "a.png"), "the red one, and a bench?", "--out", str(tmp_path / "out")]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert "red ball" in lines[0] and lines[1].startswith("  red ball: ")
    assert lines[2] == "  bench: not in the picture (confidence 0.12)"
    assert lines[3] == f"masks, overlay, COCO, LabelMe and YOLO files: {tmp_path / 'out'}"
    assert (tmp_path / "out/answer.json").is_file()
    assert main(["ask", str(photos / "a.png"), "--json", "the red one"]) == 0  # options may come between
    row = json.loads(capsys.readouterr().out)
    assert row["image"] == str(photos / "a.png") and row["targets"][0]["present"]
    costs = {"seconds", "calls", "tokens", "read_tokens", "image_tokens", "passes"}
    assert set(row["cost"]) == costs and row["cost"]["seconds"] > 0


def test_what_is_seen_but_not_outlined_is_not_called_absent(photos, models, capsys, monkeypatch):
    ask = Scene.ask

    def ask_and_see(self, question):
        answer = ask(self, question)
        answer.targets.append(Target("wire", False, 0.9, None, [], seen=True))
        return answer

    monkeypatch.setattr(Scene, "ask", ask_and_see)
    assert main(["ask", str(photos / "a.png"), "the red one?"]) == 0
    assert "  wire: seen, but not outlined (confidence 0.90)" in capsys.readouterr().out.splitlines()


def test_several_photos_and_folders_have_a_line_each(photos, models, tmp_path, capsys):
    words = ["ask", str(photos), str(photos / "a.png"), "is there a red one?", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    output = capsys.readouterr()
    names = [line.partition(": ")[0] for line in output.out.splitlines()]
    assert names == [str(photos / name) for name in ("a.png", "b.png", "sub/a.png", "a.png")]
    assert all("(red ball " in line and " px, 0.92)" in line for line in output.out.splitlines())
    assert output.err == ""  # no progress bar where nobody sees it
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders == ["a", "a-2", "a-3", "b"]
    assert all((tmp_path / "out" / name / "answer.json").is_file() for name in folders)


def test_photos_that_fail_are_named_and_counted(photos, models, capsys):
    (photos / "broken.jpg").write_bytes(b"")
    assert main(["ask", str(photos), "red?", "--json"]) == 2
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png", "broken.jpg", "a.png"]
    assert "empty file" in rows[2]["error"] and all("targets" in row for row in rows if "error" not in row)
    errors = output.err.splitlines()
    assert len(errors) == 2 and "broken.jpg" in errors[0] and "1 of 4 images" in errors[1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["none.png", "red?"], "no image at none.png"),
        (["empty", "red?"], "no image in empty"),
        (["empty", ""], "question"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words, message, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["ask", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_forgotten_question_is_told(photos, models, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["ask", str(photos / "a.png")])
    assert stopped.value.code == 2 and "question" in capsys.readouterr().err
    assert main(["ask", str(photos / "a.png"), str(photos / "b.png")]) == 2
    assert "the last word is the question" in capsys.readouterr().err


def test_folders_have_names_of_their_own():
    files = [Path(name) for name in ("a.png", "A.jpg", "x/a.png", "a-2.png")]
    assert [folder.name for folder in folders_for(files, Path("out"))] == ["a", "A-2", "a-3", "a-2-2"]
    assert [*folders_for(files, None)] == [None] * 4
