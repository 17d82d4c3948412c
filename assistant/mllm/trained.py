"""A multimodal LLM and a selector that `python -m finetune` trained on any SAM's proposals.

    pipeline = load_trained_pipeline(MultimodalLLM.load("Qwen3-VL-4B-Instruct"), opener, "runs/tuned")
    opened = pipeline.opener.open(image)                # what `opener` opens, with features of every proposal
    reply, selections = pipeline.ask([Turn("what keeps the rain off?")], opened, threshold=0.5)

The folder holds `lora/` (in peft's layout; none in a merged model) and `heads.safetensors`: the selector, and
in its metadata which features it reads. As in LLM-Seg (arXiv 2404.08767) a proposal is described by what lies
under its mask in SAM's embedding, and in DINOv2's where the adapter was trained with it. Its geometry and
SAM's judgement of it are added.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assistant.errors import BadInput
from assistant.grammar import ABS, SEG, TOKEN, Turn, parse
from assistant.mllm.concept_proposals import find_proposals
from assistant.mllm.dino import Dino
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.selector import Scores, Selector, next_best_proposals, select_proposals
from assistant.pipeline import AttentionProbe, ImageOpener, Pipeline, Reply, Selection
from assistant.sam.concepts import ConceptSegmenter
from assistant.sam.image_opener import Progress, SamOpenedImage
from assistant.sam.mask_ops import decode_rle, merge_rles
from assistant.sam.proposals import Proposals
from assistant.sam.region_features import GEOMETRY, geometry, pooled
from assistant.sam.segmenter import Embedding, Segmenter
from assistant.weights import adapter_file, read_weights, sha256_of

# The last columns of a proposal's features: geometry, predicted IoU and stability.
SHAPE_DIM = GEOMETRY + 2


@dataclass(frozen=True)
class PartOrigin:
    """Which SAM or concept segmenter an adapter was trained with, or is used with.

    Attributes:
        name: What --sam or --concepts takes.
        checksum: sha256 of its weights, see `assistant.loading`.
    """

    name: str
    checksum: str


@dataclass
class TrainedOpenedImage(SamOpenedImage):
    """An opened image with what the selector reads.

    Attributes:
        features: (N, R) float32 of the proposals: what lies under their masks, then `SHAPE_DIM` columns.
    """

    features: Tensor = field(kw_only=True)


class TrainedImageOpener:
    """Opens images as another opener does, and computes the features that the selector reads.

    Args:
        base: The other opener.
        dino: Adds its features; None for SAM's alone.
    """

    def __init__(self, base: ImageOpener[SamOpenedImage], dino: Dino | None = None):
        self.base = base
        self.dino = dino

    @property
    def segmenter(self) -> Segmenter:
        """See `pipeline.ImageOpener`."""
        return self.base.segmenter

    @property
    def feature_width(self) -> int:
        """Number R of the features of a proposal."""
        dino_width = 0 if self.dino is None else self.dino.width
        return self.segmenter.feature_width + dino_width + SHAPE_DIM

    def propose(self, image: np.ndarray, progress: Progress | None = None) -> tuple[Embedding, Proposals]:
        """See `pipeline.ImageOpener`."""
        return self.base.propose(image, progress)

    @torch.inference_mode()
    def open(self, image: np.ndarray, progress: Progress | None = None) -> TrainedOpenedImage:
        """See `pipeline.ImageOpener`."""
        opened = self.base.open(image, progress)
        features = self.features(image, opened.embedding, opened.proposals)
        return TrainedOpenedImage(opened.embedding, opened.proposals, image, features=features)

    def features(self, image: np.ndarray, embedding: Embedding, proposals: Proposals) -> Tensor:
        """The features of the proposals of an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            embedding: SAM's encoding of it.
            proposals: N proposals.

        Returns:
            (N, R) float32 on the CPU: SAM's C features, DINOv2's D where there is one, and `SHAPE_DIM`
            columns.
        """
        segmenter = self.segmenter
        maps = embedding.features.float()
        side = segmenter.low_res_side
        logits = torch.as_tensor(np.asarray(proposals.low_res_logits), device=maps.device)
        masks = (logits > segmenter.threshold).float().reshape(-1, side, side)
        masks = self._without_padding(masks, embedding)
        parts = [pooled(self._without_padding(maps, embedding), masks)]
        if self.dino is not None:
            parts.append(pooled(self.dino(image).to(maps.device), masks))
        boxes = torch.as_tensor(proposals.boxes).reshape(-1, 4)
        parts.append(geometry(boxes, torch.as_tensor(proposals.areas), image.shape[:2]))
        parts.append(torch.as_tensor(np.stack([proposals.predicted_iou, proposals.stability], 1)).float())
        return torch.cat([part.cpu() for part in parts], 1)

    def _without_padding(self, square: Tensor, embedding: Embedding) -> Tensor:
        """The part of SAM's square (..., s, s) that the image fills."""
        segmenter = self.segmenter
        height = max(1, round(square.shape[-2] * embedding.input_size[0] / segmenter.side))
        width = max(1, round(square.shape[-1] * embedding.input_size[1] / segmenter.side))
        return square[..., :height, :width]


