"""Corrected answers become training records."""

import numpy as np
import pytest

from assistant.answer import Answer, Target
from assistant.dialogue.corrections import save_correction
from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.record import check_records, read_records
from assistant.sam.mask_ops import decode_rle
from tests.helpers.fake_assistant import COLOURS, colour_mask, sample_image

GREEN = colour_mask(sample_image(), COLOURS["green"])


def answer_to(question, *targets):
    return Answer("", list(targets), GREEN.shape, sample_image(), question)


def test_corrections_are_records(tmp_path):
    corrected = answer_to(
        "add the green one", Target("red ball", False, 0.0, None, []), Target("green box", True, 1, GREEN, [])
    )
    history = [Turn("red and a bench", "red ball [SEG], no bench [ABS].")]
    for _ in range(2):  # again replaces, it does not double
        file = save_correction(tmp_path, corrected, history)
    (record,) = read_records(file)
    assert check_records(file) == [] and record.question == "add the green one"
    assert [target.phrase for target in record.targets if target.rle is None] == ["red ball"]
    assert (decode_rle(next(target.rle for target in record.targets if target.rle)) == GREEN).all()
    assert [turn.question for turn in record.history] == ["red and a bench"]
    other = answer_to("x?", Target("x", True, 1, GREEN, []))
    save_correction(tmp_path, other, [Turn("before", "y [SEG].")])
    assert len(read_records(file)) == 2 and len(list((tmp_path / "images").iterdir())) == 1


def test_what_cannot_be_a_record_is_refused(tmp_path):
    target = Target("x", True, 1, GREEN, [])
    for bad in (
        Answer("", [], (4, 4), np.zeros((4, 4, 3), np.uint8), "x"),
        Answer("", [target], GREEN.shape, None, "x"),
    ):
        with pytest.raises(BadInput, match="training record"):
            save_correction(tmp_path, bad)
    (tmp_path / "no").write_text("")
    with pytest.raises(BadInput, match="choose another folder"):
        save_correction(tmp_path / "no", answer_to("x?", target))
