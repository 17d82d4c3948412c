"""SAM from files: official .pth checkpoints and transformers folders or hub ids.

    sam = load_official_sam("sam_vit_b_01ec64.pth")                    # segment_anything.modeling.Sam
    model, processor = load_transformers_sam("facebook/sam-vit-base")  # SamModel or Sam2Model

Whatever is wrong with a file is one line of BadInput.
"""

from pathlib import Path

import torch

from assistant.errors import BadInput

MODEL_TYPES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
DECODER_HEADS = 8  # the one size that no tensor's shape tells; the same in every official SAM


def load_official_sam(path, model_type: str | None = None):
    """The Sam of a checkpoint, on CPU, in eval mode. Its sizes are read off the tensors, so reduced SAMs load too."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no SAM checkpoint at {path}: give the path of a .pth file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensor errors all mean the same to who gave the file
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise BadInput(f"{path} cannot be read as a checkpoint ({reason}): fetch it again") from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    needed = (
        "image_encoder.pos_embed",
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.iou_token.weight",
    )
    if not isinstance(state, dict) or any(key not in state for key in needed):
        raise BadInput(
            f"{path} is not a SAM checkpoint: it lacks {', '.join(k.split('.')[0] for k in needed)} tensors"
        )
    found = MODEL_TYPES.get(state["image_encoder.pos_embed"].shape[-1], "a SAM of another size")
    if model_type not in (None, "default", found):
        raise BadInput(
            f"{path} holds {found}, not {model_type}: leave the model type out or name the right file"
        )
    try:
        sam = build_sam(state)
        sam.load_state_dict(state)
    except (RuntimeError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadInput(f"{path} is not a complete SAM checkpoint ({reason})") from None
    return sam.eval()


def build_sam(state: dict):
    """A Sam of the sizes that the tensors of `state` have."""
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    size = lambda key, axis=0: state[key].shape[axis]
    count = lambda prefix: 1 + max(int(k[len(prefix) :].split(".")[0]) for k in state if k.startswith(prefix))
    patch, grid, width = (
        size("image_encoder.patch_embed.proj.weight", 2),
        size("image_encoder.pos_embed", 1),
        size("image_encoder.pos_embed", 3),
    )
    depth = count("image_encoder.blocks.")
    spans = [(size(f"image_encoder.blocks.{i}.attn.rel_pos_h") + 1) // 2 for i in range(depth)]
    encoder = ImageEncoderViT(
        img_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // size("image_encoder.blocks.0.attn.rel_pos_h", 1),
        mlp_ratio=size("image_encoder.blocks.0.mlp.lin1.weight") / width,
        out_chans=size("image_encoder.neck.0.weight"),
        qkv_bias="image_encoder.blocks.0.attn.qkv.bias" in state,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=min(spans),
        global_attn_indexes=[i for i, span in enumerate(spans) if span == grid],
    )
    channels = size("mask_decoder.iou_token.weight", 1)
    prompts = PromptEncoder(
        channels,
        (grid, grid),
        (grid * patch, grid * patch),
        mask_in_chans=size("prompt_encoder.mask_downscaling.3.weight"),
    )
    transformer = TwoWayTransformer(
        depth=count("mask_decoder.transformer.layers."),
        embedding_dim=channels,
        num_heads=DECODER_HEADS,
        mlp_dim=size("mask_decoder.transformer.layers.0.mlp.lin1.weight"),
    )
    decoder = MaskDecoder(
        transformer_dim=channels,
        transformer=transformer,
        num_multimask_outputs=size("mask_decoder.mask_tokens.weight") - 1,
        iou_head_depth=count("mask_decoder.iou_prediction_head.layers."),
        iou_head_hidden_dim=size("mask_decoder.iou_prediction_head.layers.0.weight"),
    )
    return Sam(encoder, prompts, decoder)


def load_transformers_sam(folder_or_id):
    """(model, image processor) of a local folder or a hub id, on CPU, in eval mode."""
    from transformers import AutoConfig, AutoImageProcessor, Sam2Model, SamModel

    where = str(folder_or_id)
    local = Path(where).is_dir()
    if not local and (Path(where).is_absolute() or where.startswith(".") or where.count("/") != 1):
        raise BadInput(
            f"no SAM at {where}: give a transformers folder or a hub id such as facebook/sam-vit-base"
        )
    advice = "is the folder complete?" if local else "is there a network? a local folder works without one"
    try:
        kind = AutoConfig.from_pretrained(where).model_type
        if kind not in ("sam", "sam2", "sam2_video"):
            raise BadInput(f"{where} holds a {kind} model, not SAM or SAM 2")
        make = SamModel if kind == "sam" else Sam2Model
        model, report = make.from_pretrained(where, output_loading_info=True)
    except BadInput:
        raise
    except Exception as error:  # the hub, safetensors and transformers each have their own
        reason = " ".join(str(error).split())[:120]
        raise BadInput(f"cannot load SAM from {where} ({type(error).__name__}: {reason}); {advice}") from None
    if report["missing_keys"]:
        key = sorted(report["missing_keys"])[0]
        raise BadInput(
            f"the weights in {where} are incomplete: {len(report['missing_keys'])} tensors such as {key}"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(where)
    except (OSError, ValueError):  # a folder saved without one: the settings of the published models
        processor = default_processor(model)
    return model.eval(), processor


def default_processor(model):
    """The image processor of the published models, at the size of this one."""
    from transformers import Sam2ImageProcessor, SamImageProcessor

    side = model.config.prompt_encoder_config.image_size
    square = {"height": side, "width": side}
    if hasattr(model.mask_decoder, "obj_score_token"):
        return Sam2ImageProcessor(size=square)
    return SamImageProcessor(size={"longest_edge": side}, pad_size=square)
