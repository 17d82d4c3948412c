"""Finding things by their name with SAM 3 and with detectors, against transformers' own way to do it."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from assistant.errors import BadInput
from assistant.sam import concepts
from assistant.sam.backends import OfficialSegmenter, Sam3Segmenter, TransformersSegmenter
from assistant.sam.concepts import load_concepts
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.proposals import everything
from tests.helpers.tiny_concepts import tiny_grounding_dino, tiny_owlv2, tiny_sam3
from tests.helpers.tiny_sams import tiny_official_sam


@pytest.fixture(scope="module")
def image():
    return np.ascontiguousarray(skimage.data.coffee()[::4, ::4])  # 100 x 150


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    return tiny_sam3(tmp_path_factory.mktemp("sam3"))


@pytest.fixture(autouse=True)
def any_score(monkeypatch):
    """Random models are sure of nothing."""
    monkeypatch.setattr(concepts, "MIN_SCORE", 0.0)


def opened_by(segmenter, image):
    embedding = segmenter.encode(image)
    return SamOpenedImage(embedding, everything(segmenter, embedding, points_per_side=2), image)


def test_sam3_finds_what_its_model_finds_in_one_pass_of_the_backbone(sam3, image):
    from transformers import AutoProcessor, Sam3Model

    segmenter = TransformersSegmenter.from_pretrained(sam3)
    assert isinstance(segmenter, Sam3Segmenter)
    passes = []
    segmenter.model.vision_encoder.backbone.register_forward_hook(lambda *call: passes.append(1))
    finder = load_concepts(sam3, segmenter)
    opened = opened_by(segmenter, image)
    model, processor = Sam3Model.from_pretrained(sam3).eval(), AutoProcessor.from_pretrained(sam3)
    for phrase in ("cup", "red cup", "a spoon on a saucer"):
        found = finder.find(opened, phrase)
        inputs = processor(images=Image.fromarray(image), text=phrase, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        expected = processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=[image.shape[:2]]
        )[0]
        order = expected["scores"].argsort(descending=True)
        masks = expected["masks"][order].bool().numpy()
        order = order[masks.any((1, 2))]
        np.testing.assert_allclose(found.scores, expected["scores"][order], rtol=1e-4)
        np.testing.assert_allclose(found.boxes, expected["boxes"][order], rtol=1e-3, atol=1e-3)
        ours = np.stack([found.mask(k) for k in range(len(found))])
        assert (ours != masks[masks.any((1, 2))]).mean() < 1e-3
        assert found.presence == pytest.approx(float(outputs.presence_logits.sigmoid()), rel=1e-4)
    assert len(passes) == 1 and finder.passes == 3
    assert finder.find(opened, " Red  CUP ") is finder.find(opened, "red cup") and finder.passes == 3
    clicked, _, _ = segmenter.predict(opened.embedding, points=[[60, 50]])
    assert clicked.shape == (3, *image.shape[:2])  # the same pass answers clicks


@pytest.mark.parametrize("make", [tiny_grounding_dino, tiny_owlv2])
def test_a_detector_finds_boxes_that_sam_answers(tmp_path, image, make):
    segmenter = OfficialSegmenter(tiny_official_sam())
    finder = load_concepts(make(tmp_path), segmenter)
    opened = opened_by(segmenter, image)
    found = finder.find(opened, "cup")
    assert len(found) and found.presence == found.scores[0] and finder.passes == 1
    assert (np.diff(found.scores) <= 0).all() and (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= 150).all() and (found.boxes[:, 3] <= 100).all()
    for k in (0, len(found) - 1):
        expected, _, _ = segmenter.predict(opened.embedding, box=found.boxes[k], multimask=False)
        assert (found.mask(k) == expected[0]).all()
    assert (found.union() >= found.mask(0)).all()


def test_nothing_and_too_many(sam3, image, monkeypatch):
    segmenter = TransformersSegmenter.from_pretrained(sam3)
    finder = load_concepts(sam3, segmenter)
    monkeypatch.setattr(concepts, "MIN_SCORE", 1.0)
    found = finder.find(opened_by(segmenter, image), "cup")
    assert len(found) == 0 and found.boxes.shape == (0, 4) and not found.union().any()
    monkeypatch.setattr(concepts, "MIN_SCORE", 0.0)
    everything = finder.find(opened_by(segmenter, image), "cup")
    monkeypatch.setattr(concepts, "MAX_INSTANCES", 3)
    found = finder.find(opened_by(segmenter, image), "cup")
    assert len(found) == 3 and (found.scores == everything.scores[:3]).all()


@pytest.mark.parametrize("make", [tiny_sam3, tiny_grounding_dino, tiny_owlv2])
def test_of_a_long_phrase_the_end_is_looked_for(tmp_path, image, make):
    """The tokenizers of the tiny models take a token for each letter, and read 32 or 64 of them."""
    folder = make(tmp_path)
    segmenter = OfficialSegmenter(tiny_official_sam())
    if make is tiny_sam3:
        segmenter = TransformersSegmenter.from_pretrained(folder)
    finder = load_concepts(folder, segmenter)
    opened = opened_by(segmenter, image)
    found = finder.find(opened, "a very small and rather old " + "but still pretty " * 3 + "red cup")
    for end in ("pretty red cup", "still pretty red cup", "pretty but still pretty red cup"):
        same = finder.find(opened, end)
        assert len(same) and len(found)
    nothing = finder.find(opened, "x" * 90)
    assert len(nothing) == 0 and nothing.presence == 0


@pytest.mark.parametrize("phrase", ["", "  ", "x" * 101])
def test_phrases_that_cannot_be_looked_for(sam3, image, phrase):
    segmenter = TransformersSegmenter.from_pretrained(sam3)
    with pytest.raises(BadInput, match="1 to 100 characters"):
        load_concepts(sam3, segmenter).find(opened_by(segmenter, image), phrase)


def test_models_that_do_not_find_things(sam3, tmp_path):
    from transformers import BertConfig

    other = OfficialSegmenter(tiny_official_sam())
    with pytest.raises(BadInput, match="give --sam"):
        load_concepts(sam3, other)
    with pytest.raises(BadInput, match="another vision backbone"):
        load_concepts(tiny_sam3(tmp_path / "other", seed=1), TransformersSegmenter.from_pretrained(sam3))
    BertConfig().save_pretrained(tmp_path / "bert")
    for where in (tmp_path / "bert", tmp_path / "nothing", "nobody/never-uploaded"):
        with pytest.raises(BadInput, match="cannot load") as error:
            load_concepts(where, other)
        assert "\n" not in str(error.value)
