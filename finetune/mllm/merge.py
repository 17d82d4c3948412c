"""Merge what was tuned into its LLM: one folder in transformers' layout, for vLLM and others, with the selector beside it.

python -m finetune merge --mllm Qwen/Qwen3-VL-4B-Instruct --adapter runs/tuned --out runs/merged
python -m assistant ask photo.jpg "what is broken?" --mllm runs/merged --sam sam_vit_b.pth --adapter runs/merged
"""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mllm", help="the LLM that was tuned (default: the one that the adapter names)")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the merged weights"
    )


def main(args: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file

    from assistant.files import make_folder, replace_whole
    from assistant.mllm.local_model import MultimodalLLM
    from assistant.mllm.trained import read_heads
    from assistant.weights import resolve_model

    selector, about = read_heads(args.adapter)
    make_folder(args.out)
    mllm = resolve_model(args.mllm or about["mllm"])
    llm = MultimodalLLM.load(mllm, adapter=args.adapter / "lora", dtype=getattr(torch, args.dtype))
    llm.model.save_pretrained(args.out)
    llm.processor.save_pretrained(args.out)
    with replace_whole(args.out / "heads.safetensors") as path:
        save_file(selector.state_dict(), path, {"tuned": json.dumps(about | {"merged": True, "lora": None})})
    print(f"{args.out}: give it as --mllm and as --adapter")
