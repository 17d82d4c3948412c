"""Attention probes of real architectures with random weights: geometry, batches, several images, tuning."""

from pathlib import Path

import numpy as np
import pytest
import torch

from assistant.attention.maps import attend, shares
from assistant.attention.prompt_attention import Ranking
from assistant.attention.ranking import rank
from assistant.attention.transformers_probe import NO_ATTENTION, ProbedImage, TransformersProbe
from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.mllm.probe_loading import load_probe
from tests.helpers.tiny_matchers import tiny_blip
from tests.helpers.tiny_models import tiny_llava, tiny_qwen3_vl, tiny_smolvlm

MODELS = {"blip": tiny_blip, "llava": tiny_llava, "qwen": tiny_qwen3_vl, "smolvlm": tiny_smolvlm}
PROMPTS = ["mug", "sky", "red car"]
SIZE = (64, 96)


@pytest.fixture(scope="module", params=MODELS)
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformersProbe:
    return load_probe(str(MODELS[request.param](tmp_path_factory.mktemp(request.param))))


def noise_image(seed: int = 0, height: int = SIZE[0], width: int = SIZE[1]) -> ProbedImage:
    pixels = np.random.default_rng(seed).integers(90, 150, (height, width, 3), dtype=np.uint8)
    return ProbedImage(pixels)


@pytest.mark.parametrize("y, x", [(0, 0), (40, 72), (8, 80)])
def test_a_change_in_one_place_changes_the_attention_there(probe, y, x):
    plain = noise_image()
    changed = noise_image()
    changed.image[y : y + 16, x : x + 16] = np.random.default_rng(1).integers(0, 255, (16, 16, 3))
    with torch.inference_mode():
        before = probe.attention(plain, ["mug"])
        after = probe.attention(changed, ["mug"])
        change = (after.scores - before.scores).abs().mean((0, 1, 2))
        change_map = after.places.to_pixels(change[None], SIZE)[0].numpy()
    assert change_map.shape == SIZE
    assert before.scores.shape[1:3] == (probe.layers, after.scores.shape[2])
    row, column = np.unravel_index(int(change_map.argmax()), change_map.shape)
    # a cell of the coarsest grid is 32 px wide
    assert abs(row - (y + 8)) <= 16 and abs(column - (x + 8)) <= 20
    assert change_map[y : y + 16, x : x + 16].mean() > 2 * change_map.mean()


@torch.inference_mode()
def test_batches_equal_single_prompts(probe):
    together = probe.attention(noise_image(), PROMPTS)
    for k, prompt in enumerate(PROMPTS):
        alone = probe.attention(noise_image(), [prompt])
        assert torch.allclose(together.scores[k], alone.scores[0], atol=1e-4)
        assert torch.allclose(together.match[k], alone.match[0], atol=1e-4)
    one_layer = probe.attention(noise_image(), PROMPTS, [1])
    assert one_layer.layers == [1]
    assert torch.allclose(one_layer.scores[:, 0], together.scores[:, 1], atol=1e-4)
    assert ((together.match >= 0) & (together.match <= 1)).all()
    with pytest.raises(BadInput, match="no layer 7"):
        probe.attention(noise_image(), PROMPTS, [7])


def test_ranking_and_heat_map(probe):
    images = [noise_image(k) for k in range(3)]
    ranking = rank(probe, images, PROMPTS, heads=2)
    assert ranking == rank(probe, images, PROMPTS, heads=2)
    heads = probe.attention(images[0], PROMPTS[:1]).scores.shape[2]
    every_head = [(layer, head) for layer in range(probe.layers) for head in range(heads)]
    assert sorted((layer, head) for layer, head, _ in ranking.heads) == every_head
    assert {layer for layer, _ in ranking.layers} == set(range(probe.layers))
    assert len(ranking.use) == 2
    probe.ranking = ranking
    heat = attend(probe, images[0], "the mug")
    assert heat.shape == SIZE and heat.dtype == np.float32
    assert 0 <= heat.min() <= heat.max() <= 1
    probe.ranking = Ranking([], [], [(9, None)])
    with pytest.raises(BadInput, match="layer 9"):
        attend(probe, images[0], "mug")


