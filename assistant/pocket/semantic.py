"""Where the taught names are in an image, and the selection of proposals that follows from it.

The selector judges proposals one by one, from what lies under each and around it. `SemanticHead` instead
gives every cell of the image a name, so that the parts of a bus are known to belong to the bus. `PixelHead`
weighs both for every cell, and a target's mask is the union of proposals that should overlap its cells best.

    semantic = SemanticSelector.load(pocket_file("semantic.safetensors"))
    semantic_map = semantic.semantic_map(embedding, detector_maps, tiles)       # once per image
    chosen = semantic.choose(scores, 0, masks, semantic_map, row, input_size)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.mllm.selector import Scores
from assistant.pocket.box_proposals import STRIDES
from assistant.pocket.detector import MAP_CHANNELS, Detections
from assistant.pocket.heads import tensors_under
from assistant.pocket.image_encoder import (
    GRID_SIDE,
    IMAGE_SIZE,
    SKIP8_CHANNELS,
    WIDTH,
    ConvBlock,
    deepest_stages,
    double,
)
from assistant.pocket.pixel_evidence import EVIDENCE_DIM, cell_evidence
from assistant.pocket.region_features import STRIDE16_CHANNELS, STRIDE32_CHANNELS
from assistant.pocket.tiles import Tile, on_image
from assistant.sam.segmenter import Embedding
from assistant.weights import read_weights

TILE_WEIGHT = 0.6  # of what a tile says of a cell beside what the whole image says
EVIDENCE_CELLS = 16  # of 4,096: what is smaller is seen by few people
MAP_SIDE = 2 * GRID_SIDE  # cells of 8 px along a side of the padded square
NECK_CHANNELS = WIDTH + 4 * SKIP8_CHANNELS  # of SAM's embedding, without its stride-4 map
INPUT_CHANNELS = {"16": STRIDE16_CHANNELS, "32": STRIDE32_CHANNELS, "neck": NECK_CHANNELS}
DETECTOR_INPUTS = tuple(f"detector{stride}" for stride in STRIDES)
MAX_UNION_PROPOSALS = 40  # in one mask
MIN_UNION_GAIN = 1e-4  # in expected IoU, below which a union is complete


class HeadInputs(NamedTuple):
    """What the semantic head reads of B images.

    Attributes:
        stride16: (B, STRIDE16_CHANNELS, 32, 32) float32, the frozen backbone's map.
        neck: (B, NECK_CHANNELS, 32, 32) float32, SAM's embedding without its stride-4 map.
        detector: The detector's maps at strides 8, 16 and 32, (B, MAP_CHANNELS, h, h) float32 each.
    """

    stride16: Tensor
    neck: Tensor
    detector: tuple[Tensor, ...]


class SemanticHead(nn.Module):
    """Gives every cell of an image a taught name, or none.

    It reads the frozen backbone's map at stride 16 and has deepest stages of its own, which were trained on
    from the backbone's. What the detector knows of COCO's categories joins them at each stride.

    Args:
        names: Number of taught names, C.
        groups: Number of sets of names that were taught together, each on other images. In those images,
            whatever has none of the set's names is background, the last row of the logits.
        width: Channels inside.
        detector: Whether it reads the detector's maps.

    Attributes:
        config: The arguments, with which the same head is built again.
        together: (groups, C + 1) bool, the names of each set; the background is in all of them.
    """

    together: Tensor

    def __init__(self, names: int, groups: int, width: int = 192, detector: bool = False):
        super().__init__()
        self.config = {"names": names, "groups": groups, "width": width, "detector": detector}
        for name, channels in INPUT_CHANNELS.items():
            self.register_buffer(f"mean{name}", torch.zeros(channels))
            self.register_buffer(f"scale{name}", torch.ones(channels))
        self.register_buffer("together", torch.ones(groups, names + 1, dtype=torch.bool))
        self.deep = deepest_stages()
        self.drop = nn.Dropout2d(0.2)
        self.lateral32 = nn.Conv2d(STRIDE32_CHANNELS, width, 1)
        self.context = nn.Linear(STRIDE32_CHANNELS, width)
        self.lateral16 = nn.Conv2d(STRIDE16_CHANNELS, width, 1)
        self.neck16 = nn.Conv2d(WIDTH, width, 1)
        self.top8 = nn.Conv2d(width, width // 2, 1)
        self.neck8 = nn.Conv2d(SKIP8_CHANNELS, width // 2, 1)
        self.blocks32 = ConvBlock(width, 5, 2)
        self.blocks16 = nn.Sequential(ConvBlock(width, 7, 2), ConvBlock(width, 7, 2))
        self.blocks8 = ConvBlock(width // 2, 5, 2)
        self.out = nn.Conv2d(width // 2, names + 1, 1)
        self.detector = nn.ModuleDict()
        if detector:
            for name, channels in zip(DETECTOR_INPUTS, (width // 2, width, width), strict=True):
                self.register_buffer(f"mean{name}", torch.zeros(MAP_CHANNELS))
                self.register_buffer(f"scale{name}", torch.ones(MAP_CHANNELS))
                # Zero at first: a head that did without them starts as it was.
                layer = nn.Conv2d(MAP_CHANNELS, channels, 1, bias=False)
                nn.init.zeros_(layer.weight)
                self.detector[name] = layer

    @staticmethod
    def inputs(maps: Sequence[Tensor], features: Tensor, detector_maps: Sequence[Tensor]) -> HeadInputs:
        """What the head reads of the `maps` and `features` of an `Embedding` and the detector's maps."""
        detector = tuple(x.float() for x in detector_maps)
        return HeadInputs(maps[2].float(), features[:, :NECK_CHANNELS].float(), detector)

    @torch.no_grad()
    def start_from(self, backbone: nn.Module, inputs: HeadInputs) -> None:
        """Take the deepest stages of a backbone, and the mean and scale of each map over some inputs."""
        self.deep = deepest_stages(backbone)
        own = inputs.stride16, self.deep(inputs.stride16), inputs.neck
        for name, x in zip(INPUT_CHANNELS, own, strict=True):
            self._set_scale(name, x)
        self.start_detector(inputs)

    @torch.no_grad()
    def start_detector(self, inputs: HeadInputs) -> None:
        """Take the mean and scale of the detector's maps over some inputs."""
        for name, x in zip(self.detector, inputs.detector, strict=False):
            self._set_scale(name, x)

    def _set_scale(self, name: str, x: Tensor) -> None:
        self.get_buffer(f"mean{name}").copy_(x.mean((0, 2, 3)))
        self.get_buffer(f"scale{name}").copy_(x.std((0, 2, 3)) + 1e-3)

    def _standardise(self, x: Tensor, name: str) -> Tensor:
        mean = self.get_buffer(f"mean{name}")[:, None, None]
        scale = self.get_buffer(f"scale{name}")[:, None, None]
        return (x - mean) / scale

    def train(self, mode: bool = True) -> "SemanticHead":
        """As every module's `train`, but the deepest stages keep ImageNet's batch statistics."""
        super().train(mode)
        self.deep.eval()
        return self

    def forward(self, inputs: HeadInputs) -> Tensor:
        """What `inputs` gives for B images -> logits (B, C + 1, MAP_SIDE, MAP_SIDE)."""
        maps = inputs.stride16, self.deep(inputs.stride16), inputs.neck
        s16, s32, neck = (self._standardise(x, name) for name, x in zip(INPUT_CHANNELS, maps, strict=True))
        x32 = self.lateral32(self.drop(s32)) + self.context(s32.mean((2, 3)))[:, :, None, None]
        x16 = self.lateral16(self.drop(s16)) + self.neck16(neck[:, :WIDTH])
        x8 = self.neck8(F.pixel_shuffle(neck[:, WIDTH:], 2))
        if self.detector:
            detected = (
                layer(self.drop(self._standardise(x, name)))
                for (name, layer), x in zip(self.detector.items(), inputs.detector, strict=True)
            )
            x8, x16, x32 = (x + more for x, more in zip((x8, x16, x32), detected, strict=True))
        x = self.blocks32(x32)
        x = self.blocks16(double(x) + x16)
        x = self.blocks8(double(self.top8(self.drop(x))) + x8)
        return self.out(x)

    def rivals(self, row: int) -> Tensor:
        """(C + 1,) bool: the names that compete for a cell with the name `row`, itself included.

        Those are the names taught together with it; other names may lie unnamed in the images that taught it.
        """
        return self.together[self.together[:, row]].any(0)


