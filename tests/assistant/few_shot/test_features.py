"""The frozen features: CLIP's patches and labels, on a tiny model, and which weights take which SAM."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.few_shot.features import ClipFeatureExtractor, load_feature_extractor, value_attention
from assistant.few_shot.matcher import pocket_matcher
from assistant.few_shot.similarity import label_similarity
from assistant.sam.backends import OfficialSegmenter
from tests.helpers.few_shot import RED, image_with_box
from tests.helpers.tiny_sams import tiny_official_sam


def test_clip_features_tell_labels_and_places_apart(matcher):
    pixels, _ = image_with_box(60, 120, (10, 10, 50, 50), RED)
    features = matcher.open(pixels)
    assert features.patches.shape == (24, 8, 8)
    assert features.coverage[:4].min() == 1 and features.coverage[4:].max() == 0
    assert torch.allclose(features.patches.norm(dim=0), torch.ones(8, 8), atol=1e-4)
    mug = matcher.extractor.embed_label("mug")
    car = matcher.extractor.embed_label("car")
    assert mug.shape == (24,)
    assert abs(float(mug.norm()) - 1) < 1e-4
    assert float(mug @ car) < 0.9999
    heat = label_similarity(features.joint, mug, (8, 8))
    assert heat.shape == (8, 8)
    assert heat.std() > 1e-4 and heat.abs().max() <= 1


def test_the_last_layers_attend_to_values_alone(clip):
    """With one layer on the path of CLIP Surgery, the output is its attention of values to values."""
    segmenter = OfficialSegmenter(tiny_official_sam())
    extractor = ClipFeatureExtractor(clip, segmenter, side=32, deep=1)
    vision = extractor.model.vision_model
    layer = vision.encoder.layers[-1]
    x = torch.randn(1, 17, 32)
    value = layer.self_attn.v_proj(x)[0].view(17, 2, 16)
    heads = [((value[:, h] @ value[:, h].T) / 4).softmax(-1) @ value[:, h] for h in range(2)]
    expected = layer.self_attn.out_proj(torch.cat(heads, 1))
    assert torch.allclose(value_attention(layer.self_attn, x)[0], expected, atol=1e-5)

    inputs = {}
    hook = layer.register_forward_hook(lambda module, args, output: inputs.update(x=args[0]))
    image = np.full((32, 32, 3), 90, np.uint8)
    patches, _ = extractor(image, segmenter.encode(image))
    hook.remove()
    path = inputs["x"] + value_attention(layer.self_attn, layer.layer_norm1(inputs["x"]))
    expected = F.normalize(extractor.model.visual_projection(vision.post_layernorm(path[0, 1:])), dim=1)
    assert torch.allclose(patches.flatten(1).T, expected, atol=1e-4)


def test_a_folder_without_clip_is_refused(matcher, tmp_path):
    with pytest.raises(BadInput, match="not a CLIP model|no model folder"):
        ClipFeatureExtractor(tmp_path, matcher.segmenter)


def test_the_pocket_features_need_the_pocket_sam(matcher):
    with pytest.raises(BadInput, match="the pocket SAM's own maps"):
        load_feature_extractor({"kind": "pocket"}, matcher.segmenter)
    with pytest.raises(BadInput, match="no weights for references yet"):
        pocket_matcher(matcher.segmenter)
