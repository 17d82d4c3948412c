"""Questions to begin with, made from what the model sees in a photo unasked.

suggest_questions(["cup", "spoon", "dining table"])
# ["What could I drink from?", "Find the spoon and the dining table.", "Is there a dog?"]
"""

from __future__ import annotations

from collections.abc import Sequence

# A question by use or by kind, and names that it means. The first that fits what is seen is suggested.
QUESTIONS_BY_USE = {
    "What could I drink from?": ("cup", "wine glass", "bottle", "mug", "glass", "coffee mug"),
    "What keeps the rain off?": ("umbrella",),
    "Which animal is it?": (
        *("cat", "dog", "bird", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
        *("rabbit", "lion", "tiger", "monkey", "fox", "duck", "butterfly", "frog", "turtle"),
    ),
    "What can I eat?": (
        *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"),
        *("bread", "fruit", "strawberry", "lemon"),
    ),
    "Where could I sit?": ("couch", "chair", "bench"),
    "Where could I sleep?": ("bed",),
    "What has wheels?": ("car", "truck"),
    "What flies?": ("airplane", "kite"),
    "What tells the time?": ("clock",),
    "What makes music?": ("guitar", "piano", "violin", "drum", "trumpet"),
    "Who is there?": ("person",),
}
# Asked about to show that what is not there is said not to be; the first that is not seen.
RARELY_SEEN = ("dog", "bicycle", "elephant")
# For models that cannot tell what they see before they are asked.
PLAIN_QUESTIONS = ["What is this?", "Where could I sit?", "Is there a person?"]


def suggest_questions(names: Sequence[str]) -> list[str]:
    """Three questions about a photo.

    Args:
        names: What is seen in it, surest first; [] where that is not known.

    Returns:
        A question by use or by name, one for what else is seen, and one for something that is not seen.
    """
    if not names:
        return list(PLAIN_QUESTIONS)
    by_use, used = _question_by_use(names)
    others = [name for name in names if name != used][:2]
    rarity = next((name for name in RARELY_SEEN if name not in names), RARELY_SEEN[-1])
    article = "an" if rarity[0] in "aeiou" else "a"
    absent = f"Is there {article} {rarity}?"
    if not by_use:
        by_name = f"Where is the {others[0]}?"
        return [by_name, _find(others[1:]) or "What is this?", absent]
    return [by_use, _find(others) or f"Where is the {used}?", absent]


def _question_by_use(names: Sequence[str]) -> tuple[str, str]:
    """A question by use for the surest name that has one, and that name; "" and "" where none has."""
    for name in names:
        for question, meant in QUESTIONS_BY_USE.items():
            if name in meant:
                return question, name
    return "", ""


def _find(names: Sequence[str]) -> str:
    """A question for one name or two; "" for none."""
    return f"Find {' and '.join(f'the {name}' for name in names)}." if names else ""
