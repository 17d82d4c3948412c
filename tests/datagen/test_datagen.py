"""Questions composed from photos: right masks, nothing ambiguous, the same again with the same seed."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from assistant.export.converters import from_llmseg40k
from assistant.grammar import parse
from assistant.record import check_records, from_rle, read_records
from datagen import sheet
from datagen.__main__ import main
from datagen.composer import questions
from datagen.composer.phrasebank import load, load_groups
from datagen.sources.photos import Instance, Photo, read_coco

BANK = load("coco")
IDS = {"person": 1, "cup": 47, "cat": 17, "dining table": 67, "bowl": 51, "car": 3}
NAMES = IDS | {
    name: 1000 + number for number, name in enumerate(sorted(set(BANK) - set(IDS)))
}  # all that is outlined
WIDTH, HEIGHT = 300, 200


def box(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def annotation(number, image, name, x, y, w, h, **more):
    return {
        "id": number,
        "image_id": image,
        "category_id": IDS[name],
        "segmentation": box(x, y, w, h),
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": 0,
    } | more


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two pictures: cups in a row, a table and a crowd of people; a cat alone."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    for name, picture in (("a.jpg", skimage.data.coffee()), ("b.jpg", skimage.data.chelsea())):
        Image.fromarray(picture).resize((WIDTH, HEIGHT)).save(folder / "images" / name)
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[:30, 200:] = True
    flat = crowd.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    rows = [
        annotation(1, 1, "cup", 10, 100, 30, 30),
        annotation(2, 1, "cup", 120, 105, 30, 30),
        annotation(3, 1, "cup", 230, 100, 60, 60),
        annotation(4, 1, "dining table", 0, 90, 300, 110),
        annotation(
            5, 1, "person", 200, 0, 100, 30, iscrowd=1, segmentation={"size": [HEIGHT, WIDTH], "counts": runs}
        ),
        annotation(6, 1, "person", 20, 10, 40, 70),
        annotation(7, 2, "cat", 20, 20, 200, 150),
    ]
    data = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 2, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": rows,
        "categories": [{"id": number, "name": name} for name, number in NAMES.items()],
    }
    (folder / "instances.json").write_text(json.dumps(data))
    return folder


def read(folder):
    return read_coco(folder / "instances.json", folder / "images", BANK, Counter())


def compose(photo, split="train", per_image=60, seed=0):
    return list(questions.compose(photo, BANK, split, per_image, seed, Counter()))


def test_masks_are_the_unions_of_what_is_meant(photos):
    photo = read(photos)[0]
    records = compose(photo)
    areas = {"cup": 900 + 900 + 3600, "dining table": 300 * 110, "person": 3000 + 2800}
    seen = Counter()
    for record in records:
        kind = record.source["kind"]
        seen[kind] += 1
        mentions = parse(record.answer)
        assert [(m.phrase, m.present) for m in mentions] == [
            (t.phrase, t.rle is not None) for t in record.targets
        ]
        for key, target, ids in zip(
            record.source["categories"], record.targets, record.source["annotation_ids"]
        ):
            assert (target.rle is None) == (key not in areas) == (not ids)
            if target.rle and kind not in ("position", "followup"):
                assert abs(from_rle(target.rle).sum() - areas[key]) < 0.05 * areas[key]
    assert set(seen) == set(questions.KINDS) - {"part"}
    alone = [record.question.lower().strip(" .?") for record in records if not record.history]
    assert len(set(alone)) == len(alone) and len(records) == 60


def test_followups_mean_what_was_left_by_the_turn_before(photos):
    photo = read(photos)[0]
    cups, one = {1, 2, 3}, {"left": 1, "right": 3, "middle": 2, "biggest": 3, "nearest": 1, "furthest": 3}
    seen = Counter()
    for seed in range(12):
        for record in compose(photo, seed=seed):
            assert record.source["kind"] == "followup" or record.history == []
            if record.source["kind"] != "followup":
                continue
            assert 1 <= len(record.history) <= 2
            said = [mention for turn in record.history for mention in parse(turn.answer)]
            assert said and all("{" not in turn.question for turn in (*record.history, *record.history))
            ids = [set(each) for each in record.source["annotation_ids"]]
            phrase = record.targets[0].phrase
            if (place := next((place for place in one if place in phrase), None)) and "cup" in phrase:
                seen["one"] += 1
                assert ids == [{one[place]}], record
            elif phrase.startswith("other"):
                place = next(place for place in one if place in said[-1].phrase)
                seen["others"] += 1
                assert ids == [cups - {one[place]}]
            elif "cup" in record.source["categories"]:
                seen["all"] += 1
                assert cups in ids
    assert min(seen["one"], seen["others"], seen["all"]) > 5


def test_parts_are_asked_of_the_whole(tmp_path):
    bank = load("carparts")
    keys = ("front left door", "back left door", "wheel", "left mirror")
    photo = Photo(
        1,
        Path("x.jpg"),
        WIDTH,
        HEIGHT,
        tuple(
            Instance(k, key, box(10 + 60 * k, 50, 50, 40), (10 + 60 * k, 50, 50, 40), 2000.0, False)
            for k, key in enumerate(keys)
        ),
        {key: k for k, key in enumerate(bank)},
    )
    groups = load_groups("carparts")
    records = [
        record
        for seed in range(4)
        for record in questions.compose(photo, bank, "train", 40, seed, Counter(), groups)
    ]
    parts = [record for record in records if record.source["kind"] == "part"]
    assert len(parts) > 18 and all("car" in record.question for record in parts)
    for record in records:
        # Where both doors of a side are seen, what fits them both is not asked of one.
        used = {phrase for phrase in record.source["phrase_ids"] if phrase and phrase.split("/")[0] in bank}
        both = {
            phrase.id for entry in bank.values() for phrase in entry.phrases if set(phrase.also) & set(keys)
        }
        assert not used & both
        assert not any(
            wrong in record.question.lower() for wrong in ("every front", "all front left", "is there wheels")
        )


def test_absence_is_only_claimed_of_what_the_data_outlines(photos):
    photo = read(photos)[0]
    few = Photo(
        photo.id,
        photo.file,
        WIDTH,
        HEIGHT,
        photo.instances,
        {key: photo.categories[key] for key in (*photo.keys(), "cat")},
    )
    groups = load_groups("coco")
    gone = {
        key
        for seed in range(3)
        for record in questions.compose(few, BANK, "train", 40, seed, Counter(), groups)
        for key, target in zip(record.source["categories"], record.targets)
        if target.rle is None
    }
    assert gone == {"cat"}


def test_vague_names_are_not_asked_beside_what_they_are_confused_with():
    bank, groups = load("clothing"), load_groups("clothing")
    names = {key: k for k, key in enumerate(bank)}

    def asked(*keys):
        instances = tuple(
            Instance(k, key, box(10 + 60 * k, 50, 50, 40), (10 + 60 * k, 50, 50, 40), 2000.0, False)
            for k, key in enumerate(keys)
        )
        photo = Photo(1, Path("x.jpg"), WIDTH, HEIGHT, instances, names)
        return [
            record.source
            for seed in range(3)
            for record in questions.compose(photo, bank, "train", 30, seed, Counter(), groups)
        ]

    assert bank["bag"].vague and "purse" in bank["bag"].confused
    assert {"bag", "purse"} & {
        key for source in asked("bag", "hat", "belt") for key in source["categories"]
    } == {"bag"}
    for source in asked("bag", "purse", "hat", "belt"):  # both at once is a question about what they carry
        found = {"bag", "purse"} & set(source["categories"])
        assert not found or (found == {"bag", "purse"} and source["phrase_ids"][0].startswith("carried/"))


def test_false_premises_are_about_what_is_missing(photos):
    photo, found = read(photos)[0], 0
    anchors = (
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
    for seed in range(6):
        for record in compose(photo, seed=seed):
            if record.source["kind"] == "absent" and any(
                anchor + " table" in record.question for anchor in anchors
            ):
                found += 1
                assert record.targets[0].rle is None and record.source["categories"][0] not in photo.keys()
    assert found > 5


def test_position_points_at_the_right_cup(photos):
    wanted = {"left": 1, "right": 3, "middle": 2, "biggest": 3}
    photo = read(photos)[0]
    assert {place: cup.id for place, cup in questions.places(photo, photo.of("cup")).items()} == wanted
    asked = [record for record in compose(photo) if record.source["kind"] == "position"]
    assert asked and all(
        record.source["categories"] == ["cup"] for record in asked
    )  # the crowd is never pointed at
    for record in asked:
        (place,) = [place for place in (*wanted, "nearest", "furthest") if place in record.targets[0].phrase]
        assert record.source["annotation_ids"] == [[(wanted | {"nearest": 1, "furthest": 3})[place]]]


def test_counting_off_and_nearness():
    row = [instance(k, 5 + 55 * k, 50, 40, 40) for k in range(5)]
    photo = Photo(1, Path("x.jpg"), WIDTH, HEIGHT, tuple(row), {})
    found = questions.places(photo, row)
    assert {place: each.id for place, each in found.items()} == {
        "left": 0,
        "right": 4,
        "second_left": 1,
        "second_right": 3,
        "third_left": 2,
        "third_right": 2,
    }
    heap = [*row[:4], instance(8, 190, 150, 40, 40)]  # not in one row: nobody counts those off
    assert "second_left" not in questions.places(photo, heap)
    cups, cat, dog = (
        [instance(k, x, 50, 40, 40) for k, x in enumerate((70, 150, 250))],
        box(5, 50, 40, 40),
        (240, 120, 50, 60),
    )
    one = Photo(
        1, Path("x.jpg"), WIDTH, HEIGHT, (*cups, Instance(9, "cat", cat, (5, 50, 40, 40), 1600.0, False)), {}
    )
    assert [(place, cup.id, near.key) for place, cup, near in questions.beside(one, cups)] == [
        ("nearest", 0, "cat"),
        ("furthest", 2, "cat"),
    ]
    two = Photo(
        1,
        Path("x.jpg"),
        WIDTH,
        HEIGHT,
        (*one.instances, Instance(10, "cat", box(*dog), dog, 3000.0, False)),
        {},
    )
    assert list(questions.beside(two, cups)) == []  # which cat?


def instance(number, x, y, w, h):
    return Instance(number, "cup", box(x, y, w, h), (x, y, w, h), float(w * h), False)


@pytest.mark.parametrize(
    "boxes",
    [
        [(100, 50, 40, 40)],  # only one
        [(100, 50, 40, 40), (110, 55, 40, 40)],  # centres too close, sizes alike
        [(100, 50, 40, 40), (120, 50, 42, 42), (140, 60, 38, 41)],  # a heap
        [(10 * k, 0, 9 + k, 9 + k) for k in range(9)],  # too many
    ],
)
def test_no_position_where_people_would_disagree(boxes):
    photo = Photo(1, Path("x.jpg"), WIDTH, HEIGHT, (), {})
    assert questions.places(photo, [instance(k, *each) for k, each in enumerate(boxes)]) == {}


def test_one_inside_the_other_is_not_left_of_it():
    photo = Photo(1, Path("x.jpg"), WIDTH, HEIGHT, (), {})
    found = questions.places(photo, [instance(0, 0, 50, 300, 60), instance(1, 220, 60, 30, 30)])
    assert set(found) == {"biggest", "smallest"}


def test_absent_things_are_absent_half_of_them_plausible(photos):
    photo = read(photos)[0]
    absent = [
        record.source["categories"][0]
        for seed in range(6)
        for record in compose(photo, seed=seed)
        if record.source["kind"] == "absent"
    ]
    present = set(photo.keys())
    mixed_up = {other for key in present for other in BANK[key].confused}
    assert len(absent) > 30 and not set(absent) & (present | mixed_up)
    near = {other for key in present for other in BANK[key].beside} | {
        key for key in BANK if BANK[key].group in {BANK[other].group for other in present}
    }
    assert sum(key in near for key in absent) / len(absent) > 0.4


def test_a_phrase_that_fits_something_else_in_the_photo_is_not_asked(photos):
    photo = read(photos)[0]
    crowded = Photo(
        photo.id,
        photo.file,
        WIDTH,
        HEIGHT,
        photo.instances
        + tuple(
            Instance(90 + k, key, box(5, 5, 50, 50), (5, 5, 50, 50), 2500.0, False)
            for k, key in enumerate(("wine glass", "chair", "couch"))
        ),
        photo.categories,
    )
    keys = set(crowded.keys())
    shared = {phrase.id for entry in BANK.values() for phrase in entry.phrases if set(phrase.also) & keys}
    assert shared
    for seed in range(4):
        used = {phrase for record in compose(crowded, seed=seed) for phrase in record.source["phrase_ids"]}
        assert not used & shared


def test_a_group_means_all_of_it_that_is_there(photos):
    photo, groups = read(photos)[0], {group.key: group for group in load_groups("coco")}
    crowded = Photo(
        photo.id,
        photo.file,
        WIDTH,
        HEIGHT,
        photo.instances
        + (
            Instance(90, "dog", box(5, 5, 50, 50), (5, 5, 50, 50), 2500.0, False),
            Instance(91, "cat", box(65, 5, 50, 50), (65, 5, 50, 50), 2500.0, False),
            Instance(92, "bowl", box(5, 65, 50, 50), (5, 65, 50, 50), 2500.0, False),
        ),
        photo.categories,
    )
    seen = Counter()
    for seed in range(6):
        for record in questions.compose(crowded, BANK, "train", 60, seed, Counter(), tuple(groups.values())):
            group = groups.get(str(record.source["phrase_ids"][0]).split("/")[0])
            if group is None or group.key in BANK:
                continue
            seen[group.key, record.source["kind"]] += 1
            meant = [key for key in group.categories if key in crowded.keys()]
            assert record.source["categories"] == (meant or [group.categories[0]])
            assert not set(group.maybe) & set(crowded.keys())
            assert record.source["kind"] == (
                "absent" if not meant else "multi" if len(meant) > 1 else "implicit"
            )
    assert {("people", "implicit"), ("pets", "multi")} <= set(seen) and "absent" in {kind for _, kind in seen}
    assert not any(key == "drink" for key, _ in seen)  # a bowl is there: is it to drink from?


def test_splits_keep_their_phrases_and_the_seed_decides(photos):
    photo = read(photos)[0]
    for split in ("train", "held"):
        records = compose(photo, split, 60)
        assert records == compose(photo, split, 60) != compose(photo, split, 60, seed=1)
        used = {phrase for record in records for phrase in record.source["phrase_ids"] if phrase}
        assert used
        for phrase in used:
            key, number = phrase.split("/")
            assert BANK[key].phrases[int(number)].held == (split == "held")
    assert compose(photo, per_image=7) and len(compose(photo, per_image=7)) == 7


def test_replies_agree_in_number(photos):
    for record in compose(read(photos)[0]):
        if any(target.phrase in ("cups", "people") for target in record.targets if target.rle):
            assert not any(wrong in record.answer for wrong in ("is the cups", "is the people")), (
                record.answer
            )


def test_command_writes_records_that_load_back(photos, tmp_path, capsys):
    arguments = ["--images", str(photos / "images"), "--annotations", str(photos / "instances.json")]
    arguments += ["--per-image", "12"]
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "two")]) == 0
    said = capsys.readouterr().out
    path = tmp_path / "one" / "records.jsonl"
    assert path.read_bytes() == (tmp_path / "two" / "records.jsonl").read_bytes()
    assert check_records(path) == []  # the relative paths lead to the photos too
    records = read_records(path)
    figures = json.loads((tmp_path / "one" / "statistics.json").read_text())
    assert figures["questions"] == len(records) == 24 and "24 questions about 2 photos" in said
    assert sum(figures["by_kind"].values()) == 24
    assert any(reason.startswith("position:") for reason in figures["drops"])
    back = list(from_llmseg40k(tmp_path / "one" / "llmseg40k.json"))
    assert sorted(record.question for record in back) == sorted(
        record.question for record in records if not record.history
    )


def test_contact_sheet_shows_each_kind_in_turn(photos, tmp_path, capsys):
    made = str(tmp_path / "made")
    assert (
        main(
            [
                "--images",
                str(photos / "images"),
                "--annotations",
                str(photos / "instances.json"),
                "--out",
                made,
            ]
        )
        == 0
    )
    capsys.readouterr()
    arguments = [
        made,
        "--kinds",
        "followup",
        "absent",
        "part",
        "--seed",
        "3",
    ]  # there are no parts: those are skipped
    assert sheet.main([*arguments, "--out", str(tmp_path / "one.png")]) == 0
    assert sheet.main([*arguments, "--out", str(tmp_path / "two.png")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said[:6]] == ["followup:", "absent:"] * 3 and said[:6] == said[6:]
    with Image.open(tmp_path / "one.png") as drawn, Image.open(tmp_path / "two.png") as again:
        assert np.array_equal(drawn, again) and drawn.width == 3 * (sheet.CELL + sheet.GAP) + sheet.GAP
        assert (
            np.asarray(drawn.crop((0, 0, sheet.CELL, sheet.CELL))).std(axis=2) > 0
        ).any()  # a photo in colours
    for wrong in (["--rows", "0"], ["--kinds", "part"], ["--out", str(tmp_path / "one.txt")]):
        assert sheet.main([made, "--out", str(tmp_path / "three.png"), *wrong]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_bad_input_is_one_line(photos, tmp_path, capsys):
    good = {
        "--images": str(photos / "images"),
        "--annotations": str(photos / "instances.json"),
        "--out": str(tmp_path),
    }
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    for change, message in [
        ({"--images": str(tmp_path / "no")}, "no folder"),
        ({"--annotations": str(tmp_path / "no.json")}, "cannot read"),
        ({"--annotations": str(tmp_path / "list.json")}, "not COCO's json"),
        ({"--images": str(tmp_path / "empty")}, "none of the 2 photos"),
        ({"--out": str(tmp_path / "list.json")}, "cannot write to"),
        ({"--out": str(tmp_path / "list.json/out")}, "cannot write to"),
        ({"--bank": "nowhere"}, "no phrase bank"),
        ({"--per-image": "0"}, "at least 1"),
    ]:
        assert main([word for pair in (good | change).items() for word in pair]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: ") and message in said
    assert not (tmp_path / "records.jsonl").exists()


def test_help_is_instant():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "datagen", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0 and "--per-image" in done.stdout and time.monotonic() - began < 10
    assert not any(name in done.stderr for name in ("torch", "numpy", "pycocotools"))
