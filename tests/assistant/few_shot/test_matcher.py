"""Segment like this: geometry, the frozen features, the encoder and its training, on tiny random models."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.few_shot.features import ClipFeatures
from assistant.few_shot.matcher import Matcher, check_mask, open_mask, references
from assistant.few_shot.prompt_encoder import PromptEncoder
from assistant.few_shot.similarity import attention_map, cover, gather, likeness, scaled
from assistant.images import open_image
from assistant.sam.segmenter import Segmenter
from tests.assistant.sam.test_segmenter import tiny_sam, tiny_sam2, tiny_transformers_sam
from tests.helpers.tiny_models import tiny_clip

RED, BLUE, GREY = (220, 40, 40), (40, 60, 220), (190, 190, 190)


def picture(height, width, box, colour):
    """A grey picture with a box xyxy of a colour, and the box's mask."""
    pixels, mask = np.full((height, width, 3), GREY, np.uint8), np.zeros((height, width), bool)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1], mask[y0:y1, x0:x1] = colour, True
    return pixels, mask


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def matcher(clip):
    """A tiny CLIP, a tiny SAM of 128 px and untrained encoders."""
    segmenter = Segmenter.from_sam(tiny_sam())
    segmenter.model.requires_grad_(False)
    features = ClipFeatures(clip, segmenter, side=64)
    torch.manual_seed(1)
    encoders = {
        arm: PromptEncoder(
            24, 24, segmenter.prompt_width, text=arm == "text", coarse=arm == "text", width=32, queries=5
        ).eval()
        for arm in ("plain", "text")
    }
    return Matcher(segmenter, features, encoders)


# ------------------------------------------------------------------------------------ one transform


