"""Loads a pipeline from its parts: which multimodal LLM, which SAM, and how masks are selected.

    pipeline, weights = load_pipeline("openai:qwen3-vl", sam="pocket", base_url="http://localhost:8000/v1")

Each part may be a hub id or a local folder; a SAM may also be an official .pth file, or the pocket preset's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.errors import BadInput
from assistant.loading.concepts import concepts_checksum, load_concept_segmenter
from assistant.loading.devices import may_spread, pick_device
from assistant.loading.names import EMBEDDED, SELECTIONS, SERVER_PREFIX, check_pixels, check_tokens
from assistant.loading.sams import load_image_opener, sam_checksum

if TYPE_CHECKING:
    from assistant.mllm.local_model import MultimodalLLM
    from assistant.mllm.structured_answer import StructuredModel
    from assistant.pipeline import Pipeline

Loaded = tuple["Pipeline[Any]", dict[str, str]]  # a pipeline, and {part: sha256 of its weights}

CALIBRATION_NEEDS_CONCEPTS = (
    "--calibration goes with --selection concepts: a preset such as agent or grounded, or --concepts"
)


@dataclass(frozen=True)
class _Parts:
    """The arguments of `load_pipeline`."""

    mllm: str
    sam: str
    adapter: Path | None
    selection: str | None
    device: str | None
    four_bit: bool
    base_url: str | None
    verify: bool
    pixels: int | None
    max_tokens: int | None
    concepts: str | None
    calibration: Path | None

    @property
    def on_server(self) -> bool:
        """Whether the LLM is on a server."""
        return self.mllm.startswith(SERVER_PREFIX)


def load_pipeline(
    mllm: str,
    sam: str,
    adapter: str | Path | None = None,
    selection: str | None = None,
    device: str | None = None,
    four_bit: bool = False,
    base_url: str | None = None,
    verify: bool = False,
    pixels: int | None = None,
    max_tokens: int | None = None,
    concepts: str | None = None,
    calibration: str | Path | None = None,
) -> Loaded:
    """Load a pipeline from its parts.

    Args:
        mllm: A hub id or folder of transformers, openai:MODEL (on a server at `base_url`), or pocket.
        sam: See `assistant.loading.sams.load_segmenter`.
        adapter: A folder that `python -m finetune` wrote.
        selection: "hybrid", "marks", "boxes", "concepts" or "trained". None means "trained" with an adapter,
            "concepts" where `concepts` is given, otherwise what the model's family can do
            (`assistant.mllm.coordinates.selection_of`).
        device: See `assistant.loading.devices.pick_device`.
        four_bit: Keep the weights of the LLM in 4 bits.
        base_url: Address of the server of an openai:MODEL.
        verify: Show each selected mask to the model again ("hybrid", "marks" and "boxes").
        pixels: See `assistant.presets.ModelOptions`.
        max_tokens: See `assistant.presets.ModelOptions`.
        concepts: What finds things by their name, see `assistant.loading.concepts`; with "concepts" None
            stands for the SAM, which is SAM 3 then. An adapter that was trained on what a concept segmenter
            found needs the same one; None stands for it.
        calibration: A file that `python -m finetune calibrate` wrote for the selection "concepts"; None to
            leave confidences as they are.

    Returns:
        The pipeline and {part: sha256 of its weights, or the name of a model on a server}.

    Raises:
        BadInput: Options that do not go together, or weights that cannot be had.
    """
    parts = _Parts(
        str(mllm),
        str(sam),
        None if adapter is None else Path(adapter),
        selection,
        device,
        four_bit,
        base_url,
        verify,
        pixels,
        max_tokens,
        concepts,
        None if calibration is None else Path(calibration),
    )
    if selection is not None and selection not in SELECTIONS:
        raise BadInput(f"there is no selection {selection!r}; choose one of: {', '.join(SELECTIONS)}")
    check_pixels(pixels)
    check_tokens(max_tokens)
    if base_url and not parts.on_server:
        raise BadInput("--base-url goes with --mllm openai:MODEL")
    if parts.mllm == EMBEDDED:
        return _load_pocket(parts)
    if parts.on_server and (adapter or four_bit or selection == "trained"):
        raise BadInput(
            "a model on a server is used as it is: leave out --adapter, --four-bit and --selection trained"
        )
    if selection == "trained" and adapter is None:
        raise BadInput(
            "--selection trained needs --adapter, a folder that finetune wrote; else choose hybrid, marks or "
            "boxes"
        )
    if parts.adapter is not None and selection in (None, "trained"):
        from assistant.mllm.trained import stored_concepts

        trained_on = stored_concepts(parts.adapter)
        if trained_on or not concepts:
            if calibration:
                raise BadInput(CALIBRATION_NEEDS_CONCEPTS)
            return _load_trained(replace(parts, concepts=concepts or trained_on))
    if concepts and selection not in (None, "concepts"):
        raise BadInput(f"--concepts goes with --selection concepts, not with {selection}")
    if concepts:
        parts = replace(parts, selection="concepts")
    if calibration and parts.selection != "concepts":
        raise BadInput(CALIBRATION_NEEDS_CONCEPTS)
    return _load_zero_shot(parts)


def _load_pocket(parts: _Parts) -> Loaded:
    """The embedded pipeline; raises BadInput for whatever it has no use for."""
    if parts.calibration is not None:
        raise BadInput(CALIBRATION_NEEDS_CONCEPTS)
    if parts.pixels is not None:
        raise BadInput("the pocket preset's language model is shown no pixels; leave out --pixels")
    if parts.max_tokens is not None:
        raise BadInput("the pocket preset writes a sentence or two; leave out --max-tokens")
    if parts.sam != EMBEDDED:
        raise BadInput(
            "the pocket preset's language model reads its own SAM only: give --mllm as well as --sam "
            f"{parts.sam}"
        )
    if parts.selection in ("hybrid", "marks", "boxes", "concepts") or parts.verify:
        raise BadInput(
            "the pocket preset's language model is too small for marks, boxes, concepts and verification: "
            "give --mllm, or another --preset"
        )
    if parts.device not in (None, "cpu") or parts.four_bit:
        raise BadInput("the pocket preset runs on the CPU as it is; leave out --device and --four-bit")
    from assistant.pocket.pipeline import load_pocket

    return load_pocket(parts.adapter)


def _load_trained(parts: _Parts) -> Loaded:
    """A pipeline with an adapter of `python -m finetune`."""
    from assistant.mllm.trained import (
        PartOrigin,
        check_concepts,
        check_sam,
        load_trained_pipeline,
        read_heads,
    )
    from assistant.weights import fingerprint

    adapter = parts.adapter
    assert adapter is not None
    about = read_heads(adapter)[1]
    check_sam(about, adapter, PartOrigin(parts.sam, sam_checksum(parts.sam)))
    if parts.concepts is not None:
        check_concepts(about, adapter, PartOrigin(parts.concepts, concepts_checksum(parts.concepts)))
    llm, weights = _load_llm(parts, adapter=None, markers=True)
    opener, weights["sam"] = load_image_opener(parts.sam, parts.device)
    finder = None
    if parts.concepts is not None:
        finder, weights["concepts"] = load_concept_segmenter(parts.concepts, opener)
    pipeline = load_trained_pipeline(llm, opener, adapter, finder)
    pipeline.max_tokens = parts.max_tokens
    return pipeline, weights | {"adapter": fingerprint(adapter)}


def _load_zero_shot(parts: _Parts) -> Loaded:
    """A pipeline of models as they are, or with a LoRA of the LLM alone."""
    from assistant.mllm.calibration import Calibration
    from assistant.mllm.concept_pipeline import ConceptPipeline
    from assistant.mllm.coordinates import selection_of
    from assistant.mllm.openai_client import OpenAIClient
    from assistant.mllm.structured_output import StructuredLLM
    from assistant.mllm.zero_shot import ZeroShotPipeline

    model: StructuredModel
    if parts.on_server:
        client = OpenAIClient(
            parts.mllm.removeprefix(SERVER_PREFIX), parts.base_url, parts.pixels, parts.max_tokens
        )
        client.check()
        model, weights = client, {"mllm": parts.mllm}
    else:
        llm, weights = _load_llm(parts, parts.adapter)
        model = StructuredLLM(llm, parts.max_tokens)
    opener, weights["sam"] = load_image_opener(parts.sam, parts.device)
    if parts.selection == "concepts":
        concepts = parts.concepts or parts.sam
        finder, weights["concepts"] = load_concept_segmenter(concepts, opener)
        pipeline = ConceptPipeline(opener, model, finder, parts.verify)
        if parts.calibration is not None:
            calibration = Calibration.load(parts.calibration)
            calibration.check(weights, parts.calibration)
            pipeline.confidence = calibration.confidence
        return pipeline, weights
    selection = parts.selection or selection_of(model.name)
    return ZeroShotPipeline(opener, model, selection, parts.verify), weights


def _load_llm(
    parts: _Parts, adapter: Path | None, markers: bool = False
) -> tuple[MultimodalLLM, dict[str, str]]:
    """The LLM, with the LoRA of an adapter if there is one; markers: see `MultimodalLLM.load`."""
    from assistant.mllm.local_model import MultimodalLLM
    from assistant.mllm.trained import stored_pixels
    from assistant.weights import fingerprint, resolve_model

    lora, pixels = None, parts.pixels
    if adapter is not None:
        pixels = pixels or stored_pixels(adapter)
        lora = adapter / "lora" if (adapter / "lora").is_dir() else adapter
    where = resolve_model(parts.mllm)
    llm = MultimodalLLM.load(
        where,
        adapter=lora,
        device=pick_device(parts.device),
        four_bit=parts.four_bit,
        pixels=pixels,
        markers=markers,
        spread=may_spread(parts.device),
    )
    weights = {"mllm": fingerprint(where)}
    return llm, weights | ({"adapter": fingerprint(adapter)} if adapter else {})
