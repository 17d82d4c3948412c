"""The product's contract: images are opened, asked about, segmented by hand, and held in memory."""

import numpy as np
import pytest
from PIL import Image

import assistant
from assistant import Assistant
from assistant.answer import Answer, Target
from assistant.errors import BadInput
from assistant.grammar import ABS, SEG
from assistant.pipeline import Reply, Selection
from assistant.scene import MAX_REMEMBERED_TURNS, PRESENCE_THRESHOLD, Scene, turn_of
from tests.helpers.cups import (
    BLANK_IMAGE,
    CUPS,
    HEIGHT,
    LEFT_CUP,
    MASKS,
    RIGHT_CUP,
    SMALL_CUP,
    SPOON,
    WIDTH,
    CupPipeline,
    shows,
)

ORIENTATION_TAG = 0x0112  # of EXIF
TURNED_LEFT = 6  # the camera was: the image must be rotated by 90 degrees clockwise


@pytest.fixture
def pipeline():
    return CupPipeline()


@pytest.fixture
def scene(pipeline):
    return Assistant(pipeline, {}).open(BLANK_IMAGE)


# -- opening
# ---------------------------------------------------------------------------------------------------


@pytest.fixture
def gradient():
    """(40, 60, 3) uint8, each row brighter than the one above."""
    rows = np.arange(40, dtype=np.uint8)[:, None] * 6
    return np.repeat(np.repeat(rows, 60, 1)[..., None], 3, 2)


def test_an_image_is_opened_in_any_form(pipeline, gradient, tmp_path):
    file = tmp_path / "gradient.png"
    Image.fromarray(gradient).save(file)
    for source in (file, str(file), Image.fromarray(gradient), gradient, gradient[..., 0]):
        opened = Assistant(pipeline, {}).open(source)
        assert opened.image.dtype == np.uint8 and (opened.image == gradient).all()
        assert opened.size == (40, 60) and len(opened.proposals) == len(MASKS)
        assert opened.turns == [] and opened.shown == []


