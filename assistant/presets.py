"""Presets: which multimodal LLM reads the question, which SAM outlines, and how masks are selected.

    pipeline, weights = load_preset("base", device="cuda")
    pipeline, weights = load_pipeline("openai:qwen3-vl", sam="pocket", base_url="http://localhost:8000/v1")

Each part may be a hub id or a local folder; a SAM may also be an official .pth file, or the pocket preset's.
This is the one place that knows the presets by name: everything else asks a `Preset` or a `Pipeline`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.errors import BadInput

if TYPE_CHECKING:  # torch is loaded when a model is, so that every --help is instant
    import numpy as np

    from assistant.mllm.local_model import MultimodalLLM
    from assistant.pipeline import AttentionProbe, ImageOpener, Pipeline
    from assistant.sam.concepts import ConceptSegmenter
    from assistant.sam.image_opener import SamOpenedImage
    from assistant.sam.proposals import Proposals
    from assistant.sam.segmenter import Segmenter

EMBEDDED = "pocket"  # the name of the embedded LLM and of its SAM, wherever a part is named
SERVER_PREFIX = "openai:"  # of a multimodal LLM on an OpenAI-compatible server
SELECTIONS = ("hybrid", "marks", "boxes", "concepts", "trained")
MIN_PIXELS = 256 * 256  # that an LLM may be limited to; Qwen3-VL's processor enlarges smaller images to it
MIN_TOKENS = 64  # that an LLM may be limited to; an answer that names one thing takes about 60


@dataclass(frozen=True)
class Preset:
    """Parts that go together.

    Attributes:
        mllm: See `load_pipeline`.
        sam: See `load_segmenter`.
        selection: How masks are selected without an adapter.
        features: Hub id of the DINOv2 that a trained selector reads beside SAM's features; None for none.
        limits: What it can and cannot do, in two sentences for visitors of the page.
        concepts: What finds things by their name, see `assistant.sam.concepts`; None for nothing.
    """

    mllm: str
    sam: str
    selection: str = "hybrid"
    features: str | None = None
    limits: str = ""
    concepts: str | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether the weights come with the package."""
        return self.mllm == EMBEDDED


PRESETS = {
    "pocket": Preset(
        EMBEDDED,
        EMBEDDED,
        "trained",
        limits="The pocket preset knows everyday things, clothes and parts of streets, asked for in plain "
        "English. It misses small things and crowds, and cannot read text or explain why.",
    ),
    "small": Preset("Qwen/Qwen3-VL-2B-Instruct", "facebook/sam-vit-base"),
    "base": Preset("Qwen/Qwen3-VL-4B-Instruct", "facebook/sam-vit-large"),
    "large": Preset("Qwen/Qwen3-VL-8B-Instruct", "facebook/sam-vit-huge"),
    # The parts of LLM-Seg. LLaVA-1.5 was taught boxes, but hardly reads numbers drawn on images
    # (arXiv 2404.16375).
    "llava": Preset("llava-hf/llava-1.5-7b-hf", "facebook/sam-vit-huge", "boxes", "facebook/dinov2-large"),
    # The LLM names, and a segmenter finds what it names. The weights of SAM 3 are gated, under a licence of
    # their own; Grounding DINO is Apache-2.0.
    "agent": Preset("Qwen/Qwen3-VL-8B-Instruct", "facebook/sam3", "concepts", concepts="facebook/sam3"),
    "agent-small": Preset(
        "Qwen/Qwen3-VL-4B-Instruct", "facebook/sam3", "concepts", concepts="yonigozlan/sam3-litetext-s0"
    ),
    "grounded": Preset(
        "Qwen/Qwen3-VL-4B-Instruct",
        "facebook/sam-vit-large",
        "concepts",
        concepts="IDEA-Research/grounding-dino-base",
    ),
}


