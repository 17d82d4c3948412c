"""Few-shot segmentation: an image with a mask, and perhaps a label, is the prompt ("segment like this").

    matcher = Matcher.load(weights, segmenter)                       # or pocket_matcher(segmenter)
    query = matcher.features_of(image, embedding)                    # once per image; or matcher.open(image)
    references = open_references(matcher, [other_image], [mask])     # one or several
    mask, score = matcher.segment(query, references, label="mug")    # label None: by the images alone

This is VLP-SAM (Sakurai et al. 2025, arXiv 2502.00719), and without a label VRP-SAM (Sun et al. 2024, arXiv
2402.17726): frozen features of a vision-language model tell where the query resembles the reference (pseudo
mask) and its label (attention map); a small encoder turns both, with the reference's prototype, into prompt
embeddings for a frozen SAM. What differs from the paper, and why:

- An image, its mask and SAM's encoding of it go through one transform, that of SAM's own square. The paper's
  code crops the one and squashes the other.
- Several references act as one longer memory: the prototype is the mean over all of them, the pseudo mask the
  best match over all, and attention reads all.
- Beside the best match with the inside of the reference, the encoder reads how much more the query resembles
  that inside than the reference's surroundings, which are often those of the next instance as well.
- With `coarse`, the map that the encoder draws also enters SAM as a mask prompt. The pocket SAM was trained
  to follow drawn prompts and responds little to embedded tokens alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.few_shot.episode import Episode, ImageFeatures, MatchInputs, Reference, cell_coverage
from assistant.few_shot.features import FeatureExtractor, load_feature_extractor
from assistant.few_shot.match_inputs import match_inputs
from assistant.few_shot.prompt_encoder import PromptEncoder, decode_prompts
from assistant.few_shot.similarity import MapChannel
from assistant.files import replace_whole
from assistant.images import open_image
from assistant.mask_images import open_mask
from assistant.sam.backends import PocketSegmenter
from assistant.sam.segmenter import Embedding, Segmenter
from assistant.weights import pocket_file, read_weights

WEIGHT_FILE = "reference.safetensors"
# The names of the two encoders in a weight file.
WITH_LABEL = "text"
WITHOUT_LABEL = "plain"
# Prototype matching takes the cells whose level is at least this; set on training images.
PROTOTYPE_LEVEL = 0.6
PROTOTYPE_GAIN = 10.0  # turns a level above or below that into a mask logit


class Matcher:
    """Frozen features, a frozen SAM and what is trained between them.

    Args:
        segmenter: The SAM.
        extractor: The frozen features.
        encoders: {"text": reads a label, "plain": does not}; they are moved to the SAM's device. Without them
            only `match_prototypes` can be used.
    """

    def __init__(self, segmenter: Segmenter, extractor: FeatureExtractor, encoders: dict[str, PromptEncoder]):
        self.segmenter = segmenter
        self.extractor = extractor
        self.encoders = {name: encoder.to(segmenter.device) for name, encoder in encoders.items()}

    @classmethod
    def load(cls, file: Path, segmenter: Segmenter) -> Matcher:
        """Load what `python -m finetune reference` wrote.

        Args:
            file: `reference.safetensors`, or the folder that holds it.
            segmenter: The SAM that it was trained for.

        Raises:
            BadInput: The file is missing or unreadable, or was trained for another SAM.
        """
        file = Path(file) / WEIGHT_FILE if Path(file).is_dir() else Path(file)
        if not file.is_file():
            raise BadInput(
                f"there is no {file}: train it with python -m finetune reference, or give the folder that "
                "it wrote"
            )
        state, metadata = read_weights(file)
        try:
            settings = json.loads(metadata["encoders"])
            description = json.loads(metadata["features"])
        except (KeyError, ValueError) as error:
            raise BadInput(f"cannot read {file}: {error}; fetch it again") from None
        extractor = load_feature_extractor(description, segmenter)
        encoders = {}
        for name, values in settings.items():
            if values["prompt"] != segmenter.prompt_width:
                raise BadInput(
                    f"{file} was trained for a SAM with prompts of {values['prompt']} channels, this one "
                    f"has {segmenter.prompt_width}: train it again with python -m finetune reference"
                )
            encoder = PromptEncoder(**values).eval().requires_grad_(False)
            encoder.load_state_dict(_with_prefix(state, f"{name}."))
            encoders[name] = encoder
        return cls(segmenter, extractor, encoders)

    def save(self, file: Path) -> None:
        """Write the encoders, and what they were trained on, as `load` reads them."""
        from safetensors.torch import save_file

        state = {
            f"{name}.{key}": value.contiguous()
            for name, encoder in self.encoders.items()
            for key, value in encoder.state_dict().items()
        }
        metadata = {
            "encoders": json.dumps({name: encoder.settings for name, encoder in self.encoders.items()}),
            "features": json.dumps(self.extractor.description),
        }
        with replace_whole(file) as path:
            save_file(state, path, metadata)

    def open(self, image: np.ndarray) -> ImageFeatures:
        """Encode an image (H, W, 3) uint8 RGB and extract its features."""
        return self.features_of(image, self.extractor.encode(self.segmenter, image))

    @torch.no_grad()
    def features_of(self, image: np.ndarray, embedding: Embedding) -> ImageFeatures:
        """Extract the features of an image that is encoded already.

        Args:
            image: (H, W, 3) uint8 RGB.
            embedding: SAM's encoding of it, as `extractor.encode` returns it.

        Returns:
            The features.
        """
        patches, joint = self.extractor(image, embedding)
        size = embedding.size
        coverage = cell_coverage(self.segmenter, size, np.ones(size, bool), _grid(patches))
        return ImageFeatures(patches, joint, coverage, embedding)

    def reference(self, image: np.ndarray, mask: np.ndarray) -> Reference:
        """Open a reference.

        Args:
            image: (H, W, 3) uint8 RGB.
            mask: (H, W), nonzero = inside; see `check_mask`.

        Returns:
            The reference.

        Raises:
            BadInput: The mask cannot be used.
        """
        return self.reference_of(self.open(image), check_mask(mask, image.shape[:2]))

    def reference_of(self, features: ImageFeatures, mask: np.ndarray) -> Reference:
        """A reference from an image that is open already and its mask (H, W) bool."""
        size = (mask.shape[0], mask.shape[1])
        return Reference(features, cell_coverage(self.segmenter, size, mask, _grid(features.patches)))

    def inputs(
        self, query: ImageFeatures, references: list[Reference], label: str | None = None
    ) -> MatchInputs:
        """Compare a query with references and a label.

        Args:
            query: The image to segment.
            references: One or more.
            label: The category's name; None to go by the images alone.

        Returns:
            What the encoders read. `MatchInputs.without_labels` of it is what they read without the label.
        """
        label = " ".join(label.split()) if label else None
        encoder = self.encoders[WITH_LABEL if label else WITHOUT_LABEL]
        return match_inputs([Episode(query, references, label)], encoder, self.extractor)

    def logits(self, query: ImageFeatures, inputs: MatchInputs) -> tuple[Tensor, Tensor]:
        """Let the encoders prompt SAM: the encoder that reads labels if `inputs` has one, else the other.

        Args:
            query: The image to segment.
            inputs: What `self.inputs` returned for it.

        Returns:
            Low-resolution logits (1, l, l) and SAM's predicted IoU (1,), both float.
        """
        encoder = self.encoders[WITHOUT_LABEL if inputs.label_vectors is None else WITH_LABEL]
        return decode_prompts(self.segmenter, [query], encoder(inputs), encoder.coarse_logits(inputs))

    @torch.no_grad()
    def predict(self, query: ImageFeatures, inputs: MatchInputs) -> tuple[np.ndarray, float]:
        """Segment a query whose inputs are computed already.

        Args:
            query: The image to segment.
            inputs: What `self.inputs` returned for it.

        Returns:
            The mask, (H, W) bool, and its score in [0, 1]: the mean probability inside the mask, 0 if that is
            empty.
        """
        return self._mask_and_score(query, self.logits(query, inputs)[0])

    def segment(
        self, query: ImageFeatures, references: list[Reference], label: str | None = None
    ) -> tuple[np.ndarray, float]:
        """Segment what resembles the references; arguments as `inputs`, result as `predict`."""
        return self.predict(query, self.inputs(query, references, label))

    @torch.no_grad()
    def match_prototypes(self, query: ImageFeatures, inputs: MatchInputs) -> tuple[np.ndarray, float]:
        """Segment by prototype matching alone, which needs no training; arguments and result as `predict`."""
        level = (inputs.maps[:, MapChannel.LEVEL] + inputs.maps[:, MapChannel.SAM_LEVEL]) / 2
        sides = (self.segmenter.low_res_side, self.segmenter.low_res_side)
        above = F.interpolate((level - PROTOTYPE_LEVEL)[None], sides, mode="bilinear", align_corners=False)
        return self._mask_and_score(query, above[0] * PROTOTYPE_GAIN)

    def _mask_and_score(self, query: ImageFeatures, logits: Tensor) -> tuple[np.ndarray, float]:
        """Low-resolution logits (1, l, l) -> mask (H, W) bool and its score in [0, 1]."""
        mask = self.segmenter.upsample(query.embedding, logits)[0]
        inside = logits[0] > 0
        if not mask.any() or not inside.any():
            return mask, 0.0
        return mask, float(logits[0].sigmoid()[inside].mean())


def _with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, named without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _grid(patches: Tensor) -> tuple[int, int]:
    """Number of rows and columns of patches (C, h, w)."""
    return int(patches.shape[-2]), int(patches.shape[-1])


def pocket_matcher(segmenter: Segmenter) -> Matcher:
    """The matcher that comes with the pocket preset. Raises BadInput for any SAM but the pocket preset's."""
    if not isinstance(segmenter, PocketSegmenter):
        raise BadInput(
            "this SAM has no weights for references yet: train them with python -m finetune reference --sam "
            "... --clip ..., then assistant.matcher = Matcher.load(folder, assistant.segmenter)"
        )
    return Matcher.load(pocket_file(WEIGHT_FILE), segmenter)


