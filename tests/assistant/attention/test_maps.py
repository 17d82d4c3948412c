"""Class maps, InfoScore and rankings on scores that are known."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from assistant.attention.maps import check_phrase, class_maps, shares
from assistant.attention.prompt_attention import PromptAttention, Ranking, checked_layers
from assistant.attention.ranking import info_score, rank, read_names
from assistant.errors import BadInput
from assistant.pocket.attention import RegionPlaces


def attention_of(scores: Tensor, match: Tensor | None = None) -> PromptAttention:
    """Attention with given scores (P, L, H, N); every place is one pixel of a line."""
    prompts, layers, _, places = scores.shape
    match = torch.ones(prompts) if match is None else match
    masks = torch.eye(places, dtype=torch.bool).view(places, 1, places)
    return PromptAttention(scores, match, list(range(layers)), RegionPlaces(masks))


# ------------------------------------------------------------------------------------ shares and class maps


def test_what_attracts_every_prompt_cancels_out():
    scores = torch.zeros(2, 1, 2, 3)
    scores[:, 0, :, 2] = 50.0  # a place that every prompt attends to
    scores[0, 0, 1, 0] = 9.0  # one head of the first prompt
    share = shares(attention_of(scores), [(0, None)], match=False)
    assert share[0, 0] > 0.99
    assert torch.allclose(share[:, 1:], torch.full((2, 2), 0.5))
    share = shares(attention_of(scores), [(0, None)])
    assert share[0, 0] > 0.9
    assert torch.allclose(share[:, 1], share[:, 2])
    # the other head attends to nothing
    assert torch.allclose(shares(attention_of(scores), [(0, 0)]), torch.full((2, 3), 0.5))
    no_match = attention_of(scores, torch.tensor([0.0, 1.0]))
    assert torch.allclose(shares(no_match, [(0, 1)])[0], torch.zeros(3))


def test_a_prompt_that_attracts_everywhere_and_a_loud_layer_decide_nothing():
    scores = torch.randn(3, 2, 1, 5, generator=torch.Generator().manual_seed(0))
    both = [(0, None), (1, None)]
    plain = shares(attention_of(scores), both)
    shifted = scores.clone()
    shifted[1] += 7.0  # to attention, a softmax over places, this is no difference
    shifted[:, 1] *= 30.0
    assert torch.allclose(shares(attention_of(shifted), both), plain, atol=1e-5)
    unstandardised = shares(attention_of(scores), both, match=False)
    assert not torch.allclose(shares(attention_of(shifted), both, match=False), unstandardised, atol=0.1)
    for places in (0, 1):  # no place to attend to, or no other one: only the match tells something
        few = attention_of(scores[..., :places], torch.tensor([0.5, 1.0, 0.0]))
        expected = torch.tensor([[0.5], [1.0], [0.0]]).expand(3, places) / 3
        assert torch.allclose(shares(few, [(0, None)]), expected)


def test_the_background_is_the_sum_of_its_prompts_and_a_class_the_best_of_its_synonyms():
    share = torch.tensor([[0.2, 0.1], [0.2, 0.1], [0.3, 0.1], [0.1, 0.5]])
    maps = class_maps(share, torch.tensor([0, 0, 1, 1]), 2)
    assert torch.allclose(maps, torch.tensor([[0.4 / 0.7, 0.2 / 0.7], [0.3 / 0.7, 0.5 / 0.7]]))


# ------------------------------------------------------------------------------------ ranking


def test_info_score_is_high_for_certain_and_varied_layers():
    certain = torch.eye(4) * 0.96 + 0.01  # each image another prompt
    uncertain = torch.full((4, 4), 0.25)
    stuck = certain[:1].repeat(4, 1)  # always the same prompt
    score = info_score(torch.stack([certain, uncertain, stuck], 1))
    assert score.argmax() == 0
    assert score[1] < 1e-5 and score[2] < 1e-5
    p = certain[0]
    entropy = -(p * p.log()).sum()
    mean = certain.mean(0)
    mean_entropy = -(mean * mean.log()).sum()
    expected = mean_entropy / entropy * (certain.std(0, unbiased=False) / mean).sum()
    assert torch.isclose(score[0], expected, rtol=1e-4)


class PlantedProbe:
    """Layer 1, head 2 attends to the class that an image shows; the other heads attend at random."""

    def attention(self, opened: int, prompts: list[str], layers: list[int] | None = None) -> PromptAttention:
        generator = torch.Generator().manual_seed(opened)
        scores = torch.randn(len(prompts), 3, 4, 6, generator=generator) * 0.1
        scores[opened % 3, 1, 2, opened % 6] += 6.0
        return attention_of(scores)


def test_ranking_finds_the_layer_and_the_head_that_attend():
    ranking = rank(PlantedProbe(), range(8), ["a", "b", "c"], layers=2)
    assert ranking.layers[0][0] == 1
    assert ranking.heads[0][:2] == (1, 2)
    assert len(ranking.use) == 2 and ranking.images == 8
    assert rank(PlantedProbe(), range(8), ["a", "b", "c"]) == rank(PlantedProbe(), range(8), ["a", "b", "c"])
    assert rank(PlantedProbe(), range(8), ["a", "b", "c"], heads=3).use[0] == (1, 2)
    shallow = rank(PlantedProbe(), range(8), ["a", "b", "c"], deepest=0)
    assert shallow.used_layers == [0]
    with pytest.raises(BadInput, match="at least two"):
        rank(PlantedProbe(), [0], ["a"])


def test_a_ranking_survives_the_disk(tmp_path):
    ranking = rank(PlantedProbe(), range(8), ["a", "b", "c"], layers=2)
    ranking.save(tmp_path / "r.json")
    assert Ranking.load(tmp_path / "r.json") == ranking
    (tmp_path / "r.json").write_text('{"layers": []}')
    for file in ("r.json", "none.json"):
        with pytest.raises(BadInput, match="rank-layers"):
            Ranking.load(tmp_path / file)


def test_the_ranking_file_of_an_earlier_version_is_read(tmp_path):
    """Its keys are those of every version, "photos" among them."""
    content = {
        "layers": [[5, 321.5], [2, 317.9]],
        "heads": [[5, 6, 321.2]],
        "use": [[5, None]],
        "photos": 50,
        "prompts": 30,
        "about": {"model": "pocket"},
    }
    (tmp_path / "r.json").write_text(json.dumps(content))
    ranking = Ranking.load(tmp_path / "r.json")
    assert ranking.use == [(5, None)] and ranking.images == 50
    ranking.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == content


def test_layers_are_checked():
    assert checked_layers(None, 3) == [0, 1, 2]
    assert checked_layers([2, 0], 3) == [0, 2]
    with pytest.raises(BadInput, match="no layer 3: this model has 3"):
        checked_layers([3], 3)


# ------------------------------------------------------------------------------------ phrases and names


@pytest.mark.parametrize("phrase", ["", "  ", "?!", "the  ?", None, "x" * 300])
def test_a_phrase_that_names_nothing_is_refused_in_one_line(phrase):
    with pytest.raises(BadInput) as error:
        check_phrase(phrase)
    assert "\n" not in str(error.value)


def test_a_phrase_loses_its_article_and_its_tokens():
    assert check_phrase(" A red  mug?") == "red mug"
    assert check_phrase("theatre") == "theatre"
    assert "[SEG]" not in check_phrase("cat [SEG]")


def test_names_come_from_text_or_from_coco(tmp_path: Path):
    (tmp_path / "names.txt").write_text("mug\n\nmug\nbox\n")
    assert read_names(tmp_path / "names.txt") == ["mug", "box"]
    assert "dog" in read_names(None)
    (tmp_path / "coco.json").write_text(json.dumps({"categories": [{"id": 3, "name": "dog"}]}))
    assert read_names(tmp_path / "coco.json") == ["dog"]
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(BadInput):
        read_names(tmp_path / "bad.json")
