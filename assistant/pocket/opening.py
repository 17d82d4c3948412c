"""Opens an image for the pocket preset: SAM's encoding, the proposals, and the features of each one's region.

opener = load_pocket_opener(pocket_file("sam.safetensors"))
opened = opener.open(image)              # opened.embedding, opened.proposals, opened.features
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from assistant.errors import BadInput
from assistant.pocket.box_proposals import BoxHead, load_box_head
from assistant.pocket.detector import DETECTOR, Detections, Detector, load_detector, no_detections
from assistant.pocket.image_encoder import fold_batch_norms, resize_longest_side
from assistant.pocket.imagenet_head import ImageNetHead, load_imagenet_head
from assistant.pocket.imagenet_names import IMAGENET_CLASSES
from assistant.pocket.precision import fast_math
from assistant.pocket.proposals import (
    CELL_SIZE,
    MAX_PROPOSALS,
    SMALL_SIDE,
    WHOLE_IMAGE,
    CandidateMasks,
    find_candidates,
    low_res_boxes,
)
from assistant.pocket.region_features import FEATURE_DIM, RegionFeatures, compute_region_features
from assistant.pocket.sam import build_pocket_sam, load_backbone
from assistant.pocket.tiles import Tile, detections_on_image, encode_tiles
from assistant.pocket.wheels import backbone_state
from assistant.sam.backends import PocketSegmenter
from assistant.sam.image_opener import Progress, SamOpenedImage
from assistant.sam.mask_ops import Rle, encode_patch_rle
from assistant.sam.mask_resizing import DrawnMask, Resizer
from assistant.sam.proposals import Proposals
from assistant.sam.segmenter import Embedding, Segmenter
from assistant.weights import pocket_file, sha256_of

BOXES = "boxes.safetensors"  # weights of the box head


class _EncodedImage(NamedTuple):
    """What the networks make of an image before anything is proposed."""

    embedding: Embedding
    detector_maps: tuple[Tensor, ...]
    detections: Detections  # in the image as a whole
    tiles: list[Tile]


@dataclass
class AttendedImage:
    """What attention needs of an image: without embedding and logits, no question can be answered from it.

    Attributes:
        rles: The masks of the N regions.
        size: (H, W) px of the image.
        features: (N, FEATURE_DIM) float32.
    """

    rles: list[Rle]
    size: tuple[int, int]
    features: Tensor


@dataclass
class PocketOpenedImage:
    """An opened image: all that answering needs.

    Attributes:
        embedding: SAM's encoding.
        proposals: The N proposals, best first.
        features: (N, FEATURE_DIM) float32, of the region under each proposal.
        classes: (N, 1000) float32 logits of ImageNet's classes for each region.
        detections: What the detector finds in the image and on its tiles.
        detector_maps: What it sees in the image.
        tiles: Parts of the image that were encoded by themselves; none once the map is computed.
        semantic_map: See `SemanticSelector.semantic_map`; computed when a question first needs it.
    """

    embedding: Embedding
    proposals: Proposals
    features: Tensor
    classes: Tensor = field(default_factory=lambda: torch.zeros(0, IMAGENET_CLASSES))
    detections: Detections = field(default_factory=no_detections)
    detector_maps: tuple[Tensor, ...] = ()
    tiles: list[Tile] = field(default_factory=list)
    semantic_map: Tensor | None = None

    @property
    def rles(self) -> list[Rle]:
        """The masks of the proposals."""
        return self.proposals.rles

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) px of the image."""
        return self.proposals.size

    @property
    def regions(self) -> AttendedImage:
        """What attention needs, without the embedding."""
        return AttendedImage(self.rles, self.size, self.features)


