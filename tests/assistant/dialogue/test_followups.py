"""Questions that refer to the masks of the last answer, on a picture of cups whose places are known."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant import Assistant
from assistant.answer import Target
from assistant.dialogue.followup_parser import PICKS, FollowUp, read, read_about
from assistant.dialogue.followups import instances
from assistant.errors import BadInput
from assistant.grammar import SEG, parse
from assistant.pipeline import Pipeline, Reply, Selection
from assistant.sam.mask_ops import encode_rle
from assistant.sam.proposals import Proposals, by_granularity

H, W = 60, 120
DISCS = {"left cup": (30, 20, 12), "right cup": (30, 95, 16), "small cup": (12, 60, 6), "spoon": (50, 55, 5)}
CUPS = [0, 1, 2]


def disc(y, x, r):
    v, u = np.mgrid[:H, :W]
    return (v - y) ** 2 + (u - x) ** 2 <= r * r


MASKS = [disc(*place) for place in DISCS.values()]


class FakePipeline(Pipeline):
    """Finds every cup, or only the right one where `one`; the spoon; nothing else."""

    def __init__(self):
        self.opener = SimpleNamespace(open=self.open)
        self.one, self.asked, self.opened = False, [], 0

    def open(self, image, progress=None):
        self.opened += 1
        n = len(MASKS)
        proposals = Proposals(
            [encode_rle(m) for m in MASKS],
            np.zeros((n, 4), np.float32),
            np.linspace(0.9, 0.8, n).astype(np.float32),
            np.ones(n, np.float32),
            np.array([m.sum() for m in MASKS]),
            np.zeros((n, 2), np.float32),
            np.zeros((n, 4, 4), np.float32),
            (H, W),
        )
        for step in ("encoding", "proposing"):
            if progress:
                progress(step, proposals if step == "proposing" else None)
        return SimpleNamespace(embedding=None, proposals=proposals)

    def ask(self, turns, view, threshold, **options):
        self.asked.append(turns[-1].question)
        text, found = [], []
        for name, chosen in (("cup", [1] if self.one else CUPS), ("spoon", [3])):
            if name in turns[-1].question:
                text.append(f"{name} {SEG}")
                found.append(Selection(0.9, chosen, [i for i in (0, 2, 3, 1) if i not in chosen]))
        return Reply(", ".join(text) + ".", 3), found

    def name_region(self, image, view, mask):
        return [("spoon", 0.7), ("fork", 0.2), ("knife", 0.01)]


@pytest.fixture
def pipeline():
    return FakePipeline()


@pytest.fixture
def scene(pipeline):
    return Assistant(pipeline, {}).open(np.zeros((H, W, 3), np.uint8))


def is_mask(answer, *which):
    wanted = np.zeros((H, W), bool)
    for k in which:
        wanted |= MASKS[k]
    return np.array_equal(answer.mask, wanted)


@pytest.mark.parametrize(
    "question, meant",
    [
        ("and the one on the left?", FollowUp("choose", "", "left")),
        ("Only the smaller one.", FollowUp("choose", "", "smaller")),
        ("not that one, the smaller", FollowUp("other", "", "smaller")),
        ("Not that one!", FollowUp("other")),
        ("no, another one", FollowUp("other")),
        ("the other one", FollowUp("others")),
        ("whereabouts are the others?", FollowUp("others")),
        ("not that one, the others.", FollowUp("others")),
        ("nothing but the cup, please", FollowUp("keep", "cup")),
        ("Keep the cup and the spoon, drop the rest.", FollowUp("keep", "cup\nspoon")),
        ("once more, please, where?", FollowUp("again")),
        ("make that the left-hand one only", FollowUp("choose", "", "left")),
        ("is there a knife, too?", None),
        ("everything just named except the spoon", FollowUp("drop", "spoon")),
        ("how about a knife?", None),
        ("now remove the cup", FollowUp("drop", "cup")),
        ("please hide the spoons", FollowUp("drop", "spoon")),
        ("remove it", FollowUp("drop", "spoon")),
        ("not the cup", FollowUp("drop", "cup")),
        ("forget everything", FollowUp("drop", "*")),
        ("add the knife", FollowUp("add", "knife")),
        ("also the knife", None),
        ("the plate too", None),
        ("which one is bigger?", FollowUp("choose", "", "larger")),
        ("the cup in the middle", FollowUp("choose", "cup", "middle")),
        # for the model:
        ("is there a dog?", None),
        ("what's left?", None),
        ("the small dog", None),
        ("remove the table", None),
        ("", None),
        ("what is on the table?", None),
        ("¿y la de la izquierda?", None),
        ("左边的那个", None),
        ("what is the right tool for it?", None),
    ],
)
def test_read(question, meant):
    assert read(question, ["cup", "spoon"]) == meant
    assert read(question, []) is None


@pytest.mark.parametrize(
    "question, meant",
    [
        ("what is this?", ("name", "")),
        ("What's it called?", ("name", "")),
        ("the cup next to it", ("near", "cup")),
        ("is there a spoon to the left of this?", ("left", "spoon")),
        ("what is under it?", ("below", "")),
        ("who is that", ("name", "")),
        ("what is it made of?", None),
        ("where is the handle?", None),
        ("", None),
    ],
)
def test_read_about(question, meant):
    assert read_about(question) == meant


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(
            st.sampled_from([*PICKS, *"the one on not that remove cup spoon it also , ? and too".split()]),
            max_size=9,
        ).map(" ".join),
    ),
    st.lists(st.text(max_size=12), max_size=4),
)
def test_any_text_is_read(question, names):
    found = read(question, names)
    assert found is None or (
        names
        and (found.act == "add" or found.act == "keep" or found.phrase in ["", "*", *names])
        and found.pick in ["", *PICKS.values()]
    )
    read_about(question)


def test_a_conversation_about_masks(scene, pipeline):
    assert is_mask(scene.ask("the cups and the spoon"), 0, 1, 2, 3)
    assert is_mask(scene.ask("now remove the spoon"), 0, 1, 2)
    left = scene.ask("and the one on the left?")
    assert (
        is_mask(left, 0) and left.targets[0].proposals == [0] and pipeline.asked == ["the cups and the spoon"]
    )
    assert parse(scene.turns[-1].answer)[0].phrase == "cup"  # the model reads what was answered
    assert is_mask(scene.ask("add the spoon"), 0, 3)
    assert is_mask(scene.ask("not the cup"), 3)
    assert is_mask(scene.ask("select it again"), 3)
    assert is_mask(scene.ask("remove it")) and not parse(scene.turns[-1].answer)
    assert len(scene.turns) == 7
    scene.reset()
    scene.ask("not that one")  # nothing is shown: for the model
    assert pipeline.asked[-1] == "not that one"


def test_others_come_from_the_runners_up(scene, pipeline):
    pipeline.one = True
    assert is_mask(scene.ask("the cup"), 1)
    assert is_mask(scene.ask("not that one, the smaller"), 0)
    scene.ask("the cup")
    assert is_mask(scene.ask("not that one"), 0) and is_mask(scene.ask("not that one"), 2)
    scene.ask("the cup")
    scene.ask("the other one")  # it finds no other: the question itself is the model's
    assert pipeline.asked[-2:] == ["Please segment cup.", "the other one"]
    scene.ask("the cup")
    before = len(pipeline.asked)
    said = scene.ask("the one on the right")  # nothing lies further right: the model is asked, in full
    assert (
        pipeline.asked[before:] == ["Please segment cup.", "Where is the cup on the right?"]
        and said.question == "the one on the right"
    )


def test_only_one_of_several_things(scene, pipeline):
    scene.ask("the cups and the spoon")
    assert is_mask(scene.ask("only the spoon"), 3)
    scene.ask("the cups")
    assert is_mask(scene.ask("the one on the left"), 0)
    assert is_mask(scene.ask("and the others?"), 1, 2)


def test_the_remembered_can_be_left_alone(scene):
    scene.ask("the cups")
    scene.ask("the one on the left", remember=False)
    assert len(scene.turns) == 1 and is_mask(scene.ask("the largest"), 1)


def test_a_mask_made_by_hand_is_followed_up(scene):
    scene.shown = [Target("cup", True, 1.0, MASKS[0] | MASKS[1], [])]
    assert len(instances(scene, scene.shown[0])) == 2
    assert is_mask(scene.ask("the one on the right"), 1)


def test_about_a_part(scene, pipeline):
    named = scene.ask("what is this?", about=MASKS[3])
    assert named.text == "This looks like: spoon (70%). Or else: fork 20%." and is_mask(named, 3)
    assert is_mask(scene.ask("the cup left of it", about=MASKS[1]), 2) and is_mask(
        scene.ask("the cup next to it", about=MASKS[3]), 2
    )
    assert is_mask(scene.ask("what is below it?", about=MASKS[2]), 3)
    nothing = scene.ask("the cup left of it", about=MASKS[0])
    assert not nothing.present and nothing.targets[0].phrase == "cup"
    assert is_mask(scene.ask("where is the cup?", about=MASKS[0] | MASKS[3]), 0)
    assert not scene.ask("where is the cup?", about=MASKS[3]).present
    for about in (np.zeros((H, W), bool), np.ones((3, 3), bool), np.ones((H, W))):
        with pytest.raises(BadInput, match="about must be"):
            scene.ask("what is this?", about=about)


def test_pictures_are_kept_by_content(pipeline):
    assistant = Assistant(pipeline, {}, keep=2)
    pictures = [np.full((H, W, 3), k, np.uint8) for k in range(3)]
    for k in (0, 0, 1, 0):
        assistant.open(pictures[k].copy())
    assert pipeline.opened == 2
    for k in (2, 0, 1):  # 2 takes the place of 1, which was used longest ago
        assistant.open(pictures[k])
    assert pipeline.opened == 4 and len(assistant.opened_images) == 2
    assert assistant.open(pictures[0]).turns == []


def test_a_ribbon_is_refused(pipeline):
    with pytest.raises(BadInput, match="20000x10, too long and thin"):
        Assistant(pipeline, {}).open(np.zeros((10, 20_000, 3), np.uint8))
    assert pipeline.opened == 0 and Assistant(pipeline, {}).open(np.zeros((10, 320, 3), np.uint8))


def test_opening_can_be_stopped_and_leaves_nothing(pipeline):
    class Stop(Exception):
        pass

    def progress(doing, proposals):
        if doing == "proposing":
            raise Stop

    assistant = Assistant(pipeline, {}, keep=2)
    with pytest.raises(Stop):
        assistant.open(np.zeros((H, W, 3), np.uint8), progress)
    assert not assistant.opened_images


def test_granularity_prefers_parts_or_wholes():
    whole, part = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    whole[:30, :30], part[:20, :20] = True, True
    masks = [part, whole]
    pool = Proposals(
        [encode_rle(m) for m in masks],
        np.zeros((2, 4), np.float32),
        np.full(2, 0.9, np.float32),
        np.ones(2, np.float32),
        np.array([m.sum() for m in masks]),
        np.zeros((2, 2), np.float32),
        np.zeros((2, 4, 4), np.float32),
        (40, 40),
    )
    assert by_granularity(pool, 1).areas.tolist() == [900] and by_granularity(pool, 0).areas.tolist() == [
        400,
        900,
    ]
    with pytest.raises(BadInput, match="between 0"):
        by_granularity(pool, 1.5)
