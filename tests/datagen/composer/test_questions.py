"""Questions composed from images: right masks, nothing ambiguous, the same again with the same seed."""

from collections import Counter
from dataclasses import replace

from assistant.grammar import parse
from assistant.sam.mask_ops import decode_rle
from datagen.composer import questions
from datagen.composer.phrasebank import load_bank, load_groups
from tests.helpers.composed_images import (
    BANK,
    compose_train,
    image_with_row_of,
    instance,
    read_cups_and_cat,
)

PREMISES = (
    "beside the",
    "next to the",
    "front of the",
    "behind the",
    "near the",
    "closest to the",
    "left of the",
    "right of the",
    "by the",
    "between the",
    "close to the",
)


def test_masks_are_the_unions_of_what_is_meant(cups_and_cat):
    records = compose_train(read_cups_and_cat(cups_and_cat)[0])
    areas = {"cup": 900 + 900 + 3600, "dining table": 300 * 110, "person": 3000 + 2800}
    kinds = Counter(record.source["kind"] for record in records)
    for record in records:
        mentions = [(mention.phrase, mention.present) for mention in parse(record.answer)]
        assert mentions == [(target.phrase, target.rle is not None) for target in record.targets]
        of_targets = zip(
            record.source["categories"], record.targets, record.source["annotation_ids"], strict=True
        )
        for key, target, ids in of_targets:
            assert (target.rle is None) == (key not in areas) == (not ids)
            if target.rle and record.source["kind"] not in ("position", "followup"):
                assert abs(decode_rle(target.rle).sum() - areas[key]) < 0.05 * areas[key]
    assert set(kinds) == set(questions.KIND_WEIGHTS) - {"part"}
    standalone = [record.question.lower().strip(" .?") for record in records if not record.history]
    assert len(set(standalone)) == len(standalone) and len(records) == 60


def test_parts_are_asked_of_the_whole():
    bank, groups = load_bank("carparts"), load_groups("carparts")
    keys = ("front left door", "back left door", "wheel", "left mirror")
    image = image_with_row_of(keys, {key: k for k, key in enumerate(bank)})
    records = [
        record
        for seed in range(4)
        for record in questions.compose(image, bank, "train", 40, seed, Counter(), groups)
    ]
    parts = [record for record in records if record.source["kind"] == "part"]
    assert len(parts) > 18 and all("car" in record.question for record in parts)
    # Where both doors of a side are visible, what describes them both is not asked of one.
    ambiguous = {
        phrase.id
        for entry in bank.values()
        for phrase in entry.phrases
        if set(phrase.also_true_of) & set(keys)
    }
    for record in records:
        used = {phrase for phrase in record.source["phrase_ids"] if phrase and phrase.split("/")[0] in bank}
        assert not used & ambiguous
        wrong = ("every front", "all front left", "is there wheels")
        assert not any(words in record.question.lower() for words in wrong)


def test_absence_is_only_claimed_of_what_the_data_outlines(cups_and_cat):
    image = read_cups_and_cat(cups_and_cat)[0]
    labelled = {key: image.categories[key] for key in (*image.keys(), "cat")}
    absent = {
        key
        for seed in range(3)
        for record in questions.compose(
            replace(image, categories=labelled),
            BANK,
            "train",
            40,
            seed,
            Counter(),
            load_groups("coco"),
        )
        for key, target in zip(record.source["categories"], record.targets, strict=True)
        if target.rle is None
    }
    assert absent == {"cat"}


def test_vague_names_are_not_asked_beside_what_they_are_confused_with():
    bank, groups = load_bank("clothing"), load_groups("clothing")
    ids = {key: k for k, key in enumerate(bank)}

    def sources(*keys):
        image = image_with_row_of(keys, ids)
        return [
            record.source
            for seed in range(3)
            for record in questions.compose(image, bank, "train", 30, seed, Counter(), groups)
        ]

    both = {"bag", "purse"}
    assert bank["bag"].is_vague and "purse" in bank["bag"].confused
    assert both & {key for source in sources("bag", "hat", "belt") for key in source["categories"]} == {"bag"}
    for source in sources("bag", "purse", "hat", "belt"):
        asked = both & set(source["categories"])
        # Both at once is a question about what is carried.
        assert not asked or (asked == both and source["phrase_ids"][0].startswith("carried/"))


