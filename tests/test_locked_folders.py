"""Two runs into one folder: the second is refused in one line, whatever it makes."""

import pytest
from PIL import Image

import assistant.__main__
import datagen.__main__
import eval.__main__
import finetune.__main__
from assistant.files import lock_folder
from assistant.record import write_records
from tests.helpers.example_record import COFFEE, example_record

COMMANDS = {
    "label": (assistant.__main__.main, ["label", "photos", "--classes", "cup"]),
    "datagen": (datagen.__main__.main, ["--images", "photos", "--annotations", "none.json"]),
    "eval": (eval.__main__.main, ["records", "--root", "records.jsonl"]),
    "finetune": (finetune.__main__.main, ["--data", "records.jsonl"]),
    "finetune sam": (finetune.__main__.main, ["sam", "--data", "photos"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_run_into_a_folder_is_refused(name, tmp_path, monkeypatch, capsys):
    main, words = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(COFFEE).save("coffee.png")
    write_records(tmp_path / "records.jsonl", [example_record()])
    with lock_folder(tmp_path / "out"):
        assert main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "another run writes to" in error
