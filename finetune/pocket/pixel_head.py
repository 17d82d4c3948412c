"""Phase 2 of `finetune semantic`: the pixel head learns which cells a target has.

    train_pixel_head(settings, out, sources, opener, head, names)      # writes OUT/semantic.safetensors

It learns from questions about the images that the records stage held out, with the right names as phrases.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.images import open_image
from assistant.mllm.selector import Scores, Selector, select_proposals
from assistant.pocket.heads import Heads
from assistant.pocket.image_encoder import IMAGE_SIZE
from assistant.pocket.llm import PocketLLM
from assistant.pocket.opening import PocketImageOpener
from assistant.pocket.pixel_evidence import cell_evidence
from assistant.pocket.precision import fast_math
from assistant.pocket.proposals import CELL_SIZE, LOGITS_SIDE
from assistant.pocket.semantic import PixelHead, SemanticHead, SemanticSelector
from assistant.pocket.tiles import encode_tiles
from assistant.sam.mask_ops import Rle, decode_rle, encode_rle
from finetune.log import cosine_schedule
from finetune.pocket.encoder import train_encoders
from finetune.pocket.examples import Example, RecordData, every_tenth
from finetune.pocket.language import load_trainable_llm, marker_states
from finetune.pocket.selection import FIRST_HELD_OUT_EXAMPLE, collate, score
from finetune.pocket.settings import EncoderSettings, RecordSources, SemanticSettings
from finetune.pocket.sources import read_sources
from finetune.region_cache import iou_of_union

FOLDS = 5  # of the images, each scored by a pixel head that has not seen it
CELLS_PER_TARGET = 2000  # drawn in a step
TARGETS_PER_STEP = 16
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
WARM_UP_STEPS = 20
CROSS_ENTROPY_WEIGHT = 0.3  # that of soft IoU is 1
INPUT_SAMPLE_STEP = 50  # every so-many-th cell gives the mean and the scale of the inputs


@dataclass
class TargetExample:
    """A target that is present in a held-out image, on the grid of S x S cells.

    Attributes:
        image: The image's file.
        evidence: (S, S, EVIDENCE_DIM) float16.
        inside: (S, S) bool, the part that the image fills.
        truth: (S, S) bool, the target.
        masks: (N, S, S) bool, the proposals.
        rles: The N proposals.
        rle: The target.
        selector_iou: IoU of what the selector by itself selects.
    """

    image: Path
    evidence: Tensor
    inside: Tensor
    truth: Tensor
    masks: Tensor
    rles: list[Rle]
    rle: Rle
    selector_iou: float


def on_grid(rles: Sequence[Rle]) -> Tensor:
    """Masks of one image -> (N, LOGITS_SIDE, LOGITS_SIDE) bool, their values at the centre of each cell."""
    height, width = rles[0]["size"]
    scale = max(height, width) / IMAGE_SIZE
    ys, xs = (
        (np.arange(CELL_SIZE / 2, round(side / scale), CELL_SIZE) * scale).astype(int)
        for side in (height, width)
    )
    cells = np.zeros((len(rles), LOGITS_SIDE, LOGITS_SIDE), bool)
    for of_mask, rle in zip(cells, rles, strict=True):
        of_mask[: len(ys), : len(xs)] = decode_rle(rle)[np.ix_(ys, xs)]
    return torch.from_numpy(cells)


def image_cells(size: tuple[int, int]) -> Tensor:
    """The cells (LOGITS_SIDE, LOGITS_SIDE) bool of the square that an image of `size` (H, W) px fills."""
    return on_grid([encode_rle(np.ones(size, bool))])[0]


@dataclass
class TargetReader:
    """Makes the pixel head's examples from the questions of held-out images.

    Attributes:
        llm: What the records stage trained, with its region encoders.
        selector: What the records stage trained.
        opener: Opens images.
        semantic: The semantic head with any pixel head.
    """

    llm: PocketLLM
    selector: Selector
    opener: PocketImageOpener
    semantic: SemanticSelector

    def __post_init__(self) -> None:
        self._rows = self.semantic.category_rows(self.llm.phrase_rows)
        self._maps: dict[Path, Tensor] = {}

    @torch.no_grad()
    def read(self, held_out: RecordData, questions: int, states_file: Path) -> list[TargetExample]:
        """The present targets of so many examples whose names the semantic head knows."""
        numbers = range(FIRST_HELD_OUT_EXAMPLE, FIRST_HELD_OUT_EXAMPLE + questions)
        known = marker_states(self.llm, held_out, numbers, states_file, as_in_use=True)
        targets = []
        for k, number in enumerate(numbers):
            example = held_out.example(number, as_in_use=True)
            if not example.rles:
                continue
            rows = known.rows(k)
            scores = score(
                self.selector, collate(self.llm, [example]), known.states[rows], known.margins[rows]
            )
            targets += self._targets(example, scores)
        return targets

    def _targets(self, example: Example, scores: Scores) -> list[TargetExample]:
        assert example.image is not None
        masks = on_grid(example.rles)
        semantic_map = self._map(example.image)
        inside = image_cells(example.rles[0]["size"])
        targets = []
        for m, (phrase, rle) in enumerate(zip(example.phrases, example.target_rles, strict=True)):
            encoder_row = self.llm.row_of(phrase)
            if rle is None or encoder_row not in self._rows:
                continue
            row = self._rows[encoder_row]
            evidence = cell_evidence(scores, m, masks, semantic_map, row, self.semantic.head.rivals(row))
            selected = [example.rles[i] for i in select_proposals(scores, m)]
            targets.append(
                TargetExample(
                    example.image,
                    evidence.half(),
                    inside,
                    on_grid([rle])[0],
                    masks,
                    example.rles,
                    rle,
                    iou_of_union(selected, rle),
                )
            )
        return targets

    def _map(self, image: Path) -> Tensor:
        if image not in self._maps:
            with fast_math():
                embedding = self.opener.segmenter.encode(open_image(image))
                tiles = encode_tiles(self.opener.segmenter, embedding)
                self._maps[image] = self.semantic.semantic_map(embedding, tiles)
        return self._maps[image]


def read_targets(
    settings: SemanticSettings,
    out: Path,
    sources: RecordSources,
    opener: PocketImageOpener,
    semantic: SemanticSelector,
) -> list[TargetExample]:
    """Read the examples of the pixel head with what the records stage trained.

    Raises BadInput where `settings.records_folder` does not hold that.
    """
    folder = settings.records_folder
    if not (folder / "encoder.safetensors").exists() or not (folder / "lora").is_dir():
        raise BadInput(
            f"{folder} was not written by `finetune records`: it has no encoder.safetensors or no lora"
        )
    records, regions = read_sources(sources)
    llm = load_trainable_llm(rank=0, adapter=folder / "lora")
    llm.model.eval()
    encoded = train_encoders(EncoderSettings(), folder, llm, records, regions)  # are read, as they exist
    selector = Heads.load(folder / "heads.safetensors").selector
    held_out = RecordData(records, regions, encoded, settings.seed, set(every_tenth(list(regions))))
    reader = TargetReader(llm, selector, opener, semantic)
    return reader.read(held_out, settings.questions, out / "states.safetensors")


def fit_pixel_head(settings: SemanticSettings, targets: Sequence[TargetExample]) -> PixelHead:
    """Train a pixel head; returns it in evaluation mode."""
    torch.manual_seed(settings.seed)
    head = PixelHead()
    rng = np.random.default_rng(settings.seed)
    sample = torch.cat([t.evidence[t.inside][::INPUT_SAMPLE_STEP].float() for t in targets])
    head.mean.copy_(sample.mean(0))
    head.scale.copy_(sample.std(0) + 1e-3)
    cells_of = [t.inside.nonzero() for t in targets]
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(settings.pixel_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine_schedule(step, settings.pixel_steps, WARM_UP_STEPS)
        loss = torch.zeros(())
        for k in rng.integers(len(targets), size=TARGETS_PER_STEP):
            cells = cells_of[k][torch.from_numpy(rng.integers(len(cells_of[k]), size=CELLS_PER_TARGET))]
            loss = loss + _target_loss(head, targets[k], cells)
        optimizer.zero_grad()
        (loss / TARGETS_PER_STEP).backward()
        optimizer.step()
    return head.eval()


def _target_loss(head: PixelHead, target: TargetExample, cells: Tensor) -> Tensor:
    """Soft IoU and cross-entropy on some cells (K, 2) of a target."""
    ys, xs = cells.unbind(1)
    logits = head(target.evidence[ys, xs].float())
    truth = target.truth[ys, xs].float()
    p = logits.sigmoid()
    intersection = (p * truth).sum()
    soft_iou = intersection / ((p + truth - p * truth).sum() + 1e-3)
    return 1 - soft_iou + CROSS_ENTROPY_WEIGHT * F.binary_cross_entropy_with_logits(logits, truth)


def train_pixel_head(
    settings: SemanticSettings,
    out: Path,
    sources: RecordSources,
    opener: PocketImageOpener,
    head: SemanticHead,
    names: list[str],
) -> None:
    """Phase 2: write OUT/semantic.safetensors, and to OUT/aside.json what masks gain by it.

    The gain is measured in images that neither the semantic head nor the pixel head was trained on.

    Args:
        settings: Of the stage.
        out: Folder of the run.
        sources: The records and the region cache of the records stage.
        opener: Opens images.
        head: The trained semantic head.
        names: Its names, in its order.
    """
    semantic = SemanticSelector(head, PixelHead(), names)
    targets = read_targets(settings, out, sources, opener, semantic)
    after = cross_validate(settings, targets, semantic)
    before = np.array([target.selector_iou for target in targets])
    gain = after - before
    line = json.dumps(
        {
            "targets": len(targets),
            "pictures": len({target.image for target in targets}),
            "selector alone": round(before.mean(), 4),
            "with the map": round(after.mean(), 4),
            "gain": round(gain.mean(), 4),
            "standard error": round(gain.std() / len(gain) ** 0.5, 4),
        }
    )
    print(f"IoU of held-out targets: {line}", flush=True)
    with replace_whole(out / "aside.json") as path:
        path.write_text(line + "\n")
    semantic.pixel_head = fit_pixel_head(settings, targets)
    semantic.save(out / "semantic.safetensors")


def cross_validate(
    settings: SemanticSettings, targets: Sequence[TargetExample], semantic: SemanticSelector
) -> np.ndarray:
    """IoU (K,) of the masks of all targets, each by a pixel head that was not trained on its image."""
    images = sorted({target.image for target in targets})
    folds = min(FOLDS, len(images))
    fold_of = [images.index(target.image) % folds for target in targets]
    iou = np.zeros(len(targets))
    for fold in range(folds):
        others = [target for target, f in zip(targets, fold_of, strict=True) if f != fold]
        semantic.pixel_head = fit_pixel_head(
            settings, others or targets
        )  # with one image, there are no others
        for i, target in enumerate(targets):
            if fold_of[i] == fold:
                chosen = semantic.choose_by_evidence(target.evidence.float(), target.masks, target.inside)
                iou[i] = iou_of_union([target.rles[n] for n in chosen], target.rle)
    return iou
