"""Finds every instance of what a noun phrase names: SAM 3, or a zero-shot detector in front of any SAM.

    concepts = load_concepts("facebook/sam3", segmenter)          # or "IDEA-Research/grounding-dino-base"
    found = concepts.find(opened, "umbrella")
    found.scores, found.presence                                  # of each instance; that there is any
    found.mask(0)                                                 # (H, W) bool

An image is encoded once, whatever is looked for in it, and what was found for a phrase is kept with the
opened image. SAM 3 (Carion et al. 2025, "SAM 3: Segment Anything with Concepts") says by a presence logit
whether the concept is in the image at all; detectors say it by their surest box.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from assistant.errors import BadInput, memory_advice
from assistant.sam.backends import Sam3Segmenter
from assistant.sam.checkpoints import quiet_transformers
from assistant.sam.image_opener import SamOpenedImage
from assistant.sam.mask_ops import Rle, decode_rle, encode_rle
from assistant.sam.segmenter import Segmenter

CLEAR_PRESENCE = 0.5  # from which a phrase is taken to be in the image, and no other is looked for
MIN_SCORE = 0.3  # of an instance, as transformers' SAM 3 keeps them
MAX_INSTANCES = 100  # of a phrase; those of the lowest score are left out
MAX_PHRASE_LENGTH = 100  # characters
DETECTION_MEMORY = "to look for a phrase: take a smaller --concepts, or --device cpu"
ENDED_PHRASES = (
    "grounding-dino",
    "mm-grounding-dino",
)  # model types that read phrases which end in a full stop


@dataclass
class Instances:
    """What was found for a phrase, surest first.

    Attributes:
        rles: The mask of each instance.
        boxes: (N, 4) float32, half-open xyxy in px of the image.
        scores: (N,) float32 in [0, 1].
        presence: In [0, 1], that any instance is in the image.
        size: (H, W) px of the image.
    """

    rles: list[Rle]
    boxes: np.ndarray
    scores: np.ndarray
    presence: float
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rles)

    @property
    def confidence(self) -> float:
        """In [0, 1], that any is there: the geometric mean of the presence and the highest score."""
        return float(np.sqrt(self.presence * self.scores.max(initial=0.0)))

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool: the mask of an instance."""
        return decode_rle(self.rles[index])

    def union(self, indices: list[int] | None = None) -> np.ndarray:
        """(H, W) bool: the union of some instances; None for all."""
        mask = np.zeros(self.size, bool)
        for index in range(len(self)) if indices is None else indices:
            mask |= self.mask(index)
        return mask


OpenedIn = TypeVar("OpenedIn", contravariant=True)


class ConceptSegmenter(Protocol[OpenedIn]):
    """Whatever finds instances by their name in images that are opened in its way.

    Attributes:
        passes: How often a phrase was looked for so far; what is kept with an opened image costs none.
    """

    passes: int

    def find(self, opened: OpenedIn, phrase: str) -> Instances:
        """Find all instances of what a phrase names.

        Args:
            opened: The image, opened with the segmenter that goes with this.
            phrase: A noun phrase of a few words, such as "red umbrella". Of one that is longer than the text
                encoder reads, the last words are looked for.

        Returns:
            The instances with a score of MIN_SCORE or more, at most MAX_INSTANCES.

        Raises:
            BadInput: The phrase is empty or too long, or memory does not suffice.
        """

    def networks(self) -> dict[str, nn.Module]:
        """Its own networks, by what they do."""


def longest_end(phrase: str) -> str:
    """The last words of a phrase, as many as can be looked for; what it is about stands at its end."""
    words = phrase.split()
    while words and len(" ".join(words)) > MAX_PHRASE_LENGTH:
        words.pop(0)
    return " ".join(words)


def look_for(
    concepts: ConceptSegmenter[OpenedIn], opened: OpenedIn, phrases: Iterable[str]
) -> tuple[Instances | None, list[str]]:
    """Look for several phrases that may name the same thing, until one is clearly there.

    Args:
        concepts: Finds them.
        opened: See `ConceptSegmenter.find`.
        phrases: The likeliest first.

    Returns:
        What was found for the phrase that is there most surely, None where nothing was found for any; and the
        phrases that were looked for.

    Raises:
        BadInput: See `ConceptSegmenter.find`.
    """
    best: Instances | None = None
    searched: list[str] = []
    for phrase in phrases:
        searched.append(phrase)
        instances = concepts.find(opened, phrase)
        if len(instances) and (best is None or instances.presence > best.presence):
            best = instances
        if best is not None and best.presence >= CLEAR_PRESENCE:
            break
    return best, searched


