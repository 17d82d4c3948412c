"""Attention of real architectures with random weights: geometry, batches, several pictures, tuning."""

import numpy as np
import pytest
import torch

from assistant.attention.loading import load_probe
from assistant.attention.transformers_probe import NO_ATTENTION, ProbedImage
from assistant.attention.maps import CONTRAST, attend, shares
from assistant.attention.prompt_attention import Ranking
from assistant.attention.ranking import rank
from assistant.errors import BadInput
from assistant.grammar import Turn
from tests.helpers.tiny_models import tiny_blip, tiny_llava, tiny_qwen3_vl, tiny_smolvlm

KINDS = {"blip": tiny_blip, "llava": tiny_llava, "qwen": tiny_qwen3_vl, "smolvlm": tiny_smolvlm}
PROMPTS = ["mug", "sky", "red car"]


@pytest.fixture(scope="module", params=KINDS)
def probe(request, tmp_path_factory):
    return load_probe(str(KINDS[request.param](tmp_path_factory.mktemp(request.param))))


def picture(seed=0, h=64, w=96):
    return ProbedImage(np.random.default_rng(seed).integers(90, 150, (h, w, 3), dtype=np.uint8))


@pytest.mark.parametrize("y, x", [(0, 0), (40, 72), (8, 80)])
def test_a_change_in_one_place_is_seen_there(probe, y, x):
    plain, changed = picture(), picture()
    changed.image[y : y + 16, x : x + 16] = np.random.default_rng(1).integers(0, 255, (16, 16, 3))
    with torch.inference_mode():
        before, after = probe.attention(plain, ["mug"]), probe.attention(changed, ["mug"])
        moved = (after.scores - before.scores).abs().mean((0, 1, 2))
        seen = after.place.spread(moved[None], (64, 96))[0].numpy()
    assert seen.shape == (64, 96) and before.scores.shape[1:3] == (probe.layers, after.scores.shape[2])
    row, column = np.unravel_index(int(seen.argmax()), seen.shape)
    assert (
        abs(row - (y + 8)) <= 16 and abs(column - (x + 8)) <= 20
    )  # a cell of the coarsest grid is 32 px wide
    assert seen[y : y + 16, x : x + 16].mean() > 2 * seen.mean()


@torch.inference_mode()
def test_batches_equal_single_prompts(probe, monkeypatch):
    together = probe.attention(picture(), PROMPTS)
    for k, prompt in enumerate(PROMPTS):
        alone = probe.attention(picture(), [prompt])
        assert torch.allclose(together.scores[k], alone.scores[0], atol=1e-4)
        assert torch.allclose(together.match[k], alone.match[0], atol=1e-4)
    some = probe.attention(picture(), PROMPTS, [1])
    assert some.layers == [1] and torch.allclose(some.scores[:, 0], together.scores[:, 1], atol=1e-4)
    assert ((0 <= together.match) & (together.match <= 1)).all()
    with pytest.raises(BadInput, match="no layer 7"):
        probe.attention(picture(), PROMPTS, [7])


def test_ranking_and_heat_map(probe):
    views = [picture(k) for k in range(3)]
    first = rank(probe, views, PROMPTS, heads=2)
    assert first == rank(probe, views, PROMPTS, heads=2)
    heads = probe.attention(views[0], PROMPTS[:1]).scores.shape[2]
    assert sorted((layer, head) for layer, head, _ in first.heads) == [
        (k, h) for k in range(probe.layers) for h in range(heads)
    ]
    assert {layer for layer, _ in first.layers} == set(range(probe.layers)) and len(first.use) == 2
    probe.ranking = first
    heat = attend(probe, views[0], "the mug")
    assert heat.shape == (64, 96) and heat.dtype == np.float32 and 0 <= heat.min() <= heat.max() <= 1
    probe.ranking = Ranking([], [], [(9, None)])
    with pytest.raises(BadInput, match="layer 9"):
        attend(probe, views[0], "mug")


def test_tuning_lowers_the_loss_and_can_be_taken_back(probe):
    use, view = [(1, None)], picture()

    def loss():
        look = probe.attention(view, PROMPTS, [1])
        share = look.place.spread(shares(look, use, match=False), (8, 12))
        return -share[0, :4, :4].log().mean() - share[1, 4:].log().mean()

    with torch.no_grad():
        before = loss().item()
    trained = probe.tunable_attention([1]) | probe.tunable_words(PROMPTS)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.02)
    for _ in range(8):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    tuned = {n: p.detach().clone() for n, p in trained.items()}
    with torch.no_grad():
        after = loss().item()
        assert after < before - 0.01
        probe.restore({})
        assert loss().item() == pytest.approx(before, abs=1e-5)
        probe.restore(tuned)
        assert loss().item() == pytest.approx(after, abs=1e-4)
        probe.restore({})


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["llava", "qwen", "smolvlm"])
def test_the_last_of_several_pictures_is_looked_at(kind, tmp_path):
    probe = load_probe(str(KINDS[kind](tmp_path)))
    earlier = [Turn("what is this?", "A mug.", [picture(5, 64, 64).image, picture(6, 32, 64).image])]
    before = probe.attention(picture(), ["mug"], before=earlier)
    changed = picture()
    changed.image[40:56, 72:88] = 255
    after = probe.attention(changed, ["mug"], before=earlier)
    seen = after.place.spread((after.scores - before.scores).abs().mean((0, 1, 2))[None], (64, 96))[0]
    assert seen[40:56, 72:88].mean() > 2 * seen.mean()
    # another first picture moves nothing in the geometry
    assert probe.attention(picture(), ["mug"]).scores.shape == before.scores.shape


def test_a_model_without_attention_says_so(tmp_path):
    probe = load_probe(str(tiny_qwen3_vl(tmp_path)))
    probe.decoder.set_attn_implementation("sdpa")
    original = type(probe.decoder).set_attn_implementation
    try:
        type(probe.decoder).set_attn_implementation = lambda self, name, **_: (
            None
        )  # a model that does not let it be exchanged
        with pytest.raises(BadInput, match="attn_implementation='eager'"):
            probe.attention(picture(), ["mug"])
    finally:
        type(probe.decoder).set_attn_implementation = original
    assert "\n" not in NO_ATTENTION
    probe.attention(picture(), ["mug"])
    assert probe.decoder.config._attn_implementation == "sdpa"  # replies run as before


def test_what_is_no_model_is_one_line(tmp_path):
    with pytest.raises(BadInput) as error:
        load_probe(str(tmp_path / "none"))
    assert "\n" not in str(error.value) and len(CONTRAST) > 20
