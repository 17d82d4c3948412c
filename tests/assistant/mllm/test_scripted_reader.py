"""What the selections lose by themselves, measured by a reader that knows the truth."""

import numpy as np

from tests.helpers.marked_image import IMAGE, INSTANCES, MarkedImageOpener, ellipse
from tests.helpers.scripted_reader import Setting, ask_all

QUESTIONS = [[INSTANCES["cup"]], [INSTANCES["spoon"]], [INSTANCES["coffee"], INSTANCES["table"]]]


def scores_of(setting, *more):
    """The scores of the questions on IMAGE, without a proposal of the spoon; more: further proposals."""
    masks = [mask for name, mask in INSTANCES.items() if name != "spoon"]
    opener = MarkedImageOpener([*masks, *more])
    return ask_all(opener, opener.open(IMAGE), QUESTIONS, setting)


def test_marks_lose_what_has_no_proposal_and_hybrid_boxes_it():
    marks, hybrid = scores_of(Setting("marks")), scores_of(Setting("hybrid"))
    assert [score.iou for score in marks] == [1, marks[1].iou, 1]
    assert marks[1].iou < 0.1  # the saucer, which the spoon lies on
    assert [score.iou for score in hybrid] == [1, hybrid[1].iou, 1] and not any(s.seen for s in hybrid)
    assert hybrid[1].iou > 0.7  # the opener fills the box of an ellipse


def test_boxes_that_are_off_lose_more_alone_than_beside_marks():
    noisy = [np.mean([s.iou for s in scores_of(Setting(name, noise=0.3))]) for name in ("boxes", "hybrid")]
    assert noisy[0] < noisy[1] < 1


def test_what_got_no_number_is_lost_to_marks_alone():
    parts = [ellipse(30 + 25 * k, y, 9, 9) for k in range(22) for y in (20, 380)]
    marks, hybrid = scores_of(Setting("marks", 1), *parts), scores_of(Setting("hybrid", 1), *parts)
    assert all(score.iou > 0.7 for score in hybrid)
    assert np.mean([score.iou for score in marks]) <= np.mean([score.iou for score in hybrid])
