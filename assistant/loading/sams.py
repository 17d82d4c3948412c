"""Loads a SAM of any make, or what opens images with it.

segmenter, checksum = load_segmenter("facebook/sam-vit-base", device="cuda")
opener, checksum = load_image_opener("pocket")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from assistant.loading.devices import pick_device
from assistant.loading.names import EMBEDDED

if TYPE_CHECKING:
    from assistant.pipeline import ImageOpener
    from assistant.sam.image_opener import SamOpenedImage
    from assistant.sam.segmenter import Segmenter


def load_image_opener(sam: str, device: str | None = None) -> tuple[ImageOpener[SamOpenedImage], str]:
    """What opens images for any language model but the embedded one.

    Args:
        sam: See `load_segmenter`. The pocket SAM brings its own way to find proposals.
        device: See `pick_device`.

    Returns:
        The opener and the sha256 of its weights.
    """
    from assistant.sam.image_opener import SamImageOpener
    from assistant.weights import pocket_file, sha256_of

    if str(sam) == EMBEDDED:
        from assistant.pocket.opening import PocketSamOpener

        file = pocket_file("sam.safetensors")
        return PocketSamOpener(file), sha256_of(file)
    segmenter, checksum = load_segmenter(sam, device)
    return SamImageOpener(segmenter), checksum


def opener_key(sam: str) -> str:
    """Names the proposals of `load_image_opener(sam)`, for caches: the SAM's checksum and its settings."""
    from assistant.sam.image_opener import MAX_PROPOSALS

    return f"sam {sam_checksum(sam)} {MAX_PROPOSALS}"


def sam_checksum(sam: str) -> str:
    """The sha256 of a SAM's weights, without loading them; see `load_segmenter`."""
    from assistant.weights import POCKET, fingerprint, resolve_model, sha256_of

    if sam == EMBEDDED:
        return sha256_of(POCKET / "sam.safetensors")
    return sha256_of(Path(sam)) if Path(sam).is_file() else fingerprint(resolve_model(sam))


def load_segmenter(sam: str | Path, device: str | None = None) -> tuple[Segmenter, str]:
    """A SAM for prompts by hand, and the sha256 of its weights.

    Args:
        sam: A hub id or folder of transformers' SAM or SAM 2, an official .pth file, a .safetensors file of
            weights that were trained for the pocket SAM, or "pocket".
        device: See `pick_device`.

    Raises:
        BadInput: It is none of these, or it cannot be had.
    """
    from assistant.sam.backends import OfficialSegmenter, TransformersSegmenter
    from assistant.weights import fingerprint, pocket_file, resolve_model, sha256_of

    path = pocket_file("sam.safetensors") if str(sam) == EMBEDDED else Path(sam)
    if path.suffix == ".safetensors":
        from assistant.pocket.opening import load_pocket_opener

        return load_pocket_opener(path).segmenter, sha256_of(path)
    device = pick_device(device)
    if path.is_file() or path.suffix in (".pth", ".pt"):
        return OfficialSegmenter.from_checkpoint(path, device=device), sha256_of(path)
    where = resolve_model(str(sam))
    return TransformersSegmenter.from_pretrained(where, device), fingerprint(where)
