"""Which of several instances is the left one, or the nearest: only where it is plain to see."""

import pytest

from datagen.composer.positions import distances, positions
from tests.helpers.composed_images import compose_train, image_of, instance, read_cups_and_cat


def cup(number, *box):
    return instance(number, "cup", box)


def test_position_points_at_the_right_cup(cups_and_cat):
    wanted = {"left": 1, "right": 3, "middle": 2, "biggest": 3}
    image = read_cups_and_cat(cups_and_cat)[0]
    found = positions(image, image.of("cup"))
    assert {position: each.id for position, each in found.items()} == wanted
    asked = [record for record in compose_train(image) if record.source["kind"] == "position"]
    # The crowd is never pointed at.
    assert asked and all(record.source["categories"] == ["cup"] for record in asked)
    for record in asked:
        (position,) = [each for each in (*wanted, "nearest", "furthest") if each in record.targets[0].phrase]
        assert record.source["annotation_ids"] == [[(wanted | {"nearest": 1, "furthest": 3})[position]]]


def test_counting_off():
    row = [cup(k, 5 + 55 * k, 50, 40, 40) for k in range(5)]
    image = image_of(*row)
    assert {position: each.id for position, each in positions(image, row).items()} == {
        "left": 0,
        "right": 4,
        "second_left": 1,
        "second_right": 3,
        "third_left": 2,
        "third_right": 2,
    }
    heap = [*row[:4], cup(8, 190, 150, 40, 40)]  # not in one row: nobody counts those off
    assert "second_left" not in positions(image, heap)


def test_nearest_and_furthest():
    cups = [cup(k, x, 50, 40, 40) for k, x in enumerate((70, 150, 250))]
    cat = instance(9, "cat", (5, 50, 40, 40))
    one_cat = image_of(*cups, cat)
    assert [(position, each.id, anchor.key) for position, each, anchor in distances(one_cat, cups)] == [
        ("nearest", 0, "cat"),
        ("furthest", 2, "cat"),
    ]
    two_cats = image_of(*cups, cat, instance(10, "cat", (240, 120, 50, 60)))
    assert list(distances(two_cats, cups)) == []  # which cat?


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
    assert positions(image_of(), [cup(k, *box) for k, box in enumerate(boxes)]) == {}


def test_one_inside_the_other_is_not_left_of_it():
    found = positions(image_of(), [cup(0, 0, 50, 300, 60), cup(1, 220, 60, 30, 30)])
    assert set(found) == {"biggest", "smallest"}
