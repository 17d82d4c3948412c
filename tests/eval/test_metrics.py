"""eval.metrics against a loop over pixels, eval.oracle against every subset."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from assistant.errors import BadInput
from eval import metrics
from eval.oracle import Atoms, oracle


def count_by_loop(prediction, target, ignore, protocol):
    """Written from the protocols' words, sharing nothing with eval.metrics."""
    intersection = union = 0
    for y in range(len(target)):
        for x in range(len(target[y])):
            p, t, skip = prediction[y][x], target[y][x], ignore is not None and ignore[y][x]
            if skip and protocol == "lisa":
                continue
            t = t or skip
            intersection += 1 if p and t else 0
            union += 1 if p or t else 0
    return intersection, union


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_counts_agree_with_a_loop_over_2000_random_cases(protocol):
    rng = np.random.default_rng(7)
    for _ in range(2000):
        h, w = rng.integers(1, 13, 2)
        prediction, target, ignore = rng.random((3, h, w)) < rng.choice([0, 0.1, 0.5, 1], (3, 1, 1))
        ignore = None if rng.random() < 0.3 else ignore
        lists = [None if m is None else m.tolist() for m in (prediction, target, ignore)]
        expected = count_by_loop(*lists, protocol)
        assert metrics.counts(prediction, target, ignore, protocol) == expected
        quotient = expected[0] / expected[1] if expected[1] else (1.0 if protocol == "lisa" else 0.0)
        assert metrics.iou(*expected, protocol) == quotient


def one_pixel(shape=(4, 6)):
    mask = np.zeros(shape, bool)
    mask[2, 3] = True
    return mask


EMPTY, FULL = np.zeros((4, 6), bool), np.ones((4, 6), bool)


@pytest.mark.parametrize(
    "prediction, target, ignore, lisa, seg_zero",
    [
        (EMPTY, EMPTY, None, 1.0, 0.0),
        (one_pixel(), EMPTY, None, 0.0, 0.0),  # false positive on an empty target
        (EMPTY, one_pixel(), None, 0.0, 0.0),
        (one_pixel(), one_pixel(), None, 1.0, 1.0),
        (FULL, one_pixel(), None, 1 / 24, 1 / 24),
        (EMPTY, EMPTY, FULL, 1.0, 0.0),  # everything ignored
        (FULL, FULL, FULL, 1.0, 1.0),
        (one_pixel(), EMPTY, FULL, 1.0, 1 / 24),
        (FULL, one_pixel(), ~one_pixel(), 1.0, 1.0),
    ],
)
def test_corners(prediction, target, ignore, lisa, seg_zero):
    for protocol, expected in (("lisa", lisa), ("seg-zero", seg_zero)):
        assert metrics.g_iou([metrics.counts(prediction, target, ignore, protocol)], protocol) == expected


def test_the_two_protocols_on_an_ignored_strip():
    """Perfect on the target and leaving an ignored strip alone: 1 under LISA, .667 under Seg-Zero."""
    target, ignore = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    target[2:6, 2:7], ignore[6:8, 2:7] = True, True
    assert metrics.iou(*metrics.counts(target, target, ignore, "lisa")) == 1
    assert metrics.iou(*metrics.counts(target, target, ignore, "seg-zero"), "seg-zero") == pytest.approx(
        2 / 3
    )


@pytest.mark.parametrize(
    "shapes",
    [((4, 6), (6, 4), None), ((4, 6), (4, 6), (4, 5)), ((24,), (24,), None), ((4, 6, 1), (4, 6), None)],
)
def test_sizes_that_differ_are_refused(shapes):
    masks = [None if s is None else np.ones(s, bool) for s in shapes]
    for count in (metrics.counts, metrics.normalised_counts):
        with pytest.raises(BadInput, match="one size"):
            count(*masks)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(BadInput, match="lisa, seg-zero"):
        metrics.counts(EMPTY, EMPTY, protocol="mean")


def test_labels_of_255_count_as_foreground_not_as_255():
    assert metrics.counts(FULL.astype(np.uint8) * 255, FULL.astype(int)) == (24, 24)