@pytest.mark.parametrize("size", [(128, 128), (90, 161), (333, 77), (40, 30)])
def test_a_mask_goes_through_the_transform_that_sam_gives_the_picture(size):
    """What `cover` says of a mask is where SAM's square shows its colour."""
    segmenter = Segmenter.from_sam(tiny_sam())
    height, width = size
    box = (width // 5, height // 4, width * 3 // 5, height * 4 // 5)
    pixels, mask = picture(height, width, box, RED)
    square = segmenter._square(pixels)[0] * segmenter.model.pixel_std + segmenter.model.pixel_mean
    red = (square[0] - square[2] > 90).float()
    share = cover(segmenter, size, mask, (128, 128))
    assert ((share > 0.5).float() - red).abs().mean() < 0.02
    assert (
        abs(float(share.sum() / cover(segmenter, size, np.ones(size, bool), (128, 128)).sum()) - mask.mean())
        < 1e-4
    )


def test_a_stretched_square_is_filled_whole():
    from assistant.sam.checkpoints import default_processor
    from assistant.sam.segmenter import TransformersSegmenter

    model = tiny_sam2()
    segmenter = TransformersSegmenter(model, default_processor(model))
    share = cover(segmenter, (50, 100), np.pad(np.ones((50, 50), bool), ((0, 0), (0, 50))), (8, 8))
    assert torch.allclose(share, torch.tensor([[1.0] * 4 + [0.0] * 4] * 8), atol=1e-5)


def test_clip_sees_what_the_mask_covers(matcher):
    """The patches that change when a box is painted into a picture that is not square are those its mask covers."""
    plain = np.full((60, 120, 3), 190, np.uint8)
    pixels, mask = picture(60, 120, (60, 15, 120, 45), RED)
    embedding = matcher.segmenter.encode(pixels)
    seen = []
    hook = matcher.features.model.vision_model.embeddings.patch_embedding.register_forward_hook(
        lambda module, inputs, output: seen.append(output[0])
    )
    for image in (plain, pixels):
        matcher.features(image, embedding)
    hook.remove()
    change = (seen[0] - seen[1]).abs().amax(0)
    changed = change > 0.3 * change.max()  # bicubic resizing rings a little beyond the edge
    share = cover(matcher.segmenter, (60, 120), mask, (8, 8))
    assert torch.equal(changed, share > 0.5) and changed.any() and not changed.all()


def test_a_turned_photo_and_the_mask_painted_on_it_agree(matcher, tmp_path):
    """A photo on its side by EXIF is turned before its mask, painted on what is seen, is laid over it."""
    pixels, mask = picture(60, 120, (10, 10, 50, 50), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: stored lying, seen standing
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert np.array_equal(open_image(tmp_path / "turned.png"), pixels)
    (one,) = references(matcher, tmp_path / "turned.png", tmp_path / "mask.png")
    assert torch.equal(one.mask, cover(matcher.segmenter, (60, 120), mask, one.mask.shape))
    with pytest.raises(BadInput, match="60x120, its picture 120x60"):
        references(matcher, tmp_path / "turned.png", mask.T)


# ------------------------------------------------------------------------------------ bad masks


@pytest.mark.parametrize(
    "mask, said",
    [
        (np.zeros((40, 60), bool), "empty"),
        (np.ones((40, 60), np.uint8) * 255, "covers the whole picture"),
        (np.ones((60, 40), bool), "40x60, its picture 60x40"),
        (np.zeros((40, 60), np.float32), "bool or whole numbers"),
        (np.zeros(5, bool), "bool or whole numbers"),
    ],
)
def test_a_mask_that_says_nothing_is_refused_in_one_line(mask, said):
    with pytest.raises(BadInput, match=said) as error:
        check_mask(mask, (40, 60))
    assert "\n" not in str(error.value)


def test_masks_come_as_files_of_any_kind(tmp_path, matcher):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 4:20] = 255
    for name, image in (
        ("grey", Image.fromarray(mask)),
        ("colour", Image.fromarray(np.repeat(mask[..., None], 3, 2))),
        ("one", Image.fromarray(mask > 0)),
        ("alpha", Image.fromarray(np.dstack([mask] * 3 + [mask * 0 + 255]))),
    ):
        image.save(tmp_path / f"{name}.png")
        assert np.array_equal(check_mask(open_mask(tmp_path / f"{name}.png"), (20, 30)), mask > 0)
    (tmp_path / "no.png").write_text("no mask")
    with pytest.raises(BadInput, match="no mask that can be read"):
        open_mask(tmp_path / "no.png")
    with pytest.raises(BadInput, match="1 reference pictures with 2 masks"):
        references(matcher, np.zeros((20, 30, 3), np.uint8), [mask, mask])


# ------------------------------------------------------------------------------------ likeness


def grids(*maps):
    """Colour maps (h, w, 3) -> unit patches (1, 3, h, w)."""
    return [
        F.normalize(torch.tensor(m, dtype=torch.float32).permute(2, 0, 1) - 128, dim=0)[None] for m in maps
    ]


def test_likeness_finds_the_colour_of_the_reference():
    pixels, mask = picture(16, 16, (2, 2, 8, 8), RED)
    other, truth = picture(16, 16, (9, 4, 15, 15), RED)
    other[:3, :3] = BLUE
    r, q = grids(pixels, other)
    ones = torch.ones(1, 1, 16, 16)
    best, contrast, level, gap = likeness(q, r[:, None], torch.tensor(mask)[None, None].float(), ones)
    assert torch.equal(best[0] > 0.99, torch.tensor(truth)) and torch.equal(
        contrast[0] > 0.5, torch.tensor(truth)
    )
    assert level[0][torch.tensor(truth)].mean() == pytest.approx(1, abs=1e-4) and gap.min() == gap.max() > 0.3
    assert (
        abs(float(level[0][~torch.tensor(truth)].median())) < 1e-4
    )  # the grey around it, as around the reference


def test_a_mask_smaller_than_a_cell_still_counts():
    pixels, _ = picture(8, 8, (3, 3, 4, 4), RED)
    r, q = grids(pixels, pixels)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3, 3] = 0.1
    best, *_ = likeness(q, r[:, None], mask, torch.ones(1, 1, 8, 8))
    assert best[0, 3, 3] > 0.99 and best[0, 0, 0] < 0.9


