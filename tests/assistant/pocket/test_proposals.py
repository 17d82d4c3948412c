import numpy as np
import pytest
import torch

from assistant.pocket import proposals as pool
from assistant.pocket.region_features import REGION, batches, crop_grid, geometry, pooled, region_features
from assistant.pocket.sam import IMAGE_SIZE, WIDTH, build_pocket_sam, draw_prompts
from assistant.sam.segmenter import Segmenter


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_pocket_sam()


@pytest.fixture(scope="module")
def photo():
    from PIL import Image
    from skimage import data

    return np.asarray(Image.fromarray(data.coffee()).resize((512, 341)))


def embed(sam, photo):
    square = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 127, np.uint8)
    square[: photo.shape[0]] = photo
    with torch.no_grad():
        return sam.image_encoder(sam.preprocess(torch.from_numpy(square).permute(2, 0, 1)[None].float()))


def test_sam_predictor_works_on_the_pocket_sam(sam, photo):
    from segment_anything import SamPredictor

    predictor = SamPredictor(sam)
    predictor.set_image(photo)
    masks, scores, low = predictor.predict(point_coords=np.array([[200, 150]]), point_labels=np.array([1]))
    assert masks.shape == (3, *photo.shape[:2]) and scores.shape == (3,) and low.shape == (3, 128, 128)
    masks, _, low = predictor.predict(
        box=np.array([50, 40, 300, 250]), mask_input=low[:1], multimask_output=False
    )
    assert masks.shape == (1, *photo.shape[:2])


def test_candidates_are_bounded_distinct_and_inside_the_picture(sam, photo):
    with torch.inference_mode():
        found = pool.candidates(sam, embed(sam, photo), photo, points_per_side=6, limit=20)
    masks = found.logits > 0
    assert 5 < len(masks) <= 20 and not masks[:, 86:].any() and masks.flatten(1).any(1).all()
    table = pool.mask_iou(masks, masks).fill_diagonal_(0)
    assert table.max() <= 0.9
    assert ((found.stability >= 0) & (found.stability <= 1)).all()


def test_superpixels_find_what_differs():
    image = np.zeros((256, 512, 3), np.uint8)
    image[:, 256:] = 200
    image[60:140, 60:180] = (200, 30, 30)
    found = pool.superpixels(image)
    square = torch.zeros(128, 128, dtype=torch.bool)
    square[15:35, 15:45] = True
    assert pool.mask_iou(found, square[None]).max() > 0.8


def test_boxes_and_suppression():
    masks = torch.zeros(3, 128, 128, dtype=torch.bool)
    masks[0, 10:20, 30:50], masks[1, 10:20, 30:49], masks[2, 100:101, 5:6] = True, True, True
    assert pool.boxes_of(masks)[[0, 2]].tolist() == [[120, 40, 200, 80], [20, 400, 24, 404]]
    assert pool.suppress(masks, torch.tensor([0.5, 0.9, 0.1]), 0.8).tolist() == [1, 2]


def test_soft_suppression_prefers_what_is_new():
    masks = torch.zeros(3, 128, 128, dtype=torch.bool)
    masks[0, 10:20, 30:50], masks[1, 10:20, 30:47], masks[2, 100:110, 5:30] = True, True, True
    score = torch.tensor([0.9, 0.8, 0.4])
    assert pool.soft_nms(masks, score, 3).tolist() == [0, 2, 1]
    assert pool.soft_nms(masks, score, 2).tolist() == [0, 2] and score.tolist() == pytest.approx(
        [0.9, 0.8, 0.4]
    )
    assert pool.soft_nms(masks[:0], score[:0], 5).shape == (0,)
    assert pool.soft_nms(torch.cat([masks, masks]), score.repeat(2), 9).tolist() == [0, 2, 1]  # copies go
    apart = pool.soft_nms(masks[[0, 2]], torch.tensor([0.1, 0.2]), 5)
    assert apart.tolist() == [1, 0]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_batches_are_all_of_one_size(count):
    parts = batches(count, 16)
    assert {len(p) for p in parts} == {16} and torch.cat(parts)[:count].tolist() == list(range(count))
    assert torch.cat(parts).max() == count - 1


def test_what_fills_up_a_batch_is_not_seen(sam, photo):
    points, labels = torch.rand(5, 1, 2) * 300, torch.ones(5, 1, dtype=torch.long)
    with torch.inference_mode():
        alone, filled = (
            pool.Prompter(sam, embed(sam, photo), batch=b).ask(points, labels, None, slice(1, None))
            for b in (5, 4)
        )
    assert all(a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in zip(alone, filled))


def test_drawn_box_is_positive_inside_and_negative_outside():
    points, labels = torch.tensor([[[0.25, 0.25], [0.75, 0.5]]]), torch.tensor([[2, 3]])
    inside = draw_prompts(points, labels, 32)[0, :, :, 4]
    assert (inside[9:15, 9:23] > 0).all() and (inside[:7] < 0).all() and (inside[:, 25:] < 0).all()
    nothing = draw_prompts(points, torch.tensor([[-1, -1]]), 32)
    assert nothing[..., :6].abs().max() == 0


def test_mixed_prompts_equal_sams_own_calls(sam):
    box = torch.tensor([[40.0, 30.0, 300.0, 200.0]])
    with torch.no_grad():
        a = sam.prompt_encoder(None, box, None)
        b = sam.prompt_encoder.encode(box.view(1, 2, 2), torch.tensor([[2, 3]]), None)
    assert all(torch.equal(x, y) for x, y in zip(a, b)) and a[0].shape == (1, 2, WIDTH)


def test_pooling_under_a_mask_is_the_mean_there():
    features = torch.zeros(1, 2, 8, 8)
    features[0, 0, :, 4:], features[0, 1, :4] = 1.0, 3.0
    masks = torch.zeros(2, 64, 64)
    masks[0, :32, 32:], masks[1] = 1.0, 1.0
    assert torch.allclose(pooled(features, masks), torch.tensor([[1.0, 3.0], [0.5, 1.5]]))


def test_crops_look_where_the_box_is():
    grid = crop_grid(torch.tensor([[100.0, 300.0]]), torch.tensor([64.0]))
    corner, opposite = (grid[0, 0, 0] + 1) * 256, (grid[0, -1, -1] + 1) * 256
    assert torch.allclose(corner, torch.tensor([68.2, 268.2])) and torch.allclose(
        opposite, torch.tensor([131.8, 331.8])
    )


def test_features_have_one_row_a_region_and_end_in_geometry(sam, photo):
    masks = torch.zeros(2, 128, 128)
    masks[0, 10:30, 10:40], masks[1, 40:80, 60:120] = 1, 1
    boxes = pool.boxes_of(masks > 0)
    maps = Segmenter.pocket(sam).encode(photo).maps
    features = region_features(sam.image_encoder, photo, maps, masks, boxes, masks.sum((1, 2)) * 16)
    assert features.shape == (2, REGION) and features.isfinite().all()
    assert torch.allclose(features[:, -9:], geometry(boxes, masks.sum((1, 2)) * 16, photo.shape[:2]))