def test_g_iou_weighs_samples_and_c_iou_pixels():
    pairs = [(1, 2), (900, 1000), (0, 0)]
    assert metrics.g_iou(pairs) == pytest.approx((0.5 + 0.9 + 1) / 3)
    assert metrics.g_iou(pairs, "seg-zero") == pytest.approx((0.5 + 0.9) / 3)
    assert metrics.c_iou(pairs) == 901 / 1002
    assert metrics.g_iou([]) is None and metrics.c_iou([]) is None
    assert metrics.c_iou([(0, 0)]) == 1


@settings(max_examples=25)
@given(st.integers(1, 1500), st.integers(1, 40), st.integers(0, 2**31))
def test_nc_counts_are_those_of_the_resized_square(h, w, seed):
    prediction, target = np.random.default_rng(seed).random((2, h, w)) < 0.5
    rows = [k * h // 1024 for k in range(1024)]
    columns = [k * w // 1024 for k in range(1024)]
    assert metrics.normalised_counts(prediction, target) == (
        int((prediction & target)[rows][:, columns].sum()),
        int((prediction | target)[rows][:, columns].sum()),
    )


def test_nc_iou_gives_pictures_equal_weight():
    small, large = np.zeros((2, 2), bool), np.ones((100, 100), bool)
    small[0, 0] = True
    pairs = [metrics.normalised_counts(small, np.ones((2, 2), bool)), metrics.normalised_counts(large, large)]
    assert metrics.c_iou(pairs) == (1 / 4 + 1) / 2


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**31))
def test_boundary_f_agrees_with_a_loop(h, w, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random((2, h, w)) < 0.5

    def edge(mask):
        inside = [(y, x) for y in range(h) for x in range(w) if mask[y, x]]
        steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
        return [
            (y, x)
            for y, x in inside
            if any(0 <= y + a < h and 0 <= x + b < w and not mask[y + a, x + b] for a, b in steps)
        ]

    def share_near(edges, others):
        return np.mean([any((y - b) ** 2 + (x - a) ** 2 <= 4 for b, a in others) for y, x in edges])

    edges, others = edge(first), edge(second)
    if edges and others:
        precision, recall = share_near(edges, others), share_near(others, edges)
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
    else:
        expected = float(not edges and not others)
    assert metrics.boundary_f(first, second) == pytest.approx(expected)


def test_boundary_f_forgives_two_pixels_and_the_edge_of_the_image():
    square = np.zeros((60, 60), bool)
    square[20:40, 0:30] = True
    assert metrics.boundary_f(square, square) == 1
    assert metrics.boundary_f(np.roll(square, 2, 0), square) == 1
    assert metrics.boundary_f(np.roll(square, 5, 0), square) < 0.7
    nothing = np.zeros_like(square)
    assert metrics.boundary_f(nothing, square) == 0 and metrics.boundary_f(nothing, nothing) == 1
    ignored = np.zeros_like(square)
    ignored[:, 25:] = True
    assert metrics.boundary_f(square[:, ::-1], square[:, ::-1], ignored) == 1


def test_presence_is_counted_on_both_sides():
    answered_present = [True, False, False, True, True]
    present = [True, True, False, False, True]
    assert metrics.n_acc(answered_present, present) == 1 / 2
    assert metrics.t_acc(answered_present, present) == 2 / 3
    assert metrics.n_acc([True], [True]) is None and metrics.t_acc([True], [False]) is None
    curve = metrics.presence_curve([0.9, 0.2, 0.1], [True, True, False], [0, 0.15, 0.5, 1])
    assert [p["N_acc"] for p in curve] == [0, 1, 1, 1]
    assert [p["T_acc"] for p in curve] == [1, 1, 0.5, 0]


def test_the_bootstrap_interval_covers_the_mean_and_repeats():
    values = np.random.default_rng(0).normal(0.4, 0.2, 400)
    low, high = metrics.bootstrap_interval(values, seed=3)
    half = 1.96 * values.std() / 20  # the normal approximation
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.003)
    assert metrics.bootstrap_interval(values, seed=3) == [low, high]
    assert metrics.bootstrap_interval(values, seed=4) != [low, high]
    assert metrics.bootstrap_interval([]) is None and metrics.bootstrap_interval([0.5]) == [0.5, 0.5]


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
        ([0, 0, 1, 1], [1, 0, 2, 1], 0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0),
        ([0, 0, 4, 4], [1, 1, 3, 3], 1 / 4),
    ],
)
def test_box_iou(a, b, expected):
    assert metrics.box_iou(a, b) == metrics.box_iou(b, a) == pytest.approx(expected)