@dataclass(frozen=True)
class ModelOptions:
    """The models that a command uses; `assistant.cli` reads them from the command line.

    Attributes:
        preset: A name of `PRESETS`.
        mllm: Replaces the preset's multimodal LLM, see `load_pipeline`.
        sam: Replaces the preset's SAM, see `load_segmenter`.
        adapter: Folder that `python -m finetune` wrote.
        selection: Replaces the preset's selection, one of `SELECTIONS`.
        base_url: Address of the server of an openai:MODEL.
        four_bit: Whether the LLM's weights are kept in 4 bits.
        verify: Whether each selected mask is shown to the model again.
        device: "cpu", "cuda", "cuda:1"; None for the GPU if there is one.
        pixels: px of an image that the LLM is shown, at most; None for what the adapter was trained with, or
            what suits the LLM's family (`assistant.mllm.model_image`).
        max_tokens: Tokens that the LLM may write for one answer; those of its thoughts count too where it is
            on a server. None for what suits it.
    """

    preset: str = "pocket"
    mllm: str | None = None
    sam: str | None = None
    adapter: Path | None = None
    selection: str | None = None
    base_url: str | None = None
    four_bit: bool = False
    verify: bool = False
    device: str | None = None
    pixels: int | None = None
    max_tokens: int | None = None
    concepts: str | None = None

    @property
    def sam_or_preset(self) -> str:
        """The SAM that these options mean. Raises BadInput for an unknown preset."""
        return self.sam or preset_named(self.preset).sam

    @property
    def is_embedded(self) -> bool:
        """Whether the embedded pipeline answers. Raises BadInput for an unknown preset."""
        return preset_named(self.preset).is_embedded and self.mllm in (None, EMBEDDED)

    def describe(self) -> str:
        """What to call these models in a result: the preset, and the parts that replace its own."""
        changes = {
            "mllm": _last_part(self.mllm),
            "sam": _last_part(self.sam),
            "selection": self.selection,
            "concepts": _last_part(self.concepts),
            "adapter": _last_part(self.adapter),
            "verification": "yes" if self.verify else None,
            "4-bit": "yes" if self.four_bit else None,
            "pixels": self.pixels,
            "tokens": self.max_tokens,
        }
        return ", ".join([self.preset, *(f"{name} {value}" for name, value in changes.items() if value)])

    def load(self) -> tuple[Pipeline[Any], dict[str, str]]:
        """The pipeline and {part: sha256}; see `load_preset`."""
        return load_preset(
            self.preset,
            self.adapter,
            self.device,
            mllm=self.mllm,
            sam=self.sam,
            selection=self.selection,
            base_url=self.base_url,
            four_bit=self.four_bit,
            verify=self.verify,
            pixels=self.pixels,
            max_tokens=self.max_tokens,
            concepts=self.concepts,
        )


def _last_part(name: object) -> str | None:
    return Path(str(name)).name if name else None