def test_the_exif_orientation_is_applied(pipeline, gradient, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = TURNED_LEFT
    file = tmp_path / "turned.png"
    Image.fromarray(gradient).save(file, exif=exif)
    for source in (file, Image.open(file)):
        opened = Assistant(pipeline, {}).open(source)
        assert opened.size == (60, 40) and (opened.image == np.rot90(gradient, -1)).all()


def test_the_image_of_a_scene_is_its_own(pipeline, gradient):
    opened = Assistant(pipeline, {}).open(gradient)
    gradient[:] = 0
    assert opened.image.any()


@pytest.mark.parametrize(
    "source",
    ["no/such/file.png", b"bytes", None, np.zeros((40, 60)), np.zeros((40, 4, 3), np.uint8)],
)
def test_what_is_no_image_is_refused(pipeline, source):
    with pytest.raises(BadInput) as caught:
        Assistant(pipeline, {}).open(source)
    assert "\n" not in str(caught.value) and pipeline.opened == 0


def test_a_long_and_thin_image_is_refused(pipeline):
    with pytest.raises(BadInput, match="20000x10, too long and thin"):
        Assistant(pipeline, {}).open(np.zeros((10, 20_000, 3), np.uint8))
    assert pipeline.opened == 0 and Assistant(pipeline, {}).open(np.zeros((10, 320, 3), np.uint8))


def test_progress_is_reported(pipeline):
    steps = []
    Assistant(pipeline, {}).open(BLANK_IMAGE, lambda step, proposals: steps.append((step, bool(proposals))))
    assert steps == [("encoding", False), ("proposing", True)]


# -- images held in memory
# -------------------------------------------------------------------------------------


def test_opened_images_are_found_by_their_pixels(pipeline):
    holding = Assistant(pipeline, {}, cache_size=2)
    images = [np.full((HEIGHT, WIDTH, 3), value, np.uint8) for value in range(3)]
    for k in (0, 0, 1, 0):
        holding.open(images[k].copy())
    assert pipeline.opened == 2
    for k in (2, 0, 1):  # 2 takes the place of 1, which was used longest ago
        holding.open(images[k])
    assert pipeline.opened == 4 and len(holding.opened_images) == 2
    assert holding.open(images[0]).turns == []


def test_no_image_is_held_by_default(pipeline):
    forgetful = Assistant(pipeline, {})
    forgetful.open(BLANK_IMAGE)
    forgetful.open(BLANK_IMAGE)
    assert pipeline.opened == 2 and not forgetful.opened_images


def test_opening_can_be_stopped_and_leaves_nothing(pipeline):
    class Stop(Exception):
        pass

    def progress(step, proposals):
        if step == "proposing":
            raise Stop

    holding = Assistant(pipeline, {}, cache_size=2)
    with pytest.raises(Stop):
        holding.open(BLANK_IMAGE, progress)
    assert not holding.opened_images


# -- asking
# ----------------------------------------------------------------------------------------------------


def test_an_answer_has_text_masks_and_confidences(scene):
    answer = scene.ask("  the cups and the spoon ")
    assert answer.question == "the cups and the spoon" and answer.text == "cup, spoon."
    assert shows(answer, *CUPS, SPOON) and answer.size == (HEIGHT, WIDTH) and answer.tokens == 3
    cup, spoon = answer.targets
    assert (cup.phrase, cup.present, cup.confidence, cup.proposals) == ("cup", True, 0.9, CUPS)
    assert (spoon.mask == MASKS[SPOON]).all() and spoon.others == [LEFT_CUP, SMALL_CUP, RIGHT_CUP]
    assert scene.shown == answer.targets and scene.turns == [turn_of(answer)]


def test_earlier_turns_are_read_again(scene, pipeline):
    for k in range(MAX_REMEMBERED_TURNS + 3):
        scene.ask(f"is there a zebra number {k}?")
    assert len(scene.turns) == MAX_REMEMBERED_TURNS + 3
    assert [turn.question for turn in pipeline.turns] == [
        f"is there a zebra number {k}?" for k in range(2, MAX_REMEMBERED_TURNS + 3)
    ]
    assert pipeline.turns[-1].answer is None and all(turn.answer for turn in pipeline.turns[:-1])
    scene.reset()
    assert scene.turns == [] and scene.shown == []
    scene.ask("is there a zebra?")
    assert len(pipeline.turns) == 1


def test_a_question_need_not_be_remembered(scene):
    scene.ask("the cups")
    scene.ask("the one on the left", remember=False)
    assert len(scene.turns) == 1 and shows(scene.ask("the largest"), RIGHT_CUP)


def test_options_reach_the_model(scene, pipeline):
    scene.ask("the cups", temperature=0.5, seed=3)
    assert pipeline.options == {"temperature": 0.5, "seed": 3}
    scene.ask("add the spoon", seed=4)  # a follow-up asks the model, too
    assert pipeline.options == {"seed": 4} and pipeline.asked[-1] == "Where is the spoon?"


def test_the_model_itself_can_be_asked(scene, pipeline):
    scene.ask("the cups")
    assert not scene.ask_model("the one on the left").present  # it does not know what its masks look like
    assert pipeline.asked[-1] == "the one on the left" and len(scene.turns) == 1


def test_a_fresh_scene_shares_the_opened_image(scene, pipeline):
    scene.ask("the cups")
    fresh = scene.fresh()
    assert fresh.turns == [] and fresh.shown == [] and fresh.opened is scene.opened and pipeline.opened == 1
    fresh.ask("the spoon")
    assert len(scene.turns) == 1


def test_answers_are_restored(scene):
    first, second = scene.ask("the cups"), scene.ask("the spoon")
    scene.restore([first])
    assert [turn.question for turn in scene.turns] == ["the cups"] and scene.shown == first.targets
    assert shows(scene.ask("the one on the left"), LEFT_CUP)
    scene.restore([])
    assert scene.turns == [] and scene.shown == []
    scene.restore([first, second])
    assert shows(scene.ask("show it again"), SPOON)


@pytest.mark.parametrize("question", ["", "  \n", "x" * 4001, None, 5])
def test_questions_without_meaning_are_refused(scene, question):
    with pytest.raises(BadInput):
        scene.ask(question)
    assert scene.turns == []


def test_a_question_about_a_part(scene):
    answer = scene.ask("what is this?", about=MASKS[SPOON])
    assert answer.targets[0].phrase == "spoon" and shows(answer, SPOON)
    for about in (np.zeros((HEIGHT, WIDTH), bool), np.ones((3, 3), bool), np.ones((HEIGHT, WIDTH))):
        with pytest.raises(BadInput, match=f"about must be a mask of {HEIGHT} x {WIDTH} bool"):
            scene.ask("what is this?", about=about)


class ScriptedPipeline(CupPipeline):
    """Gives one reply, whatever the question."""

    def __init__(self, text, *selections):
        super().__init__()
        self.reply = Reply(text, 7, written=f"{text} (as written)", reasoning="because")
        self.selections = list(selections)

    def ask(self, turns, opened, threshold, **options):
        self.threshold = threshold
        return self.reply, self.selections


def test_targets_are_made_of_selections():
    extra = np.zeros((HEIGHT, WIDTH), bool)
    extra[:3] = True
    pipeline = ScriptedPipeline(
        f"cup {SEG}, spoon {SEG}, plate {ABS}, fork {SEG}.",
        Selection(0.8, [LEFT_CUP, RIGHT_CUP], [SMALL_CUP]),
        Selection(0.7, [], mask=extra),
        Selection(0.9, [SPOON]),
        Selection(0.6, []),  # nothing was selected: absent, whatever the reply says
    )
    answer = Assistant(pipeline, {}, threshold=0.4).open(BLANK_IMAGE).ask("?!")
    cup, spoon, plate, fork = answer.targets
    assert (cup.mask == MASKS[LEFT_CUP] | MASKS[RIGHT_CUP]).all() and cup.others == [SMALL_CUP]
    assert (spoon.mask == extra).all() and spoon.confidence == 0.7
    assert not plate.present and plate.mask is None and plate.confidence == 0.4 and plate.proposals == [SPOON]
    assert not fork.present and fork.confidence == 0.4
    assert pipeline.threshold == 0.4 and answer.reasoning == "because"
    assert turn_of(answer).answer == f"{pipeline.reply.text} (as written)"


def test_the_turn_of_an_answer_without_a_model_is_made_of_its_targets():
    target = Target("cup", True, 1.0, MASKS[LEFT_CUP], [])
    absent = Target("fork", False, 0.0, None, [])
    turn = turn_of(Answer("", [target, absent], (HEIGHT, WIDTH), None, "what?"))
    assert turn.question == "what?" and f"cup {SEG}" in turn.answer and f"fork {ABS}" in turn.answer


def test_the_union_of_proposals(scene):
    assert not scene.union([]).any()
    assert (scene.union([LEFT_CUP, SPOON]) == MASKS[LEFT_CUP] | MASKS[SPOON]).all()


# -- by hand, by example, by attention
# -------------------------------------------------------------------------


def test_segment_passes_the_prompt_to_sam(scene, pipeline):
    masks, scores = scene.segment(points=[[20, 30]], labels=[1], multimask=False)
    assert masks.shape == (1, HEIGHT, WIDTH) and masks.dtype == bool and scores.shape == (1,)
    scene.segment(box=[1, 2, 30, 40], mask=MASKS[LEFT_CUP])
    (_, *first), (embedding, *second) = pipeline.prompts
    assert first == [[[20, 30]], [1], None, None, False]
    assert embedding is scene.opened.embedding and second[:3] == [None, None, [1, 2, 30, 40]]
    assert second[3] is MASKS[LEFT_CUP] and second[4] is True


class StubMatcher:
    """Finds the left cup, whatever the example, and notes what it was asked."""

    def reference(self, image, mask):
        return image.shape, int(mask.sum())

    def features_of(self, image, embedding):
        return image

    def segment(self, features, references, label):
        self.asked = (features, references, label)
        return MASKS[LEFT_CUP], 0.5


def test_segment_like_passes_examples_to_the_matcher(scene):
    scene.assistant.matcher = StubMatcher()
    example = np.zeros((20, 30, 3), np.uint8)
    example_mask = np.zeros((20, 30), np.uint8)
    example_mask[:5] = 1
    mask, score = scene.segment_like([example, example], [example_mask, example_mask], label="mug")
    assert (mask == MASKS[LEFT_CUP]).all() and score == 0.5
    features, references, label = scene.assistant.matcher.asked
    assert features is scene.image and label == "mug" and references == [((20, 30, 3), 150)] * 2
    scene.segment_like(example, example_mask)
    assert scene.assistant.matcher.asked[1:] == ([((20, 30, 3), 150)], None)
    with pytest.raises(BadInput, match="empty"):
        scene.segment_like(example, example_mask * 0)


def test_segment_like_needs_a_matcher_for_this_sam(scene):
    with pytest.raises(BadInput, match="finetune reference"):
        scene.segment_like(BLANK_IMAGE, MASKS[LEFT_CUP])


def test_attend_needs_a_model_that_exposes_attention(scene):
    with pytest.raises(BadInput, match="exposes no attention"):
        scene.attend("a mug")


# -- loading
# ---------------------------------------------------------------------------------------------------


def test_an_assistant_is_loaded_by_preset_or_by_parts(pipeline, monkeypatch):
    calls = []

    def load_preset(*values, **named):
        calls.append((values, named))
        return pipeline, {"llm": "0" * 64}

    monkeypatch.setattr("assistant.presets.load_preset", load_preset)
    monkeypatch.setattr("assistant.loading.pipelines.load_pipeline", load_preset)
    loaded = Assistant.from_preset("pocket", threshold=0.7, verify=True)
    assert loaded.pipeline is pipeline and loaded.weights == {"llm": "0" * 64}
    assert loaded.threshold == 0.7 and loaded.cache_size == 0
    parts = Assistant.from_pretrained(mllm="a", sam="b", selection="marks")
    assert parts.threshold == PRESENCE_THRESHOLD == 0.5
    assert calls[0] == (("pocket", None, None), {"verify": True})
    assert calls[1][0] == ("a", "b", None, "marks", None, False, None, False)


def test_an_unknown_preset_is_refused():
    with pytest.raises(BadInput, match="there is no preset 'poket'"):
        Assistant.from_preset("poket")


def test_the_package_offers_its_two_classes():
    assert assistant.Assistant is Assistant and assistant.Scene is Scene
    with pytest.raises(AttributeError, match="nothing"):
        assistant.nothing  # noqa: B018
