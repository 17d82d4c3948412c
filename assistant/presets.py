"""Names -> parts: which multimodal LLM reads the question, which SAM outlines, and how one picks among the other's masks.

    parts, weights = load_preset("base", device="cuda")
    parts, weights = load_parts(mllm="openai:qwen3-vl", base_url="http://127.0.0.1:8000/v1", sam="pocket")
    add_model_arguments(parser); assistant = open_from(parser.parse_args())        # the same options for every command

Each part may be a hub id or a local folder; a SAM also an official .pth file, or the pocket preset's own.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from assistant.errors import BadInput


@dataclass(frozen=True)
class Preset:
    """mllm, sam: see `load_parts`; selection: without an adapter; features: what a trained selector reads, None for SAM's."""

    mllm: str
    sam: str
    selection: str = "marks"
    features: str | None = None


PRESETS = {
    "pocket": Preset("pocket", "pocket", "trained"),
    "small": Preset("Qwen/Qwen3-VL-2B-Instruct", "facebook/sam-vit-base"),
    "base": Preset("Qwen/Qwen3-VL-4B-Instruct", "facebook/sam-vit-large"),
    "large": Preset("Qwen/Qwen3-VL-8B-Instruct", "facebook/sam-vit-huge"),
    # LLM-Seg's own parts. LLaVA-1.5 was taught boxes but hardly reads numbers drawn on pictures (arXiv 2404.16375).
    "llava": Preset("llava-hf/llava-1.5-7b-hf", "facebook/sam-vit-huge", "boxes", "facebook/dinov2-large"),
}
SELECTIONS = ("marks", "boxes", "trained")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which models to use, alike in every command; `open_from` reads them."""
    parser.add_argument(
        "--preset",
        default="pocket",
        help=f"one of {', '.join(PRESETS)} (default: pocket, which runs offline on a CPU)",
    )
    parser.add_argument(
        "--mllm",
        help="another multimodal LLM than the preset's: a hub id, a folder, or openai:MODEL on a server",
    )
    parser.add_argument(
        "--base-url",
        metavar="URL",
        help="where the server of an openai:MODEL is, such as http://127.0.0.1:8000/v1",
    )
    parser.add_argument(
        "--sam", help="another SAM than the preset's: a hub id, a folder, a .pth file, or pocket"
    )
    parser.add_argument(
        "--adapter", type=Path, metavar="DIR", help="folder that finetune wrote, to put on the models"
    )
    parser.add_argument(
        "--selection",
        choices=SELECTIONS,
        help="how masks are picked: by numbers drawn on the photo, by boxes, or by what finetune has trained",
    )
    parser.add_argument(
        "--second-look", action="store_true", help="marks and boxes: show each chosen mask to the model again"
    )
    parser.add_argument(
        "--four-bit", action="store_true", help="keep the LLM's weights in 4 bits (needs maskpick[bnb])"
    )
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:1 (default: the GPU if there is one; pocket: the CPU)"
    )


def open_from(args: argparse.Namespace):
    """The `Assistant` that the options of `add_model_arguments` name."""
    from assistant import Assistant

    return Assistant.from_preset(
        args.preset,
        args.adapter,
        args.device,
        mllm=args.mllm,
        sam=args.sam,
        selection=args.selection,
        base_url=args.base_url,
        four_bit=args.four_bit,
        second_look=args.second_look,
    )


def name_of(args: argparse.Namespace) -> str:
    """What to call the models that the options name: the preset, or the parts that replace its own."""
    short = lambda part: Path(str(part)).name if part else None
    changed = {
        "mllm": short(args.mllm),
        "sam": short(args.sam),
        "selection": args.selection,
        "adapter": short(args.adapter),
        "second look": "yes" if args.second_look else None,
        "4-bit": "yes" if args.four_bit else None,
    }
    return ", ".join([args.preset, *(f"{k} {v}" for k, v in changed.items() if v)])


def load_preset(
    name: str,
    adapter=None,
    device: str | None = None,
    mllm: str | None = None,
    sam: str | None = None,
    selection: str | None = None,
    **options,
):
    """-> (parts, {part: sha256}). mllm, sam, selection: instead of the preset's own. BadInput: no such preset, or its
    weights cannot be had."""
    if name not in PRESETS:
        raise BadInput(f"there is no preset {name!r}; choose one of: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if mllm is None and selection is None and adapter is None and name != "pocket":
        selection = preset.selection
    return load_parts(mllm or preset.mllm, sam or preset.sam, adapter, selection, device, **options)


def load_parts(
    mllm: str,
    sam: str,
    adapter=None,
    selection: str | None = None,
    device: str | None = None,
    four_bit: bool = False,
    base_url: str | None = None,
    second_look: bool = False,
):
    """-> (parts, {part: sha256 or name}).

    mllm: a hub id or folder of transformers, openai:MODEL (on a server at `base_url`), or pocket. sam: see
    `load_segmenter`. selection: "marks", "boxes" or "trained"; None: trained with an adapter, otherwise boxes for
    LLaVA-1.5 and marks for everything else.
    """
    from assistant.mllm.openai_client import PREFIX

    remote = str(mllm).startswith(PREFIX)
    if selection is not None and selection not in SELECTIONS:
        raise BadInput(f"there is no selection {selection!r}; choose one of: {', '.join(SELECTIONS)}")
    if base_url and not remote:
        raise BadInput("--base-url goes with --mllm openai:MODEL")
    if mllm == "pocket":
        return _load_pocket(sam, adapter, selection, device, four_bit, second_look)
    if remote and (adapter or four_bit or selection == "trained"):
        raise BadInput(
            "a model on a server is used as it is: leave out --adapter, --four-bit and --selection trained"
        )
    if selection == "trained" and adapter is None:
        raise BadInput(
            "--selection trained needs --adapter, a folder that finetune wrote; without one choose marks or boxes"
        )
    if adapter and selection in (None, "trained"):
        return _load_trained(mllm, sam, adapter, device, four_bit)
    from assistant.mllm.zero_shot import ZeroShot

    if remote:
        from assistant.mllm.openai_client import RemoteModel

        model = RemoteModel(mllm.removeprefix(PREFIX), base_url)
        model.check()
        weights = {"mllm": str(mllm)}
    else:
        from assistant.mllm.structured_output import LocalModel

        reasoner, weights = _load_reasoner(mllm, adapter, device, four_bit)
        model = LocalModel(reasoner)
    eyes, weights["sam"] = load_eyes(sam, device)
    from assistant.mllm.coordinates import UNIT, scale_of

    selection = selection or ("boxes" if scale_of(model.name) == UNIT else "marks")
    return ZeroShot(eyes, model, selection, second_look), weights


def _load_pocket(sam, adapter, selection, device, four_bit: bool, second_look: bool):
    if sam != "pocket":
        raise BadInput(
            f"the pocket preset's language model reads its own SAM only: give --mllm as well as --sam {sam}"
        )
    if selection in ("marks", "boxes") or second_look:
        raise BadInput(
            "the pocket preset's language model is too small for marks, boxes and second looks: "
            "give --mllm, or another --preset"
        )
    if device not in (None, "cpu") or four_bit:
        raise BadInput("the pocket preset runs on the CPU as it is; leave out --device and --four-bit")
    from assistant.pocket.pipeline import load_pocket

    return load_pocket(adapter)


def _load_trained(mllm, sam, adapter, device, four_bit: bool):
    from assistant.mllm.trained import load_tuned
    from assistant.weights import fingerprint

    reasoner, weights = _load_reasoner(mllm, None, device, four_bit)
    eyes, weights["sam"] = load_eyes(sam, device)
    return load_tuned(reasoner, eyes, Path(adapter)), weights | {"adapter": fingerprint(adapter)}


def _load_reasoner(mllm, adapter, device, four_bit: bool):
    from assistant.mllm.local_model import Reasoner
    from assistant.weights import fingerprint, resolve_model

    lora = None
    if adapter is not None:
        lora = Path(adapter) / "lora" if (Path(adapter) / "lora").is_dir() else Path(adapter)
    device = pick_device(device)
    where = resolve_model(mllm)
    reasoner = Reasoner.load(where, adapter=lora, device=device, four_bit=four_bit)
    weights = {"mllm": fingerprint(where)}
    return reasoner, weights | ({"adapter": fingerprint(adapter)} if adapter else {})


def pick_device(device: str | None) -> str:
    """What was asked for, or the GPU if there is one; of several processes on one machine, each its own GPU. BadInput: a
    GPU that is not there."""
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise BadInput(f"there is no device {device!r}: cpu, cuda or cuda:1") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"there is no GPU for device {device}; use --device cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device


def load_eyes(sam: str, device: str | None = None):
    """(eyes, sha256). sam: as `load_segmenter`; the pocket SAM brings its own way to find proposals."""
    from assistant.sam.image_opener import Eyes, PocketEyes
    from assistant.weights import pocket_file, sha256_of

    if str(sam) == "pocket":
        file = pocket_file("sam.safetensors")
        return PocketEyes(file), sha256_of(file)
    segmenter, found = load_segmenter(sam, device)
    return Eyes(segmenter), found


def load_segmenter(sam: str, device: str | None = None):
    """(`Segmenter`, sha256) of a hub id or folder of transformers' SAM or SAM 2, an official .pth file, a .safetensors file
    of the pocket SAM's trained weights, or "pocket". BadInput: none of these, or it cannot be had."""
    from assistant.sam.segmenter import Segmenter
    from assistant.weights import fingerprint, pocket_file, resolve_model, sha256_of

    path = pocket_file("sam.safetensors") if str(sam) == "pocket" else Path(sam)
    if path.suffix == ".safetensors":
        from assistant.pocket.pipeline import load_eyes

        return load_eyes(path).segmenter, sha256_of(path)
    device = pick_device(device)
    if path.is_file() or path.suffix in (".pth", ".pt"):
        return Segmenter.official(path, device=device), sha256_of(path)
    where = resolve_model(sam)
    return Segmenter.transformers(where, device), fingerprint(where)