class PhraseImageOpener:
    """Opens images with what is found in them by its name as their proposals, and the features of those.

    Args:
        base: Opens images, and computes the features.
        concepts: Finds things in what `base` opens.
    """

    def __init__(self, base: TrainedImageOpener, concepts: ConceptSegmenter[Any]):
        self.base = base
        self.concepts = concepts

    @torch.inference_mode()
    def open_for(self, image: np.ndarray, phrases: Sequence[str]) -> TrainedOpenedImage:
        """Open an image (H, W, 3) uint8 RGB, with what is found for some phrases as its proposals."""
        opened = self.base.base.open(image)
        found = find_proposals(self.concepts, self.base.segmenter, opened, phrases)
        features = self.base.features(image, opened.embedding, found)
        return TrainedOpenedImage(opened.embedding, found, image, features=features)


class StandardisedSelector(nn.Module):
    """A selector whose features are standardised by their mean and deviation in training.

    Args:
        state_dim: Size of a [SEG] state.
        region_dim: Size R of the features of `TrainedImageOpener`.
        width: Of the selector's transformer.
        depth: Number of its blocks.
        dropout: Share of the activations that are dropped in training.

    Attributes:
        config: These arguments.
        mean: (R,) mean of the features.
        scale: (R,) their standard deviation.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, state_dim: int, region_dim: int, width: int = 192, depth: int = 2, dropout: float = 0.1
    ):
        super().__init__()
        self.config = {
            "state_dim": state_dim,
            "region_dim": region_dim,
            "width": width,
            "depth": depth,
            "dropout": dropout,
        }
        self.selector = Selector(state_dim, region_dim - SHAPE_DIM, SHAPE_DIM, width, depth, dropout)
        self.register_buffer("mean", torch.zeros(region_dim))
        self.register_buffer("scale", torch.ones(region_dim))

    def forward(
        self, states: Tensor, features: Tensor, margin: Tensor, ignored: Tensor | None = None
    ) -> Scores:
        """Score N proposals for M targets.

        Args:
            states: (M, state_dim) float, the states that predict the markers.
            features: (N, R) float, or (M, N, R) for each target its own.
            margin: (M,) float, log p([SEG]) - log p([ABS]) of the LLM.
            ignored: (M, N) bool, True for padding; None for none.
        """
        features = (features - self.mean) / self.scale
        regions, shapes = features[..., :-SHAPE_DIM], features[..., -SHAPE_DIM:]
        return self.selector(states.float(), regions, shapes, None, margin, ignored)


class TrainedPipeline(Pipeline[TrainedOpenedImage]):
    """Answers with a trained LLM and selector; see `pipeline.Pipeline`.

    Args:
        opener: Opens the images that are asked about.
        llm: The language model with its adapter.
        selector: Selects proposals.
        concepts: Finds the proposals by the names that the reply has; None to select among everything mode's.

    Attributes:
        max_tokens: Tokens that it may write for one answer; None for the LLM's own default.
    """

    max_tokens: int | None = None

    def __init__(
        self,
        opener: TrainedImageOpener,
        llm: MultimodalLLM,
        selector: StandardisedSelector,
        concepts: ConceptSegmenter[Any] | None = None,
    ):
        self.opener = opener
        self.llm = llm
        self.selector = selector
        self.concepts = concepts

    def networks(self) -> dict[str, nn.Module]:
        """See `pipeline.Pipeline`."""
        dino = {} if self.opener.dino is None else {"DINOv2": self.opener.dino.model}
        finder = {} if self.concepts is None else self.concepts.networks()
        return {"LLM": self.llm.model, "selector": self.selector, **super().networks(), **dino, **finder}

    @functools.cached_property
    def _probe(self) -> AttentionProbe:
        from assistant.attention.chat_probe import ChatProbe

        return ChatProbe(self.llm)

    def attention_probe(self) -> AttentionProbe:
        """The probe of the language model. Raises BadInput where it exposes no attention."""
        return self._probe

    def ask(
        self, turns: list[Turn], opened: TrainedOpenedImage, threshold: float, **options: Any
    ) -> tuple[Reply, list[Selection]]:
        """See `pipeline.Pipeline`."""
        turns = list(turns)
        if not any(turn.images for turn in turns):  # the turn that showed the image may have been forgotten
            turns[0] = dataclasses.replace(turns[0], images=[opened.image])
        if self.max_tokens is not None:
            options = {"max_new_tokens": self.max_tokens} | options
        if self.concepts is None:
            return answer(self.llm, self.selector, turns, opened.features, threshold, **options)
        return self._ask_for_concepts(self.concepts, turns, opened, threshold, **options)

    @torch.inference_mode()
    def _ask_for_concepts(
        self,
        concepts: ConceptSegmenter[Any],
        turns: list[Turn],
        opened: TrainedOpenedImage,
        threshold: float,
        **options: Any,
    ) -> tuple[Reply, list[Selection]]:
        """Answer, look for what the answer names, and select among what is found."""
        passes = concepts.passes
        reply = self.llm.reply(turns, **options)
        assert reply.states is not None and reply.margins is not None
        phrases = [mention.phrase for mention in parse(reply.text)]
        found = find_proposals(concepts, self.segmenter, opened, phrases)
        features = self.opener.features(opened.image, opened.embedding, found)
        selections = [
            Selection(s.confidence, [], mask=_union(found, s.proposals), searched=[phrase])
            for s, phrase in zip(
                select(self.selector, reply.states, reply.margins, features), phrases, strict=False
            )
        ]
        reply.passes = concepts.passes - passes
        return with_markers(reply, selections, threshold), selections

    @property
    def segmenter(self) -> Segmenter:
        """The SAM that describes proposals."""
        return self.opener.segmenter


def _union(proposals: Proposals, chosen: list[int]) -> np.ndarray | None:
    """(H, W) bool: the union of some proposals; None without any."""
    return decode_rle(merge_rles([proposals.rles[k] for k in chosen])) if chosen else None


@torch.inference_mode()
def answer(
    llm: MultimodalLLM,
    selector: StandardisedSelector,
    turns: list[Turn],
    features: Tensor,
    threshold: float,
    **options: Any,
) -> tuple[Reply, list[Selection]]:
    """Answer the last turn and select among proposals.

    All that answering needs of the proposals is their features. Training answers its validation questions
    with this function, from the features that it has stored.

    Args:
        llm: The language model.
        selector: Reads the states of the reply's markers.
        turns: The conversation, with the image in one of the turns.
        features: (N, R) float32, as `TrainedImageOpener` gives them.
        threshold: Confidence from which a target counts as present. The confidence is the selector's, which
            knows the margin of the language model.
        options: See `MultimodalLLM.reply`.

    Returns:
        The reply, with the markers as the selector decides them, and a selection for each.
    """
    reply = llm.reply(turns, **options)
    if reply.states is None or reply.margins is None:
        raise ValueError("the language model gives no states of its markers")
    selections = select(selector, reply.states, reply.margins, features)
    return with_markers(reply, selections, threshold), selections


def with_markers(reply: Reply, selections: list[Selection], threshold: float) -> Reply:
    """A reply with the markers as the selector decides them, of a confidence from `threshold` on [SEG]."""
    present = iter([s.confidence >= threshold and s.has_mask for s in selections])
    text = TOKEN.sub(lambda _: SEG if next(present, False) else ABS, reply.text)
    return dataclasses.replace(reply, text=text)


@torch.inference_mode()
def select(
    selector: StandardisedSelector, states: Tensor, margins: Tensor, features: Tensor
) -> list[Selection]:
    """Select proposals for the markers of a reply.

    Args:
        selector: The selector.
        states: (M, state_dim) float, the states that predict the markers.
        margins: (M,) float, log p([SEG]) - log p([ABS]) at each marker.
        features: (N, R) float32 of the proposals.

    Returns:
        A selection for each marker.
    """
    if not len(states) or not len(features):
        return [Selection(0.0, []) for _ in states]
    device = selector.mean.device
    scores = selector(states.to(device), features.to(device), margins.to(device))
    selections = []
    for k in range(len(states)):
        confidence = float(scores.presence[k].sigmoid())
        selected = select_proposals(scores, k)
        selections.append(Selection(confidence, selected, next_best_proposals(scores, k, selected)))
    return selections


def read_heads(folder: Path) -> tuple[StandardisedSelector, dict[str, Any]]:
    """The selector of an adapter folder, and the metadata of its file.

    Raises:
        BadInput: The folder holds none, or one of the pocket preset.
    """
    file = adapter_file(folder)
    state, about = read_weights(file)
    try:
        config = json.loads(about.get("tuned", "null"))
    except ValueError as error:
        raise BadInput(f"cannot read {file}: {error}; fetch it again") from None
    if config is None:
        raise BadInput(f"{file} belongs to the pocket preset; use it with --preset pocket")
    selector = StandardisedSelector(**config["selector"])
    selector.load_state_dict(state)
    return selector.eval(), config


def check_sam(about: Mapping[str, Any], adapter: Path, sam: PartOrigin) -> None:
    """Refuse an adapter that was trained with another SAM.

    SAM's ViT-B, ViT-L and ViT-H have features of the same width, which mean different things.

    Args:
        about: The metadata of the adapter, from `read_heads`. Adapters from before it held the SAM pass.
        adapter: Its folder.
        sam: The SAM to use it with.

    Raises:
        BadInput: It is another one.
    """
    if about.get("sam_sha256") not in (None, sam.checksum):
        raise BadInput(
            f"the adapter {adapter} was trained with the SAM {about['sam']}, not with {sam.name}: give --sam "
            f"{about['sam']}, the same file or folder"
        )


def check_concepts(about: Mapping[str, Any], adapter: Path, concepts: PartOrigin | None) -> None:
    """Refuse an adapter that was trained on what another concept segmenter finds, or on everything mode.

    Arguments as `check_sam`; None for everything mode.
    """
    trained_on = about.get("concepts")
    if about.get("concepts_sha256") == (concepts.checksum if concepts else None):
        return
    used = concepts.name if concepts else "everything mode"
    advice = f"give --concepts {trained_on}, the same folder" if trained_on else "leave out --concepts"
    found_by = trained_on or "everything mode"
    raise BadInput(f"the adapter {adapter} was trained on what {found_by} finds, not {used}: {advice}")


def stored_concepts(folder: Path) -> str | None:
    """The concept segmenter on whose finds an adapter was trained; None for everything mode."""
    if not (folder / "heads.safetensors").is_file():
        return None
    return read_heads(folder)[1].get("concepts")


def stored_pixels(folder: Path) -> int | None:
    """The most px of an image that an adapter was trained with.

    None where the folder does not say: adapters from before it was stored were trained on whole photos. They
    meet the limit of their model's family, which leaves photos of up to about a megapixel as they were, and
    for LLaVA-1.5 the padding, since without it the sides of a photo were never seen.
    """
    if not (folder / "heads.safetensors").is_file():
        return None
    return read_heads(folder)[1].get("pixels")


def load_trained_pipeline(
    llm: MultimodalLLM,
    opener: ImageOpener[SamOpenedImage],
    adapter: str | Path,
    concepts: ConceptSegmenter[Any] | None = None,
) -> TrainedPipeline:
    """The pipeline that an adapter folder makes of a multimodal LLM and an opener.

    Args:
        llm: Gets the adapter's LoRA, which is merged into its weights unless they are kept in 4 bits. Where
            it was loaded without a limit of `pixels`, it gets the adapter's too.
        opener: Of the SAM on whose proposals the adapter was trained.
        adapter: A folder that `python -m finetune` wrote.
        concepts: What found the masks on which the adapter was trained; None for everything mode.

    Raises:
        BadInput: A file is missing or broken, or the adapter was trained on another LLM.
    """
    adapter = Path(adapter)
    selector, config = read_heads(adapter)
    if llm.width != selector.config["state_dim"]:
        raise BadInput(
            f"the adapter {adapter} was trained on a language model of width {selector.config['state_dim']}, "
            f"this one has {llm.width}; give --mllm the model it was trained on: {config.get('mllm')}"
        )
    if not config.get("merged"):
        lora = adapter_file(adapter, "lora/adapter_model.safetensors")
        if sha256_of(lora) != config["lora"]:
            raise BadInput(
                f"the files in {adapter} are of two checkpoints, because training was stopped while it "
                "saved; give its command again"
            )
        llm.adapt(lora.parent, merge=not llm.is_quantized)
    if llm.pixels is None:
        llm.show_pixels(config.get("pixels"))
    device = llm.model.device
    dino = Dino(config["dino"], device) if config.get("dino") else None
    trained_opener = TrainedImageOpener(opener, dino)
    expected = selector.config["region_dim"]
    if trained_opener.feature_width != expected:
        raise BadInput(
            f"the adapter {adapter} was trained on {expected} features of a proposal, with this SAM there "
            f"are {trained_opener.feature_width}: give --sam the SAM it was trained with"
            + (f", {config['sam']}" if config.get("sam") else "")
        )
    return TrainedPipeline(trained_opener, llm, selector.to(device), concepts)
