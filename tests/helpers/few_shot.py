"""Images with a coloured box, its mask, and a tiny matcher with random weights for few-shot segmentation.

pixels, mask = image_with_box(60, 120, (10, 10, 50, 50), RED)
matcher = tiny_matcher(clip_folder, OfficialSegmenter(tiny_official_sam()))
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from assistant.few_shot.features import ClipFeatureExtractor
from assistant.few_shot.matcher import Matcher
from assistant.few_shot.prompt_encoder import PromptEncoder
from assistant.sam.segmenter import Segmenter

RED = (220, 40, 40)
BLUE = (40, 60, 220)
GREY = (190, 190, 190)

CLIP_WIDTH = 24  # channels of tiny_clip's embeddings
CLIP_SIDE = 64  # px; 8 x 8 patches


def image_with_box(
    height: int, width: int, box: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A grey image (height, width, 3) uint8 with a box, half-open xyxy in px, and the box's mask, bool."""
    pixels = np.full((height, width, 3), GREY, np.uint8)
    mask = np.zeros((height, width), bool)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = colour
    mask[y0:y1, x0:x1] = True
    return pixels, mask


def write_boxes(folder: Path, count: int) -> Path:
    """Write small images in COCO's layout to a folder: a red or a blue box, each a category."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    images = []
    annotations = []
    for k in range(count):
        x, y = rng.integers(4, 50), rng.integers(4, 30)
        pixels, _ = image_with_box(64, 96, (x, y, x + 36, y + 28), RED if k % 2 else BLUE)
        Image.fromarray(pixels).save(folder / f"images/{k}.png")
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
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "car"}]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(instances))
    return folder


def tiny_matcher(clip_folder: Path, segmenter: Segmenter) -> Matcher:
    """A matcher on tiny_clip's features, untrained; the encoder that reads labels draws a coarse map."""
    extractor = ClipFeatureExtractor(clip_folder, segmenter, side=CLIP_SIDE)
    encoders = {
        name: PromptEncoder(
            CLIP_WIDTH,
            CLIP_WIDTH,
            segmenter.prompt_width,
            text=name == "text",
            coarse=name == "text",
            width=32,
            queries=5,
        ).eval()
        for name in ("plain", "text")
    }
    return Matcher(segmenter, extractor, encoders)


def tiny_frozen_matcher(clip_folder: Path, segmenter: Segmenter) -> Matcher:
    """`tiny_matcher`, always with the same encoders, on a SAM whose weights take no gradient."""
    segmenter.model.requires_grad_(False)
    torch.manual_seed(1)
    return tiny_matcher(clip_folder, segmenter)
