"""The makes of SAM behind `Segmenter`: segment-anything's, transformers' and the pocket SAM.

segmenter = OfficialSegmenter.from_checkpoint("sam_vit_h_4b8939.pth", device="cuda")
segmenter = TransformersSegmenter.from_pretrained("facebook/sam-vit-base")      # or SAM 2, SAM 3, ...
segmenter = PocketSegmenter(build_pocket_sam())                                 # see `assistant.pocket.sam`
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from assistant.sam.checkpoints import (
    is_hq,
    is_sam3,
    is_stretched,
    load_official_sam,
    load_transformers_sam,
)
from assistant.sam.fast_decoder import Decoded, FastDecoder, SharedImage
from assistant.sam.hq_decoder import HqDecoder
from assistant.sam.segmenter import Embedding, Segmenter


class FastDecodingSegmenter(Segmenter):
    """A SAM whose mask decoder is run by `FastDecoder`. Its subclasses set `decoder`."""

    decoder: FastDecoder

    def _share(self, features: Tensor) -> SharedImage:
        return self.decoder.share(features)

    def _embed(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Embed prompts, see `_decode` -> tokens (P, T, C), and (P, C, h, w) of mask prompts or None."""
        raise NotImplementedError

    def _decode(
        self,
        embedding: Embedding,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> Decoded:
        return self._decode_embedded(embedding, *self._embed(points, labels, boxes, masks))

    def _embed_masks(self, masks: Tensor | None) -> Tensor | None:
        return None if masks is None else self._embed(None, None, None, masks[:, None])[1]

    def _decode_embedded(self, embedding: Embedding, sparse: Tensor, dense: Tensor | None) -> Decoded:
        if dense is None:
            return self.decoder.decode(embedding.shared, sparse)
        # Each mask prompt changes the image itself: the prompts share nothing.
        parts = [
            self.decoder.decode(self.decoder.share(embedding.features, prompt_dense), prompt_sparse)
            for prompt_dense, prompt_sparse in zip(dense.split(1), sparse.split(1), strict=True)
        ]
        return Decoded(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Decoded)})

    def draw(self, embedding: Embedding, decoded: Any, rows: Tensor, masks: slice = slice(None)) -> Tensor:
        """See `Segmenter.draw`."""
        return self.decoder.draw(embedding.shared, decoded, rows, masks)


