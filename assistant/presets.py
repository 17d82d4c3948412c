"""Presets: which multimodal LLM reads the question, which SAM outlines, and how masks are selected.

    pipeline, weights = load_preset("base", device="cuda")

This is the one place that knows the presets by name: everything else asks a `Preset` or a `Pipeline`.
`assistant.loading` loads their parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from assistant.errors import BadInput
from assistant.loading.names import EMBEDDED, SERVER_PREFIX, check_pixels
from assistant.loading.pipelines import load_pipeline
from assistant.loading.sams import load_image_opener, load_segmenter

if TYPE_CHECKING:  # torch is loaded when a model is, so that every --help is instant
    import numpy as np

    from assistant.pipeline import AttentionProbe, Pipeline
    from assistant.sam.proposals import Proposals


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
        concepts: Replaces what finds things by their name, see `load_pipeline`.
        calibration: File that `python -m finetune calibrate` wrote, for the selection "concepts".
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
    calibration: Path | None = None

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
            "calibration": _last_part(self.calibration),
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
            calibration=self.calibration,
        )


def _last_part(name: object) -> str | None:
    return Path(str(name)).name if name else None


def preset_named(name: str) -> Preset:
    """The preset of that name. Raises BadInput where there is none."""
    if name not in PRESETS:
        raise BadInput(f"there is no preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]


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


def load_everything_mode(
    options: ModelOptions, settings: dict[str, Any]
) -> tuple[Callable[[np.ndarray], Proposals], dict[str, str]]:
    """Everything mode as a function from an image (H, W, 3) uint8 to its proposals, and {part: sha256}.

    It is the embedded pipeline's own for the pocket SAM without settings; otherwise
    `assistant.sam.proposals.everything` with `settings`.
    """
    from assistant.sam.proposals import everything

    if not settings and options.is_embedded and options.sam in (None, EMBEDDED):
        from assistant.pocket.opening import BOXES
        from assistant.weights import pocket_file, sha256_of

        opener, checksum = load_image_opener(EMBEDDED)

        checksums = {"sam": checksum, "boxes": sha256_of(pocket_file(BOXES))}
        return lambda image: opener.propose(image)[1], checksums
    segmenter, checksum = load_segmenter(options.sam_or_preset, options.device)

    def propose(image: np.ndarray) -> Proposals:
        return everything(segmenter, segmenter.encode(image), image=image, **settings)

    return propose, {"sam": checksum}


def load_attention_probe(options: ModelOptions) -> tuple[AttentionProbe, dict[str, str]]:
    """The attention probe of the language model that the options name, and {part: sha256}.

    Beside the models of `load_pipeline` it takes image-text matchers such as BLIP. Raises BadInput where the
    model cannot be had or exposes no attention.
    """
    from assistant.loading.devices import pick_device
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


class PartsToTrain(NamedTuple):
    """What `python -m finetune` trains on: folders, files or hub ids.

    Attributes:
        mllm: The multimodal LLM.
        sam: Whose features describe the proposals.
        dino: Whose features are added; None for none.
        concepts: What finds the proposals by their name; None for everything mode's.
    """

    mllm: str
    sam: str
    dino: str | None
    concepts: str | None


def parts_to_train(options: ModelOptions, dino: str | None) -> PartsToTrain:
    """The parts that `python -m finetune` trains on.

    Raises BadInput for an unknown preset, or an LLM that cannot be trained here.
    """
    preset = preset_named(options.preset)
    mllm = options.mllm or preset.mllm
    if mllm.startswith(SERVER_PREFIX):
        raise BadInput("a model on a server cannot be tuned from here: give --mllm a folder or a hub id")
    concepts = options.concepts or (preset.concepts if options.sam in (None, preset.sam) else None)
    return PartsToTrain(mllm, options.sam or preset.sam, dino or preset.features, concepts)
