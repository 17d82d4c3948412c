"""Loads a multimodal LLM of transformers, with rows for the markers of the reply grammar.

    model, processor = load_model("Qwen/Qwen3-VL-4B-Instruct", device="cuda")
    add_markers(model, processor.tokenizer)

`assistant.mllm.local_model.MultimodalLLM` does both, and answers.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from assistant.errors import BadInput, Note, memory_advice
from assistant.grammar import ABS, SEG
from assistant.sam.checkpoints import quiet_transformers

# Modules that 4-bit loading leaves as they are: vision towers are small and lose the most, and their widths
# are not always multiples of the quantisation block's 64.
MODULES_IN_FULL_PRECISION = [
    "lm_head",
    r".*\b(visual|vision_tower|vision_model|multi_modal_projector|connector)\b",
]
MAX_ERROR_LENGTH = 200  # characters of a library's message within ours


def load_model(
    name_or_path: str | Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    four_bit: bool = False,
    spread: bool = False,
) -> tuple[Any, Any]:
    """Load a multimodal LLM.

    Args:
        name_or_path: A folder in transformers' layout, or a hub id.
        device: Where the model runs, such as "cpu", "cuda" or "cuda:1".
        dtype: Precision; None for what suits the device, see `default_dtype`.
        four_bit: Keep the weights in 4 bits (nf4, through bitsandbytes).
        spread: Whether to spread the layers over all GPUs where there are several, and over the GPU and the
            CPU where the GPU is too small.

    Returns:
        The model and its processor.

    Raises:
        BadInput: The model cannot be loaded, does not fit, or is not a chat model that reads images.
    """
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"there is no GPU for device {device}; use --device cpu")
    check_folder(name_or_path)
    dtype = dtype or default_dtype(device)
    try:
        with memory_advice(f"for {name_or_path} on {device}: use --four-bit, or a smaller --preset"):
            model, processor = _first_that_fits(
                name_or_path, device_maps(device, four_bit, spread), dtype, four_bit
            )
    except BadInput:
        raise
    except ImportError as e:
        advice = "; pip install 'maskpick[bnb]'" if four_bit and "bitsandbytes" in str(e) else ""
        raise BadInput(f"{name_or_path} needs a package that is missing: {first_line(e)}{advice}") from e
    except Exception as e:  # a broken folder and an unreachable hub raise a dozen kinds of errors
        raise BadInput(
            f"cannot load {name_or_path} as a multimodal LLM; give a folder that holds one, or a hub id "
            f"while the hub can be reached ({first_line(e)})"
        ) from e
    if not hasattr(processor, "image_processor") or not processor.chat_template:
        raise BadInput(
            f"{name_or_path} has no image processor or no chat template; use a chat model that reads images"
        )
    return model, processor


def default_dtype(device: str) -> torch.dtype:
    """The precision that suits a device: bfloat16 where it is computed in, not only imitated.

    Args:
        device: As torch names it.

    Returns:
        float32 on a CPU, float16 on a GPU from before bfloat16 (such as a T4), else bfloat16.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.float32
    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def device_maps(device: str, four_bit: bool, spread: bool) -> list[str | dict[str, str]]:
    """Where a model may lie, as transformers' `device_map` takes it, in the order in which to try.

    Args:
        device, four_bit, spread: See `load_model`.
    """
    if not spread or not str(device).startswith("cuda"):
        return [{"": device}]
    if torch.cuda.device_count() > 1:
        return ["auto"]
    # bitsandbytes keeps no weights in 4 bits on a CPU beside a GPU.
    return [{"": device}] if four_bit else [{"": device}, "auto"]


def _first_that_fits(
    name_or_path: str | Path, places: list[str | dict[str, str]], dtype: torch.dtype, four_bit: bool
) -> tuple[Any, Any]:
    """The model and its processor, at the first of the places that has the memory."""
    for place in places[:-1]:
        try:
            return _from_pretrained(name_or_path, place, dtype, four_bit)
        except torch.OutOfMemoryError:
            warnings.warn(
                f"the GPU has not enough memory for {name_or_path}: a part of it runs on the CPU, slowly; "
                "--four-bit or a smaller --preset is faster",
                Note,
                stacklevel=2,
            )
            torch.cuda.empty_cache()
    return _from_pretrained(name_or_path, places[-1], dtype, four_bit)


def _from_pretrained(
    name_or_path: str | Path, device_map: str | dict[str, str], dtype: torch.dtype, four_bit: bool
) -> tuple[Any, Any]:
    """The model and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

    quantization = None
    if four_bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=MODULES_IN_FULL_PRECISION,
        )
    with quiet_transformers():
        processor = AutoProcessor.from_pretrained(name_or_path)
        model = AutoModelForImageTextToText.from_pretrained(
            name_or_path, dtype=dtype, device_map=device_map, quantization_config=quantization
        )
    return model, processor


def add_markers(model: Any, tokenizer: Any) -> None:
    """Make [SEG] and [ABS] one token each, with rows in both embeddings, where they are not yet.

    A new row starts as the mean of the others, so that an untuned model does not write the token; the rows
    are the same on every machine.
    """
    from tokenizers import AddedToken

    new = [token for token in (SEG, ABS) if token not in tokenizer.get_vocab()]
    if not new:
        return
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in new])
    ids = tokenizer.convert_tokens_to_ids(new)
    if max(ids) >= len(model.get_input_embeddings().weight):  # many models have spare rows
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            for values in (module.weight, getattr(module, "bias", None)):
                if values is not None:
                    values[ids] = values[: min(ids)].float().mean(0).to(values.dtype)


@contextlib.contextmanager
def peft_deprecations_ignored() -> Iterator[None]:
    """While active, peft does not warn of what it asks transformers for.

    peft 0.21 reads `is_gradient_checkpointing`, which transformers 5.24 calls `is_activation_checkpointing`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def check_folder(name: str | Path | None) -> None:
    """Raise BadInput for a name that is written as a path and does not exist; any other may be a hub id."""
    text = str(name)
    is_path = (
        isinstance(name, Path) or os.path.isabs(text) or text.startswith((".", "~")) or text.count("/") > 1
    )
    if name is not None and is_path and not Path(text).is_dir():
        raise BadInput(f"there is no folder {text}; give one that holds the weights, or a hub id")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:MAX_ERROR_LENGTH]