def test_many_references_are_one_memory():
    """The same reference twice changes nothing; what only the second shows is found as well; order does not count."""
    red, mask = picture(16, 16, (2, 2, 8, 8), RED)
    blue, _ = picture(16, 16, (2, 2, 8, 8), BLUE)
    query, _ = picture(16, 16, (0, 0, 4, 16), RED)
    query[:, 12:] = BLUE
    r, b, q = grids(red, blue, query)
    m, ones = torch.tensor(mask)[None, None].float(), torch.ones(1, 2, 16, 16)
    both = lambda *some: torch.stack(some, 1)
    once = likeness(q, r[:, None], m, ones[:, :1])
    twice = likeness(q, both(r, r), m.expand(1, 2, -1, -1), ones)
    assert all(torch.allclose(a, c, atol=1e-5) for a, c in zip(once, twice))
    best, *_ = likeness(q, both(r, b), m.expand(1, 2, -1, -1), ones)
    assert best[0, 5, 14] > 0.99 and once[0][0, 5, 14] < 0.5


@pytest.mark.parametrize("arm", ["plain", "text"])
def test_the_order_of_references_does_not_count(matcher, arm):
    query = matcher.open(picture(60, 90, (20, 10, 60, 50), RED)[0])
    red, blue = (matcher.reference(*picture(50, 70, (5, 5, 40, 40), c)) for c in (RED, BLUE))
    with torch.no_grad():
        label = "mug" if arm == "text" else None
        (one, _), (two, _), (once, _), (twice, _) = (
            matcher.logits(query, matcher.given(query, some, label))
            for some in ([red, blue], [blue, red], [red], [red, red])
        )
    assert torch.allclose(one, two, atol=1e-3) and torch.allclose(once, twice, atol=1e-3)
    assert not torch.allclose(one, once, atol=1e-3)


def test_what_the_picture_does_not_cover_counts_nowhere(matcher):
    """Cells beyond the picture change no prompt and no drawing, whatever they hold."""
    encoder = matcher.encoders["text"]
    query = matcher.open(picture(60, 120, (20, 10, 60, 50), RED)[0])
    like = matcher.reference(*picture(50, 90, (5, 5, 40, 40), RED))
    one = gather([(query, [like], "mug")], encoder, matcher.features)
    for look in (query, like.look):
        look.patches[:, 5:] = torch.randn_like(look.patches[:, 5:]) * 3
    two = gather([(query, [like], "mug")], encoder, matcher.features)
    with torch.no_grad():
        assert torch.allclose(encoder(one), encoder(two), atol=1e-4) and torch.allclose(
            one.maps, two.maps, atol=1e-4
        )
    assert not one.maps[..., 5:, :].any()
    low = scaled(torch.randn(1, 8, 8), query.inside[None])
    assert low[0, :4].amin() == 0 and low[0, :4].amax() == 1 and not low[0, 4:].any()


# ------------------------------------------------------------------------------------ real parts, tiny


def test_clip_features_tell_words_and_places_apart(matcher):
    pixels, _ = picture(60, 120, (10, 10, 50, 50), RED)
    look = matcher.open(pixels)
    assert look.patches.shape == (24, 8, 8) and look.inside[:4].min() == 1 and look.inside[4:].max() == 0
    assert torch.allclose(look.patches.norm(dim=0), torch.ones(8, 8), atol=1e-4)
    mug, car = (matcher.features.words(w) for w in ("mug", "car"))
    assert mug.shape == (24,) and abs(float(mug.norm()) - 1) < 1e-4 and float(mug @ car) < 0.9999
    heat = attention_map(look.joint, mug, (8, 8))
    assert heat.shape == (8, 8) and heat.std() > 1e-4 and heat.abs().max() <= 1