def as_proposals(
    candidates: CandidateMasks, segmenter: Segmenter, embedding: Embedding, tiles: Sequence[Tile] = ()
) -> Proposals:
    """Draw candidates as masks of the whole image, one at a time.

    Args:
        candidates: Masks at low resolution, none of them empty there.
        segmenter: The SAM that made `embedding`.
        embedding: The image's encoding.
        tiles: Its tiles, on which some of the candidates were found.

    Returns:
        The candidates that cover a pixel of the image, in their order. There is no click behind a candidate;
        its point is the centre of its box.
    """
    resizers: dict[int, Resizer] = {}
    indices: list[int] = []
    rles: list[Rle] = []
    boxes: list[tuple[int, int, int, int]] = []
    areas: list[int] = []
    for i, number in enumerate(candidates.tile_of.tolist()):
        tile = None if number == WHOLE_IMAGE else tiles[number]
        if number not in resizers:
            resizers[number] = Resizer(*segmenter.resizing(tile.embedding if tile else embedding))
        drawn = _draw_in_its_box(candidates.own_logits[i].float().numpy(), resizers[number])
        if drawn is None:
            continue
        left, top = tile.window[:2] if tile else (0, 0)
        x0, y0, x1, y1 = drawn.box
        box = (x0 + left, y0 + top, x1 + left, y1 + top)
        rles.append(encode_patch_rle(drawn.mask, (box[1], box[0]), embedding.size))
        boxes.append(box)
        areas.append(int(drawn.mask.sum()))
        indices.append(i)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Proposals(
        rles,
        corners,
        candidates.predicted_iou.float().numpy()[indices],
        candidates.stability.float().numpy()[indices],
        np.array(areas, np.int64),
        corners.reshape(-1, 2, 2).mean(1),
        candidates.logits.float().numpy()[indices],
        embedding.size,
    )


def _draw_in_its_box(logits: np.ndarray, resizer: Resizer) -> DrawnMask | None:
    """Draw low-resolution logits (128, 128); None where they cover no pixel of the image."""
    ys = np.flatnonzero((logits > 0).any(1))
    xs = np.flatnonzero((logits > 0).any(0))
    # A cell of margin: bilinear resizing lets a pixel depend on its neighbouring cells.
    left, top = max(0, xs[0] - 1), max(0, ys[0] - 1)
    right, bottom = xs[-1] + 2, ys[-1] + 2
    patch = np.ascontiguousarray(logits[top : bottom + 1, left : right + 1])
    return resizer.draw(patch, (top, left), resizer.touched_pixels(np.array([left, top, right, bottom])))


