"""Copy trained weights into the package as half-precision safetensors, and write their checksums.

python -m finetune publish --sam runs/sam/sam.safetensors --reasoner runs/reasoner
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.files import replace_whole
from assistant.weights import POCKET, write_checksums

if TYPE_CHECKING:
    from torch import Tensor

LORA_CONFIG = "lora/adapter_config.json"
LORA_WEIGHTS = "lora/adapter_model.safetensors"
HEADS = "heads.safetensors"
BASE_MODEL = "SmolLM2-135M-Instruct"  # in place of a path on the machine that trained the adapter


@dataclass(frozen=True)
class TrainedParts:
    """What the stages of `python -m finetune` wrote; None for a part that stays as it is.

    Attributes:
        sam: sam.safetensors of the sam stage.
        boxes: boxes.safetensors of the boxes stage.
        detector: detector.safetensors of the detector stage.
        heads: heads.safetensors of the names stage.
        reference: reference.safetensors of the reference stage.
        semantic: semantic.safetensors of the semantic stage.
        attention: A run-K.safetensors of the attention stage.
        ranking: What rank-layers wrote.
        reasoner: Folder of the records stage: the language model's adapter and its heads.
    """

    sam: Path | None = None
    boxes: Path | None = None
    detector: Path | None = None
    heads: Path | None = None
    reference: Path | None = None
    semantic: Path | None = None
    attention: Path | None = None
    ranking: Path | None = None
    reasoner: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of publishing to the command line."""
    parser.add_argument("--sam", type=Path, help="sam.safetensors of the sam stage")
    parser.add_argument("--boxes", type=Path, help="boxes.safetensors of the boxes stage")
    parser.add_argument("--detector", type=Path, help="detector.safetensors of the detector stage")
    parser.add_argument("--heads", type=Path, help="heads.safetensors of the names stage")
    parser.add_argument("--reference", type=Path, help="reference.safetensors of the reference stage")
    parser.add_argument("--semantic", type=Path, help="semantic.safetensors of the semantic stage")
    parser.add_argument("--attention", type=Path, help="a run-K.safetensors of the attention stage")
    parser.add_argument(
        "--ranking", type=Path, help="what rank-layers wrote, which that stage and attend follow"
    )
    parser.add_argument("--reasoner", type=Path, help="folder of the records stage")


def main(args: argparse.Namespace) -> None:
    """Publish the parts that the command line names."""
    publish(TrainedParts(**{f.name: getattr(args, f.name) for f in fields(TrainedParts)}))
    files = sorted(POCKET.rglob("*.safetensors"))
    total = sum(f.stat().st_size for f in files) / 1e6
    print(f"{len(files)} files, {total:.1f} MB in {POCKET}")


def publish(parts: TrainedParts) -> None:
    """Copy trained parts into the package and write the checksums of all.

    Raises:
        BadInput: No part is named, or a file is missing.
    """
    _check(parts)
    if parts.sam:
        _save_half(parts.sam, POCKET / "sam.safetensors")
    if parts.boxes:
        _save_half(parts.boxes, POCKET / "boxes.safetensors")
    if parts.detector:
        _save_half(parts.detector, POCKET / "detector.safetensors")
    if parts.heads:
        shutil.copy(parts.heads, POCKET / HEADS)
    if parts.reference:
        from safetensors import safe_open

        with safe_open(parts.reference, "pt") as opened:
            metadata = opened.metadata()
        _save_half(parts.reference, POCKET / "reference.safetensors", metadata)
    if parts.semantic:
        shutil.copy(parts.semantic, POCKET / "semantic.safetensors")
    if parts.attention:
        _save_half(parts.attention, POCKET / "attention.safetensors")
    if parts.ranking:
        from assistant.attention.prompt_attention import Ranking

        Ranking.load(parts.ranking).save(POCKET / "attention.json")
    if parts.reasoner:
        _publish_reasoner(parts.reasoner)
    write_checksums()


def _check(parts: TrainedParts) -> None:
    """Raise BadInput where no part is named, or a file is missing."""
    from assistant.errors import BadInput
    from finetune.check import must_exist

    if parts == TrainedParts():
        raise BadInput(
            "name what is to be published: --sam, --boxes, --detector, --heads, --reference, --semantic, "
            "--attention, --ranking or --reasoner"
        )
    must_exist(
        parts.sam,
        parts.boxes,
        parts.detector,
        parts.heads,
        parts.reference,
        parts.semantic,
        parts.attention,
        parts.ranking,
    )
    if parts.reasoner:
        must_exist(*(parts.reasoner / name for name in (HEADS, LORA_CONFIG, LORA_WEIGHTS)))


def _publish_reasoner(folder: Path) -> None:
    """Copy the language model's adapter and its heads."""
    from safetensors.torch import load_file

    shutil.copy(folder / HEADS, POCKET / HEADS)
    (POCKET / "lora").mkdir(exist_ok=True)
    config = json.loads((folder / LORA_CONFIG).read_text())
    config["base_model_name_or_path"] = BASE_MODEL
    (POCKET / LORA_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    adapter = load_file(folder / LORA_WEIGHTS)
    # The rows of the tokens that were not trained are SmolLM2's own.
    adapter = {name: w for name, w in adapter.items() if not name.endswith("base_layer.weight")}
    _write_half(adapter, POCKET / LORA_WEIGHTS, {"format": "pt"})


def _save_half(source: Path, destination: Path, metadata: dict[str, str] | None = None) -> None:
    """Copy a safetensors file in half precision."""
    from safetensors.torch import load_file

    _write_half(load_file(source), destination, metadata)


def _write_half(state: dict[str, Tensor], destination: Path, metadata: dict[str, str] | None) -> None:
    """Write tensors, those of floating point in half precision."""
    from safetensors.torch import save_file

    half = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in state.items()
    }
    with replace_whole(destination) as path:
        save_file(half, path, metadata)
