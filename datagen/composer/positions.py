"""Which of several instances is "the left one", "the second from the left", "the one nearest to the dog".

    positions(image, image.of("cup"))               # {"left": ..., "biggest": ...}
    list(distances(image, image.of("cup")))         # [("nearest", ..., the dog)]
    position_options(state)                         # both, for every category that can be asked about

Only where no two people would disagree: gaps and differences in size must be plain to see.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from datagen.composer.phrasebank import Entry
from datagen.composer.state import ComposerState
from datagen.sources.annotated_images import AnnotatedImage, Instance

MIN_OUTERMOST_GAP = 0.12  # of the image's side: from the outermost centre to the next one
MIN_ROW_GAP = 0.07  # the same between those that are counted off ("the second from the left")
MIN_AREA_RATIO = 1.5  # of the biggest to the next, and of the next to the smallest
MAX_COMPARED_INSTANCES = 8  # beyond that nobody searches for "the smallest"
MIN_DISTANCE_GAP = 0.12  # of the image's diagonal: how much further from the anchor the next instance is
MIN_POINTED_SHARE = 0.002  # of the image's area: smaller instances are not singled out
MIN_ANCHOR_SHARE, MAX_ANCHOR_SHARE = 0.004, 0.35  # of the image's area, for what others are near to
MIN_ROW_LENGTH_FOR_SECOND, MIN_ROW_LENGTH_FOR_THIRD = 4, 5  # of three, the second is "in the middle"


@dataclass(frozen=True)
class PositionOption:
    """One of several instances of a category that can be singled out.

    Attributes:
        position: A key of the table [places] in templates.toml: "left", "biggest", "nearest", ...
        key: The category.
        instance: The one that is meant.
        anchor: What it is nearest to, or furthest from; None for other positions.
    """

    position: str
    key: str
    instance: Instance
    anchor: Entry | None = None


def position_options(state: ComposerState, prefix: str = "") -> dict[str, PositionOption]:
    """Everything in an image that can be singled out.

    Args:
        state: Of the image.
        prefix: Of the names, for kinds of questions that are counted apart.

    Returns:
        {name: option}; the name is what `ComposerState.used` counts the option by.
    """
    options: dict[str, PositionOption] = {}
    for key in state.askable:
        if state.bank[key].number == "count":
            instances = state.image.of(key)
            for position, instance in positions(state.image, instances).items():
                options[f"{prefix}{position} {key}"] = PositionOption(position, key, instance)
            for position, instance, anchor in distances(state.image, instances):
                name = f"{prefix}{position} {key} {anchor.key}"
                options[name] = PositionOption(position, key, instance, state.bank[anchor.key])
    return options


def comparable(instances: Sequence[Instance]) -> bool:
    """Whether one of the instances can be told from the others at all."""
    has_crowd = any(instance.crowd for instance in instances)
    return 2 <= len(instances) <= MAX_COMPARED_INSTANCES and not has_crowd


def positions(image: AnnotatedImage, instances: Sequence[Instance]) -> dict[str, Instance]:
    """Find the instances that are beyond doubt the "left", "top", "biggest", ... one.

    Args:
        image: The image.
        instances: All instances of one category.

    Returns:
        {position: instance}; the positions are those of the table [places] in templates.toml. {} when there
        is none.
    """
    if not comparable(instances):
        return {}
    found: dict[str, Instance] = {}
    for axis, side, first, last in ((0, image.width, "left", "right"), (1, image.height, "top", "bottom")):
        order = sorted(instances, key=lambda instance: instance.centre[axis])
        gaps = [(b.centre[axis] - a.centre[axis]) / side for a, b in pairwise(order)]
        if gaps[0] >= MIN_OUTERMOST_GAP and _ends_before(order[0], order[1], axis):
            found[first] = order[0]
        if gaps[-1] >= MIN_OUTERMOST_GAP and _ends_before(order[-2], order[-1], axis):
            found[last] = order[-1]
        if axis == 0:
            found |= _counted_off(order, gaps)
    order = sorted(instances, key=lambda instance: instance.area)
    if order[-1].area >= MIN_AREA_RATIO * order[-2].area:
        found["biggest"] = order[-1]
    if order[1].area >= MIN_AREA_RATIO * order[0].area:
        found["smallest"] = order[0]
    min_area = _min_pointed_area(image)
    return {position: instance for position, instance in found.items() if instance.area >= min_area}


def _min_pointed_area(image: AnnotatedImage) -> float:
    return MIN_POINTED_SHARE * image.width * image.height


def _counted_off(order: Sequence[Instance], gaps: Sequence[float]) -> dict[str, Instance]:
    """Those counted off from the left or the right; all of them must stand side by side.

    order: from left to right; gaps: between their centres, as shares of the image's width.
    """
    found: dict[str, Instance] = {}
    if len(order) == 3 and min(gaps) >= MIN_OUTERMOST_GAP:
        found["middle"] = order[1]
    pairs = zip(gaps, pairwise(order), strict=True)
    are_apart = all(gap >= MIN_ROW_GAP and _ends_before(a, b, 0) for gap, (a, b) in pairs)
    heights = [instance.centre[1] for instance in order]
    are_level = max(heights) - min(heights) <= max(instance.box[3] for instance in order)
    if are_apart and are_level and len(order) >= MIN_ROW_LENGTH_FOR_SECOND:
        found |= {"second_left": order[1], "second_right": order[-2]}
        if len(order) >= MIN_ROW_LENGTH_FOR_THIRD:
            found |= {"third_left": order[2], "third_right": order[-3]}
    return found


def _ends_before(first: Instance, second: Instance, axis: int) -> bool:
    """Whether the first both begins and ends before the second: a wide one may reach past a small one."""
    a, b = first.box, second.box
    return a[axis] < b[axis] and a[axis] + a[axis + 2] < b[axis] + b[axis + 2]


def distances(
    image: AnnotatedImage, instances: Sequence[Instance]
) -> Iterator[tuple[str, Instance, Instance]]:
    """Find the instances that are beyond doubt nearest to, or furthest from, some anchor.

    Args:
        image: The image.
        instances: All instances of one category.

    Yields:
        ("nearest" or "furthest", the instance, the anchor). An anchor is the only instance of its category,
        and neither tiny nor huge.
    """
    if not comparable(instances):
        return
    for key in image.keys():
        anchor, *others = image.of(key)
        share = anchor.area / (image.width * image.height)
        is_usable = not anchor.crowd and MIN_ANCHOR_SHARE <= share <= MAX_ANCHOR_SHARE
        if others or anchor in instances or not is_usable:
            continue
        yield from _from_anchor(image, instances, anchor)


def _from_anchor(
    image: AnnotatedImage, instances: Sequence[Instance], anchor: Instance
) -> Iterator[tuple[str, Instance, Instance]]:
    """The nearest and the furthest instance from one anchor.

    Both the distance between edges and the one between centres have to agree: a long object may touch the
    anchor at one end and lie far off with the other.
    """
    diagonal = (image.width**2 + image.height**2) ** 0.5
    by_gap, gap_steps = _ranked(instances, anchor, _edge_distance, diagonal)
    by_centre, centre_steps = _ranked(instances, anchor, _centre_distance, diagonal)
    min_area = _min_pointed_area(image)
    nearest, furthest = by_gap[0], by_centre[-1]
    if (
        nearest is by_centre[0]
        and nearest.area >= min_area
        and min(gap_steps[0], centre_steps[0]) >= MIN_DISTANCE_GAP
    ):
        yield "nearest", nearest, anchor
    if (
        furthest is by_gap[-1]
        and furthest.area >= min_area
        and min(gap_steps[-1], centre_steps[-1]) >= MIN_DISTANCE_GAP
        and len(instances) > 2
    ):
        yield "furthest", furthest, anchor


def _ranked(
    instances: Sequence[Instance],
    anchor: Instance,
    distance: Callable[[Instance, Instance], float],
    diagonal: float,
) -> tuple[list[Instance], list[float]]:
    """Instances by their distance from an anchor, and the steps between the distances over the diagonal."""
    order = sorted(instances, key=lambda instance: distance(instance, anchor))
    steps = [(distance(b, anchor) - distance(a, anchor)) / diagonal for a, b in pairwise(order)]
    return order, steps


def _edge_distance(a: Instance, b: Instance) -> float:
    """Distance between two boxes, px; 0 where they overlap."""
    sides = (max(a.box[k] - b.box[k] - b.box[k + 2], b.box[k] - a.box[k] - a.box[k + 2], 0) for k in (0, 1))
    return sum(side**2 for side in sides) ** 0.5


def _centre_distance(a: Instance, b: Instance) -> float:
    """Distance between the centres of two boxes, px."""
    return sum((p - q) ** 2 for p, q in zip(a.centre, b.centre, strict=True)) ** 0.5
