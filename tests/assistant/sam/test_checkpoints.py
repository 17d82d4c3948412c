"""SAM from files: what is loaded is what was saved, and what is wrong with a file is one line."""

import warnings
from functools import partial

import numpy as np
import pytest
import skimage.data
import torch

from assistant.errors import BadInput
from assistant.sam.backends import OfficialSegmenter, SamHqSegmenter, TransformersSegmenter
from assistant.sam.checkpoints import default_processor, load_official_sam, load_transformers_sam
from assistant.sam.segmenter import Segmenter
from tests.helpers.tiny_sams import (
    tiny_edgetam,
    tiny_official_sam,
    tiny_sam2,
    tiny_sam3_tracker,
    tiny_sam_hq,
    tiny_transformers_sam,
)


def click_logits(segmenter: Segmenter) -> np.ndarray:
    """The low-resolution logits of a click on a cat."""
    image = np.ascontiguousarray(skimage.data.chelsea()[:240, 40:240])
    return segmenter.predict(segmenter.encode(image), points=[[50, 60]])[2]


def test_an_official_checkpoint_is_the_sam_that_was_saved(tmp_path):
    sam, path = tiny_official_sam(), tmp_path / "sam.pth"
    torch.save(sam.state_dict(), path)
    loaded = OfficialSegmenter.from_checkpoint(path)
    np.testing.assert_array_equal(click_logits(loaded), click_logits(OfficialSegmenter(sam)))
    with pytest.raises(BadInput, match="not vit_b"):
        load_official_sam(path, "vit_b")


def broken_checkpoints(folder):
    """(path, what is said of it) of checkpoints that cannot be used."""
    state = tiny_official_sam().state_dict()
    torch.save(state, folder / "whole.pth")
    (folder / "cut.pth").write_bytes((folder / "whole.pth").read_bytes()[:5000])
    (folder / "text.pth").write_text("not found")
    torch.save({"x": partial(print, "never")}, folder / "code.pth")
    torch.save({"weight": torch.zeros(3)}, folder / "other.pth")
    torch.save(dict.fromkeys(state, 1), folder / "numbers.pth")
    torch.save({k: v for k, v in state.items() if "norm_final" not in k}, folder / "less.pth")
    no_layers = {k: v for k, v in state.items() if not k.startswith("mask_decoder.transformer.layers.")}
    torch.save(no_layers, folder / "no_layers.pth")
    torch.save(state | {"image_encoder.pos_embed": torch.zeros(8)}, folder / "shape.pth")
    return {
        "cut.pth": "cannot be read",
        "text.pth": "cannot be read",
        "code.pth": "cannot be read",
        "other.pth": "not a SAM",
        "numbers.pth": "not a SAM",
        "less.pth": "complete",
        "no_layers.pth": "complete",
        "shape.pth": "complete",
        "none.pth": "no SAM checkpoint",
    }


def test_a_broken_official_checkpoint_is_one_line(tmp_path):
    for name, message in broken_checkpoints(tmp_path).items():
        with pytest.raises(BadInput, match=message) as error:
            load_official_sam(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make", [tiny_transformers_sam, tiny_sam_hq, tiny_sam2, tiny_sam3_tracker, tiny_edgetam]
)
def test_a_transformers_folder_is_the_sam_that_was_saved(tmp_path, make):
    model = make()
    model.save_pretrained(tmp_path)
    default_processor(model).save_pretrained(tmp_path)
    loaded = TransformersSegmenter.from_pretrained(tmp_path)
    make_segmenter = SamHqSegmenter if make is tiny_sam_hq else TransformersSegmenter
    assert isinstance(loaded, make_segmenter)
    expected = make_segmenter(model, default_processor(model))
    np.testing.assert_allclose(click_logits(loaded), click_logits(expected), rtol=1e-5, atol=1e-5)

    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:4000])
    with pytest.raises(BadInput, match="cannot load") as error:
        load_transformers_sam(tmp_path)
    assert "\n" not in str(error.value)


def test_transformers_models_that_cannot_be_had(tmp_path, monkeypatch):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="bert"):
        load_transformers_sam(tmp_path)
    with pytest.raises(BadInput, match="no SAM at"):
        load_transformers_sam(tmp_path / "nowhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadInput, match="network") as error:
            load_transformers_sam("nobody/never-uploaded-sam")
    assert "\n" not in str(error.value)
