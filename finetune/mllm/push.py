"""Upload an adapter folder to a hub, with its card.

python -m finetune push --adapter runs/tuned --to someone/car-parts
"""

import argparse
from pathlib import Path

UPLOADED_FILES = [
    "lora/*",
    "heads.safetensors",
    "README.md",
    "settings.json",
    "report.html",
    "val.jsonl",
    "*.json",
    "*.safetensors",
]
LOCAL_FILES = ["regions/*", "state.pt"]  # large, and of use only where the training runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of uploading to the command line."""
    parser.add_argument(
        "--adapter", type=Path, required=True, help="folder that finetune or finetune merge wrote"
    )
    parser.add_argument("--to", required=True, metavar="USER/NAME", help="repository on the hub")
    parser.add_argument(
        "--public", action="store_true", help="make the repository public; it is private otherwise"
    )


def main(args: argparse.Namespace) -> None:
    """Upload as the command line says."""
    push(args.adapter, args.to, args.public)
    print(f"sent {args.adapter} to {args.to}")


def push(adapter: Path, repository: str, public: bool = False) -> None:
    """Upload an adapter folder.

    Args:
        adapter: Folder that `python -m finetune` wrote.
        repository: USER/NAME on the hub, created if it does not exist.
        public: Whether a new repository is public.

    Raises:
        BadInput: The folder holds no adapter, or the hub refuses it.
    """
    from huggingface_hub import HfApi

    from assistant.errors import BadInput
    from assistant.weights import adapter_file

    adapter_file(adapter)
    hub = HfApi()
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=adapter,
            allow_patterns=UPLOADED_FILES,
            ignore_patterns=LOCAL_FILES,
        )
    except Exception as error:  # no network, no login, no right: a dozen kinds of errors
        raise BadInput(
            f"cannot send to {repository}: {str(error).splitlines()[0]}; log in with `hf auth login`"
        ) from None