def test_the_last_layers_attend_to_values_alone(clip):
    """With no layer on the surgery path but one, its output is that layer's attention of values to values."""
    segmenter = Segmenter.from_sam(tiny_sam())
    features = ClipFeatures(clip, segmenter, side=32, deep=1)
    layer = features.model.vision_model.encoder.layers[-1]
    x = torch.randn(1, 17, 32)
    value = layer.self_attn.v_proj(x)[0].view(17, 2, 16)
    expected = torch.cat([((value[:, h] @ value[:, h].T) / 4).softmax(-1) @ value[:, h] for h in range(2)], 1)
    assert torch.allclose(
        features._values(layer.self_attn, x)[0], layer.self_attn.out_proj(expected), atol=1e-5
    )
    seen = {}
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0]))
    image = np.full((32, 32, 3), 90, np.uint8)
    patches, _ = features(image, segmenter.encode(image))
    hook.remove()
    path = seen["x"] + features._values(layer.self_attn, layer.layer_norm1(seen["x"]))
    vision = features.model.vision_model
    assert torch.allclose(
        patches.flatten(1).T,
        F.normalize(features.model.visual_projection(vision.post_layernorm(path[0, 1:])), dim=1),
        atol=1e-4,
    )


@pytest.mark.parametrize("kind", ["official", "transformers", "sam2"])
@pytest.mark.parametrize("shots", [1, 5])
def test_any_sam_takes_the_prompts(kind, shots, clip):
    from assistant.sam.checkpoints import default_processor
    from assistant.sam.segmenter import TransformersSegmenter

    model = {"official": tiny_sam, "transformers": tiny_transformers_sam, "sam2": tiny_sam2}[kind]()
    segmenter = (
        Segmenter.from_sam(model)
        if kind == "official"
        else TransformersSegmenter(model, default_processor(model))
    )
    features = ClipFeatures(clip, segmenter, side=64)
    encoders = {
        arm: PromptEncoder(
            24, 24, segmenter.prompt_width, text=arm == "text", coarse=arm == "text", width=32, queries=5
        ).eval()
        for arm in ("plain", "text")
    }
    matcher = Matcher(segmenter, features, encoders)
    like = [matcher.reference(*picture(50 + k, 80, (10, 10, 40, 40), RED)) for k in range(shots)]
    query = matcher.open(picture(70, 90, (40, 20, 80, 60), RED)[0])
    for label in (None, "mug"):
        mask, score = matcher.segment(query, like, label)
        assert mask.shape == (70, 90) and mask.dtype == bool and 0 <= score <= 1
    car, mug = (matcher.given(query, like, name) for name in ("car", "mug"))
    assert not torch.equal(matcher.logits(query, car)[0], matcher.logits(query, mug)[0])
    plain = matcher.given(query, like)
    assert (
        all(torch.equal(a, b) for a, b in zip(plain[:-1], mug.nameless()[:-1]))
        and mug.nameless().names is None
    )
    assert matcher.match(query, mug)[0].shape == (70, 90)


def test_no_mask_prompt_answers_as_a_prompt_by_hand_does():
    """`prompted` with the embedded prompts of a click is `predict` of that click; with a mask, of that mask too."""
    for model in (tiny_sam(), tiny_transformers_sam()):
        segmenter = Segmenter.from_sam(model) if hasattr(model.mask_decoder, "transformer_dim") else None
        if segmenter is None:
            from assistant.sam.checkpoints import default_processor
            from assistant.sam.segmenter import TransformersSegmenter

            segmenter = TransformersSegmenter(model, default_processor(model))
        embedding = segmenter.encode(picture(60, 100, (10, 10, 40, 40), RED)[0])
        points, labels = np.array([[[30.0, 20.0]]]), np.array([[1]])
        low, iou = segmenter.predict_many(embedding, points, labels, multimask=False)
        place = torch.tensor(points * [1.28, 77 / 60]).float()  # the square's 128 x 77 px
        sparse, _ = segmenter._embed(place, torch.tensor(labels).int(), None, None)
        with torch.no_grad():
            mine, guess = segmenter.prompted(embedding, sparse)
        assert torch.allclose(mine, low[:, 0], atol=1e-4) and torch.allclose(guess, iou[:, 0], atol=1e-4)
        low2, _ = segmenter.predict_many(embedding, points, labels, masks=low[:, 0], multimask=False)
        with torch.no_grad():
            again, _ = segmenter.prompted(embedding, sparse, low[:, 0])
        assert torch.allclose(again, low2[:, 0], atol=1e-3) and not torch.allclose(again, mine, atol=1e-3)


