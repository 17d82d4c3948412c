"""Tiny random SAMs of segment_anything and of transformers."""

from contextlib import contextmanager
from functools import partial

import torch
import transformers
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def tiny_official_sam(seed: int = 0) -> Sam:
    """A random SAM of 128 px with 40 thousand parameters whose masks differ from prompt to prompt."""
    torch.manual_seed(seed)
    encoder = ImageEncoderViT(
        img_size=128,
        patch_size=16,
        embed_dim=32,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        out_chans=32,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=[1],
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=8, mlp_dim=64)
    decoder = MaskDecoder(
        transformer_dim=32,
        transformer=transformer,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=32,
    )
    sam = Sam(encoder, PromptEncoder(32, (8, 8), (128, 128), 8), decoder).eval()
    with torch.no_grad():
        for parameter in sam.mask_decoder.parameters():  # wide enough that attention is not flat
            parameter.mul_(2 if parameter.ndim > 1 else 1)
    return sam


def tiny_transformers_sam(seed: int = 0):
    return _tiny_sam_of("Sam", seed)


def _tiny_sam_of(kind: str, seed: int, **decoder_options):
    """A random model of transformers' classes for SAM, whose names begin with `kind`."""

    def part(name: str, **options):
        return getattr(transformers, f"{kind}{name}Config")(hidden_size=32, **options)

    torch.manual_seed(seed)
    vision = part(
        "Vision",
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=128,
        patch_size=16,
        output_channels=32,
        global_attn_indexes=[1],
        window_size=4,
        mlp_dim=64,
        num_pos_feats=16,
    )
    prompts = part("PromptEncoder", image_size=128, patch_size=16, mask_input_channels=8)
    decoder = part(
        "MaskDecoder", mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32, **decoder_options
    )
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    return _randomised(getattr(transformers, f"{kind}Model")(config))


def tiny_sam2(seed: int = 0):
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    torch.manual_seed(seed)
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[128, 128],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=32, image_size=128, patch_size=16, mask_input_channels=8)
    decoder = Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32)
    return _randomised(
        Sam2Model(
            Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
        )
    )


def tiny_sam_hq(seed: int = 0):
    return _tiny_sam_of("SamHQ", seed, vit_dim=32)


@contextmanager
def mended_sam_hq(model):
    """Let a `SamHQModel` draw on the image tokens that its transformer returns, as the paper's code does.

    transformers 5.24 drops them.
    """
    decoder = model.mask_decoder
    returned = []

    def keep(module, inputs, output):
        returned.append(output[1])

    def replace(module, inputs):
        (image,) = inputs
        (tokens,) = returned
        returned.clear()
        return (tokens.transpose(2, 3).reshape(image.shape),)

    hooks = [
        decoder.transformer.register_forward_hook(keep),
        decoder.upscale_conv1.register_forward_pre_hook(replace),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _randomised(model):
    """transformers starts everything near zero, which would hide mistakes: draw again, wider."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.ndim > 1 else 0.1)
    return model.eval()


def tiny_sam3_tracker(seed: int = 0):
    from transformers import (
        Sam3TrackerConfig,
        Sam3TrackerMaskDecoderConfig,
        Sam3TrackerModel,
        Sam3TrackerPromptEncoderConfig,
    )

    torch.manual_seed(seed)
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 128,
        "patch_size": 16,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": 64,
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "scale_factors": [4.0, 2.0, 1.0],
    }
    prompts = Sam3TrackerPromptEncoderConfig(
        hidden_size=32, image_size=128, patch_size=16, mask_input_channels=8
    )
    decoder = Sam3TrackerMaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32
    )
    return _randomised(
        Sam3TrackerModel(
            Sam3TrackerConfig(
                vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
            )
        )
    )


def tiny_edgetam(seed: int = 0):
    """EdgeTAM of 128 px with its own backbone, RepViT-M1, which has no smaller size."""
    from transformers import (
        EdgeTamConfig,
        EdgeTamMaskDecoderConfig,
        EdgeTamModel,
        EdgeTamPromptEncoderConfig,
        EdgeTamVisionConfig,
    )

    torch.manual_seed(seed)
    backbone = {
        "model_type": "timm_wrapper",
        "architecture": "repvit_m1",
        "num_classes": 2,
        "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    }
    vision = EdgeTamVisionConfig(
        backbone_config=backbone,
        fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )
    prompts = EdgeTamPromptEncoderConfig(hidden_size=32, image_size=128, patch_size=16, mask_input_channels=8)
    decoder = EdgeTamMaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32
    )
    model = EdgeTamModel(
        EdgeTamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )
    for part in (model.prompt_encoder, model.mask_decoder):
        _randomised(part)
    return model.eval()
