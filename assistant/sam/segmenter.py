"""SAM behind one interface: encode a picture once, prompt it as often as wanted.

    segmenter = Segmenter.official("sam_vit_b_01ec64.pth")       # or .transformers("facebook/sam2.1-hiera-tiny"),
    embedding = segmenter.encode(image)                          # .pocket(sam), .from_sam(sam)
    masks, scores, low = segmenter.predict(embedding, points=[[320, 200]], labels=[1])
    masks, scores, low = segmenter.predict(embedding, box=[10, 20, 200, 300], mask=low[0], multimask=False)

Coordinates are (x, y) in pixels of the picture, boxes xyxy, arrays (H, W). Three kinds of weights differ in their
encoders, in how a picture fills the model's square and in where their decoder's parts are; the rest is shared.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from assistant.errors import BadInput
from assistant.sam.fast_decoder import Decoded, FastDecoder


@dataclass
class Embedding:
    """One encoded picture.

    features: (1, C, h, w) float, the model's embedding of its padded (SAM 2: stretched) square.
    size: (H, W) of the picture, px. input_size: (h, w) of the part of the square that the picture fills, px.
    shared: what the decoder computes once per picture. maps: the backbone's own maps, finest first
    (pocket: strides 4, 8, 16, 32; otherwise empty), for those who pool features.
    """

    features: Tensor
    size: tuple[int, int]
    input_size: tuple[int, int]
    shared: object = None
    maps: tuple = ()


class Segmenter:
    """side: px of the model's square. low_res_side: side of the low-resolution logits. threshold: of mask logits.
    stretched: the picture is stretched over the square, not padded. prompts_per_batch: prompts decoded together.
    dtype (of the constructors): of the decoder's image side; float32 equals the original, bfloat16 is faster."""

    threshold = 0.0
    stretched = False

    def __init__(self, model, side: int, low_res_side: int, device="cpu"):
        self.model = model.to(device).eval()
        self.device, self.side, self.low_res_side = torch.device(device), side, low_res_side
        self.prompts_per_batch = (
            8 if self.device.type == "cpu" else 64
        )  # on CPU more prompts only fall out of the cache

    @staticmethod
    def from_sam(sam, device="cpu", dtype=torch.float32) -> "Segmenter":
        """Any built `segment_anything.modeling.Sam`, the pocket one included."""
        return (
            PocketSegmenter(sam, device)
            if hasattr(sam.mask_decoder, "draw")
            else OfficialSegmenter(sam, device, dtype)
        )

    @staticmethod
    def pocket(sam, device="cpu") -> "Segmenter":
        """The pocket SAM, as `assistant.pocket.sam.build_pocket_sam` makes it."""
        return PocketSegmenter(sam, device)

    @staticmethod
    def official(path, model_type: str | None = None, device="cpu", dtype=torch.float32) -> "Segmenter":
        """An official SAM checkpoint (.pth). model_type: vit_b | vit_l | vit_h, None = told by the tensors' shapes.
        Raises BadInput when the file is missing, cut short, not a SAM, or of another type than asked for."""
        from assistant.sam.checkpoints import load_official_sam

        return OfficialSegmenter(load_official_sam(path, model_type), device, dtype)

    @staticmethod
    def transformers(folder_or_id, device="cpu", dtype=torch.float32) -> "Segmenter":
        """A transformers folder or hub id of SAM (`SamModel`) or SAM 2 (`Sam2Model`). BadInput when it is neither,
        incomplete, or cannot be fetched."""
        from assistant.sam.checkpoints import load_transformers_sam

        return TransformersSegmenter(*load_transformers_sam(folder_or_id), device, dtype)

    # What the kinds define -----------------------------------------------------------------------------------

    def _encode(self, image: np.ndarray) -> tuple[Tensor, tuple, object]:
        """Image -> features, backbone maps, what the decoder shares."""
        raise NotImplementedError

    def _share(self, features: Tensor):
        """What the decoder computes once per picture, as far as `features` (1, C, h, w) alone tell it."""
        raise NotImplementedError

    def _decode(self, embedding, points, labels, boxes, masks):
        """Prompts in px of the square: points (P, N, 2), labels (P, N), boxes (P, 4), masks (P, 1, l, l), each or
        None -> Decoded."""
        raise NotImplementedError

    def _dense(self, masks: Tensor | None) -> Tensor | None:
        """Mask prompts (P, l, l) or None -> what changes the image (P, C, h, w), None if nothing does."""
        raise NotImplementedError

    def _decode_embedded(self, embedding, sparse: Tensor, dense: Tensor | None):
        """Embedded prompts (P, T, C) and what changes the image -> Decoded."""
        raise NotImplementedError

    def draw(self, embedding: Embedding, decoded, rows: Tensor, masks: slice = slice(None)) -> Tensor:
        """Low-resolution logits (R, M, l, l) float of the prompts `rows` (R,) int64 and the mask tokens `masks`."""
        raise NotImplementedError

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The part of the square that a picture of `size` (H, W) fills: its longest side is the square's."""
        if self.stretched:
            return self.side, self.side
        scale = self.side / max(size)
        return tuple(max(1, int(s * scale + 0.5)) for s in size)

    # What they share -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, image: np.ndarray) -> Embedding:
        """image: (H, W, 3) uint8 RGB of any size."""
        if not (
            isinstance(image, np.ndarray)
            and image.dtype == np.uint8
            and image.ndim == 3
            and image.shape[2] == 3
            and image.size
        ):
            raise BadInput("a picture must be an array of height x width x 3 bytes (uint8, RGB)")
        features, maps, shared = self._encode(image)
        size = image.shape[:2]
        return Embedding(features, size, self.input_size(size), shared, maps)

    def restore(self, features: Tensor, size: tuple[int, int]) -> Embedding:
        """An embedding from its `features` (1, C, h, w) alone, kept from an earlier `encode` of a picture (H, W).
        BadInput for SAM 2, whose decoder also reads finer maps."""
        if self.stretched:
            raise BadInput("SAM 2 keeps more than its embedding: encode the picture again")
        return Embedding(features, tuple(size), self.input_size(size), self._share(features))

    @torch.no_grad()
    def decode(self, embedding: Embedding, points=None, labels=None, boxes=None, masks=None):
        """Many prompts of one kind at once, without drawing: points (P, N, 2) with labels (P, N) in {0, 1},
        and / or boxes (P, 4), in px of the picture, masks (P, l, l) low-resolution logits. -> Decoded, whose `iou` is
        (P, 4): token 0 answers boxes and several clicks, 1 to 3 are the readings of an ambiguous prompt."""
        scale = torch.tensor(embedding.input_size[::-1], dtype=torch.float64) / torch.tensor(
            embedding.size[::-1]
        )
        place = lambda x: (
            (torch.as_tensor(np.asarray(x), dtype=torch.float64) * scale).float().to(self.device)
        )
        if points is not None:
            points, labels = place(points), torch.as_tensor(np.asarray(labels), device=self.device).int()
        if boxes is not None:
            boxes = place(np.asarray(boxes).reshape(-1, 2, 2)).flatten(1)
        if masks is not None:
            masks = torch.as_tensor(masks, dtype=torch.float32, device=self.device)[:, None]
        return self._decode(embedding, points, labels, boxes, masks)

    @torch.no_grad()
    def predict_many(
        self, embedding: Embedding, points=None, labels=None, boxes=None, masks=None, multimask=True
    ):
        """As `decode`, drawn: -> low-resolution logits (P, M, l, l) float, predicted IoU (P, M); M = 3, or 1 unless
        `multimask`. Prompts are decoded `prompts_per_batch` at a time; at SAM's size each result takes .25 MB."""
        count = len(next(x for x in (points, boxes, masks) if x is not None))
        cut = lambda x, i: None if x is None else x[i : i + self.prompts_per_batch]
        out = []
        for i in range(0, count, self.prompts_per_batch):
            decoded = self.decode(embedding, *(cut(x, i) for x in (points, labels, boxes, masks)))
            out.append(self._answers(embedding, decoded, multimask))
        return tuple(torch.cat(x) for x in zip(*out))

    def prompted(
        self, embedding: Embedding, sparse: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Answers to prompts that are embedded already: sparse (P, T, `prompt_width`) float, masks (P, l, l) float
        low-resolution logits -> low-resolution logits (P, l, l) of the single answer, predicted IoU (P,).

        Gradients reach both; a mask prompt goes in as SAM embeds it, none as its "no mask"."""
        decoded = self._decode_embedded(embedding, sparse, self._dense(masks))
        rows = torch.arange(len(sparse), device=self.device)
        return self.draw(embedding, decoded, rows, slice(0, 1))[:, 0], decoded.iou[:, 0].float()

    @property
    def prompt_width(self) -> int:
        """Channels of an embedded prompt."""
        return self.model.prompt_encoder.no_mask_embed.weight.shape[1]

    def _answers(self, embedding, decoded, multimask):
        masks = slice(1, None) if multimask else slice(0, 1)
        rows = torch.arange(len(decoded.iou), device=self.device)
        return self.draw(embedding, decoded, rows, masks), decoded.iou[:, masks].float()

    def predict(self, embedding: Embedding, points=None, labels=None, box=None, mask=None, multimask=True):
        """The masks of one prompt.

        points: (N, 2) xy px; labels: (N,) 1 = inside, 0 = outside (None: all inside); box: (4,) xyxy px; mask: a
        (H, W) bool mask, or low-resolution logits (l, l) of an earlier answer. multimask: three readings of an
        ambiguous prompt instead of one answer. Returns masks (M, H, W) bool, predicted IoU (M,) float32,
        low-resolution logits (M, l, l) float32. Raises BadInput for a prompt that is empty or outside the picture.
        """
        points, labels, box, mask = self._check(embedding, points, labels, box, mask)
        batch = lambda x: None if x is None else x[None]
        low, scores = self.predict_many(
            embedding, batch(points), batch(labels), batch(box), batch(mask), multimask
        )
        return self.upsample(embedding, low[0]), scores[0].cpu().numpy(), low[0].cpu().numpy()

    def _check(self, embedding, points, labels, box, mask):
        height, width = embedding.size
        if points is None and box is None and mask is None:
            raise BadInput("nothing to segment: give points, a box or a mask")
        if points is None and labels is not None:
            raise BadInput("labels were given without points")
        if points is not None:
            points = _numbers(points, "points")
            if points.ndim != 2 or points.shape[1] != 2 or not len(points):
                raise BadInput(f"points must be a list of (x, y) pairs, not of shape {points.shape}")
            labels = np.ones(len(points), int) if labels is None else _numbers(labels, "labels").reshape(-1)
            if len(labels) != len(points) or not np.isin(labels, (0, 1)).all():
                raise BadInput(f"{len(points)} points need as many labels, each 1 (inside) or 0 (outside)")
            if (points < 0).any() or (points > (width, height)).any():
                raise BadInput(f"a point lies outside the picture of {width} x {height} px")
        if box is not None:
            box = _numbers(box, "the box")
            if box.shape != (4,):
                raise BadInput("a box must be four numbers: left, top, right, bottom")
            box = np.clip(box, 0, (width, height, width, height))
            if box[0] >= box[2] or box[1] >= box[3]:
                raise BadInput(f"the box is empty within the picture of {width} x {height} px")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.ndim == 3 and len(mask) == 1:
                mask = mask[0]
            if mask.dtype == bool and mask.shape == (height, width):
                mask = self.low_res_logits(embedding, mask)
            elif mask.dtype == bool or mask.shape != (self.low_res_side, self.low_res_side):
                raise BadInput(
                    f"a mask must be {height} x {width} bool, or {self.low_res_side} x {self.low_res_side} logits"
                )
        return points, labels, box, mask

    def low_res_logits(self, embedding: Embedding, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W) bool as the low-resolution logits (l, l) float32 that a mask prompt wants: the covered share
        of each cell, as a logit bounded at +-6.9 (share .001 and .999)."""
        inside = [max(1, round(s * self.low_res_side / self.side)) for s in embedding.input_size]
        share = F.adaptive_avg_pool2d(torch.as_tensor(mask, dtype=torch.float32)[None, None], inside)[0, 0]
        square = torch.full((self.low_res_side, self.low_res_side), -6.907)
        square[: inside[0], : inside[1]] = share.clamp(0.001, 0.999).logit()
        return square.numpy()

    def upsample(self, embedding: Embedding, low: Tensor) -> np.ndarray:
        """Low-resolution logits (M, l, l) -> masks (M, H, W) bool, the way the original does it. One at a time, so
        that 12 megapixels take 48 MB beside the masks."""
        masks = np.empty((len(low), *embedding.size), bool)
        resize = lambda x, size: F.interpolate(x, size, mode="bilinear", align_corners=False)
        height, width = embedding.input_size
        for i, logits in enumerate(low[:, None, None]):
            if not self.stretched:
                logits = resize(logits, (self.side, self.side))[..., :height, :width]
            masks[i] = (resize(logits, embedding.size)[0, 0] > self.threshold).cpu().numpy()
        return masks

    def resizing(self, embedding: Embedding) -> tuple[Tensor, Tensor]:
        """What `upsample` does as two matrices: logits (H, W) = rows (H, l) @ low (l, l) @ columns (W, l).T."""
        resize = lambda x, n: F.interpolate(x[:, None], n, mode="linear", align_corners=False)[:, 0]
        eye = torch.eye(self.low_res_side, device=self.device)
        square = lambda used: eye if self.stretched else resize(eye, self.side)[:, :used]
        return tuple(
            resize(square(used), full).T.contiguous()
            for used, full in zip(embedding.input_size, embedding.size)
        )


class OfficialSegmenter(Segmenter):
    """A `segment_anything.modeling.Sam`."""

    def __init__(self, sam, device="cpu", dtype=torch.float32):
        super().__init__(sam, sam.image_encoder.img_size, sam.prompt_encoder.mask_input_size[0], device)
        self.decoder = self._decoder(dtype)

    def _decoder(self, dtype):
        prompts = self.model.prompt_encoder
        return FastDecoder(
            self.model.mask_decoder, prompts.get_dense_pe(), prompts.no_mask_embed.weight[0], dtype
        )

    def _square(self, image):
        from PIL import Image

        height, width = self.input_size(image.shape[:2])
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        return self.model.preprocess(torch.as_tensor(resized, device=self.device).permute(2, 0, 1)[None])

    def _encode(self, image):
        features = self.model.image_encoder(self._square(image))
        return features, (), self._share(features)

    def _share(self, features):
        return self.decoder.share(features)

    def _embed(self, points, labels, boxes, masks):
        """-> sparse (P, T, C), dense (P, C, h, w) of mask prompts or None."""
        points = None if points is None else (points, labels)
        sparse, dense = self.model.prompt_encoder(points=points, boxes=boxes, masks=masks)
        return sparse, None if masks is None else dense

    def _decode(self, embedding, points, labels, boxes, masks):
        return self._decode_embedded(embedding, *self._embed(points, labels, boxes, masks))

    def _dense(self, masks):
        return None if masks is None else self._embed(None, None, None, masks[:, None])[1]

    def _decode_embedded(self, embedding, sparse, dense):
        if dense is None:
            return self.decoder.decode(embedding.shared, sparse)
        # Each mask prompt changes the image itself: nothing is shared between them.
        own = [self.decoder.share(embedding.features, x) for x in dense.split(1)]
        parts = [self.decoder.decode(shared, x) for shared, x in zip(own, sparse.split(1))]
        return Decoded(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Decoded)))

    def draw(self, embedding, decoded, rows, masks=slice(None)):
        return self.decoder.draw(embedding.shared, decoded, rows, masks)


