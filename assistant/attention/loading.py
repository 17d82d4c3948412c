"""Loads the attention probe of a model of transformers."""

from pathlib import Path

from assistant.attention.transformers_probe import TransformersProbe
from assistant.errors import BadInput


def load_probe(name_or_path, device: str = "cpu", adapter=None) -> TransformersProbe:
    """A folder in transformers' layout or a hub id; adapter: what finetune wrote for a chat model. BadInput: what
    cannot be loaded, or looks at nothing."""
    from transformers import AutoConfig

    from assistant.attention.chat_probe import ChatProbe
    from assistant.attention.image_text_probe import BlipProbe
    from assistant.mllm.local_model import MultimodalLLM, check_folder, first_line

    check_folder(name_or_path)
    try:
        kind = AutoConfig.from_pretrained(name_or_path).model_type
    except Exception as e:
        raise BadInput(
            f"cannot load {name_or_path}; give a folder that holds a model, or a hub id while the hub can "
            f"be reached ({first_line(e)})"
        ) from e
    if kind != "blip":
        lora = Path(adapter) / "lora" if adapter and (Path(adapter) / "lora").is_dir() else adapter
        return ChatProbe(MultimodalLLM.load(name_or_path, adapter=lora, device=device))
    from transformers import AutoProcessor, BlipForImageTextRetrieval

    try:
        model = BlipForImageTextRetrieval.from_pretrained(name_or_path).to(device)
        return BlipProbe(model, AutoProcessor.from_pretrained(name_or_path))
    except Exception as e:
        raise BadInput(f"cannot load {name_or_path} as BLIP's image-text matcher ({first_line(e)})") from e
