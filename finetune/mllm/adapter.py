"""What training leaves: the adapter folder that `--adapter` takes, and the state from which the same command goes on."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from assistant.files import replace_whole
from assistant.weights import sha256_of
from finetune.mllm import deepspeed as zero


def options():
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)


def save_lora(folder: Path, llm, state: dict | None = None) -> None:
    """peft's own files, each replaced whole. state: of a model whose weights are spread over processes."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".lora.") as temporary:
        llm.save_pretrained(temporary, state_dict=state, save_embedding_layers=False)
        for file in Path(temporary).iterdir():
            if file.is_file():
                os.replace(file, folder / file.name)


def save_adapter(out: Path, student, about: dict, calibration: Tensor | None, wrapped, accelerator) -> None:
    """`lora/` and `heads.safetensors` of the weights as they are now; the latter names the former's checksum."""
    state = None
    if zero.asked_for():
        state = zero.weights(student)
    elif accelerator.num_processes > 1:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        state = get_model_state_dict(wrapped, options=options())
    if not accelerator.is_main_process:
        return
    from safetensors.torch import save_file

    heads = state or student.state_dict()
    heads = {
        k.removeprefix("selector."): v.detach().cpu().float().contiguous()
        for k, v in heads.items()
        if k.startswith("selector.")
    }
    heads |= {k: v.detach().cpu().float() for k, v in student.selector.named_buffers()}
    if calibration is not None:
        old = heads["selector.calibration"]
        heads["selector.calibration"] = torch.stack(
            [old[0] * calibration[0], old[1] * calibration[0] + calibration[1]]
        )
    lora = {k.removeprefix("llm."): v for k, v in state.items() if k.startswith("llm.")} if state else None
    save_lora(out / "lora", student.llm, lora)
    about = about | {
        "selector": student.selector.config,
        "lora": sha256_of(out / "lora" / "adapter_model.safetensors"),
    }
    with replace_whole(out / "heads.safetensors") as path:
        save_file(heads, path, {"tuned": json.dumps(about)})


def save_state(file: Path, student, optimizer, step: int, best: float | None, accelerator) -> None:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    if zero.asked_for():
        model, moments = zero.state_of(accelerator.unwrap_model(student), optimizer)
    else:
        model, moments = get_state_dict(
            student, getattr(optimizer, "optimizer", optimizer), options=options()
        )
    if accelerator.is_main_process:
        with replace_whole(file) as path:
            torch.save({"model": model, "optimizer": moments, "step": step, "best": best}, path)
    accelerator.wait_for_everyone()


def restore(file: Path, student, optimizer, accelerator) -> tuple[int, float | None]:
    """The step to go on from and the best score so far; (0, None) where there is no state."""
    if not file.exists():
        return 0, None
    from torch.distributed.checkpoint.state_dict import set_state_dict

    state = torch.load(file, weights_only=True, map_location="cpu")
    if zero.asked_for():
        zero.put(state, accelerator.unwrap_model(student), optimizer)
    else:
        set_state_dict(
            student,
            getattr(optimizer, "optimizer", optimizer),
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=dataclasses.replace(options(), broadcast_from_rank0=accelerator.num_processes > 1),
        )
    return state["step"], state["best"]


def load_trained(file: Path, student) -> None:
    """The weights of `file`, if it is there, into a student that is whole yet."""
    if file.exists():
        kept = torch.load(file, weights_only=True, map_location="cpu")["model"]
        own = student.state_dict()
        for name, weight in kept.items():
            own[name].data.copy_(weight)


def keep_settings(out: Path, settings: dict) -> None:
    """Write the settings of the run in `out`. BadInput if it went on from a state made with others: it could not go on
    exactly."""
    from assistant.errors import BadInput

    file = out / "settings.json"
    settings = json.loads(json.dumps(settings, default=str))
    if file.exists() and (out / "state.pt").exists():
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


def write_card(out: Path, base: str, settings: dict, rows: list[dict]) -> None:
    """README.md: what was tuned, on what, how, and how it did on the records that chose the checkpoint."""
    last = {k: v for k, v in (rows[-1] if rows else {}).items() if isinstance(v, float)}
    lines = [
        "---",
        f"base_model: {base}",
        "library_name: peft",
        "tags: [maskpick, reasoning-segmentation, lora]",
        "---",
        "",
        f"# An adapter for {base}",
        "",
        f"Trained on {', '.join(map(str, settings['data']))}.",
        "",
        "```sh",
        f'python -m assistant ask photo.jpg "what is it?" --mllm {base} --adapter FOLDER',
        "```",
        "",
    ]
    if last:
        lines += [
            "Validation, given the right names (chooses the checkpoint, is no score to report): "
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
        path.write_text("\n".join(lines))
