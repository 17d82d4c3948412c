"""Maps, InfoScore and rankings on scores that are known, and where the pocket preset looks."""

import json

import numpy as np
import pytest
import torch
from skimage import data

from assistant.attention.maps import CONTRAST, check_phrase, class_maps, shares
from assistant.attention.prompt_attention import PromptAttention, Ranking
from assistant.attention.ranking import info_score, rank, read_names
from assistant.errors import BadInput
from assistant.pocket.attention import RegionPlaces


def look_at(scores, match=None):
    p, layers, _, n = scores.shape
    match = torch.ones(p) if match is None else match
    return PromptAttention(
        scores, match, list(range(layers)), RegionPlaces(torch.eye(n, dtype=torch.bool).view(n, 1, n))
    )


def test_what_attracts_every_prompt_cancels_out():
    scores = torch.zeros(2, 1, 2, 3)
    scores[:, 0, :, 2] = 50.0  # a place that everything looks at
    scores[0, 0, 1, 0] = 9.0  # one head of the first prompt
    share = shares(look_at(scores), [(0, None)], match=False)
    assert share[0, 0] > 0.99 and torch.allclose(share[:, 1:], torch.full((2, 2), 0.5))
    share = shares(look_at(scores), [(0, None)])
    assert share[0, 0] > 0.9 and torch.allclose(share[:, 1], share[:, 2])
    assert torch.allclose(
        shares(look_at(scores), [(0, 0)]), torch.full((2, 3), 0.5)
    )  # the other head saw nothing
    assert torch.allclose(shares(look_at(scores, torch.tensor([0.0, 1.0])), [(0, 1)])[0], torch.zeros(3))


def test_a_prompt_that_attracts_everywhere_and_a_loud_layer_decide_nothing():
    scores = torch.randn(3, 2, 1, 5, generator=torch.Generator().manual_seed(0))
    plain = shares(look_at(scores), [(0, None), (1, None)])
    other = scores.clone()
    other[1] += 7.0  # to attention, a softmax over places, this is nothing
    other[:, 1] *= 30.0
    assert torch.allclose(shares(look_at(other), [(0, None), (1, None)]), plain, atol=1e-5)
    assert not torch.allclose(
        shares(look_at(other), [(0, None), (1, None)], match=False),
        shares(look_at(scores), [(0, None), (1, None)], match=False),
        atol=0.1,
    )
    for n in (0, 1):  # no place to look at, or no other: only the match speaks
        share = shares(look_at(scores[..., :n], torch.tensor([0.5, 1.0, 0.0])), [(0, None)])
        assert torch.allclose(share, torch.tensor([[0.5], [1.0], [0.0]]).expand(3, n) / 3)


def test_the_background_is_the_sum_of_its_prompts_a_class_the_best_of_its_words():
    share = torch.tensor([[0.2, 0.1], [0.2, 0.1], [0.3, 0.1], [0.1, 0.5]])
    maps = class_maps(share, torch.tensor([0, 0, 1, 1]), 2)
    assert torch.allclose(maps, torch.tensor([[0.4 / 0.7, 0.2 / 0.7], [0.3 / 0.7, 0.5 / 0.7]]))


def test_info_score_is_high_for_sure_and_varied_layers():
    sure = torch.eye(4) * 0.96 + 0.01  # each picture another prompt
    unsure = torch.full((4, 4), 0.25)
    stuck = sure[:1].repeat(4, 1)  # always the same prompt
    score = info_score(torch.stack([sure, unsure, stuck], 1))
    assert score.argmax() == 0 and score[1] < 1e-5 and score[2] < 1e-5
    p = sure[0]
    h = -(p * p.log()).sum()
    mean = sure.mean(0)
    expected = -(mean * mean.log()).sum() / h * (sure.std(0, unbiased=False) / mean).sum()
    assert torch.isclose(score[0], expected, rtol=1e-4)


class Planted:
    """Pictures in which layer 1, head 2 looks at the thing that a picture shows; the others look at random."""

    def attention(self, view, prompts, layers=None):
        scores = torch.randn(len(prompts), 3, 4, 6, generator=torch.Generator().manual_seed(view)) * 0.1
        scores[view % 3, 1, 2, view % 6] += 6.0
        return look_at(scores)


def test_ranking_finds_the_layer_and_the_head_that_look(tmp_path):
    found = rank(Planted(), range(8), ["a", "b", "c"], layers=2)
    assert (
        found.layers[0][0] == 1 and found.heads[0][:2] == (1, 2) and len(found.use) == 2 and found.photos == 8
    )
    assert rank(Planted(), range(8), ["a", "b", "c"]) == rank(Planted(), range(8), ["a", "b", "c"])
    assert rank(Planted(), range(8), ["a", "b", "c"], heads=3).use[0] == (1, 2)
    found.save(tmp_path / "r.json")
    assert Ranking.load(tmp_path / "r.json") == found
    (tmp_path / "r.json").write_text('{"layers": []}')
    for file in ("r.json", "none.json"):
        with pytest.raises(BadInput, match="rank-layers"):
            Ranking.load(tmp_path / file)
    with pytest.raises(BadInput, match="at least two"):
        rank(Planted(), [0], ["a"])


