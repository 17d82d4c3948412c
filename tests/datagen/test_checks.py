"""What a question by a language model must hold."""

from collections import Counter

import pytest

pytest.importorskip("simplemma", reason="simplemma is not installed")

from datagen.checks import AskedQuestions, WrittenQuestion, WrittenTarget, reason_to_drop
from datagen.composer.phrasebank import load_bank
from datagen.sources.annotated_images import read_images

BANK = load_bank("coco")


@pytest.mark.parametrize(
    "text, kind, targets, reason",
    [
        ("What?", "implicit", [("cat", [12])], "too short"),
        ("word " * 61, "named", [("cat", [12])], "too long"),
        (
            "\u0433\u0434\u0435 \u0437\u0434\u0435\u0441\u044c \u043a\u043e\u0442?",
            "named",
            [("cat", [12])],
            "not in English",
        ),
        ("Where is the [SEG] cat?", "named", [("cat", [12])], "contains a reserved token"),
        ("Where is the cat?", "riddle", [("cat", [12])], "of an unknown kind"),
        ("Where is the cat?", "named", [], "has no target"),
        ("Where is the cat?", "named", [("cup", [12])], "refers to instances that do not exist"),
        ("Where is the dog?", "named", [("dog", [])], "has no target that is present"),
        ("Is there a cup?", "absent", [("cup", [])], "calls something absent that is present"),
        ("Is there a spoon?", "absent", [("spoon", [])], "calls something absent that nobody"),
        ("Donde esta el gato que duerme?", "named", [("cat", [12])], "not in English"),
        ("Where is the handle?", "part", [("cup", [10])], "is not about a part"),
        ("Is there a cat?", "absent", [("cat", [12])], "is about something absent"),
        ("The cups or cup?", "named", [("cup", [10, 11]), ("cup", [10])], "asks for one category twice"),
        ("The cat and cups?", "named", [("cat", [12]), ("cup", [10, 11])], "does not fit its kind"),
        ("And the other one?", "followup", [("cup", [10])], "has no earlier turn"),
        ("The left of the cups?", "position", [("cup", [10, 11])], "does not choose"),
        ("Who purrs over there?", "implicit", [("cat", [12])], None),
        ("Something for felines and kitties?", "implicit", [("cat", [12])], "names its target"),
    ],
)
def test_reasons(three_images, text, kind, targets, reason):
    image = read_images(three_images / "instances.json", three_images / "images", BANK, Counter())[0]
    written = [WrittenTarget("x", category, tuple(ids)) for category, ids in targets]
    question = WrittenQuestion(text, written, kind)
    found = reason_to_drop(question, image, BANK, absence_is_verified=False)
    assert found is None if reason is None else found.startswith(reason)


def test_nearly_the_same_question():
    asked = AskedQuestions()
    assert not asked.is_repeat("Where is the red cup?") and asked.is_repeat("where can I see the red cup")
    assert not asked.is_repeat("Where is the blue cup?")
    assert not asked.is_repeat("???") and asked.is_repeat("???")
