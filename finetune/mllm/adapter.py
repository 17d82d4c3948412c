"""What a training run leaves in its folder: the adapter that `--adapter` takes, its settings and its card."""

import json
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assistant.errors import BadInput
from assistant.files import replace_whole
from assistant.mllm.trained import PartOrigin
from assistant.weights import sha256_of
from finetune.mllm import deepspeed
from finetune.mllm.checkpoint import STATE_FILE, state_dict_options

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel

    from finetune.mllm.model import LLMWithSelector


@dataclass(frozen=True)
class AdapterOrigin:
    """What an adapter was trained on, for the metadata of its file.

    Attributes:
        mllm: The multimodal LLM: a folder, or a hub id.
        sam: The SAM whose proposals and features the selector reads.
        dino: The DINOv2 whose features the selector reads; None for SAM's alone.
        regions: Names the weights and settings that made the regions, see `finetune.region_cache`.
        concepts: What found the regions by their name; None for everything mode.
    """

    mllm: str
    sam: PartOrigin
    dino: str | None
    regions: str
    concepts: PartOrigin | None = None

    def concepts_metadata(self) -> dict[str, str]:
        """What the adapter's file says of `concepts`; {} without."""
        if self.concepts is None:
            return {}
        return {"concepts": self.concepts.name, "concepts_sha256": self.concepts.checksum}


def save_lora(folder: Path, llm: "PeftModel", state: dict[str, Tensor] | None = None) -> None:
    """Write the LoRA weights of a model as peft does, replacing each file as a whole.

    Args:
        folder: Made if it does not exist.
        llm: The model with LoRA.
        state: Whole weights, where the model's own are sharded over processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".lora.") as temporary:
        llm.save_pretrained(temporary, state_dict=state, save_embedding_layers=False)
        for file in Path(temporary).iterdir():
            if file.is_file():
                os.replace(file, folder / file.name)


def save_adapter(
    out: Path,
    model: "LLMWithSelector",
    metadata: Mapping[str, Any],
    calibration: Tensor | None,
    wrapped: nn.Module,
    accelerator: "Accelerator",
) -> None:
    """Write `lora/` and `heads.safetensors` of the weights as they are now. Every process must call this.

    Args:
        out: The run's folder. `heads.safetensors` holds the checksum of `lora/`'s weights.
        model: The model in training.
        metadata: Stored in `heads.safetensors`.
        calibration: (2,) scale and shift that are applied on top of the selector's presence; None for none.
        wrapped: `model` as `accelerator.prepare` gave it.
        accelerator: The accelerator of this run.
    """
    state: dict[str, Any] | None = None
    if deepspeed.is_enabled():
        state = deepspeed.gather_weights(model)
    elif accelerator.num_processes > 1:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        state = get_model_state_dict(wrapped, options=state_dict_options())
    if not accelerator.is_main_process:
        return
    from safetensors.torch import save_file

    heads = {
        name.removeprefix("selector."): weight.detach().cpu().float().contiguous()
        for name, weight in (state or model.state_dict()).items()
        if name.startswith("selector.")
    }
    heads |= {name: buffer.detach().cpu().float() for name, buffer in model.selector.named_buffers()}
    if calibration is not None:
        scale, shift = heads["selector.calibration"]
        heads["selector.calibration"] = torch.stack(
            [scale * calibration[0], shift * calibration[0] + calibration[1]]
        )
    lora = None
    if state:
        lora = {name.removeprefix("llm."): w for name, w in state.items() if name.startswith("llm.")}
    save_lora(out / "lora", model.llm, lora)
    about = dict(metadata) | {
        "selector": model.selector.config,
        "lora": sha256_of(out / "lora" / "adapter_model.safetensors"),
    }
    with replace_whole(out / "heads.safetensors") as path:
        save_file(heads, path, {"tuned": json.dumps(about)})


def write_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Write `settings.json` of a run's folder.

    Args:
        out: The run's folder.
        settings: See `TuneSettings.recorded`.

    Raises:
        BadInput: The folder holds a state that other settings made, from which this run cannot continue.
    """
    file = out / "settings.json"
    settings = json.loads(json.dumps(settings, default=str))
    if file.exists() and (out / STATE_FILE).exists():
        before = json.loads(file.read_text())
        changed = [
            f"--{k.replace('_', '-')} was {before.get(k)}" for k in settings if before.get(k) != settings[k]
        ]
        if changed:
            raise BadInput(
                f"{out} holds another run ({', '.join(changed)}); give the same settings, or another --out"
            )
    with replace_whole(file) as path:
        path.write_text(json.dumps(settings, indent=1) + "\n")


def write_card(
    out: Path, origin: AdapterOrigin, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write `README.md`: what was tuned, on what, how, and its scores on the validation records.

    Args:
        out: The run's folder.
        origin: The models that the adapter belongs to.
        settings: See `TuneSettings.recorded`.
        rows: The lines of `val.jsonl`, of which the last is shown.
    """
    parts = {"mllm": origin.mllm, "sam": origin.sam.name}
    if origin.concepts is not None:
        parts["concepts"] = origin.concepts.name
    models = " ".join(f"--{name} {shlex.quote(value)}" for name, value in parts.items())
    last = {k: v for k, v in (rows[-1] if rows else {}).items() if isinstance(v, float)}
    lines = [
        "---",
        f"base_model: {origin.mllm}",
        "library_name: peft",
        "tags: [maskpick, reasoning-segmentation, lora]",
        "---",
        "",
        f"# An adapter for {origin.mllm} with the SAM {origin.sam.name}",
        "",
        f"Trained on {', '.join(map(str, settings['data']))}.",
        "",
        "```sh",
        f'python -m assistant ask photo.jpg "what is it?" {models} --adapter FOLDER',
        "```",
        "",
    ]
    if last:
        lines += [
            "Validation, given the right names (this selects the checkpoint and is not a score to report): "
            + ", ".join(f"{k} {v:.3f}" for k, v in last.items())
            + ".",
            "",
        ]
    lines += [
        "Settings: "
        + ", ".join(f"{k} {v}" for k, v in settings.items() if v is not None and k != "data")
        + ".",
        "",
    ]
    with replace_whole(out / "README.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
