"""Opens an image for the pocket preset: SAM's encoding, the proposals, and the features of the region under each.

opener = load_pocket_opener(pocket_file("sam.safetensors"))
opened = opener.open(image)              # opened.embedding, opened.proposals, opened.features
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from assistant.errors import BadInput
from assistant.pocket.llm import fast_bfloat16
from assistant.pocket.proposals import CELL, Pool, boxes_of, candidates
from assistant.pocket.region_features import REGION, region_features
from assistant.pocket.sam import IMAGE_SIZE, build_pocket_sam, load_backbone
from assistant.sam.image_opener import Progress, SamOpenedImage
from assistant.sam.mask_ops import encode_patch_rle
from assistant.sam.mask_resizing import Resizer
from assistant.sam.proposals import Proposals
from assistant.sam.segmenter import Embedding, Segmenter
from assistant.weights import backbone_state


def fast_math():
    """bfloat16 where the CPU computes in it (three times faster there, scores change by .003), else nothing."""
    if fast_bfloat16():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


@dataclass
class ImageRegions:
    """What attention needs of a picture: the masks of its N regions as COCO RLE, its size (h, w), and their features
    (N, REGION) float. It holds neither embedding nor logits, so no question can be answered on it."""

    rles: list[dict]
    size: tuple[int, int]
    features: Tensor


@dataclass
class PocketOpenedImage:
    """A picture, opened: all that answering needs."""

    embedding: Embedding
    proposals: Proposals
    features: Tensor  # (N, REGION) float
    names: Tensor | None = None  # what `Semantic.names` gives, from the first question on

    @property
    def rles(self) -> list[dict]:
        return self.proposals.rles

    @property
    def size(self) -> tuple[int, int]:
        return self.proposals.size

    @property
    def regions(self) -> ImageRegions:
        """What is left for attention once the embedding is let go."""
        return ImageRegions(self.rles, self.size, self.features)


def shrink(image: np.ndarray) -> np.ndarray:
    """The picture with its longest side at IMAGE_SIZE, as the segmenter sees it."""
    h, w = image.shape[:2]
    scale = IMAGE_SIZE / max(h, w)
    size = max(1, int(w * scale + 0.5)), max(1, int(h * scale + 0.5))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def as_proposals(pool: Pool, segmenter: Segmenter, embedding: Embedding) -> Proposals:
    """The pool's low-resolution logits as masks of the whole picture, RLE-encoded one at a time."""
    resizer = Resizer(*segmenter.resizing(embedding))
    h, w = embedding.size
    kept, rles, boxes, areas = [], [], [], []
    for i, logits in enumerate(pool.logits.float().numpy()):
        ys, xs = (np.flatnonzero((logits > 0).any(axis)) for axis in (1, 0))
        reach = [max(0, ys[0] - 1), max(0, xs[0] - 1), ys[-1] + 2, xs[-1] + 2]
        outer = resizer.outer(reach)
        patch = np.ascontiguousarray(logits[reach[0] : reach[2] + 1, reach[1] : reach[3] + 1])
        found = resizer.mask(patch, (reach[0], reach[1]), outer)
        if found is None:
            continue
        mask, box, _ = found
        rles.append(encode_patch_rle(mask, (int(box[1]), int(box[0])), (h, w)))
        boxes.append(box)
        areas.append(int(mask.sum()))
        kept.append(i)
    points = np.array(boxes, np.float32).reshape(-1, 2, 2).mean(1)
    return Proposals(
        rles,
        np.array(boxes, np.float32).reshape(-1, 4),
        pool.iou.float().numpy()[kept],
        pool.stability.float().numpy()[kept],
        np.array(areas, np.int64),
        points,
        pool.logits.float().numpy()[kept],
        (h, w),
    )


class PocketImageOpener:
    """SAM and what is known of regions; shared by the assistant and by training."""

    def __init__(self, segmenter: Segmenter, limit: int = 60, points_per_side: int = 22):
        self.segmenter, self.limit, self.points_per_side = segmenter, limit, points_per_side

    def propose(self, image: np.ndarray, progress: Progress | None = None) -> tuple[Embedding, Proposals]:
        """progress: as `Assistant.open`."""
        if progress:
            progress("encoding", None)
        with fast_math():
            embedding = self.segmenter.encode(image)
            embedding.features = embedding.features.float()  # prompts by hand run outside of fast_math
            if progress:
                progress("proposing", None)
            pool = candidates(
                self.segmenter.model, embedding.features, shrink(image), self.points_per_side, self.limit
            )
        return embedding, as_proposals(pool, self.segmenter, embedding)

    def open(self, image: np.ndarray, progress: Progress | None = None) -> PocketOpenedImage:
        embedding, proposals = self.propose(image, progress)
        if progress:
            progress("recognising", proposals)
        with fast_math():
            features = self.features(shrink(image), embedding, torch.from_numpy(proposals.low_res_logits))
        return PocketOpenedImage(embedding, proposals, features)

    def features(self, small: np.ndarray, embedding: Embedding, low: Tensor) -> Tensor:
        """small: what `embedding` encodes, shrunk; low: (N, 128, 128) mask logits -> (N, REGION)."""
        masks = low > 0
        if not len(masks):
            return torch.zeros(0, REGION)
        return region_features(
            self.segmenter.model.image_encoder,
            small,
            embedding.maps,
            masks.float(),
            boxes_of(masks),
            masks.sum((1, 2)) * CELL**2,
        ).float()


def load_pocket_opener(sam_file: Path) -> PocketImageOpener:
    from safetensors.torch import load_file

    if not Path(sam_file).is_file():
        raise BadInput(f"no SAM at {sam_file}: give the path of a .safetensors file of the pocket SAM")
    sam = build_pocket_sam()
    load_backbone(sam.image_encoder, backbone_state())
    try:
        found = sam.load_state_dict(load_file(sam_file), strict=False)
    except Exception as error:  # safetensors and torch raise their own kinds for a cut or foreign file
        raise BadInput(f"{sam_file} cannot be read: {str(error).splitlines()[0]}") from None
    if found.unexpected_keys or any(not k.startswith("image_encoder.backbone.") for k in found.missing_keys):
        raise BadInput(f"{sam_file} does not hold the pocket SAM of this version")
    return PocketImageOpener(Segmenter.pocket(sam))


class PocketSamOpener:
    """The pocket SAM and its own way to find proposals, for any other multimodal LLM."""

    def __init__(self, sam_file: Path):
        self.pocket = load_pocket_opener(sam_file)

    @property
    def segmenter(self) -> Segmenter:
        return self.pocket.segmenter

    def propose(self, image: np.ndarray, progress: Progress | None = None) -> tuple[Embedding, Proposals]:
        """See `pipeline.ImageOpener`."""
        return self.pocket.propose(image, progress)

    def open(self, image: np.ndarray, progress: Progress | None = None) -> SamOpenedImage:
        """See `pipeline.ImageOpener`."""
        return SamOpenedImage(*self.propose(image, progress), image)
