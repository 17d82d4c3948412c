"""Segment like this, on tiny random models: masks, the encoders, any SAM and the weights on disk."""

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.errors import BadInput
from assistant.few_shot.episode import Episode
from assistant.few_shot.match_inputs import match_inputs
from assistant.few_shot.matcher import Matcher, check_mask, open_references
from assistant.mask_images import open_mask
from assistant.sam.backends import OfficialSegmenter, TransformersSegmenter
from assistant.sam.checkpoints import default_processor
from assistant.sam.segmenter import Segmenter
from tests.helpers.few_shot import BLUE, RED, image_with_box, tiny_matcher
from tests.helpers.tiny_sams import tiny_official_sam, tiny_sam2, tiny_transformers_sam


def transformers_segmenter(model) -> Segmenter:
    return TransformersSegmenter(model, default_processor(model))


# ------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.zeros((40, 60), bool), "empty"),
        (np.ones((40, 60), np.uint8) * 255, "covers the whole image"),
        (np.ones((60, 40), bool), "40x60, its image 60x40"),
        (np.zeros((40, 60), np.float32), "bool or whole numbers"),
        (np.zeros(5, bool), "bool or whole numbers"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused_in_one_line(mask, message):
    with pytest.raises(BadInput, match=message) as error:
        check_mask(mask, (40, 60))
    assert "\n" not in str(error.value)


def test_masks_come_as_files_of_any_kind(tmp_path, matcher):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 4:20] = 255
    for name, image in (
        ("grey", Image.fromarray(mask)),
        ("colour", Image.fromarray(np.repeat(mask[..., None], 3, 2))),
        ("bits", Image.fromarray(mask > 0)),
        ("alpha", Image.fromarray(np.dstack([mask] * 3 + [mask * 0 + 255]))),
    ):
        image.save(tmp_path / f"{name}.png")
        assert np.array_equal(check_mask(open_mask(tmp_path / f"{name}.png"), (20, 30)), mask > 0)
    (tmp_path / "no.png").write_text("no mask")
    with pytest.raises(BadInput, match="no mask can be read"):
        open_mask(tmp_path / "no.png")
    with pytest.raises(BadInput, match="1 reference images with 2 masks"):
        open_references(matcher, np.zeros((20, 30, 3), np.uint8), [mask, mask])


# ------------------------------------------------------------------------------------ the encoders


@pytest.mark.parametrize("label", [None, "mug"])
def test_the_order_of_references_does_not_count(matcher, label):
    query = matcher.open(image_with_box(60, 90, (20, 10, 60, 50), RED)[0])
    red = matcher.reference(*image_with_box(50, 70, (5, 5, 40, 40), RED))
    blue = matcher.reference(*image_with_box(50, 70, (5, 5, 40, 40), BLUE))

    def logits(references):
        with torch.no_grad():
            return matcher.logits(query, matcher.inputs(query, references, label))[0]

    red_blue = logits([red, blue])
    assert torch.allclose(red_blue, logits([blue, red]), atol=1e-3)
    assert torch.allclose(logits([red]), logits([red, red]), atol=1e-3)
    assert not torch.allclose(red_blue, logits([red]), atol=1e-3)


def test_cells_beyond_the_image_count_nowhere(matcher):
    """They change no prompt and no coarse map, whatever they hold."""
    encoder = matcher.encoders["text"]
    query = matcher.open(image_with_box(60, 120, (20, 10, 60, 50), RED)[0])
    reference = matcher.reference(*image_with_box(50, 90, (5, 5, 40, 40), RED))
    episode = Episode(query, [reference], "mug")
    before = match_inputs([episode], encoder, matcher.extractor)
    for features in (query, reference.features):
        features.patches[:, 5:] = torch.randn_like(features.patches[:, 5:]) * 3
    after = match_inputs([episode], encoder, matcher.extractor)
    with torch.no_grad():
        assert torch.allclose(encoder(before), encoder(after), atol=1e-4)
    assert torch.allclose(before.maps, after.maps, atol=1e-4)
    assert not before.maps[..., 5:, :].any()


def test_a_batch_holds_what_each_episode_gives_alone(matcher):
    queries = [matcher.open(image_with_box(60, 90, (20, 10, 60, 50), c)[0]) for c in (RED, BLUE)]
    references = [[matcher.reference(*image_with_box(50, 70, (5, 5, 40, 40), c))] for c in (RED, BLUE)]
    encoder = matcher.encoders["text"]
    episodes = [Episode(*parts) for parts in zip(queries, references, ("mug", "car"), strict=True)]
    together = match_inputs(episodes, encoder, matcher.extractor)
    for k, episode in enumerate(episodes):
        alone = match_inputs([episode], encoder, matcher.extractor)
        with torch.no_grad():
            assert torch.allclose(encoder(alone)[0], encoder(together)[k], atol=1e-5)
            coarse = encoder.coarse_logits(together)
            assert torch.allclose(encoder.coarse_logits(alone)[0], coarse[k], atol=1e-5)