def open_references(matcher: Matcher, images: Any, masks: Any) -> list[Reference]:
    """Open references as `Scene.segment_like` takes them. All masks are checked before any image is encoded.

    Args:
        matcher: The matcher that will use them.
        images: A path, PIL image or (H, W, 3) uint8 RGB, or a list of these.
        masks: A mask as `open_mask` takes it, or a list of as many as there are images.

    Returns:
        The references, in order.

    Raises:
        BadInput: Their numbers differ, or an image or a mask cannot be used.
    """
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    masks = list(masks) if isinstance(masks, (list, tuple)) else [masks]
    if len(images) != len(masks) or not images:
        raise BadInput(f"{len(images)} reference images with {len(masks)} masks: give one mask per image")
    opened = [open_image(image) for image in images]
    checked = [
        check_mask(open_mask(mask), image.shape[:2]) for image, mask in zip(opened, masks, strict=True)
    ]
    return [matcher.reference(image, mask) for image, mask in zip(opened, checked, strict=True)]


def check_mask(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Check the mask of a reference.

    Args:
        mask: (H, W) of bool or integers, nonzero = inside; or (H, W, 3 or 4), see `mask_images.open_mask`.
        size: (H, W) px of its image.

    Returns:
        (H, W) bool.

    Raises:
        BadInput: It is no mask, has another size than its image, is empty, or covers the whole image.
    """
    mask = np.asarray(mask)
    is_colour = mask.ndim == 3 and mask.shape[2] in (3, 4)
    if not (mask.ndim == 2 or is_colour) or mask.dtype.kind not in "bui":
        raise BadInput(
            f"a reference mask is (H, W) of bool or whole numbers, not {mask.shape} of {mask.dtype}"
        )
    mask = open_mask(mask)
    if mask.shape != tuple(size):
        raise BadInput(
            f"the reference mask is {mask.shape[1]}x{mask.shape[0]}, its image {size[1]}x{size[0]}: "
            "give a mask of the image's size"
        )
    if not mask.any():
        raise BadInput("the reference mask is empty: paint what you mean")
    if mask.all():
        raise BadInput("the reference mask covers the whole image: paint only what you mean")
    return mask