def preset_named(name: str) -> Preset:
    """The preset of that name. Raises BadInput where there is none."""
    if name not in PRESETS:
        raise BadInput(f"there is no preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]


def check_pixels(pixels: int | None) -> None:
    """Raise BadInput for fewer pixels than a model can make something of; None is no limit of one's own."""
    if pixels is not None and pixels < MIN_PIXELS:
        raise BadInput(f"--pixels {pixels} is too few: give {MIN_PIXELS} (256 x 256) or more")


def check_tokens(max_tokens: int | None) -> None:
    """Raise BadInput for fewer tokens than the shortest answer takes; None is no limit of one's own."""
    if max_tokens is not None and max_tokens < MIN_TOKENS:
        raise BadInput(f"--max-tokens {max_tokens} is too few for an answer: give {MIN_TOKENS} or more")


def load_preset(
    name: str,
    adapter: str | Path | None = None,
    device: str | None = None,
    mllm: str | None = None,
    sam: str | None = None,
    selection: str | None = None,
    concepts: str | None = None,
    **options: Any,
) -> tuple[Pipeline[Any], dict[str, str]]:
    """Load a preset, with parts of one's own in the place of some of its parts.

    Args:
        name: One of `PRESETS`.
        adapter, device, mllm, sam, selection, concepts, options: See `load_pipeline`; None for the preset's
            own.

    Returns:
        The pipeline and {part: sha256 of its weights}.

    Raises:
        BadInput: There is no such preset, or its weights cannot be had.
    """
    preset = preset_named(name)
    if selection is None and adapter is None:
        if concepts or preset.concepts:
            selection = "concepts"
        elif mllm is None and not preset.is_embedded:
            selection = preset.selection
    if selection == "concepts" and concepts is None and sam in (None, preset.sam):
        concepts = preset.concepts
    return load_pipeline(
        mllm or preset.mllm, sam or preset.sam, adapter, selection, device, concepts=concepts, **options
    )


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
) -> tuple[Pipeline[Any], dict[str, str]]:
    """Load a pipeline from its parts.

    Args:
        mllm: A hub id or folder of transformers, openai:MODEL (on a server at `base_url`), or pocket.
        sam: See `load_segmenter`.
        adapter: A folder that `python -m finetune` wrote.
        selection: "hybrid", "marks", "boxes", "concepts" or "trained". None means "trained" with an adapter,
            "concepts" where `concepts` is given, otherwise what the model's family can do
            (`assistant.mllm.coordinates.selection_of`).
        device: See `pick_device`.
        four_bit: Keep the weights of the LLM in 4 bits.
        base_url: Address of the server of an openai:MODEL.
        verify: Show each selected mask to the model again ("hybrid", "marks" and "boxes").
        pixels: See `ModelOptions`.
        max_tokens: See `ModelOptions`.
        concepts: What finds things by their name, see `assistant.sam.concepts.load_concepts`; with "concepts"
            None stands for the SAM, which is SAM 3 then.

    Returns:
        The pipeline and {part: sha256 of its weights, or the name of a model on a server}.

    Raises:
        BadInput: Options that do not go together, or weights that cannot be had.
    """
    on_server = str(mllm).startswith(SERVER_PREFIX)
    if selection is not None and selection not in SELECTIONS:
        raise BadInput(f"there is no selection {selection!r}; choose one of: {', '.join(SELECTIONS)}")
    check_pixels(pixels)
    check_tokens(max_tokens)
    if base_url and not on_server:
        raise BadInput("--base-url goes with --mllm openai:MODEL")
    if mllm == EMBEDDED:
        if pixels is not None:
            raise BadInput("the pocket preset's language model is shown no pixels; leave out --pixels")
        if max_tokens is not None:
            raise BadInput("the pocket preset writes a sentence or two; leave out --max-tokens")
        return _load_pocket(sam, adapter, selection, device, four_bit, verify)
    if concepts and selection not in (None, "concepts"):
        raise BadInput(f"--concepts goes with --selection concepts, not with {selection}")
    if on_server and (adapter or four_bit or selection == "trained"):
        raise BadInput(
            "a model on a server is used as it is: leave out --adapter, --four-bit and --selection trained"
        )
    if selection == "trained" and adapter is None:
        raise BadInput(
            "--selection trained needs --adapter, a folder that finetune wrote; else choose hybrid, marks or "
            "boxes"
        )
    if adapter and selection in (None, "trained") and not concepts:
        return _load_trained(mllm, sam, Path(adapter), device, four_bit, pixels, max_tokens)
    if concepts:
        selection = "concepts"
    return _load_zero_shot(
        mllm, sam, adapter, selection, device, four_bit, base_url, verify, pixels, max_tokens, concepts
    )


