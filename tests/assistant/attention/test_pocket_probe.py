"""The attention of the pocket preset: maps, prompts that do not see each other, tuning and stored regions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from assistant import Assistant
from assistant.__main__ import main
from assistant.attention.maps import BACKGROUND_WORDS, shares
from assistant.errors import BadInput
from assistant.pocket.opening import AttendedImage
from assistant.pocket.region_cache import cache_file, cached_regions, write_regions
from assistant.sam.mask_ops import encode_rle


@pytest.fixture(scope="module")
def scene():
    try:
        return Assistant.from_preset("pocket").open(data.chelsea())
    except BadInput as error:
        if "package index" in str(error) or "pip" in str(error):
            pytest.skip(f"the pocket preset's wheels cannot be had: {error}")
        raise


def test_the_pocket_preset_attends_to_the_cat(scene):
    heat = scene.attend("the cat")
    assert heat.shape == (300, 451) and heat.dtype == np.float32
    assert 0 <= heat.min() and heat.max() <= 1
    assert heat.max() > 4 * scene.attend("bus").max()  # what is not there is not attended to
    assert np.array_equal(heat, scene.attend("cat"))
    with pytest.raises(BadInput):
        scene.attend("...")


def test_prompts_do_not_see_each_other(scene):
    probe = scene.assistant.pipeline.attention_probe()
    together = probe.attention(scene.opened, ["cat", "traffic light", *BACKGROUND_WORDS])
    alone = probe.attention(scene.opened, ["traffic light"])
    assert together.scores.shape == (30, 30, 9, len(scene.proposals))
    assert together.layers == list(range(30))
    deviation = alone.scores.std()
    # bfloat16 in other batches
    assert (together.scores[1] - alone.scores[0]).abs().max() < 0.15 * deviation
    two_layers = probe.attention(scene.opened, ["traffic light"], [9, 2])
    assert two_layers.layers == [2, 9]
    assert torch.equal(two_layers.scores[0], alone.scores[0, [2, 9]])
    with pytest.raises(BadInput, match="30"):
        probe.attention(scene.opened, ["cat"], [30])


def test_what_is_reused_is_what_is_computed(scene):
    probe = scene.assistant.pipeline.attention_probe()
    prompts = ["cat", "sky"]
    expected = probe.attention(scene.opened, prompts, [5])
    with probe.reusing():
        for _ in range(2):
            reused = probe.attention(scene.opened, prompts, [5])
            assert torch.equal(reused.scores, expected.scores)
            assert torch.equal(reused.match, expected.match)


def test_tuned_attention_leaves_replies_as_they_are(scene):
    probe = scene.assistant.pipeline.attention_probe()
    probe.restore({})
    before = scene.attend("cat")
    reply = scene.ask("where is the cat?", remember=False).text
    layer = probe.ranking.use[0][0]
    prompts = ["cat", *BACKGROUND_WORDS]

    def share_of_cat() -> torch.Tensor:
        return shares(probe.attention(scene.opened, prompts, [layer]), [(layer, None)])[0].mean()

    with torch.enable_grad():
        trained = probe.tunable_attention([layer]) | probe.tunable_words(prompts)
        assert any(name.startswith("rows.") for name in trained)
        assert any(name.startswith(f"layers.{layer}.") for name in trained)
        first = share_of_cat()
        (-first.log()).backward()
        assert all(parameter.grad is not None for parameter in trained.values())
        for parameter in trained.values():
            parameter.data -= 0.5 * parameter.grad / parameter.grad.norm().clamp(min=1e-6)
        assert share_of_cat() > first
    tuned = {name: parameter.detach().clone() for name, parameter in trained.items()}
    after = scene.attend("cat")
    assert not np.allclose(after, before, atol=1e-3)
    assert scene.ask("where is the cat?", remember=False).text == reply
    probe.restore({})
    assert np.array_equal(scene.attend("cat"), before)
    probe.restore(tuned)
    assert np.allclose(scene.attend("cat"), after, atol=1e-3)
    probe.restore({})


def test_the_command_writes_a_heat_map(scene, tmp_path, monkeypatch, capsys):
    import assistant.presets

    def loaded_probe(options):
        return scene.assistant.pipeline.attention_probe(), {}

    monkeypatch.setattr(assistant.presets, "load_attention_probe", loaded_probe)
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    words = ["x", "attend", str(tmp_path / "cat.png"), "a cat", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0
    printed = capsys.readouterr().out
    assert "attention of at most 0." in printed and "(from 0, as for what is not there, to 1)" in printed
    heat = np.asarray(Image.open(tmp_path / "out" / "heat.png"))
    assert heat.shape == (300, 451) and heat.dtype == np.uint16
    assert Image.open(tmp_path / "out" / "overlay.png").size == (451, 300)
    assert np.allclose(heat / 65535, scene.attend("a cat"), atol=1e-2)
    monkeypatch.setattr("sys.argv", [*words[:3], "?", *words[4:]])
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


# ------------------------------------------------------------------------------------ the region cache


class OneRegionOpener:
    """Finds one region in any image, and counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def open(self, image):
        self.calls += 1
        return self

    @property
    def regions(self) -> AttendedImage:
        mask = np.zeros((20, 30), bool)
        mask[5:9, 4:20] = True
        return AttendedImage([encode_rle(mask)], (20, 30), torch.full((1, 3), 0.5))


def test_regions_are_opened_once_and_then_read(tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    opener = OneRegionOpener()
    for _ in range(2):
        regions = cached_regions(opener, "key", tmp_path / "a.png", tmp_path / "cache")
        assert regions.rles == opener.regions.rles
        assert regions.size == (20, 30)
        assert torch.equal(regions.features, opener.regions.features)
        assert regions.features.dtype == torch.float32
    assert opener.calls == 1
    cached_regions(opener, "another key", tmp_path / "a.png", tmp_path / "cache")
    cached_regions(opener, "key", np.zeros((20, 30, 3), np.uint8), None)
    assert opener.calls == 3
    with pytest.raises(BadInput):
        cached_regions(opener, "key", tmp_path / "none.png", tmp_path / "cache")


def test_regions_that_an_earlier_version_stored_are_read(tmp_path):
    """The files of the first version hold the arrays of the image's `Proposals` as well."""
    opener = OneRegionOpener()
    stored = opener.regions
    file = cache_file("key", tmp_path / "a.png", tmp_path)
    np.savez_compressed(
        file,
        features=stored.features.half().numpy(),
        rles=json.dumps(stored.rles),
        size=stored.size,
        boxes=np.zeros((1, 4), np.float32),
        predicted_iou=np.ones(1, np.float32),
        stability=np.ones(1, np.float32),
        areas=np.ones(1, np.int64),
        points=np.zeros((1, 2), np.float32),
    )
    regions = cached_regions(opener, "key", tmp_path / "a.png", tmp_path)
    assert opener.calls == 0
    assert regions.rles == stored.rles
    assert regions.size == (20, 30)
    assert torch.equal(regions.features, stored.features)


def test_an_image_without_regions_is_stored_too(tmp_path):
    write_regions(tmp_path / "a.npz", AttendedImage([], (20, 30), torch.zeros(0, 3)))
    file = cache_file("key", tmp_path / "a.png", tmp_path)
    (tmp_path / "a.npz").rename(file)
    regions = cached_regions(OneRegionOpener(), "key", tmp_path / "a.png", tmp_path)
    assert regions.rles == [] and regions.features.shape == (0, 3)
