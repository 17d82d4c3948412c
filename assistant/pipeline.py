"""What every preset offers, written down once: how an image is opened, asked about and probed.

    pipeline, weights = load_preset("pocket")                       # see `assistant.presets`
    opened = pipeline.opener.open(image)                            # once per image
    reply, selections = pipeline.ask([Turn("what keeps the rain off?")], opened, threshold=0.5)

Three pipelines implement these protocols: `assistant.pocket.pipeline` (the embedded default),
`assistant.mllm.trained` (any multimodal LLM with a selector that `python -m finetune` trained) and
`assistant.mllm.zero_shot` (any multimodal LLM as it is). `assistant.scene` knows nothing else about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from assistant.errors import BadInput
from assistant.grammar import Turn
from assistant.sam.concepts import ConceptSegmenter
from assistant.sam.image_opener import Progress
from assistant.sam.mask_ops import Rle
from assistant.sam.proposals import Proposals
from assistant.sam.segmenter import Embedding, Segmenter

if TYPE_CHECKING:  # the probes in `assistant.attention` know this module, not the other way round
    from assistant.attention.prompt_attention import PromptAttention, Ranking


@dataclass
class Reply:
    """The answer of a language model to one question.

    Attributes:
        text: The answer in the reply grammar (`assistant.grammar`).
        tokens: Number of generated tokens, including the one that ends the reply.
        markers: One bool per [SEG] or [ABS] that the model wrote, in order; True for [SEG]. Empty for models
            that point by other means.
        states: (M, width) float32, the hidden state that predicts each marker; None for models without.
        margins: (M,) float32, log p([SEG]) - log p([ABS]) at each marker; None for models without.
        written: What the model itself wrote, and reads again in later turns, where that differs from `text`.
        reasoning: What the model thought before it answered, where it says so.
        calls: Number of times that the model was asked.
        read_tokens: Number of tokens that it read, those of images included; None where that is unknown.
        image_tokens: Number of those of images; None where that is unknown.
        passes: Number of phrases that a concept segmenter looked for; None without one.
        tells_numbers: Whether the question asks how many there are: the answer then has a number for each
            target, also for a single instance.
    """

    text: str
    tokens: int
    markers: list[bool] = field(default_factory=list)
    states: Tensor | None = None
    margins: Tensor | None = None
    written: str = ""
    reasoning: str = ""
    calls: int = 1
    read_tokens: int | None = None
    image_tokens: int | None = None
    passes: int | None = None
    tells_numbers: bool = False


@dataclass
class Selection:
    """What one [SEG] or [ABS] of a reply points at.

    Attributes:
        confidence: In [0, 1], that the target is in the image.
        proposals: Indices of the proposals whose union is the target's mask.
        others: Indices of the next best proposals, best first.
        mask: (H, W) bool, what the target covers beside its proposals; None where it covers nothing else.
        known: Whether the pipeline knows what was asked for; see `assistant.answer.Target`.
        seen: Whether the target is in the image though nothing outlines it; see `assistant.answer.Target`.
        searched: The phrases that a concept segmenter looked for.
        instances: (H, W) bool each, the objects that were pointed at one by one; [] where that is not known.
    """

    confidence: float
    proposals: list[int]
    others: list[int] = field(default_factory=list)
    mask: np.ndarray | None = None
    known: bool = True
    seen: bool = False
    searched: list[str] = field(default_factory=list)
    instances: list[np.ndarray] = field(default_factory=list)

    @property
    def has_mask(self) -> bool:
        """Whether it points at anything."""
        return bool(self.proposals) or self.mask is not None

    def covered(self, proposals: Proposals) -> np.ndarray:
        """What the target covers, (H, W) bool; `proposals`: all of the image's."""
        mask = proposals.union(self.proposals)
        return mask if self.mask is None else mask | self.mask


@dataclass(frozen=True)
class KnownName:
    """A name that a pipeline can give to what it sees.

    Attributes:
        name: "cup".
        group: The kind of thing that it is, such as "tableware".
        words: Other words that it answers to, in the singular and in alphabetical order: ("mug", "teacup").
    """

    name: str
    group: str
    words: tuple[str, ...] = ()


class OpenedImage(Protocol):
    """What is computed once per image. Each pipeline adds what it needs to answer."""

    @property
    def embedding(self) -> Embedding:
        """SAM's encoding of the image, for prompts by hand."""

    @property
    def proposals(self) -> Proposals:
        """The masks that a target may be made of."""


# The opened image that a pipeline's own opener makes.
Opened = TypeVar("Opened", bound=OpenedImage)
OpenedOut = TypeVar("OpenedOut", bound=OpenedImage, covariant=True)


class ImageOpener(Protocol[OpenedOut]):
    """Runs everything that is computed once per image."""

    @property
    def segmenter(self) -> Segmenter:
        """The SAM behind the proposals and behind prompts by hand."""

    def propose(self, image: np.ndarray, progress: Progress | None = None) -> tuple[Embedding, Proposals]:
        """Encode an image and run everything mode on it.

        Args:
            image: (H, W, 3) uint8 RGB.
            progress: See `assistant.sam.image_opener.Progress`.

        Returns:
            SAM's encoding and the proposals, best first.
        """

    def open(self, image: np.ndarray, progress: Progress | None = None) -> OpenedOut:
        """Compute all that answering questions about an image needs; arguments as `propose`."""


