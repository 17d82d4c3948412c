"""Everything mode of segment-anything and of transformers, for `python -m eval speed` and for tests.

    rles = segment_anything_masks(sam, image, settings)
    rles = transformers_masks(sam, image, features, settings)     # the same weights

`settings` are those of `assistant.sam.proposals.everything`, whose names are segment-anything's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant.sam.mask_ops import Rle

if TYPE_CHECKING:
    from torch import Tensor

RENAMED_TENSORS = (  # segment_anything's names -> transformers', for the prompt encoder and the mask decoder
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("point_embeddings", "point_embed"),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("norm_final_attn", "layer_norm_final_attn"),
    (".norm", ".layer_norm"),
    ("output_upscaling.0", "upscale_conv1"),
    ("output_upscaling.1", "upscale_layer_norm"),
    ("output_upscaling.3", "upscale_conv2"),
)
MLP_LAYER = re.compile(r"(.*(?:iou_prediction_head|mlps\.\d+))\.layers\.(\d+)\.(\w+)")


def segment_anything_masks(sam: Any, image: np.ndarray, settings: dict[str, Any]) -> list[Rle]:
    """The masks of segment-anything's SamAutomaticMaskGenerator.

    Args:
        sam: A `segment_anything.modeling.Sam`.
        image: (H, W, 3) uint8 RGB.
        settings: Keyword arguments of the generator.

    Returns:
        COCO RLEs.
    """
    from segment_anything import SamAutomaticMaskGenerator

    try:
        masks = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **settings).generate(image)
    except IndexError:  # what the generator raises where a batch has no mask
        return []
    return [mask["segmentation"] for mask in masks]


def transformers_masks(sam: Any, image: np.ndarray, features: Tensor, settings: dict[str, Any]) -> list[Rle]:
    """The masks of transformers' mask-generation pipeline, for the same weights.

    Args:
        sam: A `segment_anything.modeling.Sam`.
        image: (H, W, 3) uint8 RGB.
        features: (1, C, h, w) float, the image's embedding, which takes the place of the encoder.
        settings: Settings of `assistant.sam.proposals.everything`.

    Returns:
        COCO RLEs.
    """
    from PIL import Image
    from pycocotools import mask as coco_mask
    from transformers import pipeline

    model, processor = to_transformers(sam)
    model.get_image_embeddings = lambda pixels, **_: features
    generator: Any = pipeline(
        "mask-generation", model=model, image_processor=processor, device=features.device
    )
    output = generator(
        Image.fromarray(image),
        points_per_batch=64,
        points_per_crop=settings["points_per_side"],
        output_rle_mask=True,
        pred_iou_thresh=settings.get("pred_iou_thresh", 0.88),
        stability_score_thresh=settings.get("stability_score_thresh", 0.95),
        stability_score_offset=settings.get("stability_score_offset", 1.0),
    )
    return [coco_mask.frPyObjects(rle, *rle["size"]) for rle in output["rle_mask"]]


def to_transformers(sam: Any) -> tuple[Any, Any]:
    """A `SamModel` with the weights of another SAM, without its image encoder.

    Args:
        sam: A `segment_anything.modeling.Sam`.

    Returns:
        The model, whose image encoder is a stub, and its image processor.

    Raises:
        RuntimeError: transformers names its tensors differently.
    """
    from transformers import SamModel

    from assistant.sam.checkpoints import default_processor

    decoder = sam.mask_decoder
    last_iou_layer = len(decoder.iou_prediction_head.layers) - 1
    last_mask_layer = len(decoder.output_hypernetworks_mlps[0].layers) - 1
    model, state = SamModel(_transformers_config(sam)), {}
    for key, value in sam.state_dict().items():
        if key.startswith("image_encoder"):
            continue
        for old, new in RENAMED_TENSORS:
            key = key.replace(old, new)
        if layer := MLP_LAYER.fullmatch(key):
            stem, number, kind = layer[1], int(layer[2]), layer[3]
            last = last_iou_layer if "iou" in stem else last_mask_layer
            key = f"{stem}.{_mlp_layer_name(number, last)}.{kind}"
        state[key] = value
        if key.endswith("positional_embedding"):
            state["shared_image_embedding.positional_embedding"] = value
    missing, unknown = model.load_state_dict(state, strict=False)
    wrong = unknown + [key for key in missing if not key.startswith("vision_encoder")]
    if wrong:
        raise RuntimeError(f"SamModel names its tensors differently now: {wrong[0]}")
    model.eval()
    return model.to(sam.device), default_processor(model)


def _mlp_layer_name(number: int, last: int) -> str:
    """What transformers calls layer `number` of an MLP whose last layer is `last`."""
    if number == 0:
        return "proj_in"
    return "proj_out" if number == last else f"layers.{number - 1}"


def _transformers_config(sam: Any) -> Any:
    """The `SamConfig` of the sizes of a `segment_anything.modeling.Sam`, with a small image encoder."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    width, side, grid = prompts.embed_dim, prompts.input_image_size[0], prompts.image_embedding_size[0]
    patch = side // grid
    vision = SamVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        mlp_dim=16,
        image_size=side,
        patch_size=patch,
        output_channels=width,
        num_pos_feats=width // 2,
        global_attn_indexes=[],
        window_size=4,
    )
    prompt_encoder = SamPromptEncoderConfig(
        hidden_size=width,
        image_size=side,
        patch_size=patch,
        mask_input_channels=prompts.mask_downscaling[3].out_channels,
    )
    mask_decoder = SamMaskDecoderConfig(
        hidden_size=width,
        mlp_dim=decoder.transformer.mlp_dim,
        num_attention_heads=decoder.transformer.num_heads,
        layer_norm_eps=1e-5,
        num_hidden_layers=decoder.transformer.depth,
        iou_head_depth=len(decoder.iou_prediction_head.layers),
        iou_head_hidden_dim=decoder.iou_prediction_head.layers[0].out_features,
    )
    return SamConfig(
        vision_config=vision, prompt_encoder_config=prompt_encoder, mask_decoder_config=mask_decoder
    )
