"""Selection without training: numbers and boxes become the right masks, whatever form an answer has."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from assistant.answer import Target
from assistant.errors import BadInput
from assistant.images import resize_within
from assistant.mllm.coordinates import (
    PIXELS,
    QWEN_PATCH_SIZE,
    THOUSAND,
    UNIT,
    frame_of,
    scale_of,
)
from assistant.mllm.grounding_prompts import (
    BOXES_PROMPT,
    HYBRID_PROMPT,
    KEEP_SCHEMA,
    MARKS_PROMPT,
    boxes_schema,
    hybrid_schema,
    marks_schema,
    read_targets,
)
from assistant.mllm.structured_answer import StructuredAnswer, TokenStep, probabilities, read_json
from assistant.mllm.zero_shot import ZeroShotPipeline
from assistant.sam.mask_ops import pad_to_square
from assistant.scene import Assistant
from tests.helpers.marked_image import (
    IMAGE,
    INSTANCES,
    NAMES,
    H,
    MarkedImageOpener,
    ScriptedModel,
    W,
    ellipse,
    find_label,
)


def scene_of(script, selection="marks", verify=False, opener=None, **about):
    """IMAGE opened with a scripted model, and the model."""
    model = ScriptedModel(script, **about)
    pipeline = ZeroShotPipeline(opener or MarkedImageOpener(), model, selection, verify)
    return Assistant(pipeline, {}).open(IMAGE), model


def answer_of(*targets, key="marks", thought="A cup holds coffee."):
    """An answer in JSON that names (phrase, regions) targets."""
    return json.dumps({"thought": thought, "targets": [{"phrase": p, key: r} for p, r in targets]})


def with_probabilities(text: str, *not_empty: float) -> StructuredAnswer:
    """An answer in tokens, with these probabilities that its lists are not empty, in order."""
    steps, rest = [], iter(not_empty)
    for part in text.replace("[", "\0[\0").split("\0"):
        token = part.encode()
        if steps and steps[-1].token == b"[" and steps[-2].token.endswith(b'"marks": '):
            p = next(rest)
            first = token[:1]
            likely = {first: 1 - p, b"3": p} if first == b"]" else {first: p, b"]": 1 - p}
            steps.append(TokenStep(first, likely))
            token = token[1:]
        steps.append(TokenStep(token, {token: 1.0}))
    return StructuredAnswer(text, "", len(steps), steps)


def is_union(mask, *names) -> bool:
    """Whether a mask is the union of instances."""
    return np.array_equal(mask, np.any([INSTANCES[name] for name in names], axis=0))


# ---------------------------------------------------------------------------------------------------- marks


class NumberReader:
    """A script that knows where each instance is in the image, and reads which number is drawn there."""

    def __call__(self, turns, system, schema):
        _, *sheets = turns[0].images
        numbers = schema["properties"]["targets"]["items"]["properties"]["marks"]["items"]["enum"]
        names = turns[-1].question.split(" and ")
        rows = [(name, [n for n in numbers if self.is_on(n, name, sheets)]) for name in names]
        return answer_of(*rows)

    def is_on(self, number, name, sheets):
        """Whether a number is drawn on an instance, on any of the sheets."""
        if name not in INSTANCES:
            return False
        for sheet in sheets:
            try:
                x, y = (v * W / sheet.shape[1] for v in find_label(sheet, number))
            except AssertionError:
                continue
            if INSTANCES[name][min(round(y), H - 1), min(round(x), W - 1)]:
                return True
        return False


def test_numbers_read_off_the_sheets_become_their_masks(monkeypatch):
    monkeypatch.setattr("assistant.mllm.zero_shot.MARKS_PER_SHEET", 3)
    masks = [INSTANCES["shine"], INSTANCES["table"], ellipse(60, 330, 50, 40), INSTANCES["coffee"]]
    scene, model = scene_of(NumberReader(), opener=MarkedImageOpener(masks))
    answer = scene.ask("coffee and bicycle and table")
    assert [(t.phrase, t.present) for t in answer.targets] == [
        ("coffee", True),
        ("bicycle", False),
        ("table", True),
    ]
    assert is_union(answer.targets[0].mask, "coffee") and is_union(answer.targets[2].mask, "table")
    assert answer.text == "I see the coffee, but no bicycle; I see the table."
    assert answer.reasoning == "A cup holds coffee."
    ((turns, system, _),) = model.requests
    assert len(turns[0].images) == 3 and "the other 2 are the same photo" in system and "4 in all" in system
    assert answer.targets[0].proposals == [3]
    assert answer.targets[1].mask is None and answer.targets[1].confidence <= 0.5


def test_a_target_of_several_regions_is_their_union_and_a_repeated_name_one_target():
    scene, _ = scene_of([answer_of(("crockery", [1, 2]), ("Crockery", [2, 3]), ("spoon", []))])
    answer = scene.ask("what breaks?")
    numbers = scene.opened.cache["sheets"][0]
    assert len(answer.targets) == 2
    assert set(answer.targets[0].proposals) == {numbers[1], numbers[2], numbers[3]}
    assert is_union(answer.targets[0].mask, *(NAMES[numbers[k]] for k in (1, 2, 3)))


def test_numbers_that_are_not_on_the_image_point_at_nothing():
    scene, _ = scene_of([answer_of(("cup", [0, 7, 99, -1, "12", None, True, [1], 1.5, "²"]))])
    answer = scene.ask("cup?")
    assert not answer.targets[0].present and not answer.mask.any()


def test_confidence_is_the_probability_that_the_list_is_not_empty():
    model_answer = with_probabilities(
        answer_of(("cup", [3]), ("bench", []), ("spoon", [1])), 0.75, 0.125, 0.4
    )
    scene, _ = scene_of([model_answer, model_answer])
    cup, bench, spoon = scene.ask("which?").targets
    assert (cup.confidence, bench.confidence) == (pytest.approx(0.75), pytest.approx(0.125))
    assert cup.present and not spoon.present and spoon.confidence == pytest.approx(0.4)  # below the threshold
    scene.reset()
    scene.assistant.threshold = 0.3
    assert scene.ask("which?").targets[2].present


def test_a_choice_that_falls_in_an_earlier_token():
    text = '{"marks": [3]}'
    steps = [
        TokenStep(b'{"marks":', {b'{"marks":': 1.0}),
        TokenStep(b" [", {b" [": 0.6, b" []": 0.3, b" [1": 0.1}),
        TokenStep(b"3", {b"3": 0.5, b"]": 0.5}),
        TokenStep(b"]}", {b"]}": 1.0}),
    ]
    chosen = probabilities(StructuredAnswer(text, steps=steps), rb'"marks":\s*\[', lambda byte: byte != b"]")
    assert chosen == [pytest.approx(0.1 + 0.6 * 0.5)]
    assert probabilities(StructuredAnswer(text), rb'"marks":\s*\[', lambda byte: True) == []


def test_later_turns_read_what_was_written_and_the_image_comes_first():
    first, second = answer_of(("cup", [2])), answer_of(("spoon", [1]))
    scene, model = scene_of([first, second, second])
    scene.ask("what holds coffee?")
    answer = scene.ask("and what stirs it?")
    turns = model.requests[1][0]
    assert [t.question for t in turns] == ["what holds coffee?", "and what stirs it?"] and turns[
        0
    ].answer == first
    assert len(turns[0].images) > 1 and not turns[1].images and len(answer.targets) == 1
    scene.reset()
    scene.ask("what stirs it?")
    assert len(model.requests[2][0]) == 1


def test_class_lists_keep_their_order_and_words():
    scene, _ = scene_of([answer_of(("dog", []), ("cup", [2]), ("dining table", [4]), ("traffic light", []))])
    answer = scene.ask("Which of these are in the picture: dog, cup, dining table, traffic light?")
    assert [(t.phrase, t.present) for t in answer.targets] == [
        ("dog", False),
        ("cup", True),
        ("dining table", True),
        ("traffic light", False),
    ]


def test_no_proposals_are_no_reason_to_say_that_nothing_is_there():
    boxes = [{"bbox_2d": [200, 100, 600, 700], "point_2d": [400, 400]}]
    scene, model = scene_of([answer_of(("cup", boxes), key="boxes")], opener=MarkedImageOpener([]))
    assert scene.ask("cup?").targets[0].present and "boxes" in model.requests[0][1]


# --------------------------------------------------------------------------------------------------- hybrid

SPOON_BOX = [542, 562, 683, 812]  # thousandths


def rows_of(**targets):
    """An answer in JSON with (seen, marks, boxes) targets by their names."""
    rows = [
        {"phrase": phrase, "seen": seen, "marks": marks, "boxes": [{"bbox_2d": box} for box in boxes]}
        for phrase, (seen, marks, boxes) in targets.items()
    ]
    return json.dumps({"thought": "", "targets": rows})


def hybrid_scene(*script):
    """IMAGE without a proposal of the spoon, opened with a scripted model."""
    masks = [mask for name, mask in INSTANCES.items() if name != "spoon"]
    return scene_of(list(script), "hybrid", opener=MarkedImageOpener(masks))


def number_on(scene, mask):
    """The number of the proposal that is a mask."""
    numbers, _ = scene.assistant.pipeline._sheets(scene.opened)
    return next(k for k, i in numbers.items() if np.array_equal(scene.proposals.mask(i), mask))


def test_what_no_mark_shows_is_boxed_and_what_nothing_shows_is_not_denied():
    cup = number_on(hybrid_scene()[0], INSTANCES["cup"])
    text = rows_of(
        wire=(True, [], []), cup=(True, [cup], []), spoon=(True, [], [SPOON_BOX]), bench=(False, [], [])
    )
    scene, model = hybrid_scene(text)
    answer = scene.ask("what is there?")
    assert [(t.phrase, t.present, t.seen) for t in answer.targets] == [
        ("cup", True, False),
        ("spoon", True, False),
        ("bench", False, False),
        ("wire", False, True),
    ]
    assert answer.text == (
        "I see the cup and the spoon, but no bench. I also see the wire, which I cannot outline."
    )
    assert is_union(answer.targets[0].mask, "cup")
    spoon = np.zeros((H, W), bool)
    spoon[225:325, 325:410] = True  # what SAM makes of the box: it is filled
    assert np.array_equal(answer.targets[1].mask, spoon) and not answer.targets[1].proposals
    assert answer.targets[3].confidence == 1 and answer.targets[3].mask is None
    assert [row.get("seen") for row in answer.to_json()["targets"]] == [None, None, None, True]
    ((turns, system, schema),) = model.requests
    fields = schema["properties"]["targets"]["items"]["properties"]
    assert list(fields) == ["phrase", "seen", "marks", "boxes"] and "from 0 to 1000" in system
    assert len(turns[0].images) > 1


def test_a_box_that_a_proposal_fits_means_the_proposal():
    ys, xs = INSTANCES["cup"].nonzero()
    box = [
        round(v) for v in (xs.min() / W * 1000, ys.min() / H * 1000, xs.max() / W * 1000, ys.max() / H * 1000)
    ]
    scene, _ = hybrid_scene(rows_of(cup=(True, [], [box])))
    answer = scene.ask("the cup?")
    assert is_union(answer.targets[0].mask, "cup") and len(answer.targets[0].proposals) == 1
    assert not scene.assistant.pipeline.opener.prompts


def test_confidence_is_the_probability_that_the_model_sees_it():
    parts = [
        '{"targets": [{"phrase": "cup", "seen": ',
        "true",
        ', "marks": [1]}, {"phrase": "bench", "seen": ',
    ]
    steps = [TokenStep(part.encode(), {part.encode(): 1.0}) for part in [*parts, "true", ', "marks": []}]}']]
    steps[1] = TokenStep(b"true", {b"true": 0.9, b"false": 0.1})
    steps[3] = TokenStep(b"true", {b"true": 0.6, b"false": 0.2})
    answer = StructuredAnswer("".join(step.token.decode() for step in steps), steps=steps)
    scene, _ = scene_of([answer, answer])
    cup, bench = scene.ask("which?").targets
    assert (cup.confidence, bench.confidence) == (pytest.approx(0.9), pytest.approx(0.75)) and bench.seen
    scene.assistant.threshold = 0.8
    cup, bench = scene.ask("which?").targets  # the bench is below the threshold: absent
    assert cup.present and not bench.seen and not bench.present


def test_real_models_work_out_follow_ups_themselves():
    first = rows_of(cup=(True, [2], []))
    scene, model = hybrid_scene(first, rows_of(cup=(True, [1], [])), rows_of(cup=(True, [1], [])))
    scene.ask("what holds the coffee?")
    for question in ("no, the other one", "et celle de gauche ?"):
        assert len(scene.ask(question).targets[0].proposals) == 1
        assert model.requests[-1][0][-1].question == question
        assert model.requests[-1][0][0].answer == first


@pytest.mark.parametrize("selection", ["hybrid", "boxes"])
def test_a_question_about_a_part_shows_the_part(selection):
    text = '{"targets": [{"phrase": "cup", "boxes": [{"bbox_2d": [290, 62, 683, 688]}]}]}'
    scene, model = scene_of([text, text], selection)
    plain_count = 1 if selection == "boxes" else 4
    for asked, question in enumerate(("what is this?", "qu'est-ce que c'est ?"), 1):
        assert is_union(scene.ask(question, about=INSTANCES["spoon"]).targets[0].mask, "cup")
        turns = model.requests[-1][0]
        assert turns[-1].question.startswith(question) and "outlined in yellow" in turns[-1].question
        first, last = len(turns[0].images), len(turns[-1].images)
        assert (first, last) == ((plain_count + 2,) * 2 if asked == 1 else (plain_count, 2))
        outlined, crop = turns[-1].images[-2:]
        assert outlined.shape[1] > outlined.shape[0] and crop.shape[:2] != outlined.shape[:2]
    assert scene.turns[0].question == "what is this?"


def test_an_answer_that_was_corrected_is_read_with_its_masks():
    scene, model = hybrid_scene(rows_of(cup=(True, [2], [])), rows_of(cup=(True, [1], [])))
    answer = scene.ask("what is there?")
    corrected = [
        Target("cup", True, 1.0, INSTANCES["cup"], []),  # by hand: a proposal is nearly the same
        Target("spoon", True, 1.0, INSTANCES["spoon"], []),  # no proposal is
        Target("bench", False, 0.0, None, []),
        Target("wire", False, 1.0, None, [], seen=True),
    ]
    scene.restore([replace(answer, targets=corrected, said="")])
    scene.ask("and which is round?")
    read = json.loads(model.requests[-1][0][0].answer)["targets"]
    assert read[0] == {
        "phrase": "cup",
        "seen": True,
        "marks": [number_on(scene, INSTANCES["cup"])],
        "boxes": [],
    }
    (box,) = read[1]["boxes"]
    assert box["bbox_2d"] == pytest.approx(SPOON_BOX, abs=4) and read[1]["marks"] == []
    assert read[2] == {"phrase": "bench", "seen": False, "marks": [], "boxes": []}
    assert read[3] == {"phrase": "wire", "seen": True, "marks": [], "boxes": []}


def test_the_prompts_show_the_question_of_an_example_in_the_form_asked_for():
    frame = frame_of(THOUSAND, (H, W))
    words = {"sheets": "the second is", "n": 9, "example": 4, "meaning": frame.meaning}
    for prompt, schema in [
        (MARKS_PROMPT, marks_schema(range(1, 10))),
        (HYBRID_PROMPT, hybrid_schema(range(1, 10), frame)),
        (BOXES_PROMPT, boxes_schema(frame)),
    ]:
        text = prompt.format(**words, box=[1, 2, 3, 4], point=[1, 2])
        question, _, example = text.partition('Example, for "')[2].partition('": ')
        assert question.startswith("what keeps the rain off") and "bench" in question
        value = json.loads(example)
        target = schema["properties"]["targets"]["items"]["properties"]
        assert list(value) == list(schema["properties"])
        assert all(list(row) == list(target) for row in value["targets"])
        assert all(row["phrase"] in question + value["thought"].lower() for row in value["targets"])


def test_what_an_answer_takes_is_counted():
    def script(turns, system, schema):
        text = '{"keep": true}' if schema is KEEP_SCHEMA else answer_of(("cup", [1, 2]))
        return StructuredAnswer(text, tokens=7, read_tokens=100)

    scene, _ = scene_of(script, verify=True)
    cost = scene.ask("cup?").cost
    assert (cost.calls, cost.tokens, cost.read_tokens) == (3, 21, 300) and 0 < cost.seconds < 60


# ---------------------------------------------------------------------------------------------------- boxes


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
    height, width = frame.size
    box = [width * 0.25, height * 0.5, width * 0.75, height * 0.875]
    assert frame.box(frame.written_box(box)) == pytest.approx(box, abs=max(frame.size) / 100)


def test_the_families():
    thousand = ("qwen3_vl", "Qwen/Qwen3-VL-8B-Instruct", "smolvlm", "gpt-9", "qwen2_vl", "llava_onevision")
    assert {scale_of(n) for n in thousand} == {THOUSAND}
    assert {scale_of(n) for n in ("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5vl:7b")} == {PIXELS}
    assert {scale_of(n) for n in ("llava", "llava-hf/llava-1.5-7b-hf")} == {UNIT}


def test_images_are_resized_and_padded():
    square = pad_to_square(IMAGE, centred=True)
    assert square.shape == (600, 600, 3) and np.array_equal(square[100:500], IMAGE)
    assert resize_within(IMAGE, 1280) is IMAGE and resize_within(IMAGE, 300).shape == (200, 300, 3)
    for shape in ((3000, 2000), (8, 900), (28, 28), (1003, 1007)):
        image = np.zeros((*shape, 3), np.uint8)
        h, w = resize_within(image, 1280, QWEN_PATCH_SIZE, 1003520).shape[:2]
        assert h % QWEN_PATCH_SIZE == w % QWEN_PATCH_SIZE == 0 and 56 * 56 <= h * w <= 1003520


@pytest.mark.parametrize(
    "name, size, crops, scale",
    [
        ("qwen3_vl", None, False, (1000 / W, 1000 / H, 0, 0)),
        ("qwen2_5_vl", (588, 392), False, (588 / W, 392 / H, 0, 0)),
        ("llava", None, True, (1 / 600, 1 / 600, 0, 100 / 600)),
    ],
)
def test_a_box_means_the_proposal_that_it_fits(name, size, crops, scale):
    x, y, w, h = INSTANCES["cup"].nonzero()[1].min(), INSTANCES["cup"].nonzero()[0].min(), 237, 251
    box = [
        x * scale[0] + scale[2],
        y * scale[1] + scale[3],
        (x + w) * scale[0] + scale[2],
        (y + h) * scale[1] + scale[3],
    ]
    box = [round(v, 2) if name == "llava" else round(v) for v in box]
    scene, model = scene_of(
        [answer_of(("cup", [{"bbox_2d": box, "point_2d": box[:2]}]), ("bench", []), key="boxes")],
        "boxes",
        name=name,
        size=size,
        crops=crops,
    )
    answer = scene.ask("what holds the coffee, and is there a bench?")
    assert is_union(answer.targets[0].mask, "cup") and answer.targets[0].proposals == [NAMES.index("cup")]
    assert not answer.targets[1].present and scene.assistant.pipeline.opener.prompts == []
    height, width = model.requests[0][0][0].images[0].shape[:2]
    assert height == width if crops else height < width


def test_sam_is_asked_where_no_proposal_fits():
    boxes = [
        {"bbox_2d": [10, 20, 110, 220], "point_2d": [50, 100]},
        {"bbox_2d": [900, 900, 990, 990], "point_2d": [5, 5]},
    ]
    scene, _ = scene_of([answer_of(("corner", boxes), key="boxes")], "boxes")
    target = scene.ask("the corners").targets[0]
    wanted = np.zeros((H, W), bool)
    wanted[8:88, 6:66] = wanted[360:396, 540:594] = True
    assert np.array_equal(target.mask, wanted) and target.present and target.proposals == []
    (points, box), (no_points, _) = scene.assistant.pipeline.opener.prompts
    assert points == [pytest.approx((30, 40))] and box == pytest.approx([6, 8, 66, 88])
    assert no_points is None  # the second point lies outside its box


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            '```json\n[{"bbox_2d": [0, 0, 500, 1000], "label": "left half"}]\n```\nI hope this helps.',
            [("left half", 1)],
        ),
        ('Sure! {"targets": [{"phrase": "a", "boxes": []}]} as you asked: {nothing}', [("a", 0)]),
        ("[]", [("it", 0)]),
        ('{"targets": []}', [("it", 0)]),
        (
            '{"thought": "x", "targets": [{"phrase": "a", '
            '"boxes": [{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 2]}]}, '
            '{"phrase": "b", "bo',
            [("a", 1)],
        ),
        (
            '{"thought": "x", "targets": [{"phrase": "a", '
            '"boxes": [{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 2]}, '
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
def test_answers_of_many_forms(text, expected):
    targets, _ = read_targets(StructuredAnswer(text), "boxes")
    assert (targets and [(t.phrase, len(t.regions)) for t in targets]) == expected


SCENES = {}  # an opened image for each selection, so that its sheets are drawn once


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
    st.sampled_from(["boxes", "marks", "hybrid"]),
)
@example('{"targets": [{"phrase": "a", "boxes": [{"bbox_2d": [1e400, NaN, 3, 4]}]}]}', "boxes")
@example("[" * 5000, "marks")
def test_whatever_a_server_answers_ends_in_an_answer_or_in_one_line(text, selection):
    if selection not in SCENES:
        SCENES[selection] = scene_of([], selection)
    scene, model = SCENES[selection]
    model.script = [text, text]
    scene.reset()
    try:
        answer = scene.ask("what is it?")
        assert all(t.present == (t.mask is not None) and 0 <= t.confidence <= 1 for t in answer.targets)
    except BadInput as error:
        assert "\n" not in str(error) and "does not answer in the form" in str(error)


def test_an_answer_without_the_form_is_asked_for_once_more():
    scene, model = scene_of(["The cup, of course.", answer_of(("cup", [2]))])
    answer = scene.ask("what holds coffee?")
    turns = model.requests[1][0]
    assert answer.targets[0].present
    assert turns[0].answer == "The cup, of course." and "only the JSON" in turns[1].question
    assert answer.tokens == 10 and scene.turns[0].answer == answer_of(("cup", [2]))
    with pytest.raises(BadInput, match="does not answer in the form asked for but 'No. Never.'"):
        scene_of(["", "No.\nNever."])[0].ask("cup?")


# --------------------------------------------------------------------------------------------- verification


def test_verification_drops_what_the_model_no_longer_means():
    crops = []

    def script(turns, system, schema):
        if schema is not KEEP_SCHEMA:
            return with_probabilities(answer_of(("cup", [1, 2, 3])), 0.9)
        crops.append(turns[0].images[1])
        keep = len(crops) == 2
        word, other = (b"true", b"false") if keep else (b"false", b"true")
        steps = [
            TokenStep(b'{"keep": ', {b'{"keep": ': 1.0}),
            TokenStep(word, {word: 0.7, other: 0.3}),
            TokenStep(b"}", {b"}": 1.0}),
        ]
        return StructuredAnswer(json.dumps({"keep": keep}), "", 3, steps)

    scene, model = scene_of(script, verify=True)
    answer = scene.ask("what holds the coffee?")
    numbers = scene.opened.cache["sheets"][0]
    assert answer.targets[0].proposals == [numbers[2]] and answer.targets[0].confidence == pytest.approx(0.7)
    question = model.requests[1][0][0].question
    assert "what holds the coffee?" in question and "cup" in question
    assert answer.tokens > 9 and len(model.requests) == 4
    assert not scene.ask("what holds the coffee?").targets[0].present  # all three dropped
    assert len(scene.ask("what holds the coffee?", verify=False).targets[0].proposals) == 3


def test_verification_at_what_sam_made():
    boxes = answer_of(("corner", [{"bbox_2d": [10, 20, 110, 220], "point_2d": [50, 100]}]), key="boxes")
    keep, drop = '{"keep": true}', '{"keep": false}'
    scene, _ = scene_of([boxes, drop, boxes, keep, boxes, "what?"], "boxes", verify=True)
    assert [scene.ask("the corner").targets[0].present for _ in range(3)] == [False, True, True]


# ----------------------------------------------------------------------------------------------------- JSON


def test_what_is_whole_of_a_json_is_read():
    assert read_json('{"a": [1, 12], "b": [1, 2') == {"a": [1, 12], "b": [1, 2]}
    assert read_json('{"a": [{"x": 1}, {"x": 12') == {"a": [{"x": 1}]}  # 12 may have been 123
    assert read_json("nothing") is None and read_json("") is None


def test_the_schema_names_existing_marks_only():
    marks = marks_schema([1, 2, 7])["properties"]["targets"]["items"]["properties"]["marks"]
    none = marks_schema([])["properties"]["targets"]["items"]["properties"]["marks"]
    assert marks["items"]["enum"] == [1, 2, 7] and none["maxItems"] == 0
