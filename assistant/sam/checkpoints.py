"""Loads SAM from files: official .pth checkpoints, transformers folders and hub ids.

    sam = load_official_sam("sam_vit_b_01ec64.pth")                    # segment_anything.modeling.Sam
    model, processor = load_transformers_sam("facebook/sam-vit-base")  # SamModel, Sam2Model, ...

Whatever is wrong with a file is one line of BadInput.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assistant.errors import BadInput

if TYPE_CHECKING:
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam

MODEL_TYPES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # by the image encoder's width
DECODER_HEADS = 8  # the one size that no tensor's shape tells; the same in every official SAM

# One tensor of each part of a SAM, by which a checkpoint is recognised.
REQUIRED_TENSORS = (
    "image_encoder.pos_embed",
    "prompt_encoder.no_mask_embed.weight",
    "mask_decoder.iou_token.weight",
)
# The class of transformers for each type of checkpoint. Those of videos hold the model for images.
MODEL_CLASSES = {
    "sam": "SamModel",
    "sam_hq": "SamHQModel",
    "sam2": "Sam2Model",
    "sam2_video": "Sam2Model",
    "sam3_tracker": "Sam3TrackerModel",
    "sam3_tracker_video": "Sam3TrackerModel",
    "sam3_video": "Sam3TrackerModel",
    "edgetam": "EdgeTamModel",
    "edgetam_video": "EdgeTamModel",
}
MAX_REASON_LENGTH = 160  # characters of another library's error message that are shown


def load_official_sam(path: str | Path, model_type: str | None = None) -> Sam:
    """Load an official checkpoint. The sizes are read off the tensors, so reduced SAMs load too.

    Args:
        path: A .pth file.
        model_type: "vit_b", "vit_l" or "vit_h", which the file must be; None or "default" for whatever it is.

    Returns:
        A `segment_anything.modeling.Sam` on the CPU, in eval mode.

    Raises:
        BadInput: The file is missing, damaged, no SAM, or of another model type.
    """
    path = Path(path)
    state = _read_checkpoint(path)
    found = MODEL_TYPES.get(state["image_encoder.pos_embed"].shape[-1], "a SAM of another size")
    if model_type not in (None, "default", found):
        raise BadInput(
            f"{path} holds {found}, not {model_type}: leave the model type out or name the right file"
        )
    try:
        sam = build_sam(state)
        sam.load_state_dict(state)
    except (RuntimeError, KeyError, AssertionError, ValueError, IndexError, AttributeError) as error:
        # A tensor is missing, or has another shape or type than in any SAM.
        raise BadInput(f"{path} is not a complete SAM checkpoint ({_reason(error)})") from None
    return sam.eval()


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth file. Raises BadInput where it cannot be read or is no SAM."""
    if not path.is_file():
        raise BadInput(f"no SAM checkpoint at {path}: give the path of a .pth file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensor errors all mean the same to the user
        raise BadInput(f"{path} cannot be read as a checkpoint ({_reason(error)}): fetch it again") from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(state.get(k), Tensor) for k in REQUIRED_TENSORS):
        parts = ", ".join(key.split(".")[0] for key in REQUIRED_TENSORS)
        raise BadInput(f"{path} is not a SAM checkpoint: it lacks {parts} tensors")
    return state


def build_sam(state: dict[str, Tensor]) -> Sam:
    """Build an untrained SAM of the sizes that the tensors of `state` have.

    Args:
        state: The tensors of a SAM by name.

    Returns:
        A `segment_anything.modeling.Sam`.

    Raises:
        KeyError: A tensor is missing.
    """
    from segment_anything.modeling import Sam

    encoder = _build_image_encoder(state)
    prompts = _build_prompt_encoder(state)
    return Sam(encoder, prompts, _build_mask_decoder(state))


