"""The segmenter against the three programs it stands for, on tiny random models."""

import contextlib

import numpy as np
import pytest
import skimage.data
import torch
from segment_anything import SamPredictor

from assistant.errors import BadInput
from assistant.sam.backends import (
    OfficialSegmenter,
    PocketSegmenter,
    SamHqSegmenter,
    TransformersSegmenter,
)
from assistant.sam.checkpoints import default_processor
from assistant.sam.proposals import everything
from tests.helpers.tiny_sams import (
    mended_sam_hq,
    tiny_edgetam,
    tiny_official_sam,
    tiny_sam2,
    tiny_sam3_tracker,
    tiny_sam_hq,
    tiny_transformers_sam,
)


@pytest.fixture(scope="module")
def cat():
    return np.ascontiguousarray(skimage.data.chelsea()[:240, 40:240])  # 240 x 200


PROMPTS = {
    "one click": dict(points=[[50, 60]], labels=[1]),
    "clicks": dict(points=[[50, 60], [120.5, 80], [199, 239]], labels=[1, 0, 1]),
    "box": dict(box=[20, 30, 150, 170.5]),
    "box and click": dict(points=[[50, 60]], labels=[0], box=[20, 30, 150, 170]),
    "mask": dict(mask=True),
    "mask and click": dict(points=[[50, 60]], labels=[1], mask=True),
}


def with_mask(prompt: dict) -> dict:
    mask = np.random.default_rng(0).normal(0, 4, (32, 32)).astype(np.float32)
    return {**prompt, "mask": mask} if "mask" in prompt else prompt


def same_masks(ours, theirs) -> bool:
    """Equal but for pixels whose logit is a rounding error from the threshold."""
    return ours.shape == theirs.shape and ours.dtype == bool and (ours != theirs).mean() < 2e-4


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("name", PROMPTS)
def test_equals_sam_predictor(cat, name, multimask):
    sam, prompt = tiny_official_sam(), with_mask(PROMPTS[name])
    segmenter, predictor = OfficialSegmenter(sam), SamPredictor(sam)
    predictor.set_image(cat)
    names = {"points": "point_coords", "labels": "point_labels", "box": "box", "mask": "mask_input"}
    theirs = predictor.predict(
        multimask_output=multimask,
        **{names[k]: np.asarray(v)[None] if k == "mask" else np.asarray(v) for k, v in prompt.items()},
    )
    masks, scores, logits = segmenter.predict(segmenter.encode(cat), multimask=multimask, **prompt)
    np.testing.assert_allclose(logits, theirs[2], rtol=1e-4, atol=1e-4 * np.abs(theirs[2]).max())
    np.testing.assert_allclose(scores, theirs[1], rtol=1e-4, atol=1e-5)
    assert same_masks(masks, theirs[0]) and 0 < masks.mean() < 1


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize(
    "make", [tiny_transformers_sam, tiny_sam_hq, tiny_sam2, tiny_sam3_tracker, tiny_edgetam]
)
def test_equals_transformers(cat, make, name, multimask):
    model, prompt = make(), with_mask(PROMPTS[name])
    processor = default_processor(model)
    segmenter = (SamHqSegmenter if make is tiny_sam_hq else TransformersSegmenter)(model, processor)
    pixels = processor(images=cat, return_tensors="pt")
    height, width = segmenter.input_size(cat.shape[:2])
    scale = torch.tensor([width / 200, height / 240])
    inputs = {}
    if "points" in prompt:
        inputs["input_points"] = (torch.tensor(prompt["points"]).float() * scale)[None, None]
        inputs["input_labels"] = torch.tensor(prompt["labels"])[None, None]
    if "box" in prompt:
        inputs["input_boxes"] = (torch.tensor(prompt["box"]).float() * scale.repeat(2))[None, None]
    if "mask" in prompt:
        inputs["input_masks"] = torch.tensor(prompt["mask"])[None, None]
    with torch.no_grad(), mended_sam_hq(model) if make is tiny_sam_hq else contextlib.nullcontext():
        theirs = model(pixel_values=pixels["pixel_values"], multimask_output=multimask, **inputs)
    sizes = [[cat.shape[:2]]] if segmenter.stretched else [[cat.shape[:2]], [(height, width)]]
    their_masks = processor.post_process_masks(theirs.pred_masks, *sizes)[0][0].numpy()
    masks, scores, logits = segmenter.predict(segmenter.encode(cat), multimask=multimask, **prompt)
    expected = theirs.pred_masks[0, 0].numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(scores, theirs.iou_scores[0, 0].numpy(), rtol=1e-4, atol=1e-5)
    assert same_masks(masks, their_masks) and 0 < masks.mean() < 1