@pytest.mark.parametrize("phrase", ["", "  ", "?!", "the", None, "x" * 300])
def test_a_phrase_that_names_nothing_is_one_line(phrase):
    with pytest.raises(BadInput) as error:
        check_phrase(phrase if phrase != "the" else "the  ?")
    assert "\n" not in str(error.value)


def test_phrases_and_names(tmp_path):
    assert check_phrase(" A red  mug?") == "red mug" and check_phrase("theatre") == "theatre"
    assert "[SEG]" not in check_phrase("cat [SEG]")
    (tmp_path / "names.txt").write_text("mug\n\nmug\nbox\n")
    assert read_names(tmp_path / "names.txt") == ["mug", "box"] and "dog" in read_names(None)
    (tmp_path / "coco.json").write_text(json.dumps({"categories": [{"id": 3, "name": "dog"}]}))
    assert read_names(tmp_path / "coco.json") == ["dog"]
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(BadInput):
        read_names(tmp_path / "bad.json")


@pytest.fixture(scope="module")
def scene():
    from assistant import Assistant

    try:
        return Assistant.from_preset("pocket").open(data.chelsea())
    except BadInput as error:
        if "package index" in str(error) or "pip" in str(error):
            pytest.skip(f"the pocket preset's wheels cannot be had: {error}")
        raise


def test_the_pocket_preset_looks_at_the_cat(scene):
    heat = scene.attend("the cat")
    assert heat.shape == (300, 451) and heat.dtype == np.float32 and 0 <= heat.min() and heat.max() <= 1
    assert heat.max() > 4 * scene.attend("bus").max()  # what is not there is not looked at
    assert np.array_equal(heat, scene.attend("cat"))
    with pytest.raises(BadInput):
        scene.attend("...")


def test_pocket_prompts_do_not_see_each_other(scene):
    probe = scene.assistant.pipeline.attention_probe()
    together = probe.attention(scene.opened, ["cat", "traffic light", *CONTRAST])
    alone = probe.attention(scene.opened, ["traffic light"])
    assert together.scores.shape == (30, 30, 9, len(scene.proposals)) and together.layers == list(range(30))
    scale = alone.scores.std()
    assert (together.scores[1] - alone.scores[0]).abs().max() < 0.15 * scale  # bfloat16 in other batches
    some = probe.attention(scene.opened, ["traffic light"], [9, 2])
    assert some.layers == [2, 9] and torch.equal(some.scores[0], alone.scores[0, [2, 9]])
    with pytest.raises(BadInput, match="30"):
        probe.attention(scene.opened, ["cat"], [30])


def test_tuned_attention_leaves_replies_alone(scene):
    probe = scene.assistant.pipeline.attention_probe()
    probe.restore({})
    before, reply = scene.attend("cat"), scene.ask("where is the cat?", remember=False).text
    layer = probe.ranking.use[0][0]
    with torch.enable_grad():
        trained = probe.tunable_attention([layer]) | probe.tunable_words(["cat", *CONTRAST])
        assert any(n.startswith("rows.") for n in trained) and any(
            n.startswith(f"layers.{layer}.") for n in trained
        )
        view = scene.opened
        share = lambda: shares(probe.attention(view, ["cat", *CONTRAST], [layer]), [(layer, None)])[0].mean()
        first = share()
        (-first.log()).backward()
        assert all(p.grad is not None for p in trained.values())
        for p in trained.values():
            p.data -= 0.5 * p.grad / p.grad.norm().clamp(min=1e-6)
        assert share() > first
    tuned = {n: p.detach().clone() for n, p in trained.items()}
    after = scene.attend("cat")
    assert (
        not np.allclose(after, before, atol=1e-3)
        and scene.ask("where is the cat?", remember=False).text == reply
    )
    probe.restore({})
    assert np.array_equal(scene.attend("cat"), before)
    probe.restore(tuned)
    assert np.allclose(scene.attend("cat"), after, atol=1e-3)
    probe.restore({})


def test_the_command(scene, tmp_path, monkeypatch, capsys):
    from PIL import Image

    import assistant.presets
    from assistant.__main__ import main

    monkeypatch.setattr(
        assistant.presets,
        "load_attention_probe",
        lambda options: (scene.assistant.pipeline.attention_probe(), {}),
    )  # loaded already
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    words = ["x", "attend", str(tmp_path / "cat.png"), "a cat", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0 and "at most" in capsys.readouterr().out
    heat = np.asarray(Image.open(tmp_path / "out" / "heat.png"))
    assert heat.shape == (300, 451) and heat.dtype == np.uint16
    assert Image.open(tmp_path / "out" / "overlay.png").size == (451, 300)
    assert np.allclose(heat / 65535, scene.attend("a cat"), atol=1e-2)
    monkeypatch.setattr("sys.argv", [*words[:3], "?", *words[4:]])
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