def test_an_embedding_is_restored_from_its_features(matcher):
    embedding = matcher.segmenter.encode(picture(60, 100, (10, 10, 40, 40), RED)[0])
    again = matcher.segmenter.restore(embedding.features, (60, 100))
    box = np.array([10, 10, 40, 40])
    assert np.array_equal(
        matcher.segmenter.predict(embedding, box=box)[2], matcher.segmenter.predict(again, box=box)[2]
    )


def test_weights_survive_the_disk(matcher, tmp_path, clip):
    matcher.save(tmp_path / "reference.safetensors")
    again = Matcher.load(tmp_path, matcher.segmenter)
    query = matcher.open(picture(70, 90, (40, 20, 80, 60), RED)[0])
    like = [matcher.reference(*picture(50, 80, (10, 10, 40, 40), RED))]
    for label in (None, "mug"):
        assert torch.allclose(
            *(m.logits(query, m.given(query, like, label))[0] for m in (matcher, again)), atol=1e-3
        )
    with pytest.raises(BadInput, match="train it with"):
        Matcher.load(tmp_path / "none", matcher.segmenter)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "reference.safetensors").read_bytes()[:5000])
    with pytest.raises(BadInput, match="cannot read"):
        Matcher.load(tmp_path / "cut.safetensors", matcher.segmenter)
    with pytest.raises(BadInput, match="no CLIP model|no model folder"):
        ClipFeatures(tmp_path, matcher.segmenter)


# ------------------------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten small pictures in COCO's layout: a red or a blue box, each a category."""
    root = tmp_path_factory.mktemp("boxes")
    (root / "images").mkdir()
    rng, images, annotations = np.random.default_rng(0), [], []
    for k in range(10):
        x, y = rng.integers(4, 50), rng.integers(4, 30)
        pixels, _ = picture(64, 96, (x, y, x + 36, y + 28), RED if k % 2 else BLUE)
        Image.fromarray(pixels).save(root / f"images/{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": 64, "width": 96})
        corners = [x, y, x + 36, y, x + 36, y + 28, x, y + 28]
        annotations.append(
            {
                "id": k + 1,
                "image_id": k,
                "category_id": 1 + k % 2,
                "iscrowd": 0,
                "segmentation": [[float(v) for v in corners]],
            }
        )
    (root / "instances.json").write_text(
        json.dumps(
            {
                "images": images,
                "annotations": annotations,
                "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "car"}],
            }
        )
    )
    return root


def arguments(root, out, clip, sam, *more):
    from finetune import reference

    parser = argparse.ArgumentParser()
    reference.add_arguments(parser)
    return parser.parse_args(
        [
            "--data",
            str(root),
            "--out",
            str(out),
            "--clip",
            str(clip),
            "--sam",
            str(sam),
            "--views",
            "1",
            "--batch",
            "2",
            "--save-every",
            "0",
            "--lr",
            "3e-3",
            *more,
        ]
    )


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    file = tmp_path_factory.mktemp("sam") / "sam.pth"
    torch.save(tiny_sam().state_dict(), file)
    return file