def _load_pocket(
    sam: str,
    adapter: str | Path | None,
    selection: str | None,
    device: str | None,
    four_bit: bool,
    verify: bool,
) -> tuple[Pipeline[Any], dict[str, str]]:
    if sam != EMBEDDED:
        raise BadInput(
            f"the pocket preset's language model reads its own SAM only: give --mllm as well as --sam {sam}"
        )
    if selection in ("hybrid", "marks", "boxes", "concepts") or verify:
        raise BadInput(
            "the pocket preset's language model is too small for marks, boxes, concepts and verification: "
            "give --mllm, or another --preset"
        )
    if device not in (None, "cpu") or four_bit:
        raise BadInput("the pocket preset runs on the CPU as it is; leave out --device and --four-bit")
    from assistant.pocket.pipeline import load_pocket

    return load_pocket(None if adapter is None else Path(adapter))


def _load_trained(
    mllm: str,
    sam: str,
    adapter: Path,
    device: str | None,
    four_bit: bool,
    pixels: int | None,
    max_tokens: int | None,
) -> tuple[Pipeline[Any], dict[str, str]]:
    from assistant.mllm.trained import SamOrigin, check_sam, load_trained_pipeline, read_heads
    from assistant.weights import fingerprint

    check_sam(read_heads(adapter)[1], adapter, SamOrigin(sam, sam_checksum(sam)))
    llm, weights = _load_llm(mllm, None, device, four_bit, pixels, markers=True)
    opener, weights["sam"] = load_image_opener(sam, device)
    pipeline = load_trained_pipeline(llm, opener, adapter)
    pipeline.max_tokens = max_tokens
    return pipeline, weights | {"adapter": fingerprint(adapter)}


def _load_zero_shot(
    mllm: str,
    sam: str,
    adapter: str | Path | None,
    selection: str | None,
    device: str | None,
    four_bit: bool,
    base_url: str | None,
    verify: bool,
    pixels: int | None,
    max_tokens: int | None,
    concepts: str | None,
) -> tuple[Pipeline[Any], dict[str, str]]:
    from assistant.mllm.concept_pipeline import ConceptPipeline
    from assistant.mllm.coordinates import selection_of
    from assistant.mllm.openai_client import OpenAIClient
    from assistant.mllm.structured_output import StructuredLLM
    from assistant.mllm.zero_shot import ZeroShotPipeline

    model: OpenAIClient | StructuredLLM
    if str(mllm).startswith(SERVER_PREFIX):
        model = OpenAIClient(mllm.removeprefix(SERVER_PREFIX), base_url, pixels, max_tokens)
        model.check()
        weights = {"mllm": str(mllm)}
    else:
        llm, weights = _load_llm(mllm, adapter, device, four_bit, pixels)
        model = StructuredLLM(llm, max_tokens)
    opener, weights["sam"] = load_image_opener(sam, device)
    if selection == "concepts":
        finder, weights["concepts"] = _load_concepts(concepts or sam, opener.segmenter)
        return ConceptPipeline(opener, model, finder, verify), weights
    return ZeroShotPipeline(opener, model, selection or selection_of(model.name), verify), weights


def _load_concepts(concepts: str, segmenter: Segmenter) -> tuple[ConceptSegmenter[SamOpenedImage], str]:
    """What finds things by their name, and the sha256 of its weights."""
    from assistant.sam.concepts import load_concepts
    from assistant.weights import fingerprint, resolve_model

    if concepts == EMBEDDED or concepts.endswith(".pth"):
        raise BadInput(
            f"--sam {concepts} finds nothing by its name: give --concepts, a zero-shot detector such as "
            "IDEA-Research/grounding-dino-base, or --sam facebook/sam3"
        )
    where = resolve_model(concepts)
    return load_concepts(where, segmenter), fingerprint(where)