class PocketImageOpener:
    """Opens images for the pocket preset, in use and in its training.

    Args:
        segmenter: The pocket SAM.
        imagenet: Classifies regions.
        box_head: Predicts where things are.
        detector: Knows COCO's categories.
        max_proposals: Number of proposals at most.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        imagenet: ImageNetHead,
        box_head: BoxHead,
        detector: Detector,
        max_proposals: int = MAX_PROPOSALS,
    ):
        self.segmenter = segmenter
        self.imagenet = imagenet
        self.box_head = box_head
        self.detector = detector
        self.max_proposals = max_proposals

    def propose(self, image: np.ndarray, progress: Progress | None = None) -> tuple[Embedding, Proposals]:
        """Encode an image and find its proposals; see `pipeline.ImageOpener`."""
        encoded = self._encode(image, progress)
        return encoded.embedding, self._propose(image, encoded, progress)

    def _encode(self, image: np.ndarray, progress: Progress | None) -> _EncodedImage:
        if progress:
            progress("encoding", None)
        with fast_math():
            embedding = self.segmenter.encode(image)
            embedding.features = embedding.features.float()  # prompts by hand run without `fast_math`
            maps = self.detector.maps_of(image)
            detections = self.detector.detect(maps, *embedding.input_size)
            tiles = encode_tiles(self.segmenter, self.detector, embedding)
        return _EncodedImage(embedding, maps, detections, tiles)

    def _propose(self, image: np.ndarray, encoded: _EncodedImage, progress: Progress | None) -> Proposals:
        if progress:
            progress("proposing", None)
        with fast_math():
            candidates = find_candidates(
                self.segmenter,
                self.box_head,
                encoded.embedding,
                encoded.detections,
                encoded.tiles,
                resize_longest_side(image),
                self.max_proposals,
            )
        return as_proposals(candidates, self.segmenter, encoded.embedding, encoded.tiles)

    def open(self, image: np.ndarray, progress: Progress | None = None) -> PocketOpenedImage:
        """Open an image; see `pipeline.ImageOpener`."""
        encoded = self._encode(image, progress)
        proposals = self._propose(image, encoded, progress)
        if progress:
            progress("recognising", proposals)
        embedding, tiles = encoded.embedding, encoded.tiles
        regions = self.regions(image, embedding, torch.from_numpy(proposals.low_res_logits), self.imagenet)
        detections = detections_on_image(encoded.detections, tiles, embedding.size, SMALL_SIDE)
        return PocketOpenedImage(embedding, proposals, *regions, detections, encoded.detector_maps, tiles)

    def features(self, image: np.ndarray, embedding: Embedding, low_res_logits: Tensor) -> Tensor:
        """The features of regions of an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            embedding: Its encoding.
            low_res_logits: (N, 128, 128) float32, positive inside a region; no region is empty.

        Returns:
            (N, FEATURE_DIM) float32.
        """
        return self.regions(image, embedding, low_res_logits).features

    def regions(
        self,
        image: np.ndarray,
        embedding: Embedding,
        low_res_logits: Tensor,
        imagenet: ImageNetHead | None = None,
    ) -> RegionFeatures:
        """As `features`, and with `imagenet` the classes of the regions."""
        masks = low_res_logits > 0
        if not len(masks):
            return RegionFeatures(torch.zeros(0, FEATURE_DIM), torch.zeros(0, IMAGENET_CLASSES))
        with fast_math():
            features, classes = compute_region_features(
                self.segmenter.model.image_encoder,
                resize_longest_side(image),
                embedding.maps,
                masks.float(),
                low_res_boxes(masks),
                masks.sum((1, 2)) * CELL_SIZE**2,
                imagenet,
            )
        return RegionFeatures(features.float(), classes)


class PocketSamOpener:
    """Opens images for any other multimodal LLM, with the pocket SAM and its everything mode.

    Args:
        sam_file: See `load_pocket_opener`.
    """

    def __init__(self, sam_file: Path):
        self.opener = load_pocket_opener(sam_file)

    @property
    def segmenter(self) -> Segmenter:
        """The pocket SAM."""
        return self.opener.segmenter

    def propose(self, image: np.ndarray, progress: Progress | None = None) -> tuple[Embedding, Proposals]:
        """Encode an image and find its proposals; see `pipeline.ImageOpener`."""
        return self.opener.propose(image, progress)

    def open(self, image: np.ndarray, progress: Progress | None = None) -> SamOpenedImage:
        """Open an image; see `pipeline.ImageOpener`."""
        return SamOpenedImage(*self.propose(image, progress), image)


def region_key(sam_file: Path) -> str:
    """Names the regions that an opener with these weights of the pocket SAM makes, for caches."""
    parts = [sam_file, pocket_file(BOXES), pocket_file(DETECTOR)]
    return " ".join(["pocket", *map(sha256_of, parts)])


def load_pocket_opener(sam_file: Path) -> PocketImageOpener:
    """Load the opener of the pocket preset.

    Args:
        sam_file: A safetensors file of the pocket SAM, such as `pocket_file("sam.safetensors")`.

    Raises:
        BadInput: There is no such file, or it holds something else.
    """
    from safetensors.torch import load_file

    if not Path(sam_file).is_file():
        raise BadInput(f"no SAM at {sam_file}: give the path of a .safetensors file of the pocket SAM")
    sam = build_pocket_sam()
    backbone = backbone_state()
    load_backbone(sam.image_encoder, backbone)
    try:
        keys = sam.load_state_dict(load_file(sam_file), strict=False)
    except Exception as error:  # of safetensors or torch, for a truncated or foreign file
        raise BadInput(f"{sam_file} cannot be read: {str(error).splitlines()[0]}") from None
    if keys.unexpected_keys or any(not k.startswith("image_encoder.backbone.") for k in keys.missing_keys):
        raise BadInput(f"{sam_file} does not hold the pocket SAM of this version")
    fold_batch_norms(sam.image_encoder.backbone)
    box_head = load_box_head(pocket_file(BOXES))
    detector = load_detector(pocket_file(DETECTOR))
    return PocketImageOpener(PocketSegmenter(sam), load_imagenet_head(backbone), box_head, detector)