def test_tuning_lowers_the_loss_and_can_be_taken_back(probe):
    image = noise_image()

    def loss() -> torch.Tensor:
        attention = probe.attention(image, PROMPTS, [1])
        share = attention.places.to_pixels(shares(attention, [(1, None)], match=False), (8, 12))
        return -share[0, :4, :4].log().mean() - share[1, 4:].log().mean()

    with torch.no_grad():
        before = loss().item()
    trained = probe.tunable_attention([1]) | probe.tunable_words(PROMPTS)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.02)
    for _ in range(8):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    tuned = {name: parameter.detach().clone() for name, parameter in trained.items()}
    with torch.no_grad():
        after = loss().item()
        assert after < before - 0.01
        probe.restore({})
        assert loss().item() == pytest.approx(before, abs=1e-5)
        probe.restore(tuned)
        assert loss().item() == pytest.approx(after, abs=1e-4)
        probe.restore({})


@torch.inference_mode()
@pytest.mark.parametrize("model", ["llava", "qwen", "smolvlm"])
def test_the_last_of_several_images_is_probed(model, tmp_path):
    probe = load_probe(str(MODELS[model](tmp_path)))
    earlier_images = [noise_image(5, 64, 64).image, noise_image(6, 32, 64).image]
    earlier = [Turn("what is this?", "A mug.", earlier_images)]
    before = probe.attention(noise_image(), ["mug"], earlier_turns=earlier)
    changed = noise_image()
    changed.image[40:56, 72:88] = 255
    after = probe.attention(changed, ["mug"], earlier_turns=earlier)
    change = (after.scores - before.scores).abs().mean((0, 1, 2))
    change_map = after.places.to_pixels(change[None], SIZE)[0]
    assert change_map[40:56, 72:88].mean() > 2 * change_map.mean()
    # earlier images change nothing in the geometry
    assert probe.attention(noise_image(), ["mug"]).scores.shape == before.scores.shape


def test_a_model_without_attention_is_refused(tmp_path, monkeypatch):
    probe = load_probe(str(tiny_qwen3_vl(tmp_path)))
    probe.decoder.set_attn_implementation("sdpa")
    with monkeypatch.context() as patch:
        # a model that does not let its attention be exchanged
        patch.setattr(type(probe.decoder), "set_attn_implementation", lambda self, name, **options: None)
        with pytest.raises(BadInput, match="attn_implementation='eager'"):
            probe.attention(noise_image(), ["mug"])
    assert "\n" not in NO_ATTENTION
    probe.attention(noise_image(), ["mug"])
    assert probe.decoder.config._attn_implementation == "sdpa"  # replies run as before


def test_too_little_memory_names_the_pixels(tmp_path, monkeypatch):
    def full(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    probe = load_probe(str(tiny_qwen3_vl(tmp_path)))
    monkeypatch.setattr(probe.model.model, "forward", full)
    with pytest.raises(BadInput, match=r"lower --pixels \(now 9216\)"):
        probe.attention(noise_image(), ["mug"])


@torch.inference_mode()
def test_long_prompts_are_read_in_more_batches(tmp_path, monkeypatch):
    probe = load_probe(str(tiny_qwen3_vl(tmp_path)))
    lengths = []
    forward = probe.model.model.forward

    def record(**inputs):
        lengths.append(inputs["input_ids"].numel())
        return forward(**inputs)

    monkeypatch.setattr(probe.model.model, "forward", record)
    together = probe.attention(noise_image(), PROMPTS)
    monkeypatch.setattr("assistant.attention.chat_probe.MAX_TOKENS_PER_BATCH", lengths[0] * 3 // 4)
    apart = probe.attention(noise_image(), PROMPTS)
    assert len(lengths) == 3 and max(lengths[1:]) < lengths[0]
    assert torch.allclose(together.scores, apart.scores, atol=1e-4)


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(BadInput) as error:
        load_probe(str(tmp_path / "none"))
    assert "\n" not in str(error.value)