class PocketSegmenter(OfficialSegmenter):
    """The pocket SAM, whose decoder is split into `decode` and `draw` already."""

    def _decoder(self, dtype):
        return self.model.mask_decoder

    def _encode(self, image):
        encoder = self.model.image_encoder
        maps = tuple(encoder.backbone(self._square(image).contiguous(memory_format=torch.channels_last)))
        features = encoder.neck(*maps)
        return features, maps, self._share(features)

    def _share(self, features):
        return self.model.prompt_encoder.get_dense_pe()

    def _embed(self, points, labels, boxes, masks):
        points = None if points is None else (points, labels)
        return self.model.prompt_encoder(points=points, boxes=boxes, masks=masks)

    def _dense(self, masks):
        return self._embed(None, None, None, None if masks is None else masks[:, None])[1]

    def _decode_embedded(self, embedding, sparse, dense):
        return self.decoder.decode(embedding.features, embedding.shared, sparse, dense)

    def draw(self, embedding, decoded, rows, masks=slice(None)):
        return self.decoder.draw(type(decoded)(*(x[rows] for x in decoded)), embedding.features, masks)


class TransformersSegmenter(OfficialSegmenter):
    """`SamModel` or `Sam2Model` of transformers, with its image processor."""

    def __init__(self, model, processor, device="cpu", dtype=torch.float32):
        prompts = model.config.prompt_encoder_config
        Segmenter.__init__(
            self, model, prompts.image_size, 4 * (prompts.image_size // prompts.patch_size), device
        )
        self.processor, self.stretched = processor, hasattr(model.mask_decoder, "obj_score_token")
        self.decoder = FastDecoder(
            model.mask_decoder,
            model.get_image_wide_positional_embeddings(),
            model.prompt_encoder.no_mask_embed.weight[0],
            dtype,
        )

    def _encode(self, image):
        pixels = self.processor(images=image, input_data_format="channels_last", return_tensors="pt")[
            "pixel_values"
        ]
        features = self.model.get_image_embeddings(pixels.to(self.device))
        if not self.stretched:
            return features, (), self.decoder.share(features)
        *fine, features = features
        return features, (), self.decoder.share(features, fine=fine)

    def _embed(self, points, labels, boxes, masks):
        if points is None and boxes is None and self.stretched:  # SAM 2 is used to an empty point here
            points = torch.zeros(len(masks), 1, 2, device=self.device)
            labels = torch.full((len(masks), 1), -1, dtype=torch.int32, device=self.device)
        batch = lambda x: None if x is None else x[None]
        sparse, dense = self.model.prompt_encoder(batch(points), batch(labels), batch(boxes), masks)
        if sparse is None:
            sparse = torch.zeros(1, len(masks), 0, self.decoder.no_mask.shape[0], device=self.device)
        return sparse[0], None if masks is None else dense

    def _answers(self, embedding, decoded, multimask):
        """SAM 2's single answer, when it is not stable, gives way to the best of the three readings."""
        settings = self.model.mask_decoder
        if multimask or not getattr(settings, "dynamic_multimask_via_stability", False):
            return super()._answers(embedding, decoded, multimask)
        low = self.draw(embedding, decoded, torch.arange(len(decoded.iou), device=self.device))
        delta = settings.dynamic_multimask_stability_delta
        area = lambda offset: (low[:, 0] > offset).sum((1, 2))
        stable = area(delta) >= settings.dynamic_multimask_stability_thresh * area(-delta)
        chosen = torch.where(stable, 0, decoded.iou[:, 1:].argmax(1) + 1)[:, None]
        return low.take_along_dim(chosen[..., None, None], 1), decoded.iou.take_along_dim(chosen, 1).float()


def _numbers(values, what: str) -> np.ndarray:
    try:
        values = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadInput(f"{what} must be numbers") from None
    if not np.isfinite(values).all():
        raise BadInput(f"{what} must be finite numbers")
    return values