def test_an_encoder_that_reads_labels_asks_for_them(matcher):
    query = matcher.open(image_with_box(60, 90, (20, 10, 60, 50), RED)[0])
    reference = matcher.reference(*image_with_box(50, 70, (5, 5, 40, 40), RED))
    encoder = matcher.encoders["text"]
    with pytest.raises(ValueError, match="labels"):
        match_inputs([Episode(query, [reference], None)], encoder, matcher.extractor)
    with pytest.raises(ValueError, match="labels"):
        encoder(matcher.inputs(query, [reference]))


# ------------------------------------------------------------------------------------ any SAM


@pytest.mark.parametrize("kind", ["official", "transformers", "sam2"])
@pytest.mark.parametrize("shots", [1, 5])
def test_any_sam_takes_the_prompts(kind, shots, clip):
    model = {"official": tiny_official_sam, "transformers": tiny_transformers_sam, "sam2": tiny_sam2}[kind]()
    segmenter = OfficialSegmenter(model) if kind == "official" else transformers_segmenter(model)
    matcher = tiny_matcher(clip, segmenter)
    references = [matcher.reference(*image_with_box(50 + k, 80, (10, 10, 40, 40), RED)) for k in range(shots)]
    query = matcher.open(image_with_box(70, 90, (40, 20, 80, 60), RED)[0])
    for label in (None, "mug"):
        mask, score = matcher.segment(query, references, label)
        assert mask.shape == (70, 90) and mask.dtype == bool
        assert 0 <= score <= 1
    car = matcher.inputs(query, references, "car")
    mug = matcher.inputs(query, references, "mug")
    assert not torch.equal(matcher.logits(query, car)[0], matcher.logits(query, mug)[0])
    plain = matcher.inputs(query, references)
    without_labels = mug.without_labels()
    assert all(torch.equal(a, b) for a, b in zip(plain[:-1], without_labels[:-1], strict=True))
    assert without_labels.label_vectors is None
    assert matcher.match_prototypes(query, mug)[0].shape == (70, 90)


def test_embedded_prompts_are_answered_as_prompts_by_hand_are():
    """`prompted` with the embedded prompts of a click is `predict_many` of that click, also with a mask."""
    for segmenter in (
        OfficialSegmenter(tiny_official_sam()),
        transformers_segmenter(tiny_transformers_sam()),
    ):
        embedding = segmenter.encode(image_with_box(60, 100, (10, 10, 40, 40), RED)[0])
        points = np.array([[[30.0, 20.0]]])
        labels = np.array([[1]])
        logits, iou = segmenter.predict_many(embedding, points, labels, multimask=False)
        in_square = torch.tensor(
            points * [1.28, 77 / 60]
        ).float()  # the image fills 128 x 77 px of the square
        sparse, _ = segmenter._embed(in_square, torch.tensor(labels).int(), None, None)
        with torch.no_grad():
            prompted, prompted_iou = segmenter.prompted(embedding, sparse)
        assert torch.allclose(prompted, logits[:, 0], atol=1e-4)
        assert torch.allclose(prompted_iou, iou[:, 0], atol=1e-4)
        second, _ = segmenter.predict_many(embedding, points, labels, masks=logits[:, 0], multimask=False)
        with torch.no_grad():
            with_mask, _ = segmenter.prompted(embedding, sparse, logits[:, 0])
        assert torch.allclose(with_mask, second[:, 0], atol=1e-3)
        assert not torch.allclose(with_mask, prompted, atol=1e-3)


def test_an_embedding_is_restored_from_its_features(matcher):
    embedding = matcher.segmenter.encode(image_with_box(60, 100, (10, 10, 40, 40), RED)[0])
    restored = matcher.segmenter.restore(embedding.features, (60, 100))
    box = np.array([10, 10, 40, 40])
    expected = matcher.segmenter.predict(embedding, box=box)[2]
    assert np.array_equal(matcher.segmenter.predict(restored, box=box)[2], expected)


# ------------------------------------------------------------------------------------ weights


def test_weights_survive_the_disk(matcher, tmp_path):
    matcher.save(tmp_path / "reference.safetensors")
    loaded = Matcher.load(tmp_path, matcher.segmenter)
    query = matcher.open(image_with_box(70, 90, (40, 20, 80, 60), RED)[0])
    references = [matcher.reference(*image_with_box(50, 80, (10, 10, 40, 40), RED))]
    for label in (None, "mug"):
        logits = [m.logits(query, m.inputs(query, references, label))[0] for m in (matcher, loaded)]
        assert torch.allclose(*logits, atol=1e-3)
    with pytest.raises(BadInput, match="train it with"):
        Matcher.load(tmp_path / "none", matcher.segmenter)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "reference.safetensors").read_bytes()[:5000])
    with pytest.raises(BadInput, match="cannot read"):
        Matcher.load(tmp_path / "cut.safetensors", matcher.segmenter)