def _build_image_encoder(state: dict[str, Tensor]) -> ImageEncoderViT:
    from segment_anything.modeling import ImageEncoderViT

    _, grid, _, width = state["image_encoder.pos_embed"].shape
    patch = state["image_encoder.patch_embed.proj.weight"].shape[2]
    depth = _count(state, "image_encoder.blocks.")
    # Side of the window that each block attends to, in patches; a block of global attention sees the whole
    # grid.
    spans = [(len(state[f"image_encoder.blocks.{i}.attn.rel_pos_h"]) + 1) // 2 for i in range(depth)]
    return ImageEncoderViT(
        img_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // state["image_encoder.blocks.0.attn.rel_pos_h"].shape[1],
        mlp_ratio=len(state["image_encoder.blocks.0.mlp.lin1.weight"]) / width,
        out_chans=len(state["image_encoder.neck.0.weight"]),
        qkv_bias="image_encoder.blocks.0.attn.qkv.bias" in state,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=min(spans),
        global_attn_indexes=[i for i, span in enumerate(spans) if span == grid],
    )


def _build_prompt_encoder(state: dict[str, Tensor]) -> PromptEncoder:
    from segment_anything.modeling import PromptEncoder

    grid = state["image_encoder.pos_embed"].shape[1]
    side = grid * state["image_encoder.patch_embed.proj.weight"].shape[2]
    channels = state["mask_decoder.iou_token.weight"].shape[1]
    mask_channels = len(state["prompt_encoder.mask_downscaling.3.weight"])
    return PromptEncoder(channels, (grid, grid), (side, side), mask_in_chans=mask_channels)


def _build_mask_decoder(state: dict[str, Tensor]) -> MaskDecoder:
    from segment_anything.modeling import MaskDecoder, TwoWayTransformer

    channels = state["mask_decoder.iou_token.weight"].shape[1]
    transformer = TwoWayTransformer(
        depth=_count(state, "mask_decoder.transformer.layers."),
        embedding_dim=channels,
        num_heads=DECODER_HEADS,
        mlp_dim=len(state["mask_decoder.transformer.layers.0.mlp.lin1.weight"]),
    )
    return MaskDecoder(
        transformer_dim=channels,
        transformer=transformer,
        num_multimask_outputs=len(state["mask_decoder.mask_tokens.weight"]) - 1,
        iou_head_depth=_count(state, "mask_decoder.iou_prediction_head.layers."),
        iou_head_hidden_dim=len(state["mask_decoder.iou_prediction_head.layers.0.weight"]),
    )


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """Number of the modules in a list whose tensors are called `prefix` and a number."""
    numbers = [int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix)]
    if not numbers:
        raise KeyError(prefix)
    return 1 + max(numbers)


def load_transformers_sam(folder_or_id: str | Path) -> tuple[Any, Any]:
    """Load a SAM, SAM-HQ, SAM 2, SAM 3 or EdgeTAM of transformers.

    Args:
        folder_or_id: A local folder, or a hub id.

    Returns:
        The model (`SamModel`, `SamHQModel`, `Sam2Model`, `Sam3TrackerModel`, `EdgeTamModel`) on the CPU, in
        eval mode, and its image processor.

    Raises:
        BadInput: It is neither, incomplete, or cannot be fetched.
    """
    import transformers
    from transformers import AutoConfig, AutoImageProcessor

    where = str(folder_or_id)
    is_local = Path(where).is_dir()
    if not is_local and (Path(where).is_absolute() or where.startswith(".") or where.count("/") != 1):
        raise BadInput(
            f"no SAM at {where}: give a transformers folder or a hub id such as facebook/sam-vit-base"
        )
    try:
        kind = AutoConfig.from_pretrained(where).model_type
        if kind not in MODEL_CLASSES:
            raise BadInput(f"{where} holds a {kind} model, not SAM, SAM-HQ, SAM 2, SAM 3 or EdgeTAM")
        model_class: Any = getattr(transformers, MODEL_CLASSES[kind])
        with quiet_transformers():  # a checkpoint for videos holds more than the model for images reads
            model, report = model_class.from_pretrained(where, output_loading_info=True)
    except BadInput:
        raise
    except Exception as error:  # the hub, safetensors and transformers each have their own
        advice = (
            "is the folder complete?" if is_local else "is there a network? a local folder works without one"
        )
        reason = f"{type(error).__name__}: {_reason(error)}"
        raise BadInput(f"cannot load SAM from {where} ({reason}); {advice}") from None
    if report["missing_keys"]:
        key = sorted(report["missing_keys"])[0]
        raise BadInput(
            f"the weights in {where} are incomplete: {len(report['missing_keys'])} tensors such as {key}"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(where)
    except (OSError, ValueError):  # a folder that was saved without one
        processor = default_processor(model)
    return model.eval(), processor


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' warnings about what it loads, and its bars, from the user: what matters, we say."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("transformers")
    level, shows_bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shows_bars:
            transformers_logging.enable_progress_bar()


def default_processor(model: Any) -> Any:
    """The image processor of the published models, at the size of this model of `MODEL_CLASSES`."""
    from transformers import Sam2ImageProcessor, Sam3ImageProcessor, SamImageProcessor

    side = model.config.prompt_encoder_config.image_size
    square = {"height": side, "width": side}
    if is_sam3(model):
        return Sam3ImageProcessor(size=square)
    if is_stretched(model):
        return Sam2ImageProcessor(size=square)
    return SamImageProcessor(size={"longest_edge": side}, pad_size=square)


def is_stretched(model: Any) -> bool:
    """Whether a SAM of transformers sees images stretched to a square, as SAM 2 and all later ones do."""
    return model.config.model_type not in ("sam", "sam_hq")


def is_hq(model: Any) -> bool:
    """Whether a SAM of transformers is a `SamHQModel`."""
    return model.config.model_type == "sam_hq"


def is_sam3(model: Any) -> bool:
    """Whether a SAM of transformers is a `Sam3TrackerModel`."""
    return model.config.model_type.startswith("sam3")


def _reason(error: Exception) -> str:
    """The message of another library's error, on one line."""
    return " ".join(str(error).split())[:MAX_REASON_LENGTH] or type(error).__name__