def _load_llm(
    mllm: str,
    adapter: str | Path | None,
    device: str | None,
    four_bit: bool,
    pixels: int | None,
    markers: bool = False,
) -> tuple[MultimodalLLM, dict[str, str]]:
    from assistant.mllm.local_model import MultimodalLLM
    from assistant.mllm.trained import stored_pixels
    from assistant.weights import fingerprint, resolve_model

    lora = None
    if adapter is not None:
        pixels = pixels or stored_pixels(Path(adapter))
        lora = Path(adapter) / "lora" if (Path(adapter) / "lora").is_dir() else Path(adapter)
    where = resolve_model(mllm)
    llm = MultimodalLLM.load(
        where,
        adapter=lora,
        device=pick_device(device),
        four_bit=four_bit,
        pixels=pixels,
        markers=markers,
        spread=may_spread(device),
    )
    weights = {"mllm": fingerprint(where)}
    return llm, weights | ({"adapter": fingerprint(adapter)} if adapter else {})


def pick_device(device: str | None) -> str:
    """The device that was asked for.

    Args:
        device: "cpu", "cuda", "cuda:1"; None for the GPU if there is one. Of several processes on one machine
            each takes its own GPU.

    Returns:
        A name that torch takes.

    Raises:
        BadInput: There is no such device here.
    """
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


def may_spread(device: str | None) -> bool:
    """Whether a model may take other GPUs, and the CPU, beside the device that `pick_device` names.

    Args:
        device: What was asked for. A numbered GPU is meant alone, and so is that of one of several processes.
    """
    return device in (None, "cuda") and "LOCAL_RANK" not in os.environ


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


def load_everything_mode(
    options: ModelOptions, settings: dict[str, Any]
) -> tuple[Callable[[np.ndarray], Proposals], dict[str, str]]:
    """Everything mode as a function from an image (H, W, 3) uint8 to its proposals, and {part: sha256}.

    It is the embedded pipeline's own for the pocket SAM without settings; otherwise
    `assistant.sam.proposals.everything` with `settings`.
    """
    from assistant.sam.proposals import everything

    if not settings and options.is_embedded and options.sam in (None, EMBEDDED):
        opener, checksum = load_image_opener(EMBEDDED)

        def propose(image: np.ndarray) -> Proposals:
            return opener.propose(image)[1]
    else:
        segmenter, checksum = load_segmenter(options.sam_or_preset, options.device)

        def propose(image: np.ndarray) -> Proposals:
            return everything(segmenter, segmenter.encode(image), image=image, **settings)

    return propose, {"sam": checksum}


def load_attention_probe(options: ModelOptions) -> tuple[AttentionProbe, dict[str, str]]:
    """The attention probe of the language model that the options name, and {part: sha256}.

    Beside the models of `load_pipeline` it takes image-text matchers such as BLIP. Raises BadInput where the
    model cannot be had or exposes no attention.
    """
    from assistant.weights import fingerprint, resolve_model

    check_pixels(options.pixels)
    name = options.mllm or preset_named(options.preset).mllm
    if name == EMBEDDED:
        pipeline, weights = load_preset(
            options.preset, options.adapter, options.device, options.mllm, pixels=options.pixels
        )
        return pipeline.attention_probe(), weights
    if name.startswith(SERVER_PREFIX):
        raise BadInput("a model on a server exposes no attention: give --mllm a folder or a hub id")
    from assistant.mllm.probe_loading import load_probe

    where = resolve_model(name)
    probe = load_probe(where, pick_device(options.device), options.adapter, options.pixels)
    return probe, {"mllm": fingerprint(where)}


def parts_to_train(options: ModelOptions, dino: str | None) -> tuple[str, str, str | None]:
    """The (mllm, sam, dino) that `python -m finetune` trains on: folders, files or hub ids.

    Raises BadInput for an unknown preset, or an LLM that cannot be trained here.
    """
    preset = preset_named(options.preset)
    mllm = options.mllm or preset.mllm
    if mllm.startswith(SERVER_PREFIX):
        raise BadInput("a model on a server cannot be tuned from here: give --mllm a folder or a hub id")
    return mllm, options.sam or preset.sam, dino or preset.features