class PixelHead(nn.Sequential):
    """Evidence about a cell -> the logit that it belongs to the target.

    Args:
        width: Channels inside.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int = 32):
        super().__init__(
            nn.Linear(EVIDENCE_DIM, width),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 1),
        )
        self.register_buffer("mean", torch.zeros(EVIDENCE_DIM))
        self.register_buffer("scale", torch.ones(EVIDENCE_DIM))

    def forward(self, evidence: Tensor) -> Tensor:
        """(..., EVIDENCE_DIM) -> (...) logits."""
        return super().forward((evidence - self.mean) / self.scale)[..., 0]


def matching_rows(names: Sequence[str], phrase_rows: dict[str, int]) -> dict[int, int]:
    """Match names with those of the region encoder, whatever their case.

    Args:
        names: The names.
        phrase_rows: {phrase in lower case: row of the region encoder}.

    Returns:
        {row of the region encoder: index in `names`}, for the names that both know.
    """
    return {phrase_rows[name.lower()]: k for k, name in enumerate(names) if name.lower() in phrase_rows}


def _with_all_figures(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a pixel head; figures that it was not trained on are left out of account."""
    missing = EVIDENCE_DIM - len(state["mean"])
    state["0.weight"] = F.pad(state["0.weight"], (0, missing))
    state["mean"] = F.pad(state["mean"], (0, missing))
    state["scale"] = F.pad(state["scale"], (0, missing), value=1.0)
    return state


