"""The contact sheet shows each kind in turn, and the same questions for the same seed."""

import numpy as np
from PIL import Image

from datagen import sheet
from datagen.__main__ import main
from tests.helpers.composed_images import write_cups_and_cat
from tests.helpers.datagen_images import command


def test_contact_sheet_shows_each_kind_in_turn(tmp_path, capsys):
    write_cups_and_cat(tmp_path)
    assert main(command(tmp_path, "out")) == 0
    capsys.readouterr()
    folder = str(tmp_path / "out")
    # There are no parts: those are skipped.
    arguments = [folder, "--kinds", "followup", "absent", "part", "--seed", "3"]
    assert sheet.main([*arguments, "--out", str(tmp_path / "one.png")]) == 0
    assert sheet.main([*arguments, "--out", str(tmp_path / "two.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:6]] == ["followup:", "absent:"] * 3
    assert lines[:6] == lines[6:]
    with Image.open(tmp_path / "one.png") as drawn, Image.open(tmp_path / "two.png") as again:
        assert np.array_equal(drawn, again)
        assert drawn.width == 3 * (sheet.CELL_WIDTH + sheet.GAP) + sheet.GAP
        first = np.asarray(drawn.crop((0, 0, sheet.CELL_WIDTH, sheet.CELL_WIDTH)))
        assert (first.std(axis=2) > 0).any()  # a photo in colours
    for wrong in (["--rows", "0"], ["--kinds", "part"], ["--out", str(tmp_path / "one.txt")]):
        assert sheet.main([folder, "--out", str(tmp_path / "three.png"), *wrong]) == 2
    assert capsys.readouterr().err.count("error: ") == 3
