"""Follow-ups mean what the turn before them left."""

from collections import Counter

from assistant.grammar import parse
from tests.helpers.composed_images import compose_train, read_cups_and_cat

CUPS = {1, 2, 3}
CUP_AT = {"left": 1, "right": 3, "middle": 2, "biggest": 3, "nearest": 1, "furthest": 3}


def test_followups_mean_what_was_left_by_the_turn_before(cups_and_cat):
    image = read_cups_and_cat(cups_and_cat)[0]
    checked = Counter()
    for seed in range(12):
        for record in compose_train(image, seed=seed):
            assert record.source["kind"] == "followup" or record.history == []
            if record.source["kind"] == "followup":
                checked[check_followup(record)] += 1
    assert min(checked["one"], checked["others"], checked["all"]) > 5


def check_followup(record):
    """Whether a follow-up means the right cups; returns which it means: "one", "others", "all" or None."""
    assert 1 <= len(record.history) <= 2
    mentions = [mention for turn in record.history for mention in parse(turn.answer)]
    assert mentions and all("{" not in turn.question for turn in record.history)
    ids = [set(each) for each in record.source["annotation_ids"]]
    phrase = record.targets[0].phrase
    position = next((position for position in CUP_AT if position in phrase), None)
    if position and "cup" in phrase:
        assert ids == [{CUP_AT[position]}], record
        return "one"
    if phrase.startswith("other"):
        earlier = next(position for position in CUP_AT if position in mentions[-1].phrase)
        assert ids == [CUPS - {CUP_AT[earlier]}]
        return "others"
    if "cup" in record.source["categories"]:
        assert CUPS in ids
        return "all"
    return None
