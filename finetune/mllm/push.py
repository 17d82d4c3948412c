"""Put an adapter folder on a hub, with its card.

python -m finetune push --adapter runs/tuned --to someone/car-parts
"""

import argparse
from pathlib import Path

SENT = [
    "lora/*",
    "heads.safetensors",
    "README.md",
    "settings.json",
    "report.html",
    "val.jsonl",
    "*.json",
    "*.safetensors",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path, required=True, help="what finetune or finetune merge wrote")
    parser.add_argument("--to", required=True, metavar="USER/NAME")
    parser.add_argument("--public", action="store_true", help="private otherwise")


def main(args: argparse.Namespace) -> None:
    from huggingface_hub import HfApi

    from assistant.errors import BadInput
    from assistant.weights import adapter_file

    adapter_file(args.adapter)
    hub = HfApi()
    try:
        hub.create_repo(args.to, private=not args.public, exist_ok=True)
        hub.upload_folder(
            repo_id=args.to,
            folder_path=args.adapter,
            allow_patterns=SENT,
            ignore_patterns=["regions/*", "state.pt"],
        )
    except Exception as error:  # no network, no login, no right: a dozen kinds
        raise BadInput(
            f"cannot send to {args.to}: {str(error).splitlines()[0]}; log in with `hf auth login`"
        ) from None
    print(f"sent {args.adapter} to {args.to}")
