"""Everyday questions: their patterns, the truth of each, and the figures, on coloured rectangles."""

import pytest

from assistant.sam.mask_ops import decode_rle, encode_rle
from eval.annotated_images import AnnotatedImage, Instance
from eval.benchmarks import everyday
from eval.benchmarks.everyday import (
    PATTERNS_FILE,
    Pattern,
    everyday_figures,
    everyday_questions,
    read_patterns,
)
from tests.helpers.benchmark_data import write_coco_folder
from tests.helpers.benchmark_runs import run_benchmark
from tests.helpers.colour_finder import H, W, rectangle

BOXES = {"cat": [(4, 4, 24, 24), (30, 10, 34, 14)], "dog": [(40, 20, 58, 38)]}


@pytest.fixture
def image(tmp_path):
    """Two cats, the left one the bigger, and a dog."""
    instances = [
        Instance(k, name, False, encode_rle(rectangle(*box)))
        for k, (name, box) in enumerate((name, box) for name, boxes in BOXES.items() for box in boxes)
    ]
    return AnnotatedImage(tmp_path / "a.png", H, W, instances)


@pytest.fixture
def bare(tmp_path):
    return AnnotatedImage(tmp_path / "b.png", H, W, [])


def asked(pattern, *images):
    """(question, [present?], mask of the first target) of every question of a pattern."""
    found = []
    for question in everyday_questions([pattern], images):
        rles = [target.rle for target in question.record.targets]
        mask = decode_rle(rles[0]) if rles[0] else None
        found.append((question.record.question, [rle is not None for rle in rles], mask))
    return found


def test_the_patterns_are_many_and_none_is_in_both_halves():
    patterns = read_patterns(PATTERNS_FILE)
    held = {pattern.question for pattern in patterns if pattern.split == "held"}
    train = {pattern.question for pattern in patterns if pattern.split == "train"}
    assert len(patterns) >= 150 and len(held) + len(train) == len(patterns) and not held & train
    assert len({pattern.kind for pattern in patterns}) >= 12


def test_what_answers_is_present_and_asked_of_a_photo_without_it(image, bare):
    pattern = Pattern("kind", "held", "the pets", (("cat", "dog"),))
    (present, absent) = asked(pattern, image, bare)
    assert present[:2] == ("the pets", [True]) and present[2].sum() == 400 + 16 + 324
    assert absent[:2] == ("the pets", [False])
    assert not asked(Pattern("kind", "held", "the pets", (("cat",),), maybe=("dog",)), image)


def test_several_things_are_targets_of_their_own(image):
    pattern = Pattern("several", "held", "the cat and the bird", (("cat",), ("bird",)))
    assert asked(pattern, image)[0][1] == [True, False]


@pytest.mark.parametrize(
    "pick, area", [("left", 400), ("right", 16), ("biggest", 400), ("smallest", 16), ("top", None)]
)
def test_one_of_several_is_meant_where_that_is_clear(image, pick, area, monkeypatch):
    monkeypatch.setattr(everyday, "MIN_TARGET_SHARE", 0.001)
    found = asked(Pattern("position", "held", "the {name}", pick=pick), image)
    assert [mask.sum() for *_, mask in found] == ([area] if area else [])  # the cats are about as high


def test_everything_but_a_category(image):
    found = asked(Pattern("all_but", "held", "all but the {name}"), image)
    assert found[0][0] in ("all but the cat", "all but the dog")
    assert found[0][2].sum() == (324 if "cat" in found[0][0] else 416)


def test_a_slot_gets_an_article(image):
    questions = list(everyday_questions([Pattern("exists", "held", "is there a {name}?")], [image]))
    assert questions[0].record.question in ("is there a cat?", "is there a dog?")
    assert Pattern("exists", "held", "a {name}").filled("orange").question == "an orange"


def test_the_figures(image):
    pattern = Pattern("count", "held", "how many {plural}?")
    question = next(q for q in everyday_questions([pattern], [image]) if "cats" in q.record.question or True)
    count = question.record.source["count"]
    answered = [
        {"phrase": "dragons", "present": False, "known": False},
        {"phrase": "fire hydrant", "present": False, "known": True},
    ]
    line = {"answer": f"I count {count}.", "said": True, "answered": answered}
    figures = everyday_figures([line], [question])
    assert figures["counts_right"] == 1 and figures["unknown"] == 1
    assert figures["denials"] == 1 and figures["denials_not_named"] == 1
    line["answered"][1]["phrase"] = question.record.question.split()[-1].strip("?")
    line["answer"] = "There are none."
    figures = everyday_figures([line], [question])
    assert figures["denials_not_named"] == 0 and figures["counts_right"] == 0


def test_the_benchmark_runs(monkeypatch, folder):
    """The doubled assistant knows no animals: it says nothing, which is right where there is none."""
    write_coco_folder(folder)
    text = (folder / "instances.json").read_text().replace("red", "cat").replace("blue", "bus")
    (folder / "instances.json").write_text(text)
    code, result = run_benchmark(
        monkeypatch, folder / "out", "everyday", "--root", folder, "--kind", "exists", "--kind", "talk"
    )
    assert code == 0 and result["benchmark"] == "everyday" and result["N_acc"] == 1 and result["T_acc"] == 0
    assert result["figures"]["denials"] == 0 and result["by"]["kind: talk"]["gIoU"] == 1


def test_an_unknown_kind_is_refused(monkeypatch, folder, capsys):
    write_coco_folder(folder)
    code, _ = run_benchmark(monkeypatch, folder / "out", "everyday", "--root", folder, "--kind", "rhyme")
    assert code == 2 and "rhyme" in capsys.readouterr().err
