"""Loads the attention probe of a model of transformers.

probe = load_probe("Salesforce/blip-itm-large-coco")        # or LLaVA, Qwen-VL, SmolVLM: a folder or a hub id
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assistant.attention.chat_probe import ChatProbe
from assistant.attention.image_text_probe import BlipProbe
from assistant.attention.transformers_probe import TransformersProbe
from assistant.errors import BadInput
from assistant.mllm.loading import check_folder, first_line
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.trained import stored_pixels


def load_probe(
    name_or_path: str | Path,
    device: str = "cpu",
    adapter: str | Path | None = None,
    pixels: int | None = None,
) -> TransformersProbe:
    """Load an image-text matcher (BLIP) or a chat model that sees.

    Args:
        name_or_path: A folder in transformers' layout, or a hub id.
        device: As torch names it.
        adapter: A folder that finetune wrote for a chat model; None for the model as it is.
        pixels: px of an image that a chat model is shown, at most; None for what the adapter was trained
            with, or what suits the model's family.

    Returns:
        The probe of its attention.

    Raises:
        BadInput: It cannot be loaded, or exposes no attention.
    """
    from transformers import AutoConfig

    check_folder(name_or_path)
    try:
        kind = AutoConfig.from_pretrained(name_or_path).model_type
    except Exception as error:  # a broken folder and an unreachable hub raise a dozen kinds
        raise BadInput(
            f"cannot load {name_or_path}; give a folder that holds a model, or a hub id while the hub can "
            f"be reached ({first_line(error)})"
        ) from error
    if kind == "blip":
        return _load_blip(name_or_path, device)
    lora = adapter
    if adapter is not None and (Path(adapter) / "lora").is_dir():
        lora = Path(adapter) / "lora"
    if pixels is None and adapter is not None:
        pixels = stored_pixels(Path(adapter))
    llm = MultimodalLLM.load(name_or_path, adapter=lora, device=device, pixels=pixels, markers=False)
    return ChatProbe(llm)


def _load_blip(name_or_path: str | Path, device: str) -> TransformersProbe:
    """The probe of BLIP's image-text matcher. Raises BadInput where it cannot be loaded."""
    from transformers import AutoProcessor, BlipForImageTextRetrieval

    try:
        model: Any = BlipForImageTextRetrieval.from_pretrained(name_or_path)
        return BlipProbe(model.to(device), AutoProcessor.from_pretrained(name_or_path))
    except Exception as error:  # see above
        raise BadInput(
            f"cannot load {name_or_path} as BLIP's image-text matcher ({first_line(error)})"
        ) from error