def best_union(probability: Tensor, masks: Tensor) -> list[int]:
    """The proposals whose union should overlap a target best, by expected intersection over expected union.

    Greedy: each choice raises it most, until none does.

    Args:
        probability: (S, S) float32 in [0, 1] that a cell belongs to the target, 0 outside the image.
        masks: (N, S, S) bool, N above 0.

    Returns:
        Indices of at least one proposal, in the order of choice.
    """
    p = probability.flatten()
    uncovered = masks.flatten(1).float()  # what each proposal would add to the union
    total = p.sum()
    chosen: list[int] = []
    best = torch.tensor(-1.0)
    intersection = torch.tensor(0.0)
    size = torch.tensor(0.0)
    while len(chosen) < min(MAX_UNION_PROPOSALS, len(masks)):
        intersections = intersection + uncovered @ p
        sizes = size + uncovered.sum(1)
        values = intersections / (sizes + total - intersections).clamp(min=1e-6)
        k = int(values.argmax())
        if values[k] <= best + MIN_UNION_GAIN:
            break
        chosen.append(k)
        best = values[k]
        intersection = intersections[k]
        size = sizes[k]
        uncovered = uncovered * (1 - uncovered[k])
    return chosen


class SemanticSelector:
    """Selects proposals by the semantic map and the selector's scores together.

    Args:
        head: Names the cells of an image.
        pixel_head: Decides which cells belong to a target.
        categories: The names that the head was taught, in its order.
    """

    def __init__(self, head: SemanticHead, pixel_head: PixelHead, categories: list[str]):
        self.head = head.eval()
        self.pixel_head = pixel_head.eval()
        self.categories = categories

    @classmethod
    def load(cls, file: Path) -> "SemanticSelector":
        """Load what `save` wrote. Raises BadInput where the file holds something else."""
        state, metadata = read_weights(file)
        try:
            config = json.loads(metadata["semantic"])
            categories = config.pop("categories")
            head, pixel_head = SemanticHead(**config), PixelHead()
            head.load_state_dict(tensors_under(state, "head."))
            pixel_head.load_state_dict(_with_all_figures(tensors_under(state, "pixels.")))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BadInput(
                f"{file} holds no semantic head of this version ({str(error).splitlines()[0]}); fetch it "
                "again"
            ) from None
        return cls(head, pixel_head, categories)

    def save(self, file: Path) -> None:
        """Write both heads, in half precision, to a safetensors file."""
        from safetensors.torch import save_file

        state = {f"head.{k}": v for k, v in self.head.state_dict().items()}
        state |= {f"pixels.{k}": v for k, v in self.pixel_head.state_dict().items()}
        state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
        metadata = {"semantic": json.dumps(self.head.config | {"categories": self.categories})}
        with replace_whole(file) as path:
            save_file(state, path, metadata)

    def category_rows(self, phrase_rows: dict[str, int]) -> dict[int, int]:
        """Match the names of the head with those of the region encoder.

        Args:
            phrase_rows: {phrase in lower case: row of the region encoder}.

        Returns:
            {row of the region encoder: row of the head}, for the names that both know.
        """
        return matching_rows(self.categories, phrase_rows)

    @torch.inference_mode()
    def semantic_map(
        self, embedding: Embedding, detector_maps: Sequence[Tensor], tiles: Sequence[Tile] = ()
    ) -> Tensor:
        """Name the cells of an image.

        With tiles, log-probabilities are averaged: on 71 photos of COCO and VOC that taught nothing, the IoU
        of a name's cells rises from .313 to .329, that of names that cover little from .087 to .117.

        Args:
            embedding: The pocket SAM's.
            detector_maps: The detector's, of the image.
            tiles: The image's tiles.

        Returns:
            (C + 1, MAP_SIDE, MAP_SIDE) float32 logits of the names.
        """
        total = self._log_names(embedding, detector_maps)
        weight = torch.ones(1, MAP_SIDE, MAP_SIDE)
        for tile in tiles:
            # Cells at the edge of a tile that it covers in part count in part, in both sums.
            log_names = self._log_names(tile.embedding, tile.detector_maps)
            total += TILE_WEIGHT * on_image(log_names, tile, embedding.size, elsewhere=0.0)
            weight += TILE_WEIGHT * on_image(
                torch.ones_like(log_names[:1]), tile, embedding.size, elsewhere=0.0
            )
        return total / weight

    def _log_names(self, embedding: Embedding, detector_maps: Sequence[Tensor]) -> Tensor:
        """(C + 1, MAP_SIDE, MAP_SIDE) float32 log-probabilities of the names, over the embedding's square."""
        inputs = self.head.inputs(embedding.maps, embedding.features, detector_maps)
        return self.head(inputs)[0].float().log_softmax(0)

    @torch.inference_mode()
    def evidence(self, semantic_map: Tensor) -> Tensor:
        """How surely some part of the image bears each name: (C,) float32 in [0, 1].

        It is the mean probability of the name over the EVIDENCE_CELLS cells that bear it most.
        """
        probabilities = semantic_map.softmax(0)[:-1].flatten(1)
        return probabilities.topk(EVIDENCE_CELLS, dim=1).values.mean(1)

    @torch.inference_mode()
    def choose(
        self,
        scores: Scores,
        target: int,
        masks: Tensor,
        semantic_map: Tensor,
        row: int,
        input_size: tuple[int, int],
        detected: Detections | None = None,
    ) -> list[int]:
        """Select the proposals of a target.

        Args:
            scores, target, masks, semantic_map, row, detected: See `pixel_evidence.cell_evidence`.
            input_size: (h, w) px of the part of the 512 square that the image fills.

        Returns:
            Indices of at least one proposal, best first.
        """
        rivals = self.head.rivals(row)
        evidence = cell_evidence(scores, target, masks, semantic_map, row, rivals, detected)
        side = masks.shape[1]
        inside = torch.zeros(side, side, dtype=torch.bool)
        height, width = (-(-length * side // IMAGE_SIZE) for length in input_size)
        inside[:height, :width] = True
        return self.choose_by_evidence(evidence, masks, inside)

    @torch.inference_mode()
    def choose_by_evidence(self, evidence: Tensor, masks: Tensor, inside: Tensor) -> list[int]:
        """As `choose`, from (S, S, EVIDENCE_DIM) evidence and the part (S, S) bool that the image fills."""
        return best_union(self.pixel_head(evidence).sigmoid() * inside, masks)
