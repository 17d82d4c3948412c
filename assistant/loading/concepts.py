"""Loads what finds things by their name: SAM 3, a zero-shot detector, or the pocket preset's map of names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.errors import BadInput
from assistant.loading.names import EMBEDDED

if TYPE_CHECKING:
    from assistant.pipeline import ImageOpener
    from assistant.sam.concepts import ConceptSegmenter
    from assistant.sam.image_opener import SamOpenedImage


def load_concept_segmenter(
    concepts: str, opener: ImageOpener[SamOpenedImage]
) -> tuple[ConceptSegmenter[Any], str]:
    """Load a concept segmenter.

    Args:
        concepts: A hub id or folder of SAM 3 or of a zero-shot detector, or "pocket" for the names that the
            pocket preset was taught, found among the proposals of its own SAM.
        opener: Opens the images in which it finds things.

    Returns:
        The segmenter and the sha256 of its weights.

    Raises:
        BadInput: It finds nothing by its name, does not go with the opener's SAM, or cannot be had.
    """
    if concepts == EMBEDDED:
        return _load_pocket(opener), concepts_checksum(concepts)
    from assistant.sam.concepts import load_concepts

    return load_concepts(_where(concepts), opener.segmenter), concepts_checksum(concepts)


def concepts_checksum(concepts: str) -> str:
    """The sha256 of a concept segmenter's weights, without loading them; see `load_concept_segmenter`."""
    from assistant.weights import fingerprint, pocket_file, sha256_of

    if concepts == EMBEDDED:
        files = (pocket_file("heads.safetensors"), pocket_file("semantic.safetensors"))
        return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
    return fingerprint(_where(concepts))


def _load_pocket(opener: ImageOpener[SamOpenedImage]) -> ConceptSegmenter[Any]:
    """What finds the names that the pocket preset was taught, in what its own SAM opens."""
    from assistant.pocket.concepts import PocketConcepts
    from assistant.pocket.opening import PocketSamOpener

    if not isinstance(opener, PocketSamOpener):
        raise BadInput(
            "--concepts pocket finds things in what the pocket SAM encodes: give --sam pocket as well"
        )
    return PocketConcepts.load(opener.opener)


def _where(concepts: str) -> str:
    """The folder or hub id of a concept segmenter. Raises BadInput for what finds nothing by its name."""
    from assistant.weights import resolve_model

    if Path(concepts).suffix in (".pth", ".safetensors"):
        raise BadInput(
            f"{concepts} finds nothing by its name: give --concepts, a zero-shot detector such as "
            "IDEA-Research/grounding-dino-base, or --sam facebook/sam3"
        )
    return resolve_model(concepts)