class KeptFinds(ABC):
    """Keeps with an opened image what was found in it; its subclasses look for phrases by `_find`."""

    def __init__(self) -> None:
        self.passes = 0

    @abstractmethod
    def _find(self, opened: SamOpenedImage, phrase: str) -> Instances:
        """Look for a phrase that fits."""

    @abstractmethod
    def _fits(self, phrase: str) -> bool:
        """Whether the text encoder has room for a phrase."""

    @memory_advice(DETECTION_MEMORY)
    def find(self, opened: SamOpenedImage, phrase: str) -> Instances:
        """See `ConceptSegmenter`."""
        phrase = " ".join(phrase.lower().split())
        if not phrase or len(phrase) > MAX_PHRASE_LENGTH:
            raise BadInput(f"a phrase to look for has 1 to {MAX_PHRASE_LENGTH} characters, not {len(phrase)}")
        kept: dict[str, Instances] = opened.cache.setdefault("concepts", {})
        if phrase not in kept:
            words = phrase.split()
            while words and not self._fits(" ".join(words)):
                words.pop(0)  # what a noun phrase is about stands at its end
            if words:
                self.passes += 1
                kept[phrase] = self._find(opened, " ".join(words))
            else:
                size = opened.embedding.size
                nothing = np.zeros((0, 4), np.float32)
                kept[phrase] = _instances(np.zeros((0, *size), bool), nothing, nothing[:, 0], 0.0, size)
        return kept[phrase]


class Sam3Concepts(KeptFinds):
    """The detector of SAM 3, which reads what the segmenter's backbone made of the image.

    Args:
        detector: A `Sam3Model` or `Sam3LiteTextModel`; its backbone may be missing.
        processor: Its `Sam3Processor`.
        segmenter: The SAM 3 that encodes the images.
    """

    def __init__(self, detector: Any, processor: Any, segmenter: Sam3Segmenter):
        super().__init__()
        self.detector = detector.to(segmenter.device).eval()
        self.processor = processor
        self.segmenter = segmenter

    def networks(self) -> dict[str, nn.Module]:
        """See `ConceptSegmenter`."""
        return {"concepts": self.detector}

    def _fits(self, phrase: str) -> bool:
        room = self.detector.config.text_config.max_position_embeddings
        return len(self.processor.tokenizer(phrase)["input_ids"]) <= room

    @torch.no_grad()
    def _find(self, opened: SamOpenedImage, phrase: str) -> Instances:
        text = self.processor(text=phrase, return_tensors="pt").to(self.segmenter.device)
        outputs = self.detector(
            vision_embeds=self._vision_embeds(opened.embedding.maps[0]),
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
        )
        size = opened.embedding.size
        found = self.processor.post_process_instance_segmentation(
            outputs, threshold=MIN_SCORE, target_sizes=[size]
        )[0]
        order = found["scores"].argsort(descending=True)[:MAX_INSTANCES]
        masks = found["masks"][order].bool().cpu().numpy()
        presence = float(outputs.presence_logits.float().sigmoid().max())
        return _instances(masks, found["boxes"][order], found["scores"][order], presence, size)

    def _vision_embeds(self, states: Tensor) -> Any:
        """What the detector's neck makes of the backbone's states (1, n, C), as the detector reads it."""
        from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

        side = round(states.shape[1] ** 0.5)
        maps, positions = self.detector.vision_encoder.neck(states.mT.unflatten(2, (side, side)))
        return Sam3VisionEncoderOutput(
            last_hidden_state=states, fpn_hidden_states=maps, fpn_position_encoding=positions
        )


