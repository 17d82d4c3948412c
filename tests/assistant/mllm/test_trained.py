"""The trained pipeline: features of proposals, the selector's decision, and what cannot be loaded."""

import json

import numpy as np
import pytest
import skimage.data
import torch
from safetensors.torch import save_file

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.mllm.dino import Dino
from assistant.mllm.selector import Scores, Selector, selection_losses
from assistant.mllm.trained import (
    SHAPE_DIM,
    StandardisedSelector,
    TrainedImageOpener,
    TrainedOpenedImage,
    TrainedPipeline,
    read_heads,
)
from assistant.pipeline import Reply
from assistant.sam.backends import TransformersSegmenter
from assistant.sam.image_opener import SamImageOpener
from tests.helpers import rectangles
from tests.helpers.tiny_models import tiny_sam

IMAGE = np.ascontiguousarray(skimage.data.coffee()[::6, ::4])  # wider than high: SAM's square is padded


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


def test_features_are_averages_under_the_mask_where_the_image_is(dino, tmp_path):
    base = SamImageOpener(
        TransformersSegmenter.from_pretrained(tiny_sam(tmp_path), "cpu"),
        max_proposals=5,
        points_per_side=4,
        pred_iou_thresh=-9.0,
        stability_score_thresh=0.0,
        fast=False,
    )
    opener = TrainedImageOpener(base, dino)
    opened = opener.open(IMAGE)
    proposals = opened.proposals
    assert len(proposals) and opened.features.shape == (len(proposals), 32 + 24 + SHAPE_DIM)
    assert opened.features.isfinite().all()
    judged = np.stack([proposals.predicted_iou, proposals.stability], 1)
    assert np.allclose(opened.features[:, -2:], judged)
    everything = proposals.select([0])
    everything.low_res_logits = np.full_like(everything.low_res_logits, 9)  # padding included
    features = opener.features(IMAGE, opened.embedding, everything)[0]
    h, w = (-(-side // 16) for side in opened.embedding.input_size)
    mean = opened.embedding.features[0, :, :h, :w].mean((1, 2))
    assert torch.allclose(features[:32], mean, atol=1e-4)
    assert torch.allclose(features[32:56], dino(IMAGE)[0].mean((1, 2)), atol=1e-4)


def test_dino_sees_the_whole_image_in_its_shape(dino):
    assert dino(IMAGE, side=56).shape == (1, 24, round(IMAGE.shape[0] * 4 / IMAGE.shape[1]), 4)
    black, white = (dino(np.full((28, 28, 3), value, np.uint8), side=28) for value in (0, 255))
    assert not torch.allclose(black, white)


class AnsweringLLM:
    """A language model that gives the same reply to everything, and records the turns it was asked."""

    def __init__(self, text, markers):
        self.text = text
        self.markers = markers
        self.turns = None

    def reply(self, turns, **options):
        self.turns = turns
        states = torch.randn(self.markers, 8)
        return Reply(self.text, 9, [True] * self.markers, states, torch.zeros(self.markers))


def test_the_selector_decides_what_is_present_and_the_image_is_always_shown():
    image = np.zeros((64, 64, 3), np.uint8)
    base = rectangles.RectangleOpener().open(image)
    opened = TrainedOpenedImage(base.embedding, base.proposals, image, features=torch.randn(4, 3 + SHAPE_DIM))
    llm = AnsweringLLM("The cup [SEG] and the dog [SEG].", 2)
    pipeline = TrainedPipeline(None, llm, StandardisedSelector(8, 3 + SHAPE_DIM).eval())
    reply, selections = pipeline.ask([Turn("a?", "b."), Turn("which?")], opened, 2.0)
    assert reply.text == "The cup [ABS] and the dog [ABS]." and len(selections) == 2
    assert [len(turn.images) for turn in llm.turns] == [1, 0]
    reply, selections = pipeline.ask([Turn("which?")], opened, 0.0)
    assert reply.text == "The cup [SEG] and the dog [SEG]." and all(s.proposals for s in selections)
    opened.features = torch.zeros(0, 3 + SHAPE_DIM)
    reply, selections = pipeline.ask([Turn("which?")], opened, 0.0)
    assert reply.text.count("[ABS]") == 2 and selections[0].confidence == 0


def test_hard_negatives_weigh_more():
    scores = Scores(torch.zeros(1, 3), torch.tensor([[3.0, 3.0, -3.0]]), torch.zeros(1), torch.zeros(1, 3))
    iop = torch.tensor([[1.0, 0.0, 0.0]])
    arguments = (scores, iop, iop, torch.tensor([True]), torch.zeros(1, 3, dtype=torch.bool))
    assert selection_losses(*arguments, hard_negatives=1)["iop"] > selection_losses(*arguments)["iop"]


def test_what_is_no_adapter_of_ours_is_one_clear_line(tmp_path):
    with pytest.raises(BadInput, match="finetune wrote"):
        read_heads(tmp_path)
    file = tmp_path / "heads.safetensors"
    save_file(Selector(8, 8, 3).state_dict(), file, {"forms": "{}"})
    with pytest.raises(BadInput, match="pocket"):
        read_heads(tmp_path)
    selector = StandardisedSelector(8, 3 + SHAPE_DIM)
    save_file(selector.state_dict(), file, {"tuned": json.dumps({"selector": selector.config})})
    assert read_heads(tmp_path)[0].config == selector.config
    file.write_bytes(b"cut")
    with pytest.raises(BadInput, match="fetch it again"):
        read_heads(tmp_path)
