"""Selection without tuning: numbers and boxes become the right masks, whatever a model makes of the form."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from assistant.errors import BadInput
from assistant.mllm.coordinates import (
    PATCH,
    PIXELS,
    QWEN_PIXELS,
    THOUSAND,
    UNIT,
    frame_of,
    scale_of,
    within,
)
from assistant.mllm.grounding_prompts import KEEP, marks_schema, read_targets
from assistant.mllm.structured_output import Said, Step, probabilities, read_json
from assistant.mllm.zero_shot import ZeroShotPipeline
from assistant.sam.mask_ops import pad_to_square
from assistant.scene import Assistant
from tests.assistant.mllm.test_set_of_mark import find_label
from tests.helpers.marked_photo import NAMES, PHOTO, THINGS, H, SamImageOpener, Scripted, W, ellipse


def scene_of(script, selection="marks", verify=False, opener=None, **about):
    model = Scripted(script, **about)
    return Assistant(ZeroShotPipeline(opener or SamImageOpener(), model, selection, verify), {}).open(
        PHOTO
    ), model


def reply(*targets, key="marks", thought="A cup holds coffee."):
    return json.dumps({"thought": thought, "targets": [{"phrase": p, key: r} for p, r in targets]})


def with_probabilities(text: str, *sure: float) -> Said:
    """The reply in pieces, with these probabilities that its lists hold something, in order."""
    steps, rest = [], iter(sure)
    for part in text.replace("[", "\0[\0").split("\0"):
        piece = part.encode()
        likely = {piece: 1.0}
        if steps and steps[-1].piece == b"[" and steps[-2].piece.endswith(b'"marks": '):
            p = next(rest)
            likely = {b"]": 1 - p, b"3": p} if not piece.startswith(b"]") else {b"]": 1 - p, b"3, ": p}
            steps.append(
                Step(
                    piece[:1],
                    {piece[:1]: 1 - p, b"3": p} if piece[:1] == b"]" else {piece[:1]: p, b"]": 1 - p},
                )
            )
            piece = piece[1:]
            likely = {piece: 1.0}
        steps.append(Step(piece, likely))
    return Said(text, "", len(steps), steps)


def is_thing(mask, *names) -> bool:
    return np.array_equal(mask, np.any([THINGS[name] for name in names], axis=0))


# -- marks


class Reader:
    """A model with eyes for numbers: it knows where each thing is in the photo, and looks up which number is drawn there."""

    def __call__(self, turns, system, schema):
        photo, *sheets = turns[0].images
        numbers = schema["properties"]["targets"]["items"]["properties"]["marks"]["items"]["enum"]
        wanted = turns[-1].question.split(" and ")
        rows = []
        for name in wanted:
            marks = []
            if name in THINGS:
                for n in numbers:
                    for sheet in sheets:
                        try:
                            x, y = (v * W / sheet.shape[1] for v in find_label(sheet, n))
                        except AssertionError:
                            continue
                        if THINGS[name][min(round(y), H - 1), min(round(x), W - 1)]:
                            marks.append(n)
            rows.append((name, marks))
        return reply(*rows)


def test_numbers_read_off_the_sheets_become_their_masks(monkeypatch):
    monkeypatch.setattr("assistant.mllm.zero_shot.A_SHEET", 3)
    scene, model = scene_of(
        Reader(),
        opener=SamImageOpener([THINGS["shine"], THINGS["table"], ellipse(60, 330, 50, 40), THINGS["coffee"]]),
    )
    answer = scene.ask("coffee and bicycle and table")
    assert [(t.phrase, t.present) for t in answer.targets] == [
        ("coffee", True),
        ("bicycle", False),
        ("table", True),
    ]
    assert is_thing(answer.targets[0].mask, "coffee") and is_thing(answer.targets[2].mask, "table")
    assert (
        answer.text == "I see the coffee, but no bicycle; I see the table."
        and answer.reasoning == "A cup holds coffee."
    )
    ((turns, system, _),) = model.asked
    assert len(turns[0].images) == 3 and "the other 2 are the same photo" in system and "4 in all" in system
    assert (
        answer.targets[1].mask is None
        and answer.targets[1].confidence <= 0.5
        and answer.targets[0].proposals == [3]
    )


def test_a_thing_of_several_regions_is_their_union_and_a_repeated_name_one_thing():
    scene, _ = scene_of([reply(("crockery", [1, 2]), ("Crockery", [2, 3]), ("spoon", []))])
    answer = scene.ask("what breaks?")
    numbers = scene.opened.cache["sheets"][0]
    assert len(answer.targets) == 2 and set(answer.targets[0].proposals) == {
        numbers[1],
        numbers[2],
        numbers[3],
    }
    assert is_thing(answer.targets[0].mask, *(NAMES[numbers[k]] for k in (1, 2, 3)))


def test_numbers_that_are_not_on_the_photo_point_at_nothing():
    scene, _ = scene_of([reply(("cup", [0, 7, 99, -1, "12", None, True, [1], 1.5, "²"]))])
    answer = scene.ask("cup?")
    assert not answer.targets[0].present and not answer.mask.any()


def test_confidence_is_the_probability_that_the_list_is_not_empty():
    said = with_probabilities(reply(("cup", [3]), ("bench", []), ("spoon", [1])), 0.75, 0.125, 0.4)
    scene, _ = scene_of([said, said])
    cup, bench, spoon = scene.ask("which?").targets
    assert (cup.confidence, bench.confidence) == (pytest.approx(0.75), pytest.approx(0.125))
    assert cup.present and not spoon.present and spoon.confidence == pytest.approx(0.4)  # below the threshold
    scene.reset()
    scene.assistant.threshold = 0.3
    assert scene.ask("which?").targets[2].present


def test_a_choice_that_falls_in_an_earlier_token():
    text = '{"marks": [3]}'
    steps = [
        Step(b'{"marks":', {b'{"marks":': 1.0}),
        Step(b" [", {b" [": 0.6, b" []": 0.3, b" [1": 0.1}),
        Step(b"3", {b"3": 0.5, b"]": 0.5}),
        Step(b"]}", {b"]}": 1.0}),
    ]
    chosen = probabilities(Said(text, steps=steps), rb'"marks":\s*\[', lambda byte: byte != b"]")
    assert chosen == [pytest.approx(0.1 + 0.6 * 0.5)]
    assert probabilities(Said(text), rb'"marks":\s*\[', lambda byte: True) == []


def test_later_turns_read_what_was_written_and_the_photo_comes_first():
    first, second = reply(("cup", [2])), reply(("spoon", [1]))
    scene, model = scene_of([first, second, second])
    scene.ask("what holds coffee?")
    answer = scene.ask("and what stirs it?")
    turns = model.asked[1][0]
    assert [t.question for t in turns] == ["what holds coffee?", "and what stirs it?"] and turns[
        0
    ].answer == first
    assert len(turns[0].images) > 1 and not turns[1].images and len(answer.targets) == 1
    scene.reset()
    scene.ask("what stirs it?")
    assert len(model.asked[2][0]) == 1


def test_class_lists_keep_their_order_and_words():
    scene, _ = scene_of([reply(("dog", []), ("cup", [2]), ("dining table", [4]), ("traffic light", []))])
    answer = scene.ask("Which of these are in the picture: dog, cup, dining table, traffic light?")
    assert [(t.phrase, t.present) for t in answer.targets] == [
        ("dog", False),
        ("cup", True),
        ("dining table", True),
        ("traffic light", False),
    ]


def test_no_proposals_are_no_reason_to_say_that_nothing_is_there():
    boxes = [{"bbox_2d": [200, 100, 600, 700], "point_2d": [400, 400]}]
    scene, model = scene_of([reply(("cup", boxes), key="boxes")], opener=SamImageOpener([]))
    assert scene.ask("cup?").targets[0].present and "boxes" in model.asked[0][1]


# -- boxes


def frames():
    tall = (400, 200)  # H, W
    yield frame_of(THOUSAND, tall, (999, 999)), (250, 500), (50, 200)
    yield frame_of(PIXELS, tall, (140, 280)), (70, 70), (100, 100)  # as Qwen2.5-VL has resized it, 280 high
    yield frame_of(UNIT, tall, (0, 0), padded=True), (0.5, 0.25), (100, 100)  # in the middle of 400 x 400
    yield frame_of(UNIT, tall, (0, 0), padded=True), (0.25, 0.5), (0, 200)
    yield frame_of(UNIT, tall, (0, 0), padded=True), (0.0, 1.0), (0, 400)  # in the padding: clipped
    yield frame_of(UNIT, (201, 400), (0, 0), padded=True), (0.5, 0.5), (200, 101)


@pytest.mark.parametrize("frame, written, px", list(frames()))
def test_points_of_each_family(frame, written, px):
    assert frame.point(*written) == pytest.approx(px)


def test_the_families():
    thousand = ("qwen3_vl", "Qwen/Qwen3-VL-8B-Instruct", "smolvlm", "gpt-9", "qwen2_vl", "llava_onevision")
    assert {scale_of(n) for n in thousand} == {THOUSAND}
    assert {scale_of(n) for n in ("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5vl:7b")} == {PIXELS}
    assert {scale_of(n) for n in ("llava", "llava-hf/llava-1.5-7b-hf")} == {UNIT}


def test_pictures_are_made_to_measure():
    square = pad_to_square(PHOTO, centred=True)
    assert square.shape == (600, 600, 3) and np.array_equal(square[100:500], PHOTO)
    assert within(PHOTO, 1280) is PHOTO and within(PHOTO, 300).shape == (200, 300, 3)
    for shape in ((3000, 2000), (8, 900), (28, 28), (1003, 1007)):
        picture = within(np.zeros((*shape, 3), np.uint8), 1280, PATCH, QWEN_PIXELS)
        h, w = picture.shape[:2]
        assert h % PATCH == w % PATCH == 0 and 56 * 56 <= h * w <= QWEN_PIXELS


@pytest.mark.parametrize(
    "name, seen, crops, scale",
    [
        ("qwen3_vl", None, False, (1000 / W, 1000 / H, 0, 0)),
        ("qwen2_5_vl", (588, 392), False, (588 / W, 392 / H, 0, 0)),
        ("llava", None, True, (1 / 600, 1 / 600, 0, 100 / 600)),
    ],
)
def test_a_box_means_the_proposal_that_it_fits(name, seen, crops, scale):
    x, y, w, h = THINGS["cup"].nonzero()[1].min(), THINGS["cup"].nonzero()[0].min(), 237, 251
    box = [
        x * scale[0] + scale[2],
        y * scale[1] + scale[3],
        (x + w) * scale[0] + scale[2],
        (y + h) * scale[1] + scale[3],
    ]
    box = [round(v, 2) if name == "llava" else round(v) for v in box]
    scene, model = scene_of(
        [reply(("cup", [{"bbox_2d": box, "point_2d": box[:2]}]), ("bench", []), key="boxes")],
        "boxes",
        name=name,
        seen=seen,
        crops=crops,
    )
    answer = scene.ask("what holds the coffee, and is there a bench?")
    assert is_thing(answer.targets[0].mask, "cup") and answer.targets[0].proposals == [NAMES.index("cup")]
    assert not answer.targets[1].present and scene.assistant.pipeline.opener.asked == []
    picture = model.asked[0][0][0].images[0]
    assert picture.shape[0] == picture.shape[1] if crops else picture.shape[0] < picture.shape[1]


def test_sam_is_asked_where_no_proposal_fits():
    boxes = [
        {"bbox_2d": [10, 20, 110, 220], "point_2d": [50, 100]},
        {"bbox_2d": [900, 900, 990, 990], "point_2d": [5, 5]},
    ]
    scene, _ = scene_of([reply(("corner", boxes), key="boxes")], "boxes")
    target = scene.ask("the corners").targets[0]
    wanted = np.zeros((H, W), bool)
    wanted[8:88, 6:66] = wanted[360:396, 540:594] = True
    assert np.array_equal(target.mask, wanted) and target.present and target.proposals == []
    (points, box), (no_points, _) = scene.assistant.pipeline.opener.asked
    assert (
        points == [pytest.approx((30, 40))] and box == pytest.approx([6, 8, 66, 88]) and no_points is None
    )  # it lay outside


@pytest.mark.parametrize(
    "text, found",
    [
        (
            '```json\n[{"bbox_2d": [0, 0, 500, 1000], "label": "left half"}]\n```\nI hope this helps.',
            [("left half", 1)],
        ),
        ('Sure! {"targets": [{"phrase": "a", "boxes": []}]} as you asked: {nothing}', [("a", 0)]),
        ("[]", [("it", 0)]),
        ('{"targets": []}', [("it", 0)]),
        (
            '{"thought": "x", "targets": [{"phrase": "a", "boxes": [{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 2]}]}, '
            '{"phrase": "b", "bo',
            [("a", 1)],
        ),
        (
            '{"thought": "x", "targets": [{"phrase": "a", "boxes": [{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 2]}, '
            '{"bbox_2d": [1, 2',
            [("a", 1)],
        ),
        (
            '[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}, {"bbox_2d": [5, 6, 70, 80], "label": "Dog"}]',
            [("dog", 2)],
        ),
        ('{"bbox_2d": [1, 2, 30, 40], "label": "dog"}', [("dog", 1)]),
        ('{"targets": [{"phrase": "a", "boxes": null}]}', [("a", 1)]),
        ("{'targets': [{'phrase': 'a', 'boxes': [],}]}", [("a", 0)]),
        ("I see no such thing.", None),
        ('{"targets": 3}', None),
        ("", None),
        ('{"thought": "a long one that never en', None),
        ("[1, 2]", None),
    ],
)
def test_replies_of_many_forms(text, found):
    targets, _ = read_targets(Said(text), "boxes")
    assert (targets and [(t.phrase, len(t.regions)) for t in targets]) == found


WAITING = {}  # an opened photo for each selection: the sheets are drawn once


@given(
    st.one_of(
        st.text(max_size=60),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(
                        ["targets", "phrase", "label", "boxes", "marks", "bbox_2d", "point_2d", "thought"]
                    ),
                    inner,
                    max_size=4,
                ),
            ),
            max_leaves=12,
        ).map(json.dumps),
    ),
    st.sampled_from(["boxes", "marks"]),
)
@example('{"targets": [{"phrase": "a", "boxes": [{"bbox_2d": [1e400, NaN, 3, 4]}]}]}', "boxes")
@example("[" * 5000, "marks")
def test_whatever_a_server_says_ends_in_an_answer_or_in_one_line(text, selection):
    if selection not in WAITING:
        WAITING[selection] = scene_of([], selection)
    scene, model = WAITING[selection]
    model.script = [text, text]
    scene.reset()
    try:
        answer = scene.ask("what is it?")
        assert all(t.present == (t.mask is not None) and 0 <= t.confidence <= 1 for t in answer.targets)
    except BadInput as error:
        assert "\n" not in str(error) and "does not answer in the form" in str(error)


def test_a_reply_without_the_form_is_asked_for_once_more():
    scene, model = scene_of(["The cup, of course.", reply(("cup", [2]))])
    answer = scene.ask("what holds coffee?")
    turns = model.asked[1][0]
    assert (
        answer.targets[0].present
        and turns[0].answer == "The cup, of course."
        and "only the JSON" in turns[1].question
    )
    assert answer.tokens == 10 and scene.turns[0].answer == reply(("cup", [2]))
    with pytest.raises(BadInput, match="does not answer in the form asked for but 'No. Never.'"):
        scene_of(["", "No.\nNever."])[0].ask("cup?")


# -- the second look


def test_verification_drops_what_the_model_no_longer_means():
    outlined = []

    def script(turns, system, schema):
        if schema is not KEEP:
            return with_probabilities(reply(("cup", [1, 2, 3])), 0.9)
        near = turns[0].images[1]
        outlined.append(near)
        kept = len(outlined) == 2
        word, other = (b"true", b"false") if kept else (b"false", b"true")
        piece = json.dumps({"keep": kept})
        steps = [
            Step(b'{"keep": ', {b'{"keep": ': 1.0}),
            Step(word, {word: 0.7, other: 0.3}),
            Step(b"}", {b"}": 1.0}),
        ]
        return Said(piece, "", 3, steps)

    scene, model = scene_of(script, verify=True)
    answer = scene.ask("what holds the coffee?")
    numbers = scene.opened.cache["sheets"][0]
    assert answer.targets[0].proposals == [numbers[2]] and answer.targets[0].confidence == pytest.approx(0.7)
    assert (
        "what holds the coffee?" in model.asked[1][0][0].question and "cup" in model.asked[1][0][0].question
    )
    assert answer.tokens > 9 and len(model.asked) == 4
    assert not scene.ask("what holds the coffee?").targets[0].present  # all three dropped
    assert len(scene.ask("what holds the coffee?", verify=False).targets[0].proposals) == 3


def test_verification_at_what_sam_made():
    boxes = reply(("corner", [{"bbox_2d": [10, 20, 110, 220], "point_2d": [50, 100]}]), key="boxes")
    keep, drop = '{"keep": true}', '{"keep": false}'
    scene, _ = scene_of([boxes, drop, boxes, keep, boxes, "what?"], "boxes", verify=True)
    assert [scene.ask("the corner").targets[0].present for _ in range(3)] == [False, True, True]


# -- JSON


def test_what_is_whole_of_a_json_is_read():
    assert read_json('{"a": [1, 12], "b": [1, 2') == {"a": [1, 12], "b": [1, 2]}
    assert read_json('{"a": [{"x": 1}, {"x": 12') == {"a": [{"x": 1}]}  # 12 may have been 123
    assert read_json("nothing") is None and read_json("") is None


def test_the_schema_names_existing_marks_only():
    marks = marks_schema([1, 2, 7])["properties"]["targets"]["items"]["properties"]["marks"]
    none = marks_schema([])["properties"]["targets"]["items"]["properties"]["marks"]
    assert marks["items"]["enum"] == [1, 2, 7] and none["maxItems"] == 0
