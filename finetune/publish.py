"""Copy trained weights into the package as half-precision safetensors, and write their checksums.

python -m finetune publish --sam runs/sam/sam.safetensors --reasoner runs/reasoner
"""

import argparse
import json
import shutil
from pathlib import Path

from assistant.files import replace_whole
from assistant.weights import POCKET, write_checksums


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sam", type=Path, help="sam.safetensors of the sam stage")
    parser.add_argument("--reference", type=Path, help="reference.safetensors of the reference stage")
    parser.add_argument("--semantic", type=Path, help="semantic.safetensors of the semantic stage")
    parser.add_argument("--attention", type=Path, help="a run-K.safetensors of the attention stage")
    parser.add_argument(
        "--ranking", type=Path, help="what rank-layers wrote, which that stage and attend follow"
    )
    parser.add_argument("--reasoner", type=Path, help="folder of the records stage")


def main(args: argparse.Namespace) -> None:
    from safetensors.torch import load_file, save_file

    from assistant.errors import BadInput
    from finetune.check import must_exist

    if not (args.sam or args.reference or args.semantic or args.attention or args.ranking or args.reasoner):
        raise BadInput(
            "name what is to be published: --sam, --reference, --semantic, --attention, --ranking or --reasoner"
        )
    must_exist(args.sam, args.reference, args.semantic, args.attention, args.ranking)
    if args.reasoner:
        needed = ("heads.safetensors", "lora/adapter_config.json", "lora/adapter_model.safetensors")
        must_exist(*(args.reasoner / f for f in needed))
    half = lambda state: {
        k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()
    }
    if args.sam:
        with replace_whole(POCKET / "sam.safetensors") as path:
            save_file(half(load_file(args.sam)), path)
    if args.reference:
        from safetensors import safe_open

        with safe_open(args.reference, "pt") as opened:
            about = opened.metadata()
        with replace_whole(POCKET / "reference.safetensors") as path:
            save_file(half(load_file(args.reference)), path, about)
    if args.semantic:
        shutil.copy(args.semantic, POCKET / "semantic.safetensors")
    if args.attention:
        with replace_whole(POCKET / "attention.safetensors") as path:
            save_file(half(load_file(args.attention)), path)
    if args.ranking:
        from assistant.attention.prompt_attention import Ranking

        Ranking.load(args.ranking).save(POCKET / "attention.json")
    if args.reasoner:
        shutil.copy(args.reasoner / "heads.safetensors", POCKET / "heads.safetensors")
        (POCKET / "lora").mkdir(exist_ok=True)
        config = json.loads((args.reasoner / "lora/adapter_config.json").read_text())
        config["base_model_name_or_path"] = (
            "SmolLM2-135M-Instruct"  # not a path of the machine that trained it
        )
        (POCKET / "lora/adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        with replace_whole(POCKET / "lora/adapter_model.safetensors") as path:
            adapter = load_file(args.reasoner / "lora/adapter_model.safetensors")
            adapter = {
                k: v for k, v in adapter.items() if not k.endswith("base_layer.weight")
            }  # SmolLM2's own
            save_file(half(adapter), path, {"format": "pt"})
    files = sorted(POCKET.rglob("*.safetensors"))
    write_checksums()
    total = sum(f.stat().st_size for f in files) / 1e6
    print(f"{len(files)} files, {total:.1f} MB in {POCKET}")
