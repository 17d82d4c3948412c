"""The form of an answer, which servers may not enforce."""

import pytest

from datagen.llm.answers import answer_of, fits_schema
from datagen.llm.prompts import OPINION


@pytest.mark.parametrize(
    "value, fits",
    [
        ({"numbers": [1, 2]}, True),
        ({"numbers": [True]}, False),
        ({"numbers": 1}, False),
        ({}, False),
        ({"numbers": [], "more": 1}, False),
        ([], False),
    ],
)
def test_the_form_of_an_answer(value, fits):
    assert fits_schema(value, OPINION) == fits


def test_an_answer_may_stand_in_a_fence():
    assert answer_of('```json\n{"numbers": [3]}\n```', OPINION) == {"numbers": [3]}
    assert answer_of('{"numbers": [3', OPINION) is None and answer_of("[3]", OPINION) is None
