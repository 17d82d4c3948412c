"""Which of several things of one kind is "the left one", "the second from the right", "the one nearest to the dog".

    for place, instance in places(photo, photo.of("cup")).items(): ...       # {"left": ..., "biggest": ...}
    for place, instance, anchor in beside(photo, photo.of("cup")): ...       # ("nearest", ..., the dog)

Only where no two people would disagree: gaps and differences in size must be plain to see.
"""

from collections.abc import Iterator, Sequence

from datagen.sources.photos import Instance, Photo

APART = 0.12  # of the picture's side: how far the outermost centre must be from the next
IN_ROW = 0.07  # the same between those that are counted off ("the second from the left")
LARGER = 1.5  # times the next area, for "the biggest"
TOO_MANY = 8  # instances: beyond that nobody searches for "the smallest"
NEARER = 0.12  # of the picture's diagonal: how much further off the next one must be from what it is beside
ALONE = 0.002  # share of the picture's area below which one of several is not singled out
ANCHOR = (0.004, 0.35)  # share of the picture's area that something others are near to may cover


def comparable(instances: Sequence[Instance]) -> bool:
    """Whether one of them can be told from the others at all."""
    return 2 <= len(instances) <= TOO_MANY and not any(instance.crowd for instance in instances)


def places(photo: Photo, instances: Sequence[Instance]) -> dict[str, Instance]:
    """Which of the instances is beyond doubt the "left", "top", "biggest", ... one; {} when none is."""
    found: dict[str, Instance] = {}
    if not comparable(instances):
        return found
    smallest = ALONE * photo.width * photo.height
    for axis, side, low, high in ((0, photo.width, "left", "right"), (1, photo.height, "top", "bottom")):
        order = sorted(instances, key=lambda instance: instance.centre[axis])
        gaps = [(b.centre[axis] - a.centre[axis]) / side for a, b in zip(order, order[1:])]
        if gaps[0] >= APART and _clear_of(order[0], order[1], axis):
            found[low] = order[0]
        if gaps[-1] >= APART and _clear_of(order[-2], order[-1], axis):
            found[high] = order[-1]
        if axis == 0:
            found |= _in_row(order, gaps)
    order = sorted(instances, key=lambda instance: instance.area)
    if order[-1].area >= LARGER * order[-2].area:
        found["biggest"] = order[-1]
    if order[1].area >= LARGER * order[0].area:
        found["smallest"] = order[0]
    return {place: instance for place, instance in found.items() if instance.area >= smallest}


def _in_row(order: list[Instance], gaps: list[float]) -> dict[str, Instance]:
    """Those counted off from the left or the right; all of them must stand side by side."""
    found = {}
    if len(order) == 3 and min(gaps) >= APART:
        found["middle"] = order[1]
    apart = all(gap >= IN_ROW and _clear_of(a, b, 0) for gap, a, b in zip(gaps, order, order[1:]))
    level = max(i.centre[1] for i in order) - min(i.centre[1] for i in order) <= max(i.box[3] for i in order)
    if apart and level and len(order) >= 4:
        found |= {"second_left": order[1], "second_right": order[-2]}
        if len(order) >= 5:
            found |= {"third_left": order[2], "third_right": order[-3]}
    return found


def _clear_of(first: Instance, second: Instance, axis: int) -> bool:
    """Whether the first begins and ends before the second does: a wide one may reach past a small one's both sides."""
    a, b = first.box, second.box
    return a[axis] < b[axis] and a[axis] + a[axis + 2] < b[axis] + b[axis + 2]


def beside(photo: Photo, instances: Sequence[Instance]) -> Iterator[tuple[str, Instance, Instance]]:
    """("nearest" or "furthest", which of the instances, from what): the only thing of its kind, neither tiny nor huge."""
    if not comparable(instances):
        return
    smallest = ALONE * photo.width * photo.height
    diagonal = (photo.width**2 + photo.height**2) ** 0.5
    for key in photo.keys():
        anchors = photo.of(key)
        share = anchors[0].area / (photo.width * photo.height)
        if (
            len(anchors) != 1
            or anchors[0].crowd
            or anchors[0] in instances
            or not ANCHOR[0] <= share <= ANCHOR[1]
        ):
            continue
        # Between edges and between centres: a long thing may touch at one end and lie far off with the other.
        near = sorted(instances, key=lambda i: _gap(i, anchors[0]))
        far = sorted(instances, key=lambda i: _distance(i, anchors[0]))
        steps = [
            ((value(b) - value(a)) / diagonal)
            for order, value in (
                (near, lambda i: _gap(i, anchors[0])),
                (far, lambda i: _distance(i, anchors[0])),
            )
            for a, b in zip(order, order[1:])
        ]
        count = len(instances) - 1
        if near[0] is far[0] and near[0].area >= smallest and min(steps[0], steps[count]) >= NEARER:
            yield "nearest", near[0], anchors[0]
        if (
            near[-1] is far[-1]
            and far[-1].area >= smallest
            and min(steps[count - 1], steps[-1]) >= NEARER
            and len(instances) > 2
        ):
            yield "furthest", far[-1], anchors[0]


def _gap(a: Instance, b: Instance) -> float:
    """Distance between two boxes, px; 0 where they overlap."""
    sides = (max(a.box[k] - b.box[k] - b.box[k + 2], b.box[k] - a.box[k] - a.box[k + 2], 0) for k in (0, 1))
    return sum(side**2 for side in sides) ** 0.5


def _distance(a: Instance, b: Instance) -> float:
    return sum((p - q) ** 2 for p, q in zip(a.centre, b.centre)) ** 0.5
