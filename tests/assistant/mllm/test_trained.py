"""Features of proposals for a trained selector, and what cannot be loaded."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data
import torch
from safetensors.torch import save_file

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.mllm.selector import Scores, Selector, selection_losses
from assistant.mllm.trained import (
    SHAPE,
    Dino,
    StandardisedSelector,
    TrainedImageOpener,
    TrainedOpenedImage,
    TrainedPipeline,
    read_heads,
)
from assistant.pipeline import Reply
from assistant.sam.image_opener import SamImageOpener
from assistant.sam.segmenter import Segmenter
from tests.assistant.sam.test_segmenter import tiny_sam
from tests.helpers import rectangles

COFFEE = np.ascontiguousarray(
    skimage.data.coffee()[::6, ::4]
)  # wider than high: a part of the square is padding


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
    return Dino(folder)


def test_features_are_averages_under_the_mask_where_the_picture_is(dino):
    segmenter = Segmenter.from_sam(tiny_sam())
    seeing = SamImageOpener(
        segmenter,
        max_proposals=5,
        points_per_side=4,
        pred_iou_thresh=-9.0,
        stability_score_thresh=0.0,
        fast=False,
    )
    opener = TrainedImageOpener(seeing, dino)
    view = opener.open(COFFEE)
    assert len(view.proposals) and view.features.shape == (len(view.proposals), 32 + 24 + SHAPE)
    assert view.features.isfinite().all()
    assert np.allclose(
        view.features[:, -2:], np.stack([view.proposals.predicted_iou, view.proposals.stability], 1)
    )
    whole = SimpleNamespace(embedding=view.embedding, proposals=view.proposals.select([0]))
    whole.proposals.low_res_logits = np.full_like(
        whole.proposals.low_res_logits, 9
    )  # everything, padding included
    h, w = (-(-s // 16) for s in view.embedding.input_size)
    mean = view.embedding.features[0, :, :h, :w].mean((1, 2))
    assert torch.allclose(opener.features(COFFEE, whole)[0, :32], mean, atol=1e-4)
    assert torch.allclose(opener.features(COFFEE, whole)[0, 32:56], dino(COFFEE)[0].mean((1, 2)), atol=1e-4)


def test_dino_sees_the_whole_picture_in_its_shape(dino):
    assert dino(COFFEE, side=56).shape == (1, 24, round(COFFEE.shape[0] * 4 / COFFEE.shape[1]), 4)
    left, right = (dino(np.full((28, 28, 3), v, np.uint8), side=28) for v in (0, 255))
    assert not torch.allclose(left, right)


class Says:
    def __init__(self, text, marks):
        self.text, self.marks, self.turns = text, marks, None

    def reply(self, turns, **options):
        self.turns = turns
        return Reply(self.text, 9, [True] * self.marks, torch.randn(self.marks, 8), torch.zeros(self.marks))


def test_the_selector_decides_what_is_there_and_the_picture_is_always_shown():
    view = rectangles.RectangleOpener().open(np.zeros((64, 64, 3), np.uint8))
    shown = TrainedOpenedImage(
        view.embedding, view.proposals, np.zeros((64, 64, 3), np.uint8), features=torch.randn(4, 3 + SHAPE)
    )
    llm = Says("The cup [SEG] and the dog [SEG].", 2)
    parts = TrainedPipeline(None, llm, StandardisedSelector(8, 3 + SHAPE).eval())
    reply, found = parts.ask([Turn("a?", "b."), Turn("which?")], shown, 2.0)
    assert reply.text == "The cup [ABS] and the dog [ABS]." and len(found) == 2
    assert [len(t.images) for t in llm.turns] == [1, 0]
    reply, found = parts.ask([Turn("which?")], shown, 0.0)
    assert reply.text == "The cup [SEG] and the dog [SEG]." and all(f.proposals for f in found)
    shown.features = torch.zeros(0, 3 + SHAPE)
    reply, found = parts.ask([Turn("which?")], shown, 0.0)
    assert reply.text.count("[ABS]") == 2 and found[0].confidence == 0


def test_hard_negatives_weigh_more():
    scores = Scores(torch.zeros(1, 3), torch.tensor([[3.0, 3.0, -3.0]]), torch.zeros(1), torch.zeros(1, 3))
    iop = torch.tensor([[1.0, 0.0, 0.0]])
    given = (scores, iop, iop, torch.tensor([True]), torch.zeros(1, 3, dtype=torch.bool))
    assert selection_losses(*given, hard=1)["iop"] > selection_losses(*given)["iop"]


def test_what_is_no_adapter_of_ours_is_one_clear_line(tmp_path):
    with pytest.raises(BadInput, match="finetune wrote"):
        read_heads(tmp_path)
    save_file(Selector(8, 8, 3).state_dict(), tmp_path / "heads.safetensors", {"forms": "{}"})
    with pytest.raises(BadInput, match="pocket"):
        read_heads(tmp_path)
    selector = StandardisedSelector(8, 3 + SHAPE)
    save_file(
        selector.state_dict(),
        tmp_path / "heads.safetensors",
        {"tuned": json.dumps({"selector": selector.config})},
    )
    assert read_heads(tmp_path)[0].config == selector.config
    (tmp_path / "heads.safetensors").write_bytes(b"cut")
    with pytest.raises(BadInput, match="fetch it again"):
        read_heads(tmp_path)