def test_false_premises_are_about_what_is_absent(cups_and_cat):
    image = read_cups_and_cat(cups_and_cat)[0]
    premises = 0
    for seed in range(6):
        for record in compose_train(image, seed=seed):
            is_premise = any(f"{premise} table" in record.question for premise in PREMISES)
            if record.source["kind"] == "absent" and is_premise:
                premises += 1
                assert record.targets[0].rle is None
                assert record.source["categories"][0] not in image.keys()
    assert premises > 5


def test_what_is_called_absent_is_absent_and_half_of_it_plausible(cups_and_cat):
    image = read_cups_and_cat(cups_and_cat)[0]
    absent = [
        record.source["categories"][0]
        for seed in range(6)
        for record in compose_train(image, seed=seed)
        if record.source["kind"] == "absent"
    ]
    present = set(image.keys())
    confusable = {other for key in present for other in BANK[key].confused}
    assert len(absent) > 30 and not set(absent) & (present | confusable)
    groups = {BANK[key].group for key in present}
    plausible = {other for key in present for other in BANK[key].companions}
    plausible |= {key for key in BANK if BANK[key].group in groups}
    assert sum(key in plausible for key in absent) / len(absent) > 0.4


def test_a_phrase_that_describes_something_else_in_the_image_is_not_asked(cups_and_cat):
    image = read_cups_and_cat(cups_and_cat)[0]
    more = [instance(90 + k, key, (5, 5, 50, 50)) for k, key in enumerate(("wine glass", "chair", "couch"))]
    crowded = replace(image, instances=(*image.instances, *more))
    keys = set(crowded.keys())
    shared = {
        phrase.id for entry in BANK.values() for phrase in entry.phrases if set(phrase.also_true_of) & keys
    }
    assert shared
    for seed in range(4):
        records = compose_train(crowded, seed=seed)
        assert not shared & {phrase for record in records for phrase in record.source["phrase_ids"]}


def test_a_group_means_all_of_it_that_is_there(cups_and_cat):
    image = read_cups_and_cat(cups_and_cat)[0]
    groups = {group.key: group for group in load_groups("coco")}
    more = (
        instance(90, "dog", (5, 5, 50, 50)),
        instance(91, "cat", (65, 5, 50, 50)),
        instance(92, "bowl", (5, 65, 50, 50)),
    )
    crowded = replace(image, instances=(*image.instances, *more))
    asked = Counter()
    for seed in range(6):
        for record in questions.compose(crowded, BANK, "train", 60, seed, Counter(), tuple(groups.values())):
            group = groups.get(str(record.source["phrase_ids"][0]).split("/")[0])
            if group is None or group.key in BANK:
                continue
            kind = record.source["kind"]
            asked[group.key, kind] += 1
            meant = [key for key in group.categories if key in crowded.keys()]
            assert record.source["categories"] == (meant or [group.categories[0]])
            assert not set(group.maybe) & set(crowded.keys())
            assert kind == ("absent" if not meant else "multi" if len(meant) > 1 else "implicit")
    assert {("people", "implicit"), ("pets", "multi")} <= set(asked)
    assert "absent" in {kind for _, kind in asked}
    assert not any(key == "drink" for key, _ in asked)  # a bowl is there: is it to drink from?


def test_splits_keep_their_phrases_and_the_seed_decides(cups_and_cat):
    image = read_cups_and_cat(cups_and_cat)[0]
    for split in ("train", "held"):
        records = compose_train(image, split, 60)
        assert records == compose_train(image, split, 60) != compose_train(image, split, 60, seed=1)
        used = {phrase for record in records for phrase in record.source["phrase_ids"] if phrase}
        assert used
        for phrase in used:
            key, number = phrase.split("/")
            assert BANK[key].phrases[int(number)].is_held == (split == "held")
    assert len(compose_train(image, per_image=7)) == 7


def test_replies_agree_in_number(cups_and_cat):
    for record in compose_train(read_cups_and_cat(cups_and_cat)[0]):
        if any(target.phrase in ("cups", "people") for target in record.targets if target.rle):
            wrong = ("is the cups", "is the people")
            assert not any(words in record.answer for words in wrong), record.answer
