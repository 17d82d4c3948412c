"""What `--preset`, `--mllm`, `--sam` and `--dino` name: the LLM, and what opens pictures."""

from pathlib import Path

from assistant.errors import BadInput


def named_parts(args) -> tuple[str, str, str | None]:
    """-> (mllm, sam, dino): folders, files or hub ids. BadInput: no such preset, or an LLM that cannot be trained here."""
    from assistant.presets import PRESETS

    if args.preset not in PRESETS:
        raise BadInput(f"there is no preset {args.preset!r}; choose one of: {', '.join(PRESETS)}")
    preset = PRESETS[args.preset]
    mllm, sam, dino = args.mllm or preset.mllm, args.sam or preset.sam, args.dino or preset.features
    if mllm.startswith("openai:"):
        raise BadInput("a model on a server cannot be tuned from here: give --mllm a folder or a hub id")
    return mllm, sam, dino


def eyes_of(sam: str, device: str):
    """-> (a function that loads what opens pictures, the key of its weights and settings)."""
    from assistant.presets import load_eyes
    from assistant.sam.image_opener import LIMIT
    from assistant.weights import POCKET, fingerprint, resolve_model, sha256_of

    if sam == "pocket":
        key = sha256_of(POCKET / "sam.safetensors")
    else:
        key = sha256_of(Path(sam)) if Path(sam).is_file() else fingerprint(resolve_model(sam))
    return lambda: load_eyes(sam, device)[0], f"sam {key} {LIMIT}"