def test_class_counts_agree_with_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(300):
        classes = int(rng.integers(1, 5))
        predicted, true = rng.integers(-1, classes + 1, (2, *rng.integers(1, 9, 2)))
        expected = np.zeros((3, classes), int)
        for p, t in zip(predicted.ravel().tolist(), true.ravel().tolist(), strict=True):
            if not 0 <= t < classes:
                continue
            expected[2, t] += 1
            if 0 <= p < classes:
                expected[1, p] += 1
                expected[0, t] += p == t
        counts = metrics.class_counts(predicted, true, classes)
        assert (counts == expected).all()
        for k, value in enumerate(metrics.class_ious(counts)):
            union = expected[1, k] + expected[2, k] - expected[0, k]
            assert np.isnan(value) if union == 0 else value == expected[0, k] / union


def best_subset(proposals, target):
    best = 0.0 if target.any() else 1.0
    for n in range(1, len(proposals) + 1):
        for chosen in itertools.combinations(range(len(proposals)), n):
            union = proposals[list(chosen)].any(0)
            if (union | target).any():
                best = max(best, (union & target).sum() / (union | target).sum())
    return best


def test_the_oracle_is_exact_in_count_and_near_the_best_subset():
    rng = np.random.default_rng(1)
    gaps = []
    for _ in range(200):
        n, (h, w) = rng.integers(0, 7), rng.integers(1, 12, 2)
        proposals = rng.random((n, h, w)) < rng.random((n, 1, 1))
        target = rng.random((h, w)) < rng.random()
        choice = oracle(Atoms.of(proposals, [target]), 0)
        union = proposals[choice.chosen].any(0) if choice.chosen else np.zeros((h, w), bool)
        assert (choice.intersection, choice.union) == metrics.counts(union, target)
        best = best_subset(proposals, target)
        assert choice.iou <= best + 1e-12
        gaps.append(best - choice.iou)
        if n and target.any():
            assert choice.single == max(metrics.iou(*metrics.counts(p, target)) for p in proposals)
    assert np.mean(gaps) < 0.002 and np.mean(np.array(gaps) > 1e-9) < 0.05


def test_the_oracle_is_optimal_for_disjoint_proposals():
    rng = np.random.default_rng(2)
    for _ in range(100):
        labels = rng.integers(0, 7, (9, 9))
        proposals = np.stack([labels == k for k in range(7)])
        target = rng.random((9, 9)) < rng.random((9, 9))
        assert oracle(Atoms.of(proposals, [target]), 0).iou == pytest.approx(best_subset(proposals, target))


def test_the_oracle_takes_rles_and_the_first_k():
    proposals = np.zeros((3, 8, 5), bool)
    proposals[0, :2], proposals[1, 2:4], proposals[2, 4:] = True, True, True
    target = proposals[1] | proposals[2]
    rles = [coco_mask.encode(np.asfortranarray(p, np.uint8)) for p in proposals]
    atoms = Atoms.of(rles, [target, proposals[0]])
    assert atoms.size.sum() == 40
    assert oracle(atoms, 0, 1).iou == 0 and oracle(atoms, 0, 1).chosen == []
    assert oracle(atoms, 0, 2).iou == 10 / 30
    every = oracle(atoms, 0)
    assert every.iou == 1 and sorted(every.chosen) == [1, 2] and every.single == 20 / 30
    assert oracle(atoms, 1, 2).chosen == [0]


def test_the_oracle_without_proposals_and_of_other_sizes():
    assert oracle(Atoms.of([], [EMPTY]), 0).iou == 1
    assert oracle(Atoms.of([], [FULL]), 0).iou == 0
    with pytest.raises(BadInput, match="sizes"):
        Atoms.of([FULL], [FULL.T])
