"""`python -m assistant names`: what a preset knows by name."""

import json

import pytest

from assistant import __main__ as command
from assistant.commands.names import LINE_WIDTH
from assistant.pipeline import KnownName, Pipeline
from assistant.presets import ModelOptions

KNOWN = [
    KnownName("wine glass", "tableware", ("goblet",)),
    KnownName("dog", "animal", ("beagle", "puppy")),
    KnownName("cup", "tableware"),
]


class Knowing(Pipeline):
    """Knows some names and can do nothing else."""

    def __init__(self, known):
        self.known = known

    def known_names(self):
        return self.known


@pytest.fixture
def let_know(monkeypatch):
    def let(known):
        monkeypatch.setattr(ModelOptions, "load", lambda self: (Knowing(known), {}))

    return let


def test_names_are_listed_by_groups_with_their_words_counted(let_know, capsys):
    let_know(KNOWN)
    assert command.main(["names"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 names and 3 other words for them (+N):",
        "animal: dog (+2)",
        "tableware: cup, wine glass (+1)",
    ]


def test_long_groups_are_wrapped(let_know, capsys):
    let_know([KnownName(f"thing {k}", "other") for k in range(50)])
    assert command.main(["names"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 4 and max(map(len, lines)) <= LINE_WIDTH and lines[2].startswith("  thing")


def test_json_has_the_words_themselves(let_know, capsys):
    let_know(KNOWN)
    assert command.main(["names", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[1] == {"name": "dog", "group": "animal", "words": ["beagle", "puppy"]}


def test_a_preset_without_a_list_says_so(let_know, capsys):
    let_know(Pipeline.known_names(Knowing([])))
    assert command.main(["names"]) == 0
    assert capsys.readouterr().out == "There is no list of names: ask for anything that has one.\n"
    assert command.main(["names", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
