"""Merge an adapter into its LLM.

    python -m finetune merge --mllm Qwen/Qwen3-VL-4B-Instruct --adapter runs/tuned --out runs/merged
    python -m assistant ask photo.jpg "what is it?" --mllm runs/merged --sam s.pth --adapter runs/merged

The result is one folder in transformers' layout, for vLLM and others, with the selector beside the model.
"""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of merging to the command line."""
    parser.add_argument("--mllm", help="the LLM that was tuned (default: the one that the adapter names)")
    parser.add_argument("--adapter", type=Path, required=True, help="folder that finetune wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the merged model")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="bfloat16",
        help="precision of the merged weights (default: bfloat16)",
    )


def main(args: argparse.Namespace) -> None:
    """Merge as the command line says."""
    sam = merge(args.adapter, args.out, args.mllm, args.dtype)
    print(f"{args.out}: give it as --mllm and as --adapter" + (f", with --sam {sam}" if sam else ""))


def merge(adapter: Path, out: Path, mllm: str | None = None, dtype: str = "bfloat16") -> str | None:
    """Write an LLM with an adapter merged into its weights, its processor, and the selector.

    Args:
        adapter: Folder that `python -m finetune` wrote.
        out: Folder for the merged model; it serves as LLM and as adapter.
        mllm: The LLM that was tuned: a folder or a hub id; None for the one that the adapter names.
        dtype: Precision of the merged weights, "float32" or "bfloat16".

    Returns:
        The SAM that the adapter was trained with, where it names one.

    Raises:
        BadInput: A file is missing or broken, or the adapter was trained on another LLM.
    """
    import torch
    from safetensors.torch import save_file

    from assistant.files import make_folder, replace_whole
    from assistant.mllm.local_model import MultimodalLLM
    from assistant.mllm.trained import read_heads
    from assistant.weights import resolve_model

    selector, about = read_heads(adapter)
    make_folder(out)
    base = resolve_model(mllm or about["mllm"])
    llm = MultimodalLLM.load(base, adapter=adapter / "lora", dtype=getattr(torch, dtype))
    llm.model.save_pretrained(out)
    llm.processor.save_pretrained(out)
    metadata = {"tuned": json.dumps(about | {"merged": True, "lora": None})}
    with replace_whole(out / "heads.safetensors") as path:
        save_file(selector.state_dict(), path, metadata)
    return about.get("sam")