class OfficialSegmenter(FastDecodingSegmenter):
    """SAM of segment-anything.

    Args:
        sam: A `segment_anything.modeling.Sam`.
        device: As torch names it.
        dtype: Of the decoder's image side; float32 equals the original, bfloat16 is faster.
    """

    def __init__(self, sam: Any, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32):
        prompts = sam.prompt_encoder
        super().__init__(sam, sam.image_encoder.img_size, prompts.mask_input_size[0], device)
        no_mask = prompts.no_mask_embed.weight[0]
        self.decoder = FastDecoder(sam.mask_decoder, prompts.get_dense_pe(), no_mask, dtype)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        model_type: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> OfficialSegmenter:
        """Load an official checkpoint.

        Args:
            path: A .pth file.
            model_type: "vit_b", "vit_l" or "vit_h", which the file must be; None for whatever it is.
            device: As torch names it.
            dtype: Of the decoder's image side.

        Returns:
            The segmenter.

        Raises:
            BadInput: The file is missing, damaged, no SAM, or of another model type.
        """
        return cls(load_official_sam(path, model_type), device, dtype)

    def _encode(self, image: np.ndarray) -> tuple[Tensor, tuple[Tensor, ...], SharedImage]:
        features = self.model.image_encoder(square_input(self, image))
        return features, (), self._share(features)

    def _embed(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        clicks = None if points is None else (points, labels)
        sparse, dense = self.model.prompt_encoder(points=clicks, boxes=boxes, masks=masks)
        return sparse, None if masks is None else dense


class TransformersSegmenter(FastDecodingSegmenter):
    """SAM, SAM 2 or EdgeTAM of transformers.

    Args:
        model: A `SamModel`, `Sam2Model` or `EdgeTamModel`.
        processor: Its image processor.
        device: As torch names it.
        dtype: Of the decoder's image side; float32 equals the original, bfloat16 is faster.
    """

    decoder_class: type[FastDecoder] = FastDecoder

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        prompts = model.config.prompt_encoder_config
        super().__init__(model, prompts.image_size, 4 * (prompts.image_size // prompts.patch_size), device)
        self.processor = processor
        self.stretched = is_stretched(model)
        self.restorable = not (self.stretched or is_hq(model))
        positions = model.get_image_wide_positional_embeddings()
        no_mask = model.prompt_encoder.no_mask_embed.weight[0]
        self.decoder = self.decoder_class(model.mask_decoder, positions, no_mask, dtype)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TransformersSegmenter:
        """Load a transformers folder or a hub id.

        Args:
            folder_or_id: Of a SAM, SAM-HQ, SAM 2, SAM 3 or EdgeTAM, see `load_transformers_sam`.
            device: As torch names it.
            dtype: Of the decoder's image side.

        Returns:
            The segmenter: a `Sam3Segmenter` of SAM 3, a `SamHqSegmenter` of SAM-HQ.

        Raises:
            BadInput: It is none of these, incomplete, or cannot be fetched.
        """
        model, processor = load_transformers_sam(folder_or_id)
        make = Sam3Segmenter if is_sam3(model) else SamHqSegmenter if is_hq(model) else cls
        return make(model, processor, device, dtype)

    def _pixels(self, image: np.ndarray) -> Tensor:
        """The square input (1, 3, side, side) of an image (H, W, 3) uint8."""
        inputs = self.processor(images=image, input_data_format="channels_last", return_tensors="pt")
        return inputs["pixel_values"].to(self.device)

    def _encode(self, image: np.ndarray) -> tuple[Tensor, tuple[Tensor, ...], SharedImage]:
        features = self.model.get_image_embeddings(self._pixels(image))
        if not self.stretched:
            return features, (), self._share(features)
        *finer_features, features = features
        return features, (), self.decoder.share(features, finer_features=finer_features)

    def _embed(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if points is None and boxes is None and masks is not None and self.stretched:
            # SAM 2 was trained to read an empty point beside a mask prompt alone.
            points = torch.zeros(len(masks), 1, 2, device=self.device)
            labels = torch.full((len(masks), 1), -1, dtype=torch.int32, device=self.device)
        # The prompts are the point batch of one image, so they get an axis for the image.
        point_batch, label_batch, box_batch = (
            None if x is None else x[None] for x in (points, labels, boxes)
        )
        sparse, dense = self.model.prompt_encoder(point_batch, label_batch, box_batch, masks)
        if sparse is None:  # mask prompts alone
            assert masks is not None
            sparse = torch.zeros(1, len(masks), 0, self.decoder.no_mask.shape[0], device=self.device)
        return sparse[0], None if masks is None else dense

    def _answers(self, embedding: Embedding, decoded: Any, multimask: bool) -> tuple[Tensor, Tensor]:
        """As SAM 2 does, replace a single mask that is not stable by the best of the multimask output."""
        settings = self.model.mask_decoder
        if multimask or not (self.stretched and settings.dynamic_multimask_via_stability):
            return super()._answers(embedding, decoded, multimask)
        rows = torch.arange(len(decoded.iou), device=self.device)
        logits = self.draw(embedding, decoded, rows)
        delta = settings.dynamic_multimask_stability_delta
        area_above = (logits[:, 0] > delta).sum((1, 2))
        area_below = (logits[:, 0] > -delta).sum((1, 2))
        stable = area_above >= settings.dynamic_multimask_stability_thresh * area_below
        chosen = torch.where(stable, 0, decoded.iou[:, 1:].argmax(1) + 1)[:, None]
        return logits.take_along_dim(chosen[..., None, None], 1), decoded.iou.take_along_dim(
            chosen, 1
        ).float()


class Sam3Segmenter(TransformersSegmenter):
    """SAM 3's part for clicks, boxes and masks (`Sam3TrackerModel`).

    The `maps` of its embeddings hold one tensor (1, n, C), what the vision backbone makes of the image, which
    SAM 3's detector reads, too (`assistant.sam.concepts`).
    """

    def _encode(self, image: np.ndarray) -> tuple[Tensor, tuple[Tensor, ...], SharedImage]:
        states: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            states.append(output.last_hidden_state)

        hook = self.model.vision_encoder.backbone.register_forward_hook(keep)
        try:
            features, _, shared = super()._encode(image)
        finally:
            hook.remove()
        return features, (states[0],), shared


class SamHqSegmenter(TransformersSegmenter):
    """SAM-HQ of transformers (`SamHQModel`): SAM with sharper outlines.

    As there, the three masks of a prompt come with the best one first, which the multimask output of other
    SAMs does not.
    """

    decoder_class = HqDecoder
    decoder: HqDecoder

    def _encode(self, image: np.ndarray) -> tuple[Tensor, tuple[Tensor, ...], SharedImage]:
        features, states = self.model.get_image_embeddings(self._pixels(image))
        shared = self._share(features)
        shared.fine_map = self.decoder.fine_map(features, states[0])
        return features, (), shared

    def _answers(self, embedding: Embedding, decoded: Any, multimask: bool) -> tuple[Tensor, Tensor]:
        logits, scores = super()._answers(embedding, decoded, multimask)
        order = scores.argsort(dim=1, descending=True)
        return logits.take_along_dim(order[..., None, None], 1), scores.take_along_dim(order, 1)


class PocketSegmenter(Segmenter):
    """The pocket SAM, whose own mask decoder decodes and draws separately.

    Args:
        sam: See `assistant.pocket.sam.build_pocket_sam`.
        device: As torch names it.
    """

    close_up_below = 64.0

    def __init__(self, sam: Any, device: str | torch.device = "cpu"):
        super().__init__(sam, sam.image_encoder.img_size, sam.prompt_encoder.mask_input_size[0], device)

    @property
    def feature_width(self) -> int:
        """See `Segmenter`: the encoder packs its finer maps behind the channels that prompts have."""
        return self.model.image_encoder.embedding_channels

    def _encode(self, image: np.ndarray) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        encoder = self.model.image_encoder
        pixels = square_input(self, image).contiguous(memory_format=torch.channels_last)
        maps = tuple(encoder.backbone(pixels))
        features = encoder.neck(*maps)
        return features, maps, self._share(features)

    def _share(self, features: Tensor) -> Tensor:
        return self.model.prompt_encoder.get_dense_pe()

    def _embed(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        clicks = None if points is None else (points, labels)
        return self.model.prompt_encoder(points=clicks, boxes=boxes, masks=masks)

    def _decode(
        self,
        embedding: Embedding,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> Any:
        return self._decode_embedded(embedding, *self._embed(points, labels, boxes, masks))

    def _embed_masks(self, masks: Tensor | None) -> Tensor:
        return self._embed(None, None, None, None if masks is None else masks[:, None])[1]

    def _decode_embedded(self, embedding: Embedding, sparse: Tensor, dense: Tensor | None) -> Any:
        return self.model.mask_decoder.decode(embedding.features, embedding.shared, sparse, dense)

    def draw(self, embedding: Embedding, decoded: Any, rows: Tensor, masks: slice = slice(None)) -> Tensor:
        """See `Segmenter.draw`."""
        selected = type(decoded)(*(part[rows] for part in decoded))
        return self.model.mask_decoder.draw(selected, embedding.features, masks)


def square_input(segmenter: Segmenter, image: np.ndarray) -> Tensor:
    """Resize, normalise and pad an image (H, W, 3) uint8, as segment-anything does, to (1, 3, side, side)."""
    height, width = segmenter.input_size((image.shape[0], image.shape[1]))
    resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.as_tensor(resized, device=segmenter.device).permute(2, 0, 1)[None]
    return segmenter.model.preprocess(pixels)