def test_training_lowers_the_loss_and_resumes_to_the_same_weights(root, tmp_path, clip, sam, stopped, capsys):
    from finetune import reference

    looks = ["--looks", str(tmp_path / "looks"), "--steps", "8", "--alone", "0.5", "--episodes", "24"]
    reference.main(arguments(root, tmp_path / "whole", clip, sam, *looks))
    stopped(
        reference,
        "batch_of",
        6,
        lambda: reference.main(arguments(root, tmp_path / "parts", clip, sam, *looks)),
    )
    assert "resuming" not in capsys.readouterr().out
    reference.main(arguments(root, tmp_path / "parts", clip, sam, *looks))
    assert "resuming at step 5" in capsys.readouterr().out
    whole, parts = (load_file(tmp_path / k / "reference.safetensors") for k in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    # the loss on fixed episodes: less with what was learned than before
    segmenter = Segmenter.official(sam)
    trained = Matcher.load(tmp_path / "whole", segmenter)
    views = [
        reference.FeatureCache(f, k, reference.kept_names(f))
        for k, f in enumerate(sorted((tmp_path / "looks").glob("*-0.*")))
    ]
    drawn = [e for e in reference.draw_episodes(views, 9, 20) if len(e[2]) == 1][:8]
    looks, targets = reference.load_episodes(trained, drawn)
    given = reference.both(trained, looks)
    # what was kept of an episode is what is gathered of it
    kept, truth = reference.read_given(reference.gather_all(trained, "key", drawn, tmp_path / "episodes"))
    assert torch.allclose(truth, targets, atol=0.01) and all(
        torch.allclose(a, b, atol=0.01, rtol=0.01) for a, b in zip(kept, given["text"])
    )
    for arm, encoder in trained.encoders.items():
        fresh = PromptEncoder(**encoder.settings).eval()
        with torch.no_grad():
            before, after = (
                float(reference.step_loss(trained, e, given[arm], [q for q, _, _ in looks], targets)[0])
                for e in (fresh, encoder)
            )
        assert after < 0.97 * before, (arm, before, after)


def test_episodes_never_show_the_query_and_leave_the_fold_out(root, tmp_path, clip, sam):
    from finetune import reference

    views = [
        reference.FeatureCache(tmp_path / f"{k}", k // 2, ("cup",) if k % 4 < 2 else ("car",))
        for k in range(20)
    ]
    drawn = reference.draw_episodes(views, 0, 160)
    assert {len(r) for _, _, r in drawn} == {1, 2, 3} and {n for n, _, _ in drawn} == {"cup", "car"}
    assert all(name in v.names and v.photo != q.photo for name, q, r in drawn for v in r)
    assert drawn == reference.draw_episodes(views, 0, 160) != reference.draw_episodes(views, 1, 160)
    kept = [reference.Gathered(q.file, n, q, len(r)) for n, q, r in drawn]
    batch = reference.batch_of(kept, 0, 5, 6)
    assert (
        batch == reference.batch_of(kept, 0, 5, 6) and len({e.shots for e in batch}) == 1 and len(batch) == 6
    )
    assert reference.categories([root], 0) == {"car"} and reference.categories([root], None) == {"cup", "car"}
    with pytest.raises(BadInput, match="no category"):
        reference.draw_episodes(views[:2], 0, 5)
    with pytest.raises(BadInput, match="needs? the pocket SAM|need the pocket SAM"):
        reference.open_frozen(argparse.Namespace(sam=str(sam), clip=None))


def test_batches_are_the_episodes_one_by_one(matcher):
    """What `gather` makes of two episodes is what each alone gives."""
    queries = [matcher.open(picture(60, 90, (20, 10, 60, 50), c)[0]) for c in (RED, BLUE)]
    like = [[matcher.reference(*picture(50, 70, (5, 5, 40, 40), c))] for c in (RED, BLUE)]
    encoder = matcher.encoders["text"]
    episodes = list(zip(queries, like, ("mug", "car")))
    both = gather(episodes, encoder, matcher.features)
    for k, episode in enumerate(episodes):
        one = gather([episode], encoder, matcher.features)
        with torch.no_grad():
            assert torch.allclose(encoder(one)[0], encoder(both)[k], atol=1e-5)
            assert torch.allclose(encoder.draw(one)[0], encoder.draw(both)[k], atol=1e-5)
