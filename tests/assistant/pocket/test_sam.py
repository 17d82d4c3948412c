"""The pocket SAM, untrained: it answers as segment-anything's SAM does, and draws its prompts."""

import numpy as np
import torch
from segment_anything import SamPredictor

from assistant.pocket.image_encoder import WIDTH, fold_batch_norms
from assistant.pocket.prompt_encoder import draw_prompts
from assistant.pocket.sam import build_pocket_sam


def test_sam_predictor_works_on_the_pocket_sam(sam, image):
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    masks, scores, logits = predictor.predict(point_coords=np.array([[200, 150]]), point_labels=np.array([1]))
    assert masks.shape == (3, *image.shape[:2]) and scores.shape == (3,) and logits.shape == (3, 128, 128)
    masks, _, _ = predictor.predict(
        box=np.array([50, 40, 300, 250]), mask_input=logits[:1], multimask_output=False
    )
    assert masks.shape == (1, *image.shape[:2])


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
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) and a[0].shape == (1, 2, WIDTH)


def test_folded_batch_norms_change_nothing_but_the_time():
    torch.manual_seed(0)
    backbone = build_pocket_sam().image_encoder.backbone
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
    image = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        before = backbone(image)
        fold_batch_norms(backbone)
        after = backbone(image)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-3 * float(a.abs().max()))
