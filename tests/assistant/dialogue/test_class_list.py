"""Class names are read from pasted text, and the answers to them become a label map."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from assistant.answer import Answer, Cost, Target
from assistant.dialogue.class_list import UNANSWERED_PIXEL, ask_classes, read_class_names
from assistant.errors import BadInput
from assistant.sam.concepts import Instances
from assistant.sam.mask_ops import encode_rle

SIZE = (4, 6)


def test_class_names_are_read():
    assert read_class_names("1. road\n- sky; car, Car\tbike | tram ") == [
        "road",
        "sky",
        "car",
        "bike",
        "tram",
    ]
    with pytest.raises(BadInput, match="at most 200"):
        read_class_names(",".join(f"n{k}" for k in range(201)))
    with pytest.raises(BadInput, match="characters"):
        read_class_names("x" * 81)
    with pytest.raises(BadInput, match="empty"):
        read_class_names(" ,, \n")
    with pytest.raises(BadInput, match="is text, not int"):
        read_class_names(5)


@dataclass
class ScriptedScene:
    """Gives the targets of a list, one list a question."""

    replies: list[list[Target]]
    size: tuple[int, int] = SIZE
    asked: list[str] = field(default_factory=list)
    resets: int = 0
    finds_names: bool = False
    threshold: float = 0.5

    def reset(self):
        self.resets += 1

    def ask(self, question):
        self.asked.append(question)
        return Answer("", self.replies[len(self.asked) - 1], SIZE, None, question, tokens=3)


def column_mask(*columns):
    mask = np.zeros(SIZE, bool)
    mask[:, list(columns)] = True
    return mask


def test_answers_become_a_label_map():
    scene = ScriptedScene(
        [
            [
                Target("the road", True, 0.6, column_mask(0, 1, 2), []),
                Target("bike", False, 0.1, None, []),
                Target("road", True, 0.9, column_mask(5), []),  # answered already
                Target("zebra", True, 0.9, column_mask(5), []),  # not asked for
            ],
            [Target("person", True, 0.8, column_mask(2, 3), [])],  # a synonym, in a complete answer
        ]
    )
    checks = []
    class_map = ask_classes(scene, ["road", "bike", "pedestrian"], 2, lambda: checks.append(1))
    assert scene.asked == [
        "Which of these are in the picture: road, bike?",
        "Which of these are in the picture: pedestrian?",
    ]
    assert len(checks) == scene.resets == 2
    assert class_map.label.dtype == np.int16
    assert class_map.label[0].tolist() == [0, 0, 2, 2, UNANSWERED_PIXEL, UNANSWERED_PIXEL]
    assert class_map.answers == {"road": (True, 0.6), "bike": (False, 0.1), "pedestrian": (True, 0.8)}
    assert class_map.unknown_phrases == ["zebra"] and class_map.unanswered == []
    assert class_map.found["road"].mask.sum() == 12 and class_map.found["pedestrian"].phrase == "person"
    assert class_map.tokens == [3, 3] and len(class_map.seconds) == 2
    road, bike, pedestrian = class_map.targets()
    assert road.mask.sum() == 8 and pedestrian.mask.sum() == 8 and not bike.present


def test_a_class_that_is_covered_is_absent():
    replies = [
        [Target("a", True, 0.2, column_mask(1), []), Target("b", True, 0.3, column_mask(0, 1), [])],
        [],
    ]
    class_map = ask_classes(ScriptedScene(replies), ["a", "b", "c"], 2)
    assert [(target.phrase, target.present) for target in class_map.targets()] == [("a", False), ("b", True)]
    assert class_map.unanswered == ["c"]


@dataclass
class FindingScene(ScriptedScene):
    """Finds columns by their name: {name: (presence, [(score, columns)])}."""

    columns: dict[str, tuple[float, list[tuple[float, list[int]]]]] = field(default_factory=dict)
    finds_names: bool = True

    def find(self, phrase):
        self.asked.append(phrase)
        presence, found = self.columns[phrase]
        rles = [encode_rle(column_mask(*columns)) for _, columns in found]
        scores = np.array([score for score, _ in found], np.float32)
        boxes = np.zeros((len(found), 4), np.float32)
        return Instances(rles, boxes, scores, presence, SIZE), Cost(0.5, passes=1)


def test_classes_are_found_by_their_names_and_overlaps_go_to_the_higher_score():
    scene = FindingScene(
        [],
        columns={
            "road": (0.9, [(0.9, [0]), (0.4, [2, 3])]),
            "bike": (0.8, [(0.6, [3, 4])]),
            "sky": (0.1, [(0.35, [5])]),  # hardly there
            "zebra": (0.0, []),
        },
    )
    checks = []
    class_map = ask_classes(scene, list(scene.columns), 2, lambda: checks.append(1))
    assert scene.asked == ["road", "bike", "sky", "zebra"] and len(checks) == 4
    assert class_map.label[0].tolist() == [0, UNANSWERED_PIXEL, 0, 1, 1, UNANSWERED_PIXEL]
    present = {name: present for name, (present, _) in class_map.answers.items()}
    assert present == {"road": True, "bike": True, "sky": False, "zebra": False}
    assert class_map.answers["road"][1] == pytest.approx(0.9) and class_map.answers["zebra"][1] == 0
    assert len(class_map.found["road"].instances) == 2 and class_map.found["sky"].mask is None
    assert class_map.passes == [1] * 4 and class_map.calls == [0] * 4 and sum(class_map.seconds) == 2