class DetectorConcepts(KeptFinds):
    """A zero-shot detector of transformers, whose boxes a SAM answers.

    Args:
        pipeline: A "zero-shot-object-detection" pipeline (Grounding DINO, OWLv2 and others).
        segmenter: The SAM that encodes the images.
    """

    def __init__(self, pipeline: Any, segmenter: Segmenter):
        super().__init__()
        self.pipeline = pipeline
        self.segmenter = segmenter

    def networks(self) -> dict[str, nn.Module]:
        """See `ConceptSegmenter`."""
        return {"concepts": self.pipeline.model}

    def _label(self, phrase: str) -> str:
        return f"{phrase}." if self.pipeline.model.config.model_type in ENDED_PHRASES else phrase

    def _fits(self, phrase: str) -> bool:
        room = self.pipeline.model.config.text_config.max_position_embeddings
        return len(self.pipeline.tokenizer(self._label(phrase))["input_ids"]) <= room

    @torch.no_grad()
    def _find(self, opened: SamOpenedImage, phrase: str) -> Instances:
        label = self._label(phrase)
        rows = self.pipeline(Image.fromarray(opened.image), [label], threshold=MIN_SCORE)[:MAX_INSTANCES]
        height, width = size = opened.embedding.size
        corners = [[row["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")] for row in rows]
        boxes = np.array(corners, np.float32).reshape(-1, 4).clip(0, [width, height, width, height])
        scores = np.array([row["score"] for row in rows], np.float32)
        is_usable = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        boxes, scores = boxes[is_usable], scores[is_usable]
        presence = float(scores.max(initial=0.0))
        if not len(boxes):
            return _instances(np.zeros((0, *size), bool), boxes, scores, presence, size)
        logits, _ = self.segmenter.predict_many(opened.embedding, boxes=boxes, multimask=False)
        masks = self.segmenter.upsample(opened.embedding, logits[:, 0])
        return _instances(masks, boxes, scores, presence, size)


def _instances(
    masks: np.ndarray,
    boxes: Tensor | np.ndarray,
    scores: Tensor | np.ndarray,
    presence: float,
    size: tuple[int, int],
) -> Instances:
    """Masks (N, H, W) bool with their boxes and scores, without the empty ones."""
    has_pixels = masks.any(axis=(1, 2)) if len(masks) else np.zeros(0, bool)
    box_array, score_array = (
        np.asarray(values.detach().float().cpu() if isinstance(values, Tensor) else values, np.float32)[
            has_pixels
        ]
        for values in (boxes, scores)
    )
    rles = [encode_rle(mask) for mask in masks[has_pixels]]
    return Instances(rles, box_array, score_array, presence, size)


def load_concepts(folder_or_id: str | Path, segmenter: Segmenter) -> ConceptSegmenter[SamOpenedImage]:
    """Load a concept segmenter.

    Args:
        folder_or_id: A transformers folder or hub id of SAM 3 or of a zero-shot detector.
        segmenter: The SAM in whose company it works. For SAM 3 that is a `Sam3Segmenter` of the same weights,
            so that an image is encoded once.

    Returns:
        The concept segmenter, on the segmenter's device.

    Raises:
        BadInput: It is neither, incomplete, cannot be fetched, or does not go with the segmenter.
    """
    from transformers import AutoConfig

    where = str(folder_or_id)
    with _loading(where):
        kind = AutoConfig.from_pretrained(where).model_type
    if kind.startswith("sam3"):
        if not isinstance(segmenter, Sam3Segmenter):
            raise BadInput(f"{where} finds concepts in what SAM 3 encodes: give --sam {where} as well")
        with _loading(where):
            return Sam3Concepts(*_load_sam3_detector(where, kind, segmenter), segmenter)
    with _loading(where):
        return DetectorConcepts(_load_detector(where, segmenter.device), segmenter)


def _load_sam3_detector(where: str, kind: str, segmenter: Sam3Segmenter) -> tuple[Any, Any]:
    """The detector of SAM 3 without its backbone, for which the segmenter's stands, and its processor."""
    from transformers import AutoProcessor, Sam3LiteTextModel, Sam3Model

    model_class: Any = Sam3LiteTextModel if kind.startswith("sam3_lite_text") else Sam3Model
    detector, report = model_class.from_pretrained(where, output_loading_info=True)
    if report["missing_keys"]:
        raise BadInput(f"{where} lacks the detector of SAM 3: give a whole copy of it")
    own = detector.vision_encoder.backbone.state_dict()
    shared = segmenter.model.vision_encoder.backbone.state_dict()
    if own.keys() != shared.keys() or not all(torch.equal(own[key], shared[key].cpu()) for key in own):
        raise BadInput(f"{where} has another vision backbone than --sam: give the same weights for both")
    detector.vision_encoder.backbone = nn.Identity()
    return detector, AutoProcessor.from_pretrained(where)


def _load_detector(where: str, device: torch.device) -> Any:
    from transformers import pipeline

    return pipeline("zero-shot-object-detection", model=where, device=device)


@contextlib.contextmanager
def _loading(where: str) -> Iterator[None]:
    """Turn whatever the hub and transformers raise into one line."""
    try:
        with quiet_transformers():
            yield
    except BadInput:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise BadInput(
            f"cannot load {where} to find things by their name ({reason}): give SAM 3 or a zero-shot "
            "detector, as a folder, or as a hub id to which you have access"
        ) from None
