"""What training starts from: the LLM with LoRA and the selector, new or from an adapter.

settings = LoraSettings(rank=16, alpha=32, dropout=0.05)
selector, model = start_model(llm, settings, sample_regions, seed=0)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from assistant.errors import BadInput
from assistant.mllm.loading import peft_deprecations_ignored
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.trained import StandardisedSelector, read_heads
from finetune.region_cache import ImageRegions

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class LoraSettings:
    """Where LoRA sits and how large it is.

    Attributes:
        rank: Rank of the two factors.
        alpha: Their product is scaled by alpha / rank.
        dropout: Share of the inputs that are dropped in training.
        targets: Names of the linear layers that get LoRA; None for all of the language model's.
        vision: Whether the vision tower gets LoRA too.
        adapter: Folder of an earlier tuning to start from; its LoRA is used as it is.
    """

    rank: int
    alpha: float
    dropout: float
    targets: Sequence[str] | None = None
    vision: bool = False
    adapter: Path | None = None


def start_model(
    llm: MultimodalLLM, settings: LoraSettings, sample: Sequence[ImageRegions], seed: int
) -> tuple[StandardisedSelector, "PeftModel"]:
    """The selector and the LLM with LoRA.

    Args:
        llm: Gets LoRA; its own weights are frozen.
        settings: Where LoRA sits, and the adapter to start from, if any.
        sample: Regions of some training images, by which a new selector standardises its features.
        seed: Fixes the new weights.

    Raises:
        BadInput: The adapter was trained on other models, or the LLM has no such layers.
    """
    torch.manual_seed(seed)
    selector = _start_selector(llm, settings.adapter, sample)
    # peft's `prepare_model_for_kbit_training` is left out for weights in 4 bits: beyond this line it only
    # turns what is not in 4 bits (embeddings, head, norms, vision tower) into float32, and with it all that
    # is computed.
    llm.model.requires_grad_(False)
    return selector, add_lora(llm, settings)


def _start_selector(
    llm: MultimodalLLM, adapter: Path | None, sample: Sequence[ImageRegions]
) -> StandardisedSelector:
    """The adapter's selector, or a new one that standardises features by the sample's mean and deviation."""
    region_dim = sample[0].features.shape[1]
    if adapter:
        selector, about = read_heads(adapter)
        if (selector.config["state_dim"], selector.config["region_dim"]) != (llm.width, region_dim):
            raise BadInput(
                f"--adapter {adapter} was trained on {about['mllm']} and other features; "
                "give the same --mllm, --sam and --dino"
            )
        return selector
    selector = StandardisedSelector(llm.width, region_dim)
    features = torch.cat([regions.features for regions in sample])
    if len(features) > 1:
        selector.mean.copy_(features.mean(0))
        selector.scale.copy_(features.std(0) + 1e-3)
    return selector


def add_lora(llm: MultimodalLLM, settings: LoraSettings) -> "PeftModel":
    """The LLM with LoRA on its linear layers, and with trainable rows of [SEG] and [ABS].

    Raises:
        BadInput: The LLM has none of the layers that `settings.targets` names.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    with peft_deprecations_ignored():
        if settings.adapter is not None:
            return PeftModel.from_pretrained(llm.model, settings.adapter / "lora", is_trainable=True)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft takes any number
            lora_dropout=settings.dropout,
            target_modules=_target_pattern(llm.model, settings),
            trainable_token_indices=llm.marker_rows(),
        )
        return get_peft_model(llm.model, config)


def enable_activation_checkpointing(model: Any) -> None:
    """Let a model of transformers recompute activations in the backward pass: less memory, more time."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    else:  # the name before transformers 5.24
        model.gradient_checkpointing_enable(options)


def _target_pattern(model: Any, settings: LoraSettings) -> str:
    """A regular expression of the names of the layers that get LoRA.

    Numbers of layers are left open, so that it stays short.
    """
    decoder = model.get_decoder()
    decoder_name = next(name for name, module in model.named_modules() if module is decoder)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not model.get_output_embeddings()
        and (settings.vision or not decoder_name or name.startswith(decoder_name + "."))
    ]
    targets = settings.targets
    chosen = [name for name in linear if targets is None or _last_part(name) in targets]
    if not chosen:
        existing = sorted({_last_part(name) for name in linear})
        raise BadInput(
            f"--targets {' '.join(targets or ())}: this model has no such linear "
            f"layers; it has {', '.join(existing)}"
        )
    return "|".join(sorted({re.sub(r"\d+", lambda _: r"\d+", re.escape(name)) for name in chosen}))


def _last_part(name: str) -> str:
    return name.rsplit(".", 1)[-1]