class AttentionProbe(Protocol):
    """Reads where a model attends for a phrase ("The Power of One", arXiv 2503.10779).

    Attributes:
        layers: Number of layers whose attention is read.
        ranking: Which layers or heads `assistant.attention.maps.attend` averages; None for all layers.
    """

    layers: int
    ranking: Ranking | None

    def open(self, image: Any, cache_folder: Path | None = None) -> Any:
        """Open an image as `attention` takes it.

        Args:
            image: A path, PIL image or (H, W, 3) uint8 RGB; with a `cache_folder` a path.
            cache_folder: Where a probe that attends to regions stores them, and reads them from there the
                next time; None to store nothing.

        Returns:
            The opened image. An image that the pipeline of the same model has opened can take its place.

        Raises:
            BadInput: There is no image.
        """

    def size(self, opened: Any) -> tuple[int, int]:
        """(H, W) px of an opened image."""

    def region_rles(self, opened: Any) -> list[Rle] | None:
        """The masks of the regions that the model attends to; None for a model that attends to a grid."""

    def attention(self, opened: Any, prompts: list[str], layers: list[int] | None = None) -> PromptAttention:
        """Read the attention of prompts to places of an image.

        Gradients reach the parameters that `tunable_attention` and `tunable_words` name.

        Args:
            opened: The image.
            prompts: P phrases such as "mug".
            layers: The layers to read; None for all.

        Returns:
            Attention before the softmax, of the layers in ascending order.

        Raises:
            BadInput: There is no such layer, or the model exposes no attention.
        """

    def reusing(self) -> AbstractContextManager[None]:
        """While active, what the model reads of the same opened image and prompts is computed once."""

    def tunable_attention(self, layers: list[int]) -> dict[str, nn.Parameter]:
        """The parameters of the attention of `layers`, by name, for one-shot tuning."""

    def tunable_words(self, prompts: list[str]) -> dict[str, nn.Parameter]:
        """The input embeddings of the prompts' tokens, by name, for one-shot tuning."""

    def restore(self, tuned: Mapping[str, Tensor]) -> None:
        """Use tuned parameters, named as the two methods above name them; {} gives back the model's own."""


class Pipeline(Protocol[Opened]):
    """The models behind an `assistant.Assistant`: reads questions and selects masks.

    The optional abilities have defaults here, which a pipeline inherits by naming this class as its base.

    Attributes:
        opener: Opens the images that `ask` takes.
        follow_up_rules: Whether rules work out questions about the masks of the last answer ("not that one",
            `assistant.dialogue.followups`), in English, before the model is asked. For models that understand
            such questions themselves they would be in the way.
        sees_regions: Whether `ask` takes `about`, a mask (H, W) bool that "this" and "it" mean, and shows it
            to the model. Otherwise questions about a part of an image are worked out on masks.
        concepts: Finds things by their name, without the language model; None where nothing does.
    """

    opener: ImageOpener[Opened]
    follow_up_rules: bool = False
    sees_regions: bool = False
    concepts: ConceptSegmenter[Any] | None = None

    def ask(
        self, turns: list[Turn], opened: Opened, threshold: float, **options: Any
    ) -> tuple[Reply, list[Selection]]:
        """Answer the last turn of a conversation about one image.

        Args:
            turns: Earlier turns with their answers, then the one to answer.
            opened: The image, opened by this pipeline's `opener`.
            threshold: Confidence in [0, 1] from which a target counts as present ([SEG]).
            options: `max_new_tokens`, `temperature` (0: greedy), `seed`, and `stream`, which is called with
                each new piece of the reply's text.

        Returns:
            The reply, and a selection for each of its markers, in their order.

        Raises:
            BadInput: The conversation is too long, or the model does not answer as it should.
        """

    def networks(self) -> dict[str, nn.Module]:
        """The networks on this machine, by what they do; by default SAM alone."""
        return {"SAM": self.opener.segmenter.model}

    def name_region(self, image: np.ndarray, opened: Opened, mask: np.ndarray) -> list[tuple[str, float]]:
        """Name a part of the image.

        Args:
            image: (H, W, 3) uint8 RGB.
            opened: The same image, opened.
            mask: (H, W) bool, the part.

        Returns:
            (name, probability among the names that the pipeline knows), most likely first; [] by default, for
            pipelines that have no fixed set of names.
        """
        return []

    def names_in(self, opened: Opened) -> list[str]:
        """Names of what the pipeline sees in an opened image unasked, surest first.

        By default [], for pipelines that look for nothing before they are asked.
        """
        return []

    def known_names(self) -> list[KnownName]:
        """The names that the pipeline knows; [] by default, for pipelines that take any noun."""
        return []

    def wholeness(self, opened: Opened, phrase: str) -> np.ndarray | None:
        """How likely each proposal is one whole object, by which a mask of several is taken apart.

        Args:
            opened: The image.
            phrase: What the objects are called.

        Returns:
            (N,) float in [0, 1], in the order of the proposals; None by default, for pipelines that cannot
            tell a whole from a part.
        """
        return None

    def attention_probe(self) -> AttentionProbe:
        """The probe of this pipeline's language model. Raises BadInput where it exposes no attention."""
        raise BadInput("this model exposes no attention: use the pocket preset, or another --mllm")