def test_pocket_equals_sam_predictor(cat):
    from assistant.pocket.sam import build_pocket_sam

    torch.manual_seed(0)
    sam = build_pocket_sam()
    segmenter, predictor = PocketSegmenter(sam), SamPredictor(sam)
    predictor.set_image(cat)
    embedding = segmenter.encode(cat)
    assert [m.shape[-1] for m in embedding.maps] == [128, 64, 32, 16]
    for prompt in (dict(points=[[50, 60], [90, 90]], labels=[1, 0]), dict(box=[20, 30, 150, 170])):
        names = {"points": "point_coords", "labels": "point_labels", "box": "box"}
        theirs = predictor.predict(**{names[k]: np.asarray(v) for k, v in prompt.items()})
        masks, scores, logits = segmenter.predict(embedding, **prompt)
        np.testing.assert_allclose(logits, theirs[2], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(scores, theirs[1], rtol=1e-3, atol=1e-4)
        assert same_masks(masks, theirs[0])


def test_many_prompts_equal_one_by_one(cat):
    sam2 = tiny_sam2()
    for segmenter in (
        OfficialSegmenter(tiny_official_sam()),
        TransformersSegmenter(sam2, default_processor(sam2)),
        hq(torch.float32),
    ):
        embedding = segmenter.encode(cat)
        points = np.random.default_rng(1).uniform(0, 200, (11, 2, 2))
        labels = np.tile([1, 0], (11, 1))
        masks = np.random.default_rng(2).normal(0, 4, (11, 32, 32)).astype(np.float32)
        for more in ({}, {"masks": masks}):
            all_logits, scores = segmenter.predict_many(embedding, points, labels, **more)
            for i in (0, 10):
                mask = masks[i] if more else None
                _, expected, logits = segmenter.predict(embedding, points[i], labels[i], mask=mask)
                np.testing.assert_allclose(scores[i], expected, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(all_logits[i], logits, rtol=1e-3, atol=1e-3)


def official(dtype):
    return OfficialSegmenter(tiny_official_sam(), dtype=dtype)


def hq(dtype):
    model = tiny_sam_hq()
    return SamHqSegmenter(model, default_processor(model), dtype=dtype)


@pytest.mark.parametrize("make", [official, hq])
def test_bfloat16_is_close(cat, make):
    exact, half = (
        segmenter.predict(segmenter.encode(cat), box=[20, 30, 150, 170])[2]
        for segmenter in (make(torch.float32), make(torch.bfloat16))
    )
    assert 0 < np.abs(exact - half).max() / np.abs(exact).max() < 0.05


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (700, 90), (129, 128)])
def test_any_shape_of_image(size):
    segmenter = OfficialSegmenter(tiny_official_sam())
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    embedding = segmenter.encode(image)
    masks, scores, logits = segmenter.predict(embedding, points=[[0.5, 0.5]])
    assert masks.shape == (3, *size) and scores.shape == (3,) and logits.shape == (3, 32, 32)
    rows, columns = segmenter.resizing(embedding)
    upsampled = rows @ torch.as_tensor(logits[0]) @ columns.T
    assert same_masks((upsampled > 0).numpy(), masks[0])


def test_a_mask_in_pixels_becomes_logits_that_give_it_back(cat):
    segmenter = OfficialSegmenter(tiny_official_sam())
    embedding = segmenter.encode(cat)
    mask = np.zeros(cat.shape[:2], bool)
    mask[60:180, 30:160] = True
    logits = segmenter.low_res_logits(embedding, mask)
    back = segmenter.upsample(embedding, torch.as_tensor(logits)[None])[0]
    assert (back & mask).sum() / (back | mask).sum() > 0.95
    assert len(segmenter.predict(embedding, mask=mask)[0]) == 3


@pytest.mark.parametrize(
    "prompt, message",
    [
        (dict(), "nothing"),
        (dict(labels=[1], box=[1, 2, 3, 4]), "without points"),
        (dict(points=[[1, 2, 3]]), "pairs"),
        (dict(points=np.zeros((0, 2))), "pairs"),
        (dict(points=[[1, 2]], labels=[1, 0]), "as many labels"),
        (dict(points=[[1, 2]], labels=[2]), "as many labels"),
        (dict(points=[[201, 5]], labels=[1]), "outside"),
        (dict(points=[[-1, 5]], labels=[1]), "outside"),
        (dict(points=[["a", 5]]), "numbers"),
        (dict(points=[[np.nan, 5]]), "finite"),
        (dict(box=[50, 50, 50, 90]), "empty"),
        (dict(box=[300, 300, 400, 400]), "empty"),
        (dict(box=[1, 2, 3]), "four"),
        (dict(mask=np.zeros((3, 4), bool)), "mask"),
        (dict(mask=np.zeros((32, 31))), "mask"),
    ],
)
def test_bad_prompts(cat, prompt, message):
    segmenter = OfficialSegmenter(tiny_official_sam())
    with pytest.raises(BadInput, match=message) as error:
        segmenter.predict(segmenter.encode(cat), **prompt)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), "x"]
)
def test_what_is_no_image(image):
    with pytest.raises(BadInput):
        OfficialSegmenter(tiny_official_sam()).encode(image)


def test_memory_that_does_not_suffice_is_one_line(cat, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    segmenter = OfficialSegmenter(tiny_official_sam())
    embedding = segmenter.encode(cat)
    monkeypatch.setattr(segmenter, "_encode", full)
    monkeypatch.setattr(segmenter, "_decode", full)
    with pytest.raises(BadInput, match="not enough memory for SAM to encode .*: take a smaller --sam"):
        segmenter.encode(cat)
    with pytest.raises(BadInput, match="not enough memory for SAM to outline"):
        segmenter.predict(embedding, points=[[5, 5]])
    with pytest.raises(BadInput, match="not enough memory for SAM to outline"):
        everything(segmenter, embedding, points_per_side=1)
